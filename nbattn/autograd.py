"""The autograd nodes: one for eager calls, with one plan for forward and backward, and one around
the operators, for compilers, exported graphs and `torch.func`. Both refuse double backward and
forward-mode derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nbattn import execute, export, ops
from nbattn.backends.inputs import GRADIENTS, TENSORS, Inputs
from nbattn.errors import BackendError
from nbattn.ops import BACKWARD, FORWARD, Options
from nbattn.planner.plan import Plan

_FUNCTORCH: Any = torch._C._functorch  # pyright: ignore
_REFERENCE = 'backend="reference"'
Gradients = tuple[Tensor | None, ...]


def is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call can run without the operators: there is no compiler, tracer, transform,
    dispatch mode or tensor subclass.
    """
    watched = torch.compiler.is_compiling() or is_watched()
    return not watched and all(t is None or _is_plain_tensor(t) for t in tensors)


def is_watched() -> bool:
    """Whether a tracer, a transform or a dispatch mode is active."""
    return bool(
        torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
        or torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is active."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


def _is_plain_tensor(tensor: Tensor) -> bool:
    # Kernels do not see torch's negative bit; the operators compute such a tensor first.
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta
    return is_plain and not tensor.is_neg()


def _is_batched(tensor: Tensor | None) -> bool:
    """Whether the tensor comes from `torch.autograd.grad(..., is_grads_batched=True)`."""
    return tensor is not None and _FUNCTORCH.is_legacy_batchedtensor(tensor)


def trains(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a backward may follow: gradients are enabled and a tensor requires one."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def attend(
    plan: Plan, inputs: Inputs, *, return_lse: bool, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Runs a given plan on plain tensors: returns the output, and the logsumexp if `return_lse`."""
    refuse_tangents(inputs.tensors)
    if training:
        result = PlannedAttention.apply(
            plan, return_lse, inputs.scale, inputs.softcap, *inputs.tensors
        )
        return result if return_lse else (result, None)  # pyright: ignore
    out, lse = execute.forward(plan, inputs, return_lse=return_lse)
    return out, lse if return_lse else None


class PlannedAttention(torch.autograd.Function):
    """The autograd node that runs one given plan, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        return_lse: bool,
        scale: float,
        softcap: float | None,
        *tensors: Tensor | None,
    ) -> Any:
        """Returns the output, and the logsumexp if `return_lse`, of `Inputs.tensors`."""
        inputs = Inputs(*tensors, scale, softcap, plan.request.grids)  # pyright: ignore
        with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
            out, lse = execute.forward(plan, inputs, return_lse=return_lse)
            saved_lse = execute.unknown_lse(inputs.query) if lse is None else lse
        ctx.plan, ctx.numbers = plan, (scale, softcap)
        ctx.place = inputs.query.dtype, inputs.query.device
        ctx.save_for_backward(*tensors, out, saved_lse)
        ctx.set_materialize_grads(False)
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Returns the gradients of the tensors, given those of the results or None."""
        *tensors, out, lse = ctx.saved_tensors
        scale, softcap = ctx.numbers
        plan: Plan = ctx.plan
        inputs = Inputs(*tensors, scale, softcap, plan.request.grids)  # pyright: ignore

        def run(grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
            rows = (out, lse, grad_out, grad_lse)
            # a compiled backward, or gradients that are batched by torch.autograd.grad
            batched = _is_batched(grad_out) or _is_batched(grad_lse)
            if batched or not is_plain((*tensors, *rows)):
                return BACKWARD(grad_out, grad_lse, out, lse, *_backward_arguments(plan, inputs))
            _check_saved(ctx.place, (*tensors, *rows))
            computed = execute.backward(plan, inputs, *rows)
            return tuple(getattr(computed, name, None) for name in GRADIENTS)

        of_tensors = _gradients(run, grads, out, tensors)
        return None, None, None, None, *of_tensors


class OperatorAttention(torch.autograd.Function):
    """The autograd node around the operators. `torch.func` and compilers support it; it has twice
    the overhead per call.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        """Returns the output and the logsumexp of the forward operator."""
        return FORWARD(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves the arguments of the backward operator."""
        count = len(TENSORS)
        ctx.options = Options(*inputs[count:])
        ctx.save_for_backward(*inputs[:count], *output)
        ctx.set_materialize_grads(False)
        if not ctx.options.return_lse:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Returns the gradients of the arguments."""
        *tensors, out, lse = ctx.saved_tensors
        options: Options = ctx.options

        def run(grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
            grad_lse = grad_lse if options.return_lse else None
            return BACKWARD(grad_out, grad_lse, out, lse, *tensors, *options)

        return *_gradients(run, grads, out, tensors), *(None for _ in options)


def transformed(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Calls the forward operator under transforms of `torch.func`."""
    tensors, options = arguments[: len(TENSORS)], Options(*arguments[len(TENSORS) :])
    refuse_tangents(tensors)
    return OperatorAttention.apply(*tensors, *options._replace(training=True))  # pyright: ignore


def _differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Runs the forward operator when it is called directly, as in compiled and exported graphs."""
    tensors, options = arguments[: len(TENSORS)], Options(*arguments[len(TENSORS) :])
    # AOTInductor passes None for an empty list, which the schema refuses.
    options = options._replace(grids=options.grids or [], key_grids=options.key_grids or [])
    space, key_space = (t.shape[1:-2] for t in tensors[:2])
    if export.is_wanted(options.mask, space, key_space):
        return export.forward(*tensors, *options)
    refuse_tangents(tensors)
    if trains(tensors):
        return OperatorAttention.apply(*tensors, *options._replace(training=True))  # pyright: ignore
    with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
        return FORWARD(*tensors, *options)


ops.register_autograd(_differentiable)


def _backward_arguments(plan: Plan, inputs: Inputs) -> tuple[Any, ...]:
    """Returns the arguments of the backward operator for what a plan was made for.

    If the forward's backend recomputes the logsumexp, they name that backend.
    """
    request = plan.request
    absent = [None] * (len(TENSORS) - len(inputs.tensors))
    options = Options(
        request.mask.code(),
        *ops.flat_grids(request.grids),
        inputs.scale,
        inputs.softcap,
        plan.chosen.backend if execute.recomputes_lse(plan.chosen, inputs) else request.backend,
        ops.joined_names(request.require, request.forbid),
        True,
        request.deterministic,
        request.return_lse,
    )
    return *inputs.tensors, *absent, *options


def _gradients(
    run: Callable[[Tensor, Tensor | None], Gradients],
    grads: Sequence[Tensor | None],
    out: Tensor,
    tensors: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Returns the gradient of every tensor; None for tensors that are absent or have none."""
    grad_out, grad_lse = (*grads, None)[:2]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    with torch.no_grad():
        computed = run(grad_out, grad_lse)
    # no zip: torch 2.8 cannot compile a backward that uses it here
    inputs = {name: tensors[at] for at, name in enumerate(TENSORS[: len(tensors)])}
    named = {
        name: grad
        for name, grad in zip(GRADIENTS, computed, strict=True)
        if inputs.get(name) is not None and grad is not None
    }
    if torch.is_grad_enabled():
        sources = (t for t in (grad_out, *tensors) if t is not None and t.is_floating_point())
        guarded = _DoubleBackwardGuard.apply(len(named), *named.values(), *sources)
        named = dict(zip(named, guarded, strict=True))  # pyright: ignore
    return [named.get(name) for name in inputs]


class _DoubleBackwardGuard(torch.autograd.Function):
    """Returns gradients unchanged, and raises a clear error if they are differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise BackendError("double backward needs backend='reference'.", _REFERENCE)


def may_have_tangents() -> bool:
    """Whether a level of forward-mode derivatives is active."""
    level: int = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]
    return level >= 0


def refuse_tangents(tensors: Sequence[Tensor | None]) -> None:
    """Refuses tensors with tangents, since the forward-mode derivative would be lost.

    Raises:
        BackendError: a tensor has a tangent.
    """
    present = (t for t in tensors if t is not None)
    if is_transformed():
        has_tangent = any(map(_has_jvp_level, present))
    else:
        has_tangent = may_have_tangents() and any(
            forward_ad.unpack_dual(t).tangent is not None for t in present
        )
    if has_tangent:
        raise BackendError("forward-mode derivatives need backend='reference'.", _REFERENCE)


def _has_jvp_level(tensor: Tensor) -> bool:
    """Whether `torch.func.jvp` computes a tangent for a tensor of a transformed function."""
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters  # slow to load

    levels = {
        interpreter.level()
        for interpreter in retrieve_all_functorch_interpreters()
        if interpreter.key() == _FUNCTORCH.TransformType.Jvp
    }
    while levels and _FUNCTORCH.is_functorch_wrapped_tensor(tensor):
        if _FUNCTORCH.maybe_get_level(tensor) in levels:
            return True
        tensor = _FUNCTORCH.get_unwrapped(tensor)
    return False


def _check_saved(place: tuple[torch.dtype, torch.device], tensors: Sequence[Tensor | None]) -> None:
    """Checks that saved tensors have the dtype and the device of the forward, which hooks may have
    changed; their strides may change.
    """
    dtype, device = place
    present = [t for t in tensors if t is not None]
    saved_dtype = present[0].dtype
    if saved_dtype == dtype and all(t.device == device for t in present):
        return
    places = ", ".join(dict.fromkeys(str(t.device) for t in present))
    raise BackendError(
        f"saved tensors are {saved_dtype} on {places} in the backward, but were {dtype} on "
        f"{device} in the forward.",
        f"unpack=lambda tensor: tensor.to({str(device)!r}, {dtype}), for "
        "torch.autograd.graph.saved_tensors_hooks(pack, unpack)",
    )

"""The autograd nodes: one for eager calls, whose plan serves forward and backward, and one around
the operators, for compilers, exported graphs and `torch.func`; and what they refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nbattn import execute, ops
from nbattn.backends.inputs import Inputs
from nbattn.errors import BackendError
from nbattn.ops import BACKWARD, FORWARD, GRADIENTS, TENSORS, Options
from nbattn.planner.plan import Plan

_FUNCTORCH: Any = torch._C._functorch  # pyright: ignore
_REFERENCE = 'nbattn.attention(..., backend="reference").'
Gradients = tuple[Tensor | None, ...]


def is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing of torch has to see an attention as one step: no compiler, tracer,
    transform, dispatch mode, tensor subclass.
    """
    watched = torch.compiler.is_compiling() or is_watched()
    return not watched and all(t is None or _is_plain_tensor(t) for t in tensors)


def is_watched() -> bool:
    """Whether a tracer, a transform or a dispatch mode is at work."""
    return bool(
        torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
        or torch._C._is_tracing()  # pyright: ignore[reportPrivateUsage]
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


def _is_plain_tensor(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta


def _is_batched(tensor: Tensor | None) -> bool:
    """Whether `torch.autograd.grad(..., is_grads_batched=True)` made it."""
    return tensor is not None and _FUNCTORCH.is_legacy_batchedtensor(tensor)


def trains(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a backward will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def attend(
    plan: Plan, inputs: Inputs, *, return_lse: bool, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Output, and the logsumexp when it is a result, by a given plan on plain tensors."""
    refuse_tangents(inputs.tensors)
    if training:
        found = PlannedAttention.apply(
            plan, return_lse, inputs.scale, inputs.softcap, *inputs.tensors
        )
        return found if return_lse else (found, None)  # pyright: ignore
    out, lse = execute.forward(plan, inputs, return_lse=return_lse)
    return out, lse if return_lse else None


class PlannedAttention(torch.autograd.Function):
    """Attention by a given plan, which runs its backward, too."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        return_lse: bool,
        scale: float,
        softcap: float | None,
        *tensors: Tensor | None,
    ) -> Any:
        """Output, and the logsumexp when it is a result, of `Inputs.tensors`."""
        inputs = Inputs(*tensors, scale=scale, softcap=softcap)  # pyright: ignore
        with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
            out, lse = execute.forward(plan, inputs, return_lse=return_lse)
            kept = execute.unknown_lse(inputs.query) if lse is None else lse
        ctx.plan, ctx.numbers = plan, (scale, softcap)
        ctx.place = inputs.query.dtype, inputs.query.device
        ctx.save_for_backward(*tensors, out, kept)
        ctx.set_materialize_grads(False)
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors; one that is None was not needed."""
        *tensors, out, lse = ctx.saved_tensors
        scale, softcap = ctx.numbers
        inputs = Inputs(*tensors, scale=scale, softcap=softcap)  # pyright: ignore
        plan: Plan = ctx.plan

        def run(grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
            rows = (out, lse, grad_out, grad_lse)
            # a compiled backward, or gradients that torch.autograd.grad batches
            batched = _is_batched(grad_out) or _is_batched(grad_lse)
            if batched or not is_plain((*tensors, *rows)):
                return BACKWARD(grad_out, grad_lse, out, lse, *_operands(plan, inputs))
            _check_saved(ctx.place, (*tensors, *rows))
            found = execute.backward(plan, inputs, *rows)
            return tuple(getattr(found, name, None) for name in GRADIENTS)

        found = _gradients(run, grads, out, tensors)
        return None, None, None, None, *found


class OperatorAttention(torch.autograd.Function):
    """Attention by the operators: everything that `torch.func` and compilers ask for, at twice the
    cost per call.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        """Output and logsumexp of the forward operator's arguments."""
        return FORWARD(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the backward operator takes."""
        count = len(TENSORS)
        ctx.options = Options(*inputs[count:])
        ctx.save_for_backward(*inputs[:count], *output)
        ctx.set_materialize_grads(False)
        if not ctx.options.return_lse:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the arguments."""
        *tensors, out, lse = ctx.saved_tensors
        options: Options = ctx.options

        def run(grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
            grad_lse = grad_lse if options.return_lse else None
            return BACKWARD(grad_out, grad_lse, out, lse, *tensors, *options)

        return *_gradients(run, grads, out, tensors), *(None for _ in options)


def transformed(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The forward operator below transforms of `torch.func`."""
    tensors, options = arguments[: len(TENSORS)], Options(*arguments[len(TENSORS) :])
    refuse_tangents(tensors)
    return OperatorAttention.apply(*tensors, *options._replace(training=True))  # pyright: ignore


def _differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The forward operator called by itself, as compiled and exported graphs do."""
    tensors, options = arguments[: len(TENSORS)], Options(*arguments[len(TENSORS) :])
    refuse_tangents(tensors)
    if trains(tensors):
        return OperatorAttention.apply(*tensors, *options._replace(training=True))  # pyright: ignore
    with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
        return FORWARD(*arguments)


ops.register_autograd(_differentiable)


def _operands(plan: Plan, inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of the backward operator that plans again what a plan was for.

    A forward that left no logsumexp names its backend: it computes it again.
    """
    request = plan.request
    absent = [None] * (len(TENSORS) - len(inputs.tensors))
    options = Options(
        request.mask.code(),
        [],
        [],
        inputs.scale,
        inputs.softcap,
        plan.chosen.backend if execute.recomputes_lse(plan.chosen, inputs) else request.backend,
        ops.joined_traits(request.require, request.forbid),
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
    """The gradient of every tensor, None for those that are absent or have none."""
    grad_out, grad_lse = (*grads, None)[:2]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    with torch.no_grad():
        found = run(grad_out, grad_lse)
    # no zip: torch 2.8 cannot compile a backward that makes one here
    given = {name: tensors[at] for at, name in enumerate(TENSORS[: len(tensors)])}
    named = {
        name: grad
        for name, grad in zip(GRADIENTS, found, strict=True)
        if given.get(name) is not None and grad is not None
    }
    if torch.is_grad_enabled():
        sources = (t for t in (grad_out, *tensors) if t is not None and t.is_floating_point())
        once = _Once.apply(len(named), *named.values(), *sources)
        named = dict(zip(named, once, strict=True))  # pyright: ignore
    return [named.get(name) for name in given]


class _Once(torch.autograd.Function):
    """Gradients as they are, and a clear error for whoever differentiates them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise BackendError(
            "gradients of gradients are implemented by the reference alone.", _REFERENCE
        )


def may_have_tangents() -> bool:
    """Whether a level of forward-mode derivatives is entered."""
    level: int = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]
    return level >= 0


def refuse_tangents(tensors: Sequence[Tensor | None]) -> None:
    """Forward-mode derivatives are refused, never dropped.

    Raises:
        BackendError: a tensor has a tangent.
    """
    given = (t for t in tensors if t is not None)
    if is_transformed():
        found = any(map(_has_jvp_level, given))
    else:
        found = may_have_tangents() and any(
            forward_ad.unpack_dual(t).tangent is not None for t in given
        )
    if found:
        raise BackendError(
            "forward-mode derivatives are implemented by the reference alone.", _REFERENCE
        )


def _has_jvp_level(tensor: Tensor) -> bool:
    """Whether a tensor of a transformed function is one that `torch.func.jvp` follows."""
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters  # slow to load

    levels = {
        one.level()
        for one in retrieve_all_functorch_interpreters()
        if one.key() == _FUNCTORCH.TransformType.Jvp
    }
    while levels and _FUNCTORCH.is_functorch_wrapped_tensor(tensor):
        if _FUNCTORCH.maybe_get_level(tensor) in levels:
            return True
        tensor = _FUNCTORCH.get_unwrapped(tensor)
    return False


def _check_saved(place: tuple[torch.dtype, torch.device], tensors: Sequence[Tensor | None]) -> None:
    """What hooks gave back for the saved tensors is what they were given, whatever its strides."""
    dtype, device = place
    given = [t for t in tensors if t is not None]
    found = given[0].dtype
    if found == dtype and all(t.device == device for t in given):
        return
    places = ", ".join(dict.fromkeys(str(t.device) for t in given))
    raise BackendError(
        f"saved tensors came back as {found} on {places}; the forward had {dtype} on {device}.",
        "torch.autograd.graph.saved_tensors_hooks(pack, unpack) whose unpack gives tensors "
        "back on the device and in the dtype that pack was given.",
    )

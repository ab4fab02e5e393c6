"""The operator pair that every backend runs below, its fakes and batching rules, and the autograd
node around it.

Planning happens in the operators' bodies, on real shapes. Two autograd functions share them: the
plain one costs half as much per call, the other serves `torch.func`.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula  # pyright: ignore[reportUnknownVariableType]

from nbattn import geometry
from nbattn.backends.contract import Inputs, new_lse, new_output
from nbattn.errors import BackendError
from nbattn.mask import from_code
from nbattn.planner import dispatch
from nbattn.planner.plan import Plan

_OPTIONS = (
    "int[] mask, float scale, float? softcap, str backend, str[] require, str[] forbid, "
    "bool training, bool deterministic, bool return_lse"
)
_TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? sink, Tensor? key_range, "
    "Tensor? extra_key, Tensor? extra_value"
)
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("nbattn", "FRAGMENT")
_library.define(f"forward({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_TENSORS}, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

_TENSOR_COUNT, _OPTION_COUNT = 7, 9


class Options(NamedTuple):
    """The arguments of the operators that are no tensors, in schema order."""

    mask: list[int]
    scale: float
    softcap: float | None
    backend: str
    require: list[str]
    forbid: list[str]
    training: bool
    deterministic: bool
    return_lse: bool


@cache
def backend_module(name: str) -> Any:
    """The module of a backend, loaded when first used."""
    return importlib.import_module(f"nbattn.backends.{name.replace('-', '_')}")


def _inputs(arguments: tuple[Any, ...]) -> tuple[Inputs, Options]:
    options = Options(*arguments[_TENSOR_COUNT:])
    tensors = arguments[:_TENSOR_COUNT]
    return Inputs(*tensors, scale=options.scale, softcap=options.softcap), options


def _plan(inputs: Inputs, options: Options) -> Plan:
    query, key = inputs.query, inputs.key
    flags = (inputs.softcap is not None, inputs.sink is not None, inputs.key_range is not None)
    return dispatch.planned(
        tuple(options.mask),
        query.shape,
        key.shape,
        inputs.value.shape[-1],
        query.dtype,
        query.device,
        dispatch.layout_of(query, key, inputs.value),
        0 if inputs.extra_key is None else inputs.extra_key.shape[1],
        (*flags, options.training, options.deterministic, options.return_lse),
        options.backend,
        tuple(options.require),
        tuple(options.forbid),
    )


def _exact(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast inside the operators: the dtypes of their products are the backends' own."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, options = _inputs(arguments)
    chosen = _plan(inputs, options).chosen
    backend = backend_module(chosen.family)
    with _exact(inputs.query.device):
        out, lse = backend.forward(chosen.program, inputs, return_lse=options.return_lse)
    return out, _lse_output(inputs, options, lse)


def _lse_output(inputs: Inputs, options: Options, lse: Tensor | None) -> Tensor:
    """The second output: whole when it is returned or a backward may follow, else without
    elements.
    """
    if not (options.return_lse or options.training):
        return inputs.query.new_empty(0, dtype=torch.float32)
    # a backend whose backward recomputes it leaves it out; nobody reads these zeros
    return new_lse(inputs.query).zero_() if lse is None else lse


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, options = _inputs(arguments)
    wanted = options.return_lse or options.training
    lse = new_lse(inputs.query) if wanted else inputs.query.new_empty(0, dtype=torch.float32)
    return new_output(inputs.query, inputs.value), lse


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    inputs, options = _inputs(arguments)
    chosen = _plan(inputs, options).chosen
    backend = backend_module(chosen.family)
    with _exact(inputs.query.device):
        grads = backend.backward(chosen.program, inputs, out, lse, grad_out, grad_lse)
    optional = (grads.sink, grads.extra_key, grads.extra_value)
    none = inputs.query.new_empty
    return (
        grads.query,
        grads.key,
        grads.value,
        *(none(0) if grad is None else grad for grad in optional),
    )


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    inputs, _ = _inputs(arguments)
    like = (
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.sink,
        inputs.extra_key,
        inputs.extra_value,
    )
    return tuple(inputs.query.new_empty(0) if t is None else t.new_empty(t.shape) for t in like)


for _name, _body, _fake in (
    ("forward", _forward, _fake_forward),
    ("backward", _backward, _fake_backward),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nbattn::{_name}", _fake, lib=_library)
FORWARD, BACKWARD = torch.ops.nbattn.forward.default, torch.ops.nbattn.backward.default


def _batched(
    tensors: tuple[Tensor | None, ...], dims: tuple[int | None, ...], at: int
) -> list[Tensor | None]:
    """The tensors of one mapped element."""
    return [
        t if t is None or d is None else t.select(d, at) for t, d in zip(tensors, dims, strict=True)
    ]


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """For vmap: the mapped axis joins the batch axis."""
    if tensor is None:
        return None
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def _vmap(op: Any, tensors: int) -> Any:
    """The batching rule of an operator: fold into batch; a mapped sink, which has no batch, is
    looped over.
    """
    sink = tensors - _TENSOR_COUNT + 3

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        size, given, dims = info.batch_size, arguments[:tensors], in_dims[:tensors]
        rest = arguments[tensors:]
        if dims[sink] is not None or (op is BACKWARD and given[sink] is not None):
            parts = [op(*_batched(given, dims, at), *rest) for at in range(size)]
            return tuple(torch.stack(group) for group in zip(*parts, strict=True)), (0,) * len(
                parts[0]
            )
        folded = [
            t if n == sink else _fold(t, d, size)
            for n, (t, d) in enumerate(zip(given, dims, strict=True))
        ]
        outputs = op(*folded, *rest)
        rows = [t.shape[0] // max(size, 1) if t.dim() > 1 else 0 for t in outputs]
        split = (
            t.reshape(size, n, *t.shape[1:]) if t.dim() > 1 else t.expand(size, 0)
            for t, n in zip(outputs, rows, strict=True)
        )
        return tuple(split), (0,) * len(outputs)

    return rule


torch.library.register_vmap("nbattn::forward", _vmap(FORWARD, _TENSOR_COUNT), lib=_library)
torch.library.register_vmap("nbattn::backward", _vmap(BACKWARD, _TENSOR_COUNT + 4), lib=_library)


def _flops(query: Any, key: Any, value: Any, extra_key: Any, mask: list[int], products: int) -> int:
    """Useful FLOPs: `products` matrix products over the pairs that the mask allows."""
    extra = 0 if extra_key is None else extra_key[1]
    pairs = geometry.pairs(geometry.bind(from_code(mask), tuple(query[1:-2]), tuple(key[1:-2])))
    for length in query[1:-2]:
        extra *= length
    return products * query[0] * query[-2] * (pairs + extra) * (query[-1] + value[-1])


def _forward_flops(*arguments: Any, **named: Any) -> int:
    query, key, value, _, _, extra_key, _, mask = arguments[: _TENSOR_COUNT + 1]
    return _flops(query, key, value, extra_key, mask, 2)


def _backward_flops(*arguments: Any, **named: Any) -> int:
    query, key, value, _, _, extra_key, _, mask = arguments[4 : _TENSOR_COUNT + 5]
    return _flops(query, key, value, extra_key, mask, 5)


register_flop_formula(torch.ops.nbattn.forward)(_forward_flops)
register_flop_formula(torch.ops.nbattn.backward)(_backward_flops)


class _Once(torch.autograd.Function):
    """Gradients as they are, and a clear error for whoever differentiates them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:6])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise BackendError(
            "gradients of gradients are implemented by the reference alone.",
            fix='nbattn.attention(..., backend="reference").',
        )


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    """The gradient of every argument of the forward operator."""
    *tensors, out, lse = ctx.saved_tensors
    tensors = list(tensors)  # it is one, but a tuple for the compiler of torch 2.8
    inputs = [tensors.pop(0) if present else None for present in ctx.present]
    options: Options = ctx.options
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    with torch.no_grad():
        grads = BACKWARD(
            grad_out, grad_lse if options.return_lse else None, out, lse, *inputs, *options
        )
    if torch.is_grad_enabled():
        grads = _Once.apply(
            *grads, *(t for t in (grad_out, *inputs) if t is not None and t.is_floating_point())
        )
    query, key, value, sink, extra_key, extra_value = grads  # pyright: ignore
    present = (ctx.present[3], False, ctx.present[5], ctx.present[6])
    optional = zip((sink, None, extra_key, extra_value), present, strict=True)
    kept = (grad if there else None for grad, there in optional)
    return (query, key, value, *kept, *(None,) * _OPTION_COUNT)


def _remember(ctx: Any, arguments: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.options = arguments[:_TENSOR_COUNT], Options(*arguments[_TENSOR_COUNT:])
    ctx.present = [t is not None for t in tensors]
    ctx.save_for_backward(*(t for t in tensors if t is not None), *outputs)
    ctx.set_materialize_grads(False)
    if not ctx.options.return_lse:
        ctx.mark_non_differentiable(outputs[1])


class Attention(torch.autograd.Function):
    """The autograd node of every backend but the reference."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Output and logsumexp of the forward operator's arguments."""
        outputs = FORWARD(*arguments)
        _remember(ctx, arguments, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the arguments."""
        return _gradients(ctx, *grads)


def _differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The forward operator called by itself, as exported graphs do: differentiable as well."""
    tensors = [t for t in arguments[:_TENSOR_COUNT] if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        options = Options(*arguments[_TENSOR_COUNT:])._replace(training=True)
        return Attention.apply(*arguments[:_TENSOR_COUNT], *options)  # pyright: ignore
    # one comparison for those who have no tangents: every call comes by
    if forward_ad._current_level >= 0 and any(  # pyright: ignore[reportPrivateUsage]
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise BackendError(
            "forward-mode derivatives are implemented by the reference alone.",
            fix='nbattn.attention(..., backend="reference").',
        )
    with torch._C._AutoDispatchBelowAutograd():  # pyright: ignore[reportPrivateUsage]
        return FORWARD(*arguments)


_library.impl("forward", _differentiable, "Autograd")


class TransformableAttention(torch.autograd.Function):
    """The same node for `torch.func` transforms, at twice the cost per call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        """Output and logsumexp of the forward operator's arguments."""
        return FORWARD(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the backward operator takes."""
        _remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the arguments."""
        return _gradients(ctx, *grads)

"""Programs of torch's scaled_dot_product_attention calls: dense, top-left causal, or with the mask
as a matrix.

On the CPU the kernel is called below autograd, with its logsumexp, so that extra keys and sinks
merge and the backward reuses the forward's results. Elsewhere the public function runs, and the
backward repeats it under autograd.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nbattn.backends.contract import Gradients, Inputs, new_lse, new_output, rows_apart
from nbattn.backends.joining import merge, merge_sink, positive, sink_gradient
from nbattn.dialects.dense import Causal, Dense, Matrix
from nbattn.geometry import BoundAxis
from nbattn.planner.programs import Call, CallArguments, Program, View

_Arrays = tuple[Tensor, Tensor, Tensor]
_Part = tuple[Tensor, Tensor | None]  # output, and on the CPU its logsumexp
_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Output and, on the CPU, the logsumexp of a program."""
    inputs, _ = positive(inputs)
    on_cpu = inputs.query.device.type == "cpu"
    parts = [_run(call, inputs, on_cpu=on_cpu) for call in program.calls]
    calls, space = program.calls, inputs.query.shape[1:-2]
    whole = len(calls) == 1 and calls[0].query.covers(space)
    out, lse = _as_they_are(parts[0], inputs) if whole else _placed(program, parts, inputs)
    if lse is None or not on_cpu:
        return out, None
    _merge_extra(inputs, out, lse)
    merge_sink(inputs.sink, out, lse)
    return out, lse


def _run(call: Call, inputs: Inputs, *, on_cpu: bool) -> _Part:
    """One call's rows `[B', H', N', D]` and logsumexp `[B', H', N']`."""
    arrays = _arrays(call, inputs)
    if on_cpu:
        return _kernel(call.arguments, arrays, inputs.scale)
    return _public(call.arguments, arrays, inputs.scale), None


def _as_they_are(part: _Part, inputs: Inputs) -> _Part:
    """Output and logsumexp of one call for all rows, which are not copied."""
    rows, (out, lse) = inputs.query.shape[:-1], part
    out = out.to(inputs.query.dtype).transpose(1, 2).contiguous()
    # the kernel's memory, but no view of its output: the result may be modified in place
    out = _UNSAFE_VIEW(out, (*rows, out.shape[-1]))
    return out, None if lse is None else _UNSAFE_VIEW(lse.transpose(1, 2).contiguous(), rows)


def _placed(program: Program, parts: list[_Part], inputs: Inputs) -> _Part:
    """The calls' rows in one output and one logsumexp; rows in no call read nothing."""
    out = new_output(inputs.query, inputs.value).zero_()
    lse = new_lse(inputs.query).fill_(float("-inf"))
    for call, (part, part_lse) in zip(program.calls, parts, strict=True):
        _place(call.query, out, part)
        if part_lse is not None:
            _place(call.query, lse.unsqueeze(-1), part_lse.unsqueeze(-1))
    return out, lse


def _place(view: View, whole: Tensor, part: Tensor) -> None:
    """Write a call's rows `[B', H', N', D]` where they belong in `[B, *space, H, D]`."""
    spread = view.spread(whole)
    spread.copy_(part.transpose(1, 2).reshape(spread.shape))


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Gradients from the final output and logsumexp: every call's weights are exp(scores - lse)."""
    inputs, sign = positive(inputs)
    parts = [_run_backward(call, inputs, out, lse, grad_out) for call in program.calls]
    query, key, value = (
        _summed(
            [
                (getattr(call, side), part[n])
                for call, part in zip(program.calls, parts, strict=True)
            ],
            like,
        )
        for n, (side, like) in enumerate(
            (("query", inputs.query), ("key", inputs.key), ("key", inputs.value))
        )
    )
    extra_key, extra_value = _extra_backward(inputs, query, out, lse, grad_out)
    if sign != 1.0:
        query.mul_(sign)
    return Gradients(
        query, key, value, sink_gradient(inputs.sink, out, lse, grad_out), extra_key, extra_value
    )


def _run_backward(
    call: Call, inputs: Inputs, out: Tensor, lse: Tensor, grad_out: Tensor
) -> _Arrays:
    """Gradients of one call's q, k, v, as `[B', H', N', D]`."""
    arrays = _arrays(call, inputs)
    if inputs.query.device.type != "cpu":
        return _public_backward(
            call.arguments, arrays, inputs.scale, _heads_first(call.query.folded(grad_out))
        )
    rows = [_heads_first(call.query.folded(t)) for t in (grad_out, out, lse.unsqueeze(-1))]
    return _kernel_backward(
        call.arguments, arrays, inputs.scale, rows[0], rows[1], rows[2].squeeze(-1)
    )


def _summed(parts: list[tuple[View, Tensor]], like: Tensor) -> Tensor:
    """The calls' gradients of one input, added where their views come from."""
    if len(parts) == 1 and parts[0][0].covers(like.shape[1:-2]):
        return parts[0][1].transpose(1, 2).reshape(like.shape).to(like.dtype).contiguous()
    total = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for view, part in parts:
        spread = view.spread(total)
        spread.add_(part.transpose(1, 2).reshape(spread.shape))
    return total


def _arrays(call: Call, inputs: Inputs) -> _Arrays:
    """q, k, v of a call as `[B', H', N', D]`."""
    query = _heads_first(call.query.folded(inputs.query))
    return (
        query,
        _heads_first(call.key.folded(inputs.key)),
        _heads_first(call.key.folded(inputs.value)),
    )


def _heads_first(folded: Tensor) -> Tensor:
    line = folded if folded.dim() == 4 else folded.flatten(1, -3)
    return line.transpose(1, 2)


def _kernel_arguments(
    arguments: CallArguments, arrays: _Arrays, scale: float
) -> tuple[_Arrays, dict[str, object]]:
    """Tensors in a dtype that the CPU kernel is fast in, and its named arguments."""
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    if query.dtype == torch.float16:
        query, key, value = query.float(), key.float(), value.float()
    query, key, value = (_readable(t) for t in (query, key, value))
    if group > 1:
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    bias = None
    if isinstance(arguments, Matrix):
        bias = _bias(arguments.lines, query.dtype)
    return (query, key, value), {"attn_mask": bias, "scale": scale}


def _readable(tensor: Tensor) -> Tensor:
    """`[B, H, N, D]` as torch's kernels read it, copied where it is not.

    They read a row as D neighbours, whatever the last stride says; the products of the CPU's take
    the rows' stride as a leading dimension, of D or more; and it lays its output out in the order
    of the query's strides, so that rows of it overlap where two of those are equal.
    """
    return tensor if rows_apart(tensor, shared=True) else tensor.contiguous()


def _kernel(arguments: CallArguments, arrays: _Arrays, scale: float) -> tuple[Tensor, Tensor]:
    """One call: output `[B', H', N', D]` and logsumexp `[B', H', N']`."""
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    # a dense mask does not ask for a query's position: the heads of a key head may be its rows,
    # which copies queries instead of keys and values
    as_rows = group > 1 and isinstance(arguments, Dense) and query.shape[2] < key.shape[2]
    if as_rows:
        query = query.unflatten(1, (-1, group)).flatten(2, 3)
    tensors, named = _kernel_arguments(arguments, (query, key, value), scale)
    causal = isinstance(arguments, Causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *tensors, 0.0, causal, **named
    )
    if as_rows:
        out, lse = (t.unflatten(2, (group, -1)).flatten(1, 2) for t in (out, lse))
    return out, lse


def _kernel_backward(
    arguments: CallArguments,
    arrays: _Arrays,
    scale: float,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
) -> _Arrays:
    tensors, named = _kernel_arguments(arguments, arrays, scale)
    causal = isinstance(arguments, Causal)
    # its logsumexp has the strides of [B, N, H]: keep them
    rows = [_readable(t.to(tensors[0].dtype)) for t in (grad_out, out)]
    query, key, value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        rows[0], *tensors, rows[1], lse, 0.0, causal, **named
    )
    group = query.shape[1] // arrays[1].shape[1]
    if group > 1:
        key, value = (t.unflatten(1, (-1, group)).sum(2) for t in (key, value))
    return query, key, value


def _public(arguments: CallArguments, arrays: _Arrays, scale: float) -> Tensor:
    bias = (
        _bias(arguments.lines, arrays[0].dtype).to(arrays[0].device)
        if isinstance(arguments, Matrix)
        else None
    )
    return torch.nn.functional.scaled_dot_product_attention(
        *(_readable(t) for t in arrays),
        attn_mask=bias,
        is_causal=isinstance(arguments, Causal),
        scale=scale,
        enable_gqa=arrays[0].shape[1] != arrays[1].shape[1],
    )


def _public_backward(
    arguments: CallArguments, arrays: _Arrays, scale: float, grad_out: Tensor
) -> _Arrays:
    with torch.enable_grad():
        leaves = tuple(t.detach().requires_grad_() for t in arrays)
        return torch.autograd.grad(_public(arguments, leaves, scale), leaves, grad_out)  # pyright: ignore


@lru_cache(16)
def _bias(lines: tuple[BoundAxis, ...], dtype: torch.dtype) -> Tensor:
    """The mask as an additive matrix."""
    allowed = torch.from_numpy(Matrix(lines).allowed((), ()))
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def _merge_extra(inputs: Inputs, out: Tensor, lse: Tensor) -> None:
    """Join the attention over the extra keys into out and lse."""
    if inputs.extra_key is None or inputs.extra_value is None or not inputs.extra_key.shape[1]:
        return
    arrays = _extra_arrays(inputs)
    if not arrays[0].numel():
        return
    part, part_lse = _kernel(Dense(), arrays, inputs.scale)
    part, part_lse = (
        part.transpose(1, 2).reshape(out.shape),
        part_lse.transpose(1, 2).reshape(lse.shape),
    )
    merge(out, lse, part, part_lse)


def _extra_arrays(inputs: Inputs) -> _Arrays:
    assert inputs.extra_key is not None
    assert inputs.extra_value is not None
    query = inputs.query.flatten(1, -3).transpose(1, 2)
    return query, inputs.extra_key.transpose(1, 2), inputs.extra_value.transpose(1, 2)


def _extra_backward(
    inputs: Inputs, grad_query: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the extra keys; the queries' share is added to `grad_query`."""
    if inputs.extra_key is None or inputs.extra_value is None:
        return None, None
    arrays = _extra_arrays(inputs)
    if not arrays[0].numel() or not arrays[1].numel():
        extra = (inputs.extra_key, inputs.extra_value)
        return extra[0].new_zeros(extra[0].shape), extra[1].new_zeros(extra[1].shape)
    rows = [t.flatten(1, -3).transpose(1, 2) for t in (grad_out, out)]
    flat_lse = lse.flatten(1, -2).transpose(1, 2)
    query, key, value = _kernel_backward(Dense(), arrays, inputs.scale, rows[0], rows[1], flat_lse)
    grad_query.add_(query.transpose(1, 2).reshape(grad_query.shape))
    return tuple(t.transpose(1, 2).to(inputs.key.dtype).contiguous() for t in (key, value))  # pyright: ignore

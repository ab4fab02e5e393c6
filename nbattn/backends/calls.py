"""Runs programs call by call with any kernel: applies views, writes or merges rows, and computes
the backward from the final output and logsumexp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nbattn.backends.inputs import Gradients, Inputs, accumulate_dtype, new_lse, new_output
from nbattn.backends.logsumexp import TINY, merge, merge_sink, positive, sink_gradient
from nbattn.program.program import Call, CallArguments, Program, View, whole

Arrays = tuple[Tensor, Tensor, Tensor]
_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default


@dataclass(frozen=True, slots=True)
class RowTensors:
    """The rows of a call in the backward: out and its gradient `[B, N, H, D]`, lse and its gradient
    `[B, N, H]`.
    """

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None


class Kernel(Protocol):
    """The forward and backward of one kernel call on q, k, v as `[B, N, H, D]`."""

    def forward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output `[B, N, H, Dv]` and the logsumexp `[B, N, H]`, -inf for rows without
        keys; None from a kernel that has no logsumexp.

        A kernel that can write its output into the tensor `into` does so, and returns that tensor.
        """
        ...

    def backward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Returns the gradients of q, k, v, in their shapes."""
        ...

    def without_mask(self, program: Program) -> CallArguments:
        """Returns the arguments of a call whose queries attend to every key, for extra keys."""
        ...


def forward(program: Program, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
    """Returns the output and the logsumexp of a program."""
    if inputs.scale < TINY:
        inputs, _ = positive(inputs)
    calls = program.calls
    is_whole = len(calls) == 1 and calls[0].query.covers(inputs.query.shape[1:-2])
    if is_whole and (inputs.extra_key is None or not inputs.has_extra):
        out, lse = _whole(calls[0], inputs, kernel)
    else:
        out, lse = _joined(program, inputs, kernel)
    if lse is not None and inputs.sink is not None:
        merge_sink(inputs.sink, out, lse)
    return out if out.dtype == inputs.query.dtype else out.to(inputs.query.dtype), lse


def _whole(call: Call, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
    """Runs the only call of a program, without copying its output."""
    out, lse = kernel.forward(call.arguments, _arrays(call, inputs), inputs.scale, inputs.softcap)
    rows = inputs.query.shape[:-1]
    # the kernel's memory, but not a view for autograd: users may modify the result in place
    out = _UNSAFE_VIEW(out.contiguous(), (*rows, out.shape[-1]))
    return out, None if lse is None else _UNSAFE_VIEW(lse.contiguous(), rows)


def _joined(program: Program, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
    """Runs all calls into one output, which is 0 for queries without keys.

    Kernels write their rows themselves if they can. If calls join, the output is accumulated in
    float32, and no kernel writes into it.
    """
    joins = inputs.has_extra or any(call.joins for call in program.calls)
    out, lse = new_output(inputs.query, inputs.value), new_lse(inputs.query)
    out = out.to(accumulate_dtype(out.dtype)) if joins else out
    if not program.writes_all(inputs.space):
        out.zero_()
        lse.fill_(float("-inf"))
    has_lse = True
    for call in program.calls:
        into = None if joins else call.query.rows_of(out)
        arrays = _arrays(call, inputs)
        part, part_lse = kernel.forward(call.arguments, arrays, inputs.scale, inputs.softcap, into)
        _place(call, out, lse, None if part is into else part, part_lse)
        has_lse = has_lse and part_lse is not None
    if inputs.has_extra and inputs.query.numel():
        arguments = kernel.without_mask(program)
        arrays = _extra_arrays(inputs)
        part, part_lse = kernel.forward(arguments, arrays, inputs.scale, inputs.softcap)
        assert part_lse is not None
        merge(out, lse, part.reshape(out.shape), part_lse.reshape(lse.shape))
    return out, lse if has_lse else None


def _place(
    call: Call, out: Tensor, lse: Tensor, part: Tensor | None, part_lse: Tensor | None
) -> None:
    """Writes the rows of a call, or merges them into those of earlier calls.

    `part` is None if the kernel has already written it.
    """
    rows, row_lse = call.query.spread(out), call.query.spread(lse.unsqueeze(-1)).squeeze(-1)
    if call.joins:
        assert part is not None
        assert part_lse is not None
        merge(rows, row_lse, part.reshape(rows.shape), part_lse.reshape(row_lse.shape))
        return
    if part is not None:
        rows.copy_(part.reshape(rows.shape))
    if part_lse is not None:
        row_lse.copy_(part_lse.reshape(row_lse.shape))


def backward(
    program: Program,
    inputs: Inputs,
    kernel: Kernel,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients from the final output and logsumexp: the weights of every call are
    exp(scores - lse), whichever other keys are part of the softmax.
    """
    inputs, sign = positive(inputs)
    all_rows = RowTensors(out, lse, grad_out, grad_lse)
    tensors = (inputs.query, inputs.key, inputs.value)
    several = len(program.calls) + inputs.has_extra > 1
    totals: list[Tensor | None] = [None, None, None]
    for call in program.calls:
        arrays, rows = _arrays(call, inputs), _rows(call.query, all_rows)
        parts = kernel.backward(call.arguments, arrays, rows, inputs.scale, inputs.softcap)
        for n, view in enumerate((call.query, call.key, call.key)):
            totals[n] = _added(totals[n], view, parts[n], tensors[n], several=several)
    extra = _extra_backward(program, inputs, kernel, all_rows)
    if extra is not None:
        totals[0] = _added(totals[0], whole(inputs.space), extra[0], inputs.query, several=several)
    query, key, value = (
        like.new_zeros(like.shape) if total is None else total.to(like.dtype)
        for total, like in zip(totals, tensors, strict=True)
    )
    if sign != 1.0:
        query.mul_(sign)
    sink = sink_gradient(inputs.sink, out, lse, grad_out, grad_lse)
    return Gradients(query, key, value, sink, *_extra_gradients(inputs, extra))


def _added(
    total: Tensor | None, view: View, part: Tensor, like: Tensor, *, several: bool
) -> Tensor:
    """Adds a call's gradient to that of one input, at the positions of the call's view.

    Sums of several calls are in float32 or wider; one call on the whole tensor needs no sum.
    """
    if not several and view.covers(like.shape[1:-2]):
        return part.reshape(like.shape).contiguous()
    if total is None:
        exact = accumulate_dtype(like.dtype) if several else like.dtype
        total = like.new_zeros(like.shape, dtype=exact)
    view.add(total, part)
    return total


def _extra_backward(
    program: Program, inputs: Inputs, kernel: Kernel, rows: RowTensors
) -> Arrays | None:
    """Computes what the extra keys add to the gradient of the queries, and the gradients of the
    extra keys and values; None without extra keys.
    """
    if not inputs.has_extra or not inputs.query.numel():
        return None
    rank = inputs.rank
    out, lse, grad_out = (t.flatten(1, rank) for t in (rows.out, rows.lse, rows.grad_out))
    grad_lse = None if rows.grad_lse is None else rows.grad_lse.flatten(1, rank)
    arguments, arrays = kernel.without_mask(program), _extra_arrays(inputs)
    flat = RowTensors(out, lse, grad_out, grad_lse)
    return kernel.backward(arguments, arrays, flat, inputs.scale, inputs.softcap)


def _extra_gradients(inputs: Inputs, extra: Arrays | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of the extra keys and values, 0 if no query attends to them."""
    if inputs.extra_key is None or inputs.extra_value is None:
        return None, None
    if extra is None:
        key, value = inputs.extra_key, inputs.extra_value
        return key.new_zeros(key.shape), value.new_zeros(value.shape)
    dtype = inputs.query.dtype
    return extra[1].to(dtype).contiguous(), extra[2].to(dtype).contiguous()


def _arrays(call: Call, inputs: Inputs) -> Arrays:
    """Returns q, k, v of a call as `[B', N', H', D]`."""
    query, key, value = inputs[:3]
    if not call.query.covers(query.shape[1:-2]):
        query = call.query.folded(query)
    if not call.key.covers(key.shape[1:-2]):
        key, value = call.key.folded(key), call.key.folded(value)
    if query.dim() == 4:
        return query, key, value
    return query.flatten(1, -3), key.flatten(1, -3), value.flatten(1, -3)


def _flat(folded: Tensor) -> Tensor:
    return folded if folded.dim() == 4 else folded.flatten(1, -3)


def _extra_arrays(inputs: Inputs) -> Arrays:
    assert inputs.extra_key is not None
    assert inputs.extra_value is not None
    return _flat(inputs.query), inputs.extra_key, inputs.extra_value


def _rows(view: View, rows: RowTensors) -> RowTensors:
    """Returns the rows of a call's view."""
    out, grad_out = (_flat(view.folded(t)) for t in (rows.out, rows.grad_out))
    lse, grad_lse = (
        None if t is None else _flat(view.folded(t.unsqueeze(-1))).squeeze(-1)
        for t in (rows.lse, rows.grad_lse)
    )
    assert lse is not None
    return RowTensors(out, lse, grad_out, grad_lse)

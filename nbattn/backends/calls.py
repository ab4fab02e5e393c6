"""Programs of Flash calls run by any kernel that has their meaning: views, rows, joins, and the
backward from the final output and logsumexp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from nbattn.backends.contract import Gradients, Inputs, accumulate_dtype, new_lse, new_output
from nbattn.backends.joining import merge, merge_sink, positive, sink_gradient
from nbattn.dialects.flash import DIALECTS, Flash, Told
from nbattn.planner.programs import Call, Program, View

Arrays = tuple[Tensor, Tensor, Tensor]
_SMALL = 1e-4  # a scale below it would leave padded keys in float16 a weight


@dataclass(frozen=True, slots=True)
class Rows:
    """What a backward knows of the rows of a call: out and its gradient `[B, N, H, D]`, lse and its
    gradient `[B, N, H]`.
    """

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None


class Kernel(Protocol):
    """Raw forward and backward of one call on q, k, v as `[B, N, H, D]`."""

    def forward(
        self,
        call: Flash,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output `[B, N, H, Dv]` and logsumexp `[B, N, H]`, -inf for rows without keys.

        A kernel that can write into the rows `into` does so, and gives back that very tensor.
        """
        ...

    def backward(
        self, call: Flash, arrays: Arrays, rows: Rows, scale: float, softcap: float | None
    ) -> Arrays:
        """Gradients of q, k, v, in their shapes."""
        ...


def forward(program: Program, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of a program."""
    inputs, _ = positive(inputs)
    if _is_single(program, inputs):
        (call,) = program.calls
        out, lse = kernel.forward(_flash(call), _arrays(call, inputs), inputs.scale, inputs.softcap)
        rows = inputs.query.shape[:-1]
        out, lse = out.reshape(*rows, inputs.value.shape[-1]), lse.reshape(rows)
    else:
        out, lse = _joined(program, inputs, kernel)
    out, lse = out.contiguous(), lse.contiguous()
    merge_sink(inputs.sink, out, lse)
    return out.to(inputs.query.dtype), lse


def _forward(
    call: Call, inputs: Inputs, kernel: Kernel, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of one call, on its own rows."""
    told, arrays, scale = _told(call, inputs)
    return kernel.forward(told, arrays, scale, inputs.softcap, into)


def _backward(call: Call, inputs: Inputs, kernel: Kernel, rows: Rows) -> Arrays:
    """Gradients of one call, on its own queries and keys."""
    told, arrays, scale = _told(call, inputs)
    query, key, value = kernel.backward(told, arrays, rows, scale, inputs.softcap)
    if not _flash(call).pad:
        return query, key, value
    size, keys = inputs.query.shape[-1], call.key.count
    # the kernel has seen the queries times inputs.scale / scale
    query = query[..., :size] * (inputs.scale / scale)
    return query, key[:, :keys, :, :size], value[:, :keys]


def _told(call: Call, inputs: Inputs) -> tuple[Flash, Arrays, float]:
    """What the kernel is given: padded keys get weight 0 by one more column of the heads.

    Their score is -scale x 2**30 in float16, -scale x 2**80 else; a scale too small for that goes
    into the queries.
    """
    told, (query, key, value) = _flash(call), _arrays(call, inputs)
    if not told.pad:
        return told, (query, key, value), inputs.scale
    large = 2.0**15 if query.dtype == torch.float16 else 2.0**40
    scale = inputs.scale
    if scale < _SMALL:
        query, scale = query * scale, 1.0
    query = pad(query, (0, 1), value=large)
    key = pad(pad(key, (0, 1)), (0, 0, 0, 0, 0, told.pad))
    key[:, -told.pad :, :, -1] = -large
    value = pad(value, (0, 0, 0, 0, 0, told.pad))
    return replace(told, pad=0), (query, key, value), scale


def _is_single(program: Program, inputs: Inputs) -> bool:
    """Whether one call gives every row, and nothing joins."""
    calls = program.calls
    return len(calls) == 1 and not inputs.has_extra and calls[0].query.covers(_space(inputs))


def _space(inputs: Inputs) -> tuple[int, ...]:
    return tuple(inputs.query.shape[1:-2])


def _joined(program: Program, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The rows of all calls in one output, 0 where nothing is read.

    Kernels write their rows themselves; where parts join, the output is exact in between, which no
    kernel writes.
    """
    joins = inputs.has_extra or any(call.joins for call in program.calls)
    out, lse = new_output(inputs.query, inputs.value), new_lse(inputs.query)
    out = out.to(accumulate_dtype(out.dtype)) if joins else out
    if not program.writes_all(_space(inputs)):
        out.zero_()
        lse.fill_(float("-inf"))
    for call in program.calls:
        into = None if joins else call.query.rows_of(out)
        part, part_lse = _forward(call, inputs, kernel, into)
        _place(call, out, lse, None if part is into else part, part_lse)
    if inputs.has_extra:
        part, part_lse = kernel.forward(
            _everything(program), _extra_arrays(inputs), inputs.scale, inputs.softcap
        )
        merge(out, lse, part.reshape(out.shape), part_lse.reshape(lse.shape))
    return out, lse


def _place(call: Call, out: Tensor, lse: Tensor, part: Tensor | None, part_lse: Tensor) -> None:
    """Write the rows of a call, or merge them into those of earlier ones; None is written."""
    rows, row_lse = call.query.spread(out), call.query.spread(lse.unsqueeze(-1)).squeeze(-1)
    part_lse = part_lse.reshape(row_lse.shape)
    if call.joins:
        assert part is not None
        merge(rows, row_lse, part.reshape(rows.shape), part_lse)
        return
    if part is not None:
        rows.copy_(part.reshape(rows.shape))
    row_lse.copy_(part_lse)


def backward(
    program: Program,
    inputs: Inputs,
    kernel: Kernel,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Gradients from the final output and logsumexp: every call's weights are exp(scores - lse),
    whatever else took part in the softmax.
    """
    inputs, sign = positive(inputs)
    whole = Rows(out, lse, grad_out, grad_lse)
    exact = accumulate_dtype(out.dtype)
    several = len(program.calls) + inputs.has_extra > 1
    query, key, value = (
        t.new_zeros(t.shape, dtype=exact if several else t.dtype)
        for t in (inputs.query, inputs.key, inputs.value)
    )
    for call in program.calls:
        parts = _backward(call, inputs, kernel, _rows(call.query, whole))
        views = (call.query, call.key, call.key)
        for view, total, part in zip(views, (query, key, value), parts, strict=True):
            view.add(total, part)
    extra_key, extra_value = _extra_backward(program, inputs, kernel, whole, query)
    if sign != 1.0:
        query.mul_(sign)
    return Gradients(
        query.to(out.dtype),
        key.to(out.dtype),
        value.to(out.dtype),
        sink_gradient(inputs.sink, out, lse, grad_out, grad_lse),
        extra_key,
        extra_value,
    )


def _extra_backward(
    program: Program, inputs: Inputs, kernel: Kernel, whole: Rows, query: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the extra keys; the queries' share is added to `query`."""
    if inputs.extra_key is None or inputs.extra_value is None:
        return None, None
    if not inputs.has_extra:
        return inputs.extra_key.new_zeros(inputs.extra_key.shape), inputs.extra_value.new_zeros(
            inputs.extra_value.shape
        )
    arrays = _extra_arrays(inputs)
    rank = inputs.rank
    out, lse, grad_out = (t.flatten(1, rank) for t in (whole.out, whole.lse, whole.grad_out))
    grad_lse = None if whole.grad_lse is None else whole.grad_lse.flatten(1, rank)
    flat = Rows(out, lse, grad_out, grad_lse)
    call = _everything(program)
    parts = kernel.backward(call, arrays, flat, inputs.scale, inputs.softcap)
    query.add_(parts[0].reshape(query.shape))
    return parts[1].to(whole.out.dtype), parts[2].to(whole.out.dtype)


def _flash(call: Call) -> Flash:
    assert isinstance(call.arguments, Flash)
    return call.arguments


def _everything(program: Program) -> Flash:
    """The maskless call of the program's provider."""
    provider = _flash(program.calls[0]).provider
    unlimited = DIALECTS[provider].unlimited
    return Flash(provider, "dense", Told(unlimited, unlimited))


def _arrays(call: Call, inputs: Inputs) -> Arrays:
    """q, k, v of a call as `[B', N', H', D]`."""
    rank = inputs.rank
    query = call.query.folded(inputs.query).flatten(1, rank)
    key, value = (call.key.folded(t).flatten(1, rank) for t in (inputs.key, inputs.value))
    return query, key, value


def _extra_arrays(inputs: Inputs) -> Arrays:
    assert inputs.extra_key is not None
    assert inputs.extra_value is not None
    return inputs.query.flatten(1, inputs.rank), inputs.extra_key, inputs.extra_value


def _rows(view: View, whole: Rows) -> Rows:
    """The rows of a call."""
    rank = len(view.axes)
    out, grad_out = (view.folded(t).flatten(1, rank) for t in (whole.out, whole.grad_out))
    columns = (
        None if t is None else view.folded(t.unsqueeze(-1)).flatten(1, rank).squeeze(-1)
        for t in (whole.lse, whole.grad_lse)
    )
    lse, grad_lse = columns
    assert lse is not None
    return Rows(out, lse, grad_out, grad_lse)

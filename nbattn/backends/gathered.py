"""Runs packed grids by programs for one grid per sample: the grids of one size are gathered into a
batch, and their results are scattered. Grids that lie side by side are views, without copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbattn.backends import families
from nbattn.backends.inputs import (
    GRADIENTS,
    Gradients,
    Inputs,
    accumulate_dtype,
    new_lse,
    new_output,
)
from nbattn.geometry import Ints
from nbattn.grids import PackedGrids
from nbattn.program.program import Program

Rows = slice | Tensor  # rows of a tensor: in a row, or anywhere
# What has one entry per grid; relative_bias and sink are shared by all grids.
_PER_GRID = ("key_range", "extra_key", "extra_value", "extra_range")
_SHARED = ("sink", "relative_bias")


@dataclass(frozen=True, slots=True)
class Part:
    """The grids of one size.

    Args:
        number: of the size, in `PackedGrids.sizes`.
        space, key_space: the size.
        count: how many there are.
        grids, queries, keys: the grids, and the rows of their tokens.
    """

    number: int
    space: tuple[int, ...]
    key_space: tuple[int, ...]
    count: int
    grids: Rows
    queries: Rows
    keys: Rows


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Computes the output, and the logsumexp if every size gives one."""
    out, lse = new_output(inputs.query, inputs.value), new_lse(inputs.query)
    is_known = True
    for part in _parts(inputs):
        candidate = _candidate(program, part)
        backend = families.runner(candidate.runner)
        of_size = _inputs(inputs, part)
        part_out, part_lse = backend.forward(candidate.program, of_size, return_lse=return_lse)
        _write(out, part.queries, part_out)
        if part_lse is None:
            is_known = False
        else:
            _write(lse, part.queries, part_lse)
    return out, lse if is_known else None


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients of every size; those of what all grids share are summed."""
    exact = accumulate_dtype(inputs.query.dtype)
    totals = {
        name: torch.zeros_like(
            given,
            dtype=exact if name in _SHARED else given.dtype,
            memory_format=torch.contiguous_format,
        )
        for name in GRADIENTS
        if (given := getattr(inputs, name)) is not None
    }
    raised = inputs._replace(
        sink=None if inputs.sink is None else inputs.sink.to(exact),
        relative_bias=None if inputs.relative_bias is None else inputs.relative_bias.to(exact),
    )
    is_expanded = not any(lse.stride()) and lse.numel() > 0  # the NaN of an unknown logsumexp
    for part in _parts(inputs):
        candidate = _candidate(program, part)
        rows = [
            None if t is None else _batch(t, part.queries, part.count, part.space)
            for t in (out, None if is_expanded else lse, grad_out, grad_lse)
        ]
        if is_expanded:
            rows[1] = lse.new_full((), torch.nan).expand(rows[0].shape[:-1])  # pyright: ignore
        of_size = _inputs(raised, part)
        backend = families.runner(candidate.runner)
        grads = backend.backward(candidate.program, of_size, *rows)
        for name, total in totals.items():
            grad = getattr(grads, name)
            if grad is None:
                continue
            if name in _SHARED:
                total.add_(grad)
            else:
                place = {"query": part.queries, "key": part.keys, "value": part.keys}
                _write(total, place.get(name, part.grids), grad)
    return Gradients(
        **{
            name: totals[name].to(getattr(inputs, name).dtype) if name in totals else None  # pyright: ignore
            for name in GRADIENTS
        }
    )


def warmup(program: Program) -> None:
    """Prepares the programs of all sizes."""
    arguments: Any = program.calls[0].arguments
    sizes = arguments.request.grids.sizes
    for number in np.flatnonzero(sizes.query.all(axis=1)).tolist():
        candidate = arguments.candidate(number)
        backend = families.runner(candidate.runner)
        if hasattr(backend, "warmup"):
            backend.warmup(candidate.program)


def _candidate(program: Program, part: Part) -> Any:
    """What runs the grids of one size."""
    arguments: Any = program.calls[0].arguments
    return arguments.candidate(part.number)


def _parts(inputs: Inputs) -> tuple[Part, ...]:
    assert inputs.grids is not None
    return parts(inputs.grids, inputs.query.device)


@lru_cache(64)
def parts(packed: PackedGrids, device: torch.device) -> tuple[Part, ...]:
    """Returns the grids by size, with the rows of their tokens; grids without queries are left out,
    since nothing is computed for them.
    """
    return tuple(_made(packed, device))


def _made(packed: PackedGrids, device: torch.device) -> Iterator[Part]:
    sizes = packed.sizes
    order = np.argsort(sizes.which, kind="stable")
    ends = np.cumsum(sizes.count)
    for number, (end, count) in enumerate(zip(ends.tolist(), sizes.count.tolist(), strict=True)):
        at = order[end - count : end]
        space, key_space = (tuple(side[number].tolist()) for side in (sizes.query, sizes.key))
        if 0 in space:
            continue
        rows = (at, packed.query.rows(at), packed.key.rows(at))
        yield Part(number, space, key_space, count, *(_rows(each, device) for each in rows))


def _rows(numbers: Ints, device: torch.device) -> Rows:
    """Rows as a slice where they follow one another."""
    count = len(numbers)
    if not count:
        return slice(0, 0)
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == count - 1:  # they increase
        return slice(first, last + 1)
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)


def _inputs(inputs: Inputs, part: Part) -> Inputs:
    """Returns the tensors of the grids of one size."""
    slopes = inputs.alibi_slopes
    if slopes is not None and slopes.dim() == 2:
        slopes = _taken(slopes, part.grids)
    per_grid = {
        name: _taken(given, part.grids)
        for name in _PER_GRID
        if (given := getattr(inputs, name)) is not None
    }
    return inputs._replace(
        query=_batch(inputs.query, part.queries, part.count, part.space),
        key=_batch(inputs.key, part.keys, part.count, part.key_space),
        value=_batch(inputs.value, part.keys, part.count, part.key_space),
        alibi_slopes=slopes,
        grids=None,
        **per_grid,  # pyright: ignore[reportArgumentType]
    )


def _taken(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _batch(tensor: Tensor, rows: Rows, count: int, space: tuple[int, ...]) -> Tensor:
    """Returns rows `[T, …]` as a batch of grids, `[count, *space, …]`."""
    return _taken(tensor, rows).unflatten(0, (count, *space))


def _write(total: Tensor, rows: Rows, part: Tensor) -> None:
    """Writes a batch of grids, or entries of grids, to rows of all."""
    some = part.flatten(0, part.dim() - total.dim())
    if isinstance(rows, slice):
        total[rows] = some
    else:
        total.index_copy_(0, rows, some.to(total.dtype))

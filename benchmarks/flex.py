"""FlexAttention as peer: the mask as formula, as table, and as table over tokens sorted by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peers import Prepared, RefusedError, class_lengths, first_head, heads_first, order, passes
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from workloads import Workload

from nbattn.axis import Axis

_TILES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def written(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare a usual mask function with div and mod on row-major tokens, blocks of 128."""
    return _prepare(workload, formula(workload), heads_first(workload, dtype, False), training)


def lookup(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare a mask function that indexes the dense boolean matrix, blocks of 128."""
    table = workload.dense()
    return _prepare(workload, _table(table), heads_first(workload, dtype, False), training)


def tiled(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare the table over tokens sorted so that a block is a tile; sorting is not timed."""
    steps = tuple(axis.dilation for axis in workload.mask.axes)
    limits = _TILES[len(steps)]
    lengths = class_lengths(workload)
    sides = tuple(_divisor(n, limit) for n, limit in zip(lengths, limits, strict=True))
    queries = order(workload.space, steps, sides)
    keys = queries if workload.keys == workload.space else torch.arange(workload.key_count)
    query, key, value, grad = heads_first(workload, dtype, False)
    inputs = (query[:, :, queries], key[:, :, keys], value[:, :, keys], grad)
    back = queries.argsort()
    prepared = _prepare(
        workload, _table(workload.dense()[queries][:, keys]), inputs, training, math.prod(sides)
    )
    note = f"tile {'x'.join(map(str, sides))}; sorting not counted"
    return Prepared(prepared.run, lambda t: t[0, 0][back], note)


def _prepare(
    workload: Workload,
    mask: MaskFunction,
    inputs: tuple[Tensor, ...],
    training: bool,
    block: int = 128,
) -> Prepared:
    """Compile `flex_attention` with the block mask of the mask function."""
    if training:
        _probe_backward()
    sizes = (workload.queries, workload.key_count)
    blocks = create_block_mask(mask, None, None, *sizes, device="cpu", BLOCK_SIZE=block)
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return compiled(query, key, value, block_mask=blocks)

    return Prepared(passes(function, inputs, training), first_head)


def _probe_backward() -> None:
    """Raise RefusedError if this torch has no backward of `flex_attention`."""
    tiny = torch.zeros(1, 1, 16, 16, requires_grad=True)
    try:
        flex_attention(tiny, tiny, tiny)
    except NotImplementedError as error:
        raise RefusedError(str(error).partition(". ")[0]) from None


def formula(workload: Workload) -> MaskFunction:
    """Return the mask as arithmetic on row-major token numbers."""
    axes = workload.mask.axes
    if len(axes) == 1:
        return lambda b, h, q, k: _allowed(axes[0], workload.space[0], q, k)

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = None
        for axis, length in zip(reversed(axes), reversed(workload.space), strict=True):
            condition = _allowed(axis, length, q % length, k % length)
            allowed = condition if allowed is None else allowed & condition
            q, k = q // length, k // length
        assert allowed is not None
        return allowed

    return mask


def _allowed(axis: Axis, length: int, q: Tensor, k: Tensor) -> Tensor:
    """Return the condition of one axis, whose dilation divides its length."""
    d = axis.dilation
    row, column = (q, k) if d == 1 else (q // d, k // d)
    if axis.border == "shift":
        assert axis.left is not None
        assert axis.right is not None
        row = row.clamp(axis.left, length // d - 1 - axis.right)
    checks = [] if d == 1 else [q % d == k % d]
    if axis.left is not None:
        checks.append(row - column <= axis.left)
    if axis.right is not None:
        checks.append(column - row <= axis.right)
    allowed = checks[0]
    for check in checks[1:]:
        allowed = allowed & check
    return allowed


def _table(table: Tensor) -> MaskFunction:
    return lambda b, h, q, k: table[q, k]


def _divisor(length: int, limit: int) -> int:
    """Return the largest divisor of `length` up to `limit`."""
    return max(n for n in range(1, min(length, limit) + 1) if length % n == 0)

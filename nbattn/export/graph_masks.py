"""Masks inside of graphs: computed from lengths by operators, dense or by tiles, as `geometry` does
outside of graphs. Lengths may be symbols. There are no constants, so that a graph that was exported
before can be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn.axis import Axis
from nbattn.errors import BackendError, MaskError, NbattnError
from nbattn.mask import Mask, from_code
from nbattn.rows import Rows, rows_of, window_of
from nbattn.symbolic import is_certain, is_symbolic


def refusal(
    code: Sequence[int], space: Sequence[int], key_space: Sequence[int]
) -> NbattnError | None:
    """Returns the error of a mask, as its code, that the graph would have to check when it runs;
    None for a mask that is legal for all values of the symbols among its lengths.
    """
    if any(map(is_symbolic, code)):
        return BackendError(
            "numbers of the mask are inputs of the exported graph, in which standard operators "
            "need constants.",
            'align="bottom-right" in the place of a difference of lengths, or no dynamic_shapes '
            "for what the numbers come from.",
        )
    mask = from_code(code)
    for number, axis in enumerate(mask.axes):
        queries, keys = space[number], key_space[number]
        has_one_length = is_certain(queries == keys)
        period = axis.dilation * axis.stride
        dim = f'{period} * torch.export.Dim("n")' if period > 1 else 'torch.export.Dim("n")'
        where = f"axis {number} ({queries} queries, {keys} keys)"
        if axis.border == "wrap" and not (has_one_length and is_certain(keys % period == 0)):
            return MaskError(
                f'{where}: border="wrap" needs as many queries as keys, a multiple of dilation x '
                f"stride = {period}, which a graph with dynamic lengths cannot check.",
                f"{dim} for queries and keys in dynamic_shapes, or no dynamic length.",
                repr(mask),
            )
        if not (axis.border == "wrap" or axis.align or axis.is_full or has_one_length):
            return MaskError(
                f"{where}: align=None needs as many queries as keys, which a graph with dynamic "
                "lengths cannot check.",
                f'one torch.export.Dim("n") for queries and keys in dynamic_shapes, or as axis '
                f"{number} {replace(axis, align='top-left')!r} or "
                f"{replace(axis, align='bottom-right')!r}.",
                repr(mask),
            )
    return None


def dense_mask(
    mask: Mask, space: Sequence[int], key_space: Sequence[int], device: torch.device
) -> Tensor:
    """Returns the mask, bool `[Nq, Nk]`."""
    lengths = zip(mask.axes, space, key_space, strict=True)
    return outer([_dense_axis(*axis, device) for axis in lengths])


def outer(
    axes: Sequence[Tensor], join: Callable[[Tensor, Tensor], Tensor] = torch.logical_and
) -> Tensor:
    """Returns one tensor per axis, `[…, n]` each, joined over the products of their lengths."""
    rank, sides = len(axes), axes[0].dim()
    placed: list[Tensor] = []
    for number, axis in enumerate(axes):
        sizes: list[int] = [1] * (rank * sides)
        sizes[number::rank] = axis.shape
        placed.append(axis.reshape(sizes))
    joint = reduce(join, placed)
    for side in range(sides):
        joint = joint.flatten(side, side + rank - 1)
    return joint


def _dense_axis(axis: Axis, queries: int, keys: int, device: torch.device) -> Tensor:
    """Returns the mask of one axis, bool `[queries, keys]`."""
    step = axis.dilation
    position = torch.arange(queries, device=device) + offset_of(axis, queries, keys)
    u = position // step
    residue = position - u * step
    low, lo, hi = _rows(axis, u, _class_length(axis, keys, residue))
    first, low, lo, hi = (
        side[:, None] for side in (residue, *(residue + step * n for n in (low, lo, hi)))
    )
    key = torch.arange(keys, device=device)
    inside = ((key >= first) & (key < low)) | ((key >= lo) & (key < hi))
    return inside if step == 1 else inside & (key % step == first)


class Tiling(NamedTuple):
    """How an axis is cut: every residue class into `tiles` tiles of `rows` queries, with room for
    the `columns` keys that a tile attends to.
    """

    axis: Axis
    queries: int
    keys: int
    tiles: int
    rows: int
    columns: int

    @property
    def total(self) -> int:
        """Tiles of all classes."""
        return self.axis.dilation * self.tiles


def tiling(axis: Axis, queries: int, keys: int, rows: int) -> Tiling:
    """Returns the tiles of an axis, of `rows` queries; an unlimited axis has one tile per class."""
    step, stride = axis.dilation, axis.stride
    in_class, columns = (queries + step - 1) // step, (keys + step - 1) // step
    if axis.left is None or axis.right is None:
        return Tiling(axis, queries, keys, 1, in_class, columns)
    hull = axis.left + axis.right + 1 + (rows + stride - 2) // stride * stride + axis.prefix
    if is_symbolic(columns) or hull < columns:
        columns = hull
    return Tiling(axis, queries, keys, (in_class + rows - 1) // rows, rows, columns)


class Tiles(NamedTuple):
    """The tiles of one axis.

    Args:
        queries: the queries of every tile, `[tiles, rows]`; short tiles repeat one.
        keys: the keys of every tile, `[tiles, columns]`; short tiles repeat one.
        allowed: whether a row attends to a column, bool `[tiles, rows, columns]`.
        places: where every query is among all rows, `[queries]`.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor
    places: Tensor


def tiles(cut: Tiling, device: torch.device) -> Tiles:
    """Computes the tiles of an axis; the columns of a tile are the hull of its rows' keys.

    Between the two intervals of a hull lies a gap without keys, and keys behind it move to the left
    by its length (`BoundAxis.tiles`).
    """
    axis, queries, keys, number, size, width = cut
    step, offset = axis.dilation, offset_of(axis, queries, keys)
    residue = torch.arange(step, device=device)[:, None, None]  # [classes, tiles, rows or columns]
    length = _class_length(axis, keys, residue)
    start, stop = (-((residue - end) // step) for end in (offset, offset + queries))
    row = torch.arange(number * size, device=device).reshape(1, number, size)
    u = (start + row).minimum(stop - 1)
    hull = _hull(axis, u[..., :1], u[..., -1:], length)
    gap = hull.lo - hull.low
    low, lo, hi = _rows(axis, u, length)
    move = torch.where(lo >= hull.lo, gap, 0)
    column = torch.arange(width, device=device)
    t = torch.where(column < hull.low, column, column + gap)
    low, lo, hi = (side[..., None] for side in (low, lo - move, hi - move))
    allowed = (column < low) | ((column >= lo) & (column < hi))
    position = torch.arange(queries, device=device) + offset
    of_class = position % step
    first = -((of_class - offset) // step)
    return Tiles(
        (residue + step * u - offset).clamp(0, queries - 1).flatten(0, 1),
        (residue + step * t).clamp(0, keys - 1).flatten(0, 1),
        allowed.flatten(0, 1),
        of_class * (number * size) + position // step - first,
    )


def offset_of(axis: Axis, queries: int, keys: int) -> int:
    """Returns the position of query 0 on the key axis."""
    return (keys - queries if axis.align == "bottom-right" else 0) + axis.offset


def _class_length(axis: Axis, keys: int, residue: Tensor) -> Tensor:
    """Returns the number of keys in the class of every residue."""
    return ((keys + axis.dilation - 1 - residue) // axis.dilation).clamp(min=0)


def _rows(axis: Axis, u: Any, length: Tensor) -> Rows:
    """Returns the keys of the queries at class coordinates u."""
    return rows_of(axis, *window_of(axis, u, length), length)


def _hull(axis: Axis, first: Any, last: Any, length: Tensor) -> Rows:
    """Returns the hull of the keys of the queries from first to last."""
    lo, _, _ = window_of(axis, first, length)
    _, hi, prefix = window_of(axis, last, length)
    return rows_of(axis, lo, hi, prefix, length)

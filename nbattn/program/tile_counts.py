"""The three axes of the GPU kernels' tiles, and how many tiles of rows an axis or a grid has."""

from __future__ import annotations

import numpy as np

from nbattn.axis import Axis
from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.grids import PackedGrids
from nbattn.mask import Mask

Extents = tuple[int, int, int]
RANK = 3  # axes of the kernels' tiles
TRIVIAL = BoundAxis(Axis(), 1, 1)


def placed(extents: tuple[int, ...], axes: tuple[int, ...]) -> Extents:
    """The extents on the given axes, 1 on the others.

    >>> placed((8, 16), (1, 2))
    (1, 8, 16)
    """
    by_axis = dict(zip(axes, extents, strict=True))
    return by_axis.get(0, 1), by_axis.get(1, 1), by_axis.get(2, 1)


def padded(axes: Axes) -> Axes:
    """The axes with leading ones of one query and one key, `RANK` in all."""
    return (TRIVIAL,) * (RANK - len(axes)) + axes


def row_tiles(axis: BoundAxis, rows: int, *, inverse: bool) -> int:
    """Tiles of rows on one axis: each residue class gets as many as the longest needs."""
    length = axis.keys if inverse else axis.queries
    classes = min(axis.spec.dilation, length)
    longest = (length + axis.spec.dilation - 1) // axis.spec.dilation
    return classes * ((longest + rows - 1) // rows)


def row_tiles_of(mask: Mask, grids: PackedGrids, rows: Extents, *, inverse: bool) -> Ints:
    """Tiles of rows of each of the packed grids, `[G]`, counted as `row_tiles` does."""
    lengths = (grids.key if inverse else grids.query).array
    counts = np.ones(len(grids), dtype=np.int64)
    for axis, length, extent in zip(mask.axes, lengths.T, rows[RANK - mask.rank :], strict=True):
        longest = -(-length // axis.dilation)
        counts *= np.minimum(axis.dilation, length) * -(-longest // extent)
    return counts

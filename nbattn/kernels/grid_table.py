"""The table of packed grids that kernels read, as `cuda/grids.cuh` declares it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Ints
from nbattn.grids import PackedGrids

_RANK = 3  # axes of the kernels
GRID = np.dtype(
    [
        *((name, "<i4", _RANK) for name in ("queries", "keys", "offset", "first_tile")),
        *((name, "<i8") for name in ("first_query", "first_key")),
    ]
)


def table(grids: PackedGrids, offsets: Ints, row_tiles: Sequence[Ints] = ()) -> NDArray[np.void]:
    """Returns the table, one row for each grid.

    Args:
        grids: the grids.
        offsets: of each grid's first query on the key axes, `[G, rank]`.
        row_tiles: tiles of rows of each grid, `[G]`, of the GPU's kernels fwd, dq and dkdv.
    """
    rows = np.zeros(len(grids), dtype=GRID)
    rank = offsets.shape[1]
    for name, numbers, others in (
        ("queries", grids.query.array, 1),
        ("keys", grids.key.array, 1),
        ("offset", offsets, 0),
    ):
        rows[name] = others
        rows[name][:, _RANK - rank :] = numbers
    for kernel, tiles in enumerate(row_tiles):
        rows["first_tile"][1:, kernel] = np.cumsum(tiles)[:-1]
    rows["first_query"], rows["first_key"] = grids.query.starts[:-1], grids.key.starts[:-1]
    return rows

"""Tests of the table of packed grids: lengths, offsets, tokens and tiles before each grid."""

from __future__ import annotations

import numpy as np

from nbattn.grids import PackedGrids, grids_of
from nbattn.kernels import grid_table


def test_a_row_for_each_grid() -> None:
    grids = PackedGrids(grids_of([(2, 3), (0, 4), (5, 1)]), grids_of([(2, 2), (1, 1), (3, 3)]))
    offsets = np.array([[0, -1], [1, -3], [-2, 2]])
    tiles = [np.array([1, 0, 4]), np.array([2, 0, 8]), np.array([3, 1, 9])]
    rows = grid_table.table(grids, offsets, tiles)
    assert rows.dtype.itemsize == 64
    assert rows["queries"].tolist() == [[1, 2, 3], [1, 0, 4], [1, 5, 1]]
    assert rows["keys"].tolist() == [[1, 2, 2], [1, 1, 1], [1, 3, 3]]
    assert rows["offset"].tolist() == [[0, 0, -1], [0, 1, -3], [0, -2, 2]]
    assert rows["first_tile"].tolist() == [[0, 0, 0], [1, 2, 3], [1, 2, 4]]
    assert rows["first_query"].tolist() == [0, 6, 6]
    assert rows["first_key"].tolist() == [0, 4, 5]


def test_no_grids() -> None:
    none = PackedGrids(*[grids_of([], 1)] * 2)
    assert len(grid_table.table(none, np.zeros((0, 1), dtype=np.int64), [np.zeros(0)])) == 0

"""Tests of tiles of rows: against the enumerator, and their totals in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes

from nbattn import Axis, Mask, geometry

Count = Callable[[str, int], None]


@given(bound_axes(24), st.integers(1, 9))
@example((Axis(0, causal=True, stride=4, prefix=3), 8, 8), 3)  # windows that are empty at first
def test_tiles_hold_every_row_of_the_axis(
    cases: Count, bound: tuple[Axis, int, int], size: int
) -> None:
    """Every query is in one tile, whose columns are the keys of its runs, mask included."""
    axis, queries, keys = bound
    bound_axis, d = geometry.bind(Mask(axis), queries, keys)[0], axis.dilation
    found = np.zeros((queries, keys), dtype=int)
    totals = np.zeros(4, dtype=int)
    for tile in bound_axis.tiles(size):
        rows = [tile.queries[0] + d * n for n in range(tile.queries[1])]
        columns = [start + d * n for start, count in tile.keys for n in range(count)]
        assert len(columns) == tile.width
        assert len(rows) <= size
        found[np.ix_(rows, columns)] += tile.allowed() if columns else 0
        assert tile.is_full == tile.allowed().all()
        totals += [1, len(rows), tile.width, len(rows) * tile.width]
    assert np.array_equal(found, axis_matrix(axis, queries, keys))
    assert totals[1] == queries
    assert bound_axis.tile_totals(size) == tuple(totals.tolist())
    cases("tiles, axes", 1)


SIDES = st.none() | st.integers(0, 40) | st.integers(0, 4000)


@given(
    bound_axes(24),
    st.tuples(SIDES, SIDES),
    st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
    st.integers(1, 90),
)
def test_totals_of_long_axes_are_the_sums_of_their_tiles(
    cases: Count,
    bound: tuple[Axis, int, int],
    sides: tuple[int | None, int | None],
    lengths: tuple[int, int],
    size: int,
) -> None:
    """Beyond what is summed tile by tile: series between the bends of windows and borders."""
    axis, (queries, keys) = bound[0], lengths
    left, right = (0 if side is None and axis.border == "shift" else side for side in sides)
    axis = replace(axis, left=left, right=0 if axis.causal else right)
    if axis.border == "wrap":
        queries = keys = keys - keys % (axis.dilation * axis.stride)
    elif axis.align is None:
        keys = queries
    bound_axis = geometry.bind(Mask(axis), queries, keys)[0]
    tiles = [(tile.queries[1], tile.width) for tile in bound_axis.tiles(size)]
    rows, widths = (sum(side) for side in zip(*tiles, strict=True)) if tiles else (0, 0)
    pairs = sum(row * width for row, width in tiles)
    assert bound_axis.tile_totals(size) == (len(tiles), rows, widths, pairs)
    cases("tiles, long axes", 1)


def test_totals_of_two_thousand_million_tokens_are_exact() -> None:
    (bound_axis,) = geometry.bind(Mask(Axis(4095, 0)), 2**31 - 1, 2**31 - 1)
    tiles, rows, keys, pairs = bound_axis.tile_totals(64)
    assert (tiles, rows) == (2**25, 2**31 - 1)
    # a tile's keys: its own and the 4095 before them, which the first 64 tiles have in part
    missing = sum(max(0, 4095 - 64 * tile) for tile in range(64))
    assert keys == 2**31 - 1 + 4095 * 2**25 - missing
    assert pairs == 64 * keys - (63 + 4095)  # the last tile has 63 rows

"""Tests of traversals of tiles, as in the CUDA kernels: against the enumerator, and their counts in
closed form against counting tile by tile, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes
from work import work

from nbattn import Axis, Mask
from nbattn.geometry import Axes, BoundAxis, bind
from nbattn.program import tile_traversal
from nbattn.program.tile_traversal import Traversal

Count = Callable[[str, int], None]
SIZES = st.sampled_from((1, 2, 3, 4, 5, 8, 16))
SIDES = st.none() | st.integers(0, 40) | st.integers(0, 1500)


def pairs_of_tiles(bound_axis: BoundAxis, rows: int, columns: int, *, inverse: bool) -> np.ndarray:
    """How often the tiles compute each pair, as they mask it."""
    traversal = Traversal(bound_axis, inverse)
    shape = (
        (bound_axis.keys, bound_axis.queries) if inverse else (bound_axis.queries, bound_axis.keys)
    )
    times = np.zeros(shape, dtype=int)
    for tile in traversal.tiles(rows, columns):
        assert 0 < len(tile.positions) <= rows
        for part in tile.columns:
            assert 0 < len(part.positions) <= columns
            assert part.reads.all() or not part.full
            times[np.ix_(tile.positions, part.positions)] += part.reads
    return times.T if inverse else times


@pytest.mark.parametrize("inverse", [False, True])
@given(bound=bound_axes(24), rows=SIZES, columns=SIZES)
@example(bound=(Axis(0, 0, prefix=1), 6, 6), rows=2, columns=2)  # a tile with a key of the prefix
def test_traversal_visits_every_pair_of_the_axis_once(
    cases: Count, bound: tuple[Axis, int, int], rows: int, columns: int, inverse: bool
) -> None:
    """Tile by tile, and by the runs of rows that serve at any length; every row is in one tile."""
    bound_axis = bind(Mask(bound[0]), *bound[1:])[0]
    wanted = axis_matrix(*bound)
    assert np.array_equal(pairs_of_tiles(bound_axis, rows, columns, inverse=inverse), wanted)
    traversal, d = Traversal(bound_axis, inverse), bound[0].dilation
    found = np.zeros((bound_axis.keys, bound_axis.queries) if inverse else wanted.shape, dtype=int)
    for row, (starts, counts) in enumerate(zip(*traversal.reads(rows, columns), strict=True)):
        for start, count in zip(starts, counts, strict=True):
            found[row, start : start + d * count : d] += 1
            assert count == found[row, start : start + d * count : d].size
    assert np.array_equal(found.T if inverse else found, wanted)
    assert traversal.tile_pairs(rows, columns) == sum(
        len(t.columns) for t in traversal.tiles(rows, columns)
    )
    cases("tile traversals, axes", 1)


@given(bound=bound_axes(24), rows=SIZES)
def test_separate_tiles_share_no_column(
    cases: Count, bound: tuple[Axis, int, int], rows: int
) -> None:
    """Every tile of a class against the next but one and all later ones."""
    bound_axis = bind(Mask(bound[0]), *bound[1:])[0]
    if not Traversal(bound_axis).separate(rows):
        return
    classes: dict[int, list[set[int]]] = {}
    for tile in Traversal(bound_axis).tiles(rows, 0):
        columns = {int(at) for part in tile.columns for at in part.positions}
        classes.setdefault(int(tile.positions[0]) % bound[0].dilation, []).append(columns)
    for tiles in classes.values():
        for number, columns in enumerate(tiles):
            assert not columns & set().union(*tiles[number + 2 :])
    cases("separate tiles", 1)


@pytest.mark.parametrize(
    ("mask", "least"),
    [
        (Mask.neighborhood(255), 254),
        (Mask.sliding_window(511), 511),
        (Mask.neighborhood(31, dilation=4), 30),
        (Mask.causal(), 1000),
    ],
    ids=str,
)
def test_the_fewest_rows_of_separate_tiles(mask: Mask, least: int) -> None:
    """Windows of n keys end n - 1 after they start; of two tiles, none is the next but one."""
    traversal = Traversal(bind(mask, 2000)[0])
    assert traversal.separate(least)
    assert not traversal.separate(least - 1)


def test_rows_that_meet_at_both_ends_are_not_separate() -> None:
    for axis in (Axis(1, 1, border="wrap"), Axis(1, 1, prefix=1)):
        assert not Traversal(bind(Mask(axis), 64)[0]).separate(32)


@pytest.mark.parametrize("inverse", [False, True])
@given(
    bound=bound_axes(24),
    sides=st.tuples(SIDES, SIDES),
    lengths=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    offset=st.integers(-1500, 1500),
    sizes=st.tuples(st.sampled_from((7, 8, 16)), st.sampled_from((8, 12, 64))),
)
def test_pair_counts_of_long_axes_are_those_of_their_tiles(
    cases: Count,
    bound: tuple[Axis, int, int],
    sides: tuple[int | None, int | None],
    lengths: tuple[int, int],
    offset: int,
    sizes: tuple[int, int],
    inverse: bool,
) -> None:
    """Beyond what is summed tile by tile: series between the bends of windows and borders."""
    axis, (queries, keys) = bound[0], lengths
    left, right = (0 if side is None and axis.border == "shift" else side for side in sides)
    axis = replace(axis, left=left, right=0 if axis.causal else right)
    if axis.border == "wrap":
        queries = keys = keys - keys % (axis.dilation * axis.stride)
    elif offset % 3 == 0:
        axis = replace(axis, offset=offset, prefix=offset % 700 if axis.dilation == 1 else 0)
    if axis.align is None and axis.border != "wrap":
        keys = queries
    traversal = Traversal(bind(Mask(axis), queries, keys)[0], inverse)
    assert traversal.tile_pairs(*sizes) == sum(
        len(tile.columns) for tile in traversal.tiles(*sizes)
    )
    cases("tile traversals, long axes", 1)


def test_two_thousand_million_tokens_are_counted_at_once() -> None:
    bound_axis = bind(Mask(Axis(4095, 0)), 2**31, 2**31)[0]
    found = (
        Traversal(bound_axis).tile_pairs(64, 64),
        Traversal(bound_axis, inverse=True).tile_pairs(64, 64),
    )
    for inverse in (False, True):
        took = work(partial(Traversal(bound_axis, inverse).tile_pairs, 64, 64))
        assert took.lines <= 2000
        assert took.peak <= 1 << 17
    # a tile's own 64 keys and the 4095 before them: 65 tiles, but for the first 64 tiles of rows
    assert found[0] == 2**25 * 65 - sum(64 - tile for tile in range(64))
    assert found[1] == found[0]


def test_the_first_tile_starts_at_the_window() -> None:
    """128 keys are two tiles of 64 wherever they lie; a prefix, and what a window has past the end
    of a wrapped axis, is a run of its own.
    """
    bound_axis = bind(Mask(Axis(63, 64, offset=100, align="top-left")), 1, 4096)[0]
    assert Traversal(bound_axis).tile_pairs(64, 64) == 2
    bound_axis = bind(Mask(Axis(63, 64, offset=1000, prefix=3, align="top-left")), 1, 4096)[0]
    assert Traversal(bound_axis).tile_pairs(64, 64) == 3
    bound_axis = bind(Mask(Axis(3, 3, border="wrap")), 64, 64)[0]
    assert Traversal(bound_axis).tile_pairs(64, 8) == 1 + 8  # 61 to 63, and 0 to 60
    assert Traversal(bound_axis).tile_pairs(8, 16) == 8 + 2  # one more for each tile at the seam


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_gradients_of_other_pairs_than_the_output_are_refused(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes, sizes = bind(Mask(Axis(2, 1, border="shift")), 9), ((4,), (3,))
    found = tile_traversal.pairs_of_kernels(axes, sizes, None, sizes)
    assert np.array_equal(found, axis_matrix(axes[0].spec, 9, 9))
    right, wrong = tile_traversal.pairs, ((2,), (3,))

    def one_fewer(axes: Axes, rows: Any, columns: Any, *, inverse: bool) -> np.ndarray:
        pairs = right(axes, rows, columns, inverse=inverse)
        pairs[4, 4] &= (rows, columns) != wrong or inverse != (side == "keys")
        return pairs

    monkeypatch.setattr(tile_traversal, "pairs", one_fewer)
    with pytest.raises(AssertionError, match=f"the {side}' gradients differ from the output's"):
        tile_traversal.pairs_of_kernels(axes, sizes, wrong, wrong)

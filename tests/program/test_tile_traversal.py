"""Tests of traversals of tiles, as in the CUDA kernels and in the Triton kernels, whose hulls on
circles are not cut: against the enumerator, and their counts in closed form against counting tile
by tile, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import few_examples
import numpy as np
import parts_of_axes
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes
from work import work

from nbattn import Axis, Mask
from nbattn.geometry import Axes, BoundAxis, Held, bind
from nbattn.program import tile_traversal
from nbattn.program.tile_traversal import Hull, Traversal

Count = Callable[[str, int], None]
SIZES = st.sampled_from((1, 2, 3, 4, 5, 8, 16))
CIRCLE = Axis(1, 2, border="wrap")
SIDES = st.none() | st.integers(0, 40) | st.integers(0, 1500)


def pairs_of_tiles(
    bound_axis: BoundAxis, rows: int, columns: int, *, inverse: bool, uncut: bool = False
) -> np.ndarray:
    """How often the tiles compute each pair, as they mask it."""
    traversal = Traversal(bound_axis, inverse, uncut)
    skips = uncut and bound_axis.held is not None  # columns of a circle that are not held
    shape = (
        (bound_axis.keys, bound_axis.queries) if inverse else (bound_axis.queries, bound_axis.keys)
    )
    times = np.zeros(shape, dtype=int)
    for tile in traversal.tiles(rows, columns):
        assert 0 < len(tile.positions) <= rows
        for part in tile.columns:
            assert skips or part.positions.size
            assert len(part.positions) <= columns
            if part.full:  # the kernel masks none of its columns
                assert part.reads.all()
                assert len(part.positions) == columns
            np.add.at(times, np.ix_(tile.positions, part.positions), part.reads)
    return times.T if inverse else times


def pairs_of_reads(traversal: Traversal, rows: int, columns: int) -> np.ndarray:
    """How often each pair is in a run of `reads`."""
    axis, d = traversal.axis, traversal.axis.spec.dilation
    shape = (axis.keys, axis.queries) if traversal.inverse else (axis.queries, axis.keys)
    found = np.zeros(shape, dtype=int)
    for row, (starts, counts) in enumerate(zip(*traversal.reads(rows, columns), strict=True)):
        for start, count in zip(starts, counts, strict=True):
            found[row, start : start + d * count : d] += 1
            assert count == found[row, start : start + d * count : d].size
    return found.T if traversal.inverse else found


@pytest.mark.parametrize("uncut", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@few_examples.quick(100)
@given(bound=bound_axes(24), rows=SIZES, columns=SIZES)
@example(bound=(Axis(0, 0, prefix=1), 6, 6), rows=2, columns=2)  # a tile with a key of the prefix
def test_traversal_visits_every_pair_of_the_axis_once(
    cases: Count, bound: tuple[Axis, int, int], rows: int, columns: int, inverse: bool, uncut: bool
) -> None:
    """Tile by tile, and by the runs of rows that serve at any length; every row is in one tile."""
    bound_axis = bind(Mask(bound[0]), *bound[1:])[0]
    wanted = axis_matrix(*bound)
    found = pairs_of_tiles(bound_axis, rows, columns, inverse=inverse, uncut=uncut)
    assert np.array_equal(found, wanted)
    traversal = Traversal(bound_axis, inverse, uncut)
    assert np.array_equal(pairs_of_reads(traversal, rows, columns), wanted)
    assert traversal.tile_pairs(rows, columns) == sum(
        len(t.columns) for t in traversal.tiles(rows, columns)
    )
    cases("tile traversals, axes", 1)


@pytest.mark.parametrize("inverse", [False, True])
@given(case=parts_of_axes.parts(), rows=SIZES, columns=SIZES)
@example(case=(CIRCLE, 2, 3, Held(1, 6, 0, 6), 1, 0), rows=4, columns=2)
@example(case=(CIRCLE, 6, 3, Held(0, 6, 2, 6), 0, 2), rows=4, columns=8)
def test_uncut_hulls_of_parts_of_axes(
    cases: Count, case: parts_of_axes.Case, rows: int, columns: int, inverse: bool
) -> None:
    """Columns of a circle that tensors do not hold are left out one by one, yet visited."""
    bound_axis, wanted = parts_of_axes.bound(case)
    found = pairs_of_tiles(bound_axis, rows, columns, inverse=inverse, uncut=True)
    assert np.array_equal(found, wanted)
    traversal = Traversal(bound_axis, inverse, uncut=True)
    assert np.array_equal(pairs_of_reads(traversal, rows, columns), wanted)
    assert traversal.tile_pairs(rows, columns) == sum(
        len(tile.columns) for tile in traversal.tiles(rows, columns)
    )
    cases("tile traversals, parts", 1)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_column_that_is_computed_twice_has_no_runs(inverse: bool) -> None:
    """A row whose unmasked tiles are more than a lap: counts are -1, so that the proof fails."""

    class Careless(Traversal):
        """Masks nothing."""

        def _hull(self, *given: Any) -> Hull:
            hull = super()._hull(*given)
            return hull._replace(full=hull.runs)

    axis = bind(Mask(Axis(3, 3, border="wrap")), 8)[0]
    assert (Careless(axis, inverse, uncut=True).reads(4, 2)[1] == -1).any()
    assert (Traversal(axis, inverse, uncut=True).reads(4, 2)[1] >= 0).all()


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


@pytest.mark.parametrize("uncut", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@few_examples.quick(100)
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
    uncut: bool,
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
    traversal = Traversal(bind(Mask(axis), queries, keys)[0], inverse, uncut)
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


def test_an_uncut_hull_is_one_run() -> None:
    """Also across the seam, and longer than a lap where a window of just all keys starts at its own
    first key.
    """

    def visits(axis: Axis, length: int, rows: int, columns: int) -> int:
        bound_axis = bind(Mask(axis), length)[0]
        return Traversal(bound_axis, uncut=True).tile_pairs(rows, columns)

    near = Axis(3, 3, border="wrap")
    assert visits(near, 64, 8, 16) == 8  # 14 keys each
    assert visits(near, 64, 64, 8) == 9  # from -3 to 66
    assert visits(Axis(32, 31, border="wrap"), 64, 8, 8) == 8 * 9  # 71 keys each
    assert visits(Axis(32, 32, border="wrap"), 64, 8, 8) == 8 * 8  # all keys, once
    assert visits(Axis(9, 0, prefix=2), 64, 8, 32) == 8 * 2  # a prefix is a run of its own


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_gradients_of_other_pairs_than_the_output_are_refused(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes, sizes = bind(Mask(Axis(2, 1, border="shift")), 9), ((4,), (3,))
    found = tile_traversal.pairs_of_kernels(axes, sizes, None, sizes)
    assert np.array_equal(found, axis_matrix(axes[0].spec, 9, 9))
    right, wrong = tile_traversal.pairs, ((2,), (3,))

    def one_fewer(axes: Axes, rows: Any, columns: Any, *, inverse: bool, uncut: bool) -> np.ndarray:
        pairs = right(axes, rows, columns, inverse=inverse, uncut=uncut)
        pairs[4, 4] &= (rows, columns) != wrong or inverse != (side == "keys")
        return pairs

    monkeypatch.setattr(tile_traversal, "pairs", one_fewer)
    with pytest.raises(AssertionError, match=f"the {side}' gradients differ from the output's"):
        tile_traversal.pairs_of_kernels(axes, sizes, wrong, wrong)

"""Tests of geometry: intervals, counts and tiles, against the enumerator and at 10^9."""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes, is_legal, masks, matrix, runs, tile_counts
from short_axes import Specimen, few, specimens, value_pairs_of, value_pairs_of_sample
from work import work

from nbattn import Axis, Mask, MaskError
from nbattn.geometry import BoundAxis, bind

Count = Callable[[str, int], None]
STEP, EACH = (
    41,
    5,
)  # at which every value of every field meets every other that it may, as a test shows
BILLION = 10**9


def test_the_sample_has_every_legal_pair_of_values() -> None:
    everything = value_pairs_of_sample(1, 31)
    assert len(everything) > 1000
    assert value_pairs_of(few(0, STEP, EACH)) == everything


def bound(axis: Axis, queries: int, keys: int) -> BoundAxis:
    """The one bound axis of a mask of rank one."""
    (only,) = bind(Mask(axis), (queries,), (keys,))
    assert (only.spec, only.queries, only.keys) == (axis, queries, keys)
    return only


def check_runs(found: tuple[tuple[int, int], ...], want: np.ndarray, step: int) -> None:
    """At most two sorted, disjoint, non-empty runs that hold exactly the wanted places."""
    assert isinstance(found, tuple)
    assert len(found) <= 2
    places = []
    for start, count in found:
        assert type(start) is int
        assert type(count) is int
        assert count >= 1
        places += [start + step * t for t in range(count)]
    assert places == np.flatnonzero(want).tolist()


def check_axis(axis: Axis, queries: int, keys: int) -> np.ndarray:
    """Everything a bound axis computes except its tiles; returns the enumerator's matrix."""
    want = axis_matrix(axis, queries, keys)
    only = bound(axis, queries, keys)
    dense = only.dense()
    assert dense.dtype == np.bool_
    assert np.array_equal(dense, want)
    assert type(only.pairs()) is int
    assert type(only.empty_queries()) is int
    assert only.pairs() == want.sum()
    assert only.empty_queries() == sum(not row.any() for row in want)
    for i in range(queries):
        check_runs(only.key_intervals(i), want[i], axis.dilation)
    for j in range(keys):
        check_runs(only.query_intervals(j), want[:, j], axis.dilation)
    return want


def check_tiles(only: BoundAxis, want: np.ndarray, query_tile: int, key_tile: int) -> None:
    counts = only.coverage(query_tile, key_tile)
    assert np.issubdtype(counts.dtype, np.integer)
    assert np.array_equal(counts, tile_counts(want, query_tile, key_tile))


def sweep(sample: Iterable[Specimen], cases: Count, group: str) -> None:
    for index, (fields, queries, keys) in enumerate(sample):
        if not is_legal(fields, queries, keys):
            continue
        axis = Axis(**fields)
        want = check_axis(axis, queries, keys)
        tiles = 1 + index % 4, 1 + index // 4 % 5
        check_tiles(bound(axis, queries, keys), want, *tiles)
        cases(group, 1)


def test_small_axes_equal_the_enumerator(cases: Count) -> None:
    sweep(few(0, STEP, EACH), cases, "geometry, sampled product")


@pytest.mark.deep
@pytest.mark.parametrize("first", range(16))
def test_every_small_axis_equals_the_enumerator(first: int, cases: Count) -> None:
    sweep(specimens(first, 16), cases, "geometry, full product")


def test_illegal_axes_are_refused(cases: Count) -> None:
    for fields, queries, keys in specimens(7, 401):
        if is_legal(fields, queries, keys):
            continue
        with pytest.raises(MaskError):
            bind(Mask(Axis(**fields)), (queries,), (keys,))
        cases("geometry, refused", 1)


@given(bound_axes())
def test_long_axes_equal_the_enumerator(cases: Count, chosen: tuple[Axis, int, int]) -> None:
    check_axis(*chosen)
    cases("geometry, random axes", 1)


@given(bound_axes(), st.integers(1, 50), st.integers(1, 50))
def test_tiles_count_their_pairs(
    cases: Count, chosen: tuple[Axis, int, int], query_tile: int, key_tile: int
) -> None:
    check_tiles(bound(*chosen), axis_matrix(*chosen), query_tile, key_tile)
    cases("geometry, random tiles", 1)


@given(bound_axes())
def test_key_and_query_intervals_are_maximal(cases: Count, chosen: tuple[Axis, int, int]) -> None:
    axis, queries, keys = chosen
    want, only = axis_matrix(*chosen), bound(*chosen)
    for i in range(queries):
        assert list(only.key_intervals(i)) == runs(np.flatnonzero(want[i]).tolist(), axis.dilation)
    for j in range(keys):
        column = np.flatnonzero(want[:, j]).tolist()
        assert list(only.query_intervals(j)) == runs(column, axis.dilation)
    cases("geometry, random intervals", 1)


@given(masks())
def test_masks_of_any_rank_equal_the_enumerator(
    cases: Count, chosen: tuple[Mask, tuple[int, ...], tuple[int, ...]]
) -> None:
    mask, query_space, key_space = chosen
    want = matrix(mask.axes, query_space, key_space)
    parts = bind(mask, query_space, key_space)
    assert np.array_equal(mask.dense(query_space, key_space), want)
    assert tuple(part.spec for part in parts) == mask.axes
    assert prod(part.pairs() for part in parts) == want.sum()
    cases("geometry, random masks", 1)


def test_bind_wants_one_size_per_axis() -> None:
    for query_space, key_space in [((3,), (3, 3)), ((3, 3), (3,)), ((3, 3, 3), (3, 3, 3))]:
        with pytest.raises(MaskError):
            bind(Mask(Axis(), Axis()), query_space, key_space)


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def clipped(n: int, left: int) -> int:
    """Pairs of a causal window: full rows less the corner that the start cuts off."""
    return n * (left + 1) - triangle(left)


def tall(**fields: Any) -> tuple[Axis, int, int]:
    return Axis(**fields), BILLION, BILLION


HUGE = {
    "everything": (tall(), BILLION**2, 0),
    "causal": (tall(causal=True), triangle(BILLION), 0),
    "window": (tall(left=4095, causal=True), clipped(BILLION, 4095), 0),
    "both sides": (
        tall(left=100, right=30),
        clipped(BILLION, 100) + clipped(BILLION, 30) - BILLION,
        0,
    ),
    "shift": (tall(left=64, right=63, border="shift"), BILLION * 128, 0),
    "wrap": (tall(left=64, right=63, border="wrap", stride=2, dilation=5), BILLION * 128, 0),
    "blocks": (tall(left=999, causal=True, stride=1000), BILLION // 1000 * triangle(1000), 0),
    "one in four": (tall(left=0, causal=True, stride=4), BILLION // 4, BILLION // 4 * 3),
    "prefix": (
        tall(left=127, causal=True, prefix=4),
        triangle(132) + (BILLION - 132) * 132,
        0,
    ),
    "dilation with remainder": (  # 10^9 = 7 * 142,857,142 + 6: six longer classes, one shorter
        tall(left=9, causal=True, dilation=7),
        6 * clipped(142_857_143, 9) + clipped(142_857_142, 9),
        0,
    ),
    "bottom-right, tall": (
        (Axis(causal=True, align="bottom-right"), BILLION, 10),
        55,
        BILLION - 10,
    ),
    "top-left, tall": (
        (Axis(7, 0, align="top-left"), BILLION, 10),
        clipped(10, 7) + triangle(7),
        BILLION - 17,
    ),
    "decode": (
        (Axis(causal=True, align="bottom-right"), 16, 10**12),
        16 * 10**12 - triangle(15),
        0,
    ),
    "decode, dilated": (  # sixteen classes, and each query reads the whole of its own
        (Axis(causal=True, align="bottom-right", dilation=16), 16, 10**12),
        10**12,
        0,
    ),
}


@pytest.mark.parametrize(("chosen", "pairs", "empty"), HUGE.values(), ids=HUGE)
def test_counts_at_a_billion_take_few_lines_and_little_memory(
    chosen: tuple[Axis, int, int], pairs: int, empty: int
) -> None:
    def count() -> tuple[int, int]:
        only = bound(*chosen)
        return only.pairs(), only.empty_queries()

    assert count() == (pairs, empty)
    found = work(count)
    assert found.lines <= 4000
    assert found.peak < 2**20


FAR = BILLION - 1


@pytest.mark.parametrize(
    ("axis", "i", "want"),
    [
        (Axis(causal=True), FAR, ((0, BILLION),)),
        (Axis(100, causal=True), FAR, ((FAR - 100, 101),)),
        (Axis(100, 30), FAR - 7, ((FAR - 107, 108),)),
        (Axis(100, 30, border="shift"), FAR, ((BILLION - 131, 131),)),
        (Axis(64, 63, border="wrap"), 0, ((0, 64), (BILLION - 64, 64))),
        (Axis(64, 63, border="wrap"), FAR, ((0, 63), (BILLION - 65, 65))),
        (Axis(3, 0, border="wrap", dilation=10), 4, ((4, 1), (BILLION - 26, 3))),
        (Axis(100, causal=True, prefix=4), FAR, ((0, 4), (FAR - 100, 101))),
        (Axis(5, causal=True, dilation=1000), FAR, ((FAR - 5000, 6),)),
        (Axis(0, causal=True, stride=4), FAR - 1, ()),
        (Axis(1, 1, stride=1000), FAR, ((BILLION - 501, 3),)),
    ],
)
def test_keys_of_a_far_query(axis: Axis, i: int, want: tuple[tuple[int, int], ...]) -> None:
    assert bound(axis, BILLION, BILLION).key_intervals(i) == want


@pytest.mark.parametrize(
    ("axis", "j", "want"),
    [
        (Axis(causal=True), FAR, ((FAR, 1),)),
        (Axis(causal=True), 5, ((5, BILLION - 5),)),
        (Axis(100, causal=True), FAR - 200, ((FAR - 200, 101),)),
        (Axis(100, 30), FAR - 7, ((FAR - 37, 38),)),
        (Axis(100, 30, border="shift"), FAR, ((BILLION - 31, 31),)),
        (Axis(64, 63, border="wrap"), 0, ((0, 65), (BILLION - 63, 63))),
        (Axis(100, causal=True, prefix=4), 3, ((3, BILLION - 3),)),
        (Axis(100, 30, prefix=4), 3, ((0, BILLION),)),
        (Axis(5, causal=True, dilation=1000), FAR, ((FAR, 1),)),
        (Axis(0, causal=True, stride=4), FAR - 1, ()),
        (Axis(1, 1, stride=1000), BILLION - 501, ((BILLION - 1000, 1000),)),
    ],
)
def test_queries_of_a_far_key(axis: Axis, j: int, want: tuple[tuple[int, int], ...]) -> None:
    assert bound(axis, BILLION, BILLION).query_intervals(j) == want

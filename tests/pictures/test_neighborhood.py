"""Tests of the keys of one query: strips, grids and slices, against the independent enumerator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from drawn_cells import attended, dots, grid, legend, signs_at, ticks
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import attended_keys, masks
from work import lines

from nbattn import Axis, Mask, geometry
from nbattn.pictures import neighborhood, plot, style

Count = Callable[[str, int], None]


def drawn(mask: Mask, *spaces, **options):
    return plot.picture(mask, *spaces, kind="neighborhood", figure=style.plain_figure, **options)


def keys_of(mask: Mask, query, queries, keys) -> list[set[int]]:
    return [attended_keys(*one) for one in zip(mask.axes, query, queries, keys, strict=True)]


@given(masks(), st.data())
@settings(max_examples=60)
def test_keys_of_any_query(cases: Count, case, data: st.DataObject) -> None:
    mask, queries, keys = case
    if not math.prod(queries) * math.prod(keys):
        return
    query = tuple(data.draw(st.integers(0, n - 1)) for n in queries)
    read = keys_of(mask, query, queries, keys)
    made = neighborhood.slices(geometry.bind(mask, queries, keys), query)
    if mask.rank == 3:  # each slice is a grid that is drawn as those of two axes are
        planes = [int(part.name.removeprefix("axis 0 = ")) for part in made]
        assert planes == list(range(keys[0]))
        for plane, part in zip(planes, made, strict=True):
            shown = {
                (y, x)
                for (row, column), kind in np.ndenumerate(part.kinds)
                for y, x in [(part.down.indices[row], part.across.indices[column])]
                if kind <= 2
            }
            assert shown == {(y, x) for y in read[1] for x in read[2] if plane in read[0]}
        return
    axes = drawn(mask, queries, keys, query=query if len(query) > 1 else query[0])
    rows = range(keys[0]) if mask.rank == 2 else range(1)
    shown = grid(axes, rows, range(keys[-1]))
    want = np.zeros(shown.shape, dtype=bool)
    for y in read[0] if mask.rank == 2 else {0}:
        want[y, list(read[-1])] = True
    np.testing.assert_array_equal(attended(shown), want)
    cases("figures, keys of a query", want.size)


def test_slices_of_three_axes_say_which() -> None:
    mask = Mask(Axis(2, causal=True), Axis(1, 1), Axis(1, 1, border="wrap"))
    axes = drawn(mask, (5, 6, 7), query=(3, 2, 0))
    names = [text.get_text() for text in axes.texts]
    assert [name for name in names if "axis" in name] == [f"axis 0 = {n}" for n in range(5)]
    across = [at for index, at in ticks(axes.xaxis) if index == 0]
    across += [text.get_position()[0] for text in axes.texts if text.get_text() == "0"]
    down = [at for index, at in ticks(axes.yaxis) if index == 0]
    cell = next(at for index, at in ticks(axes.xaxis) if index == 2) - across[0]
    cell /= 2
    spots = [(across[n % 3], down[n // 3]) for n in range(5)]
    for plane, (x, y) in enumerate(spots):
        points = [(x + cell * k, y + cell * j) for j in range(6) for k in range(7)]
        shown = attended(np.array(signs_at(axes, points), dtype=object)).reshape(6, 7)
        want = np.zeros((6, 7), dtype=bool)
        if plane in (1, 2, 3):
            want[np.ix_([1, 2, 3], [0, 1, 6])] = True
        np.testing.assert_array_equal(shown, want)
    ((x, y),) = dots(axes)
    assert (x, y) == pytest.approx((spots[3][0], spots[3][1] + 2 * cell))


def test_many_planes_are_those_of_the_query_and_their_neighbours() -> None:
    (axis,) = geometry.bind(Mask(Axis(3, 3)), 40)
    assert neighborhood.planes(axis, 20) == [16, 17, 19, 20, 21, 23]
    assert neighborhood.planes(axis, 0) == [0, 1, 2, 3, 4, 5]
    (wide,) = geometry.bind(Mask(Axis()), 1000)
    assert neighborhood.planes(wide, 20) == [20, 250, 500, 749, 999]
    (none,) = geometry.bind(Mask(Axis(0, causal=True, stride=4)), 40)
    assert neighborhood.planes(none, 20) == [19, 20, 21]


LONG = [
    ("window", Axis(300, 0), 4000, 4000, 2500),
    ("shift", Axis(100, 100, border="shift"), 1000, 1000, 2),
    ("wrap", Axis(50, 10, border="wrap"), 1000, 1000, 3),
    ("prefix", Axis(50, causal=True, prefix=4), 1000, 1000, 999),
    ("off the axis", Axis(60, 60, offset=-150), 1000, 1000, 100),
]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "queries", "keys", "query"), [c[1:] for c in LONG], ids=[c[0] for c in LONG]
)
def test_long_axes_show_both_ends_and_the_window(
    axis: Axis, queries: int, keys: int, query: int, cases: Count
) -> None:
    axes = drawn(Mask(axis), queries, keys, query=query)
    read = attended_keys(axis, query, queries, keys)
    near = [(j + move, at + move) for j, at in ticks(axes.xaxis) for move in range(-3, 4)]
    shown = [
        (j, sign)
        for (j, _), sign in zip(near, signs_at(axes, [(x, 0) for _, x in near]), strict=True)
    ]
    for key, sign in shown:
        if sign and 0 <= key < keys:
            assert (sign in "■▣▤") == (key in read)
            cases("figures, long axes", 1)
    (bound,) = geometry.bind(Mask(axis), queries, keys)
    indices = {*neighborhood.scale(bound, query).indices.tolist()}
    assert {0, keys - 1} <= indices
    if read:
        assert {min(read), max(read)} <= indices


def test_cost_does_not_grow_with_the_length() -> None:
    mask = Mask(Axis(20, 20, border="shift"), Axis(20, 20, border="wrap"))
    short, long = (lines(lambda n=n: drawn(mask, (n, n))) for n in (1000, 10**6))
    assert long <= 1.2 * short


def test_what_the_window_reaches_beyond_the_axis() -> None:
    axes = drawn(Mask.neighborhood((5, 5)), (8, 9), query=(0, 4))
    shown = grid(axes, range(-3, 8), range(-1, 10))
    beyond = {(y - 3, x - 1) for y, x in np.argwhere(shown == "window beyond the axis").tolist()}
    assert beyond == {(y, x) for y in (-2, -1) for x in range(2, 7)}
    moved = {(y - 3, x - 1) for y, x in np.argwhere(shown == "▣").tolist()}
    assert moved == {(y, x) for y in (3, 4) for x in range(2, 7)}
    assert legend(axes) == [
        "attended", "moved or wrapped", "not attended", "window beyond the axis", "own position",
    ]  # fmt: skip
    assert axes.get_xlabel() == "key, axis 1"


def test_own_position_without_keys_is_hollow() -> None:
    axes = drawn(Mask(Axis(0, causal=True, stride=4)), 8, query=1)
    assert dots(axes) == {(1.0, 0.0): False}
    assert legend(axes) == ["not attended", "own position, not attended"]
    far = drawn(Mask(Axis(1, 1, offset=20)), 8)
    assert not dots(far)

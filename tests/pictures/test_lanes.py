"""Tests of lanes: the keys of every axis, sides, groups, and what borders do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drawn_cells import legend, patches
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import attended_keys, bound_axes

from nbattn import Axis, Mask, geometry
from nbattn.pictures import lanes, plot, signs, style

Count = Callable[[str, int], None]


def lane(axis: Axis, length: int, query: int, keys: int | None = None) -> lanes.Lane:
    (bound,) = geometry.bind(Mask(axis), length, keys)
    return lanes.lane(0, bound, query)


def drawn(mask: Mask, *spaces, **options):
    return plot.picture(mask, *spaces, kind="axes", figure=style.plain_figure, **options)


@given(bound_axes(longest=30), st.data())
@settings(max_examples=80)
def test_a_lane_has_the_keys_of_its_query(cases: Count, case, data: st.DataObject) -> None:
    axis, queries, keys = case
    if not queries * keys:
        return
    query = data.draw(st.integers(0, queries - 1))
    made = lane(axis, queries, query, keys)
    shown = made.across.indices[made.kinds <= signs.LAST_ATTENDED].tolist()
    assert set(shown) == attended_keys(axis, query, queries, keys)
    for move in made.moves:
        assert all(not 0 <= place < keys for place in move.beyond)
        assert (move.keys is None) or axis.border != "clip"
    cases("lanes", 1)


@pytest.mark.parametrize(
    ("axis", "length", "query", "brackets", "moves"),
    [
        (Axis(2, 1), 9, 4, [((2, 4), "2 left"), ((4, 5), "1 right")], []),
        (Axis(3, 3), 9, 1, [((-2, 1), "3 left"), ((1, 4), "3 right")], [((-2, -1), None, "2 cut")]),
        (Axis(3, 0, causal=True), 9, 0, [((-3, 0), "3 left")], [((-3, -1), None, "3 cut")]),
        (Axis(2, 2, border="shift"), 9, 8, [((6, 8), "2 left"), ((8, 10), "2 right")],
         [((9, 10), (4, 5), "moved")]),
        (Axis(2, 2, border="wrap"), 9, 0, [((-2, 0), "2 left"), ((0, 2), "2 right")],
         [((-2, -1), (7, 8), "wrapped")]),
        (Axis(2, 0, dilation=3), 12, 7, [((1, 7), "2 left")], []),
        (Axis(2, 1, border="shift", stride=4), 12, 5,
         [((4, 6), "2 left"), ((6, 7), "1 right"), ((4, 7), "4 queries, one window")], []),
        (Axis(None, 0, causal=True), 9, 4, [], []),
        (Axis(50, 0, causal=True), 60, 10, [((-40, 10), "50 left")], [((-8, -1), None, "40 cut")]),
    ],
    ids=["window", "cut", "causal", "shift", "wrap", "dilation", "stride", "causal, all", "long"],
)  # fmt: skip
def test_what_is_said_of_a_query(axis: Axis, length: int, query: int, brackets, moves) -> None:
    made = lane(axis, length, query)
    assert list(made.brackets) == brackets
    assert [(move.beyond, move.keys, move.words) for move in made.moves] == moves


def test_a_lane_per_axis_with_words_and_arrows() -> None:
    mask = Mask(Axis(8, causal=True), Axis(3, 3, border="shift"), Axis(3, 3, border="wrap"))
    axes = drawn(mask, (12, 14, 16))
    texts = [text.get_text() for text in axes.texts]
    heads = [text for text in texts if text.startswith("axis")]
    assert heads == [
        "axis 0, query 6: 8 left, itself; causal",
        "axis 1, query 1: 3 left, itself, 3 right; shift",
        "axis 2, query 1: 3 left, itself, 3 right; wrap",
    ]
    assert {"moved", "wrapped", "2 cut"} <= {*texts}
    arrows = [patch for patch in axes.patches if hasattr(patch, "get_arrowstyle")]
    assert len(arrows) == 2
    assert [len(found) for found in (patches(axes)["■"], patches(axes)["▣"])] == [3, 2]
    assert legend(axes)[:2] == ["attended", "moved or wrapped"]


def test_telling_queries_are_near_borders_that_act() -> None:
    axes = geometry.bind(
        Mask(Axis(3, 3, border="wrap"), Axis(3, 3), Axis(4, causal=True)), (12, 12, 12)
    )
    assert lanes.telling(axes) == (1, 6, 6)


def test_text_of_lanes_is_inside_the_figure() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for mask, space, query in (
        (Mask(Axis(1, 1, stride=3, border="shift")), (30,), (0,)),
        (Mask(Axis(90000, 1, border="wrap")), (10**6,), (0,)),
        (Mask(Axis(7, causal=True, dilation=2)), (40,), (39,)),
    ):
        figure = drawn(mask, space, query=query).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for text in figure.axes[0].texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
            assert box.y0 >= 0
            assert box.y1 <= figure.bbox.height
    assert np.isfinite(box.x0)

"""Tests of matrices: every cell that is drawn, against the independent enumerator."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn_cells import attended, dots, grid, legend, patches, signs_at, ticks
from hypothesis import given, settings
from oracle import attends, masks, matrix, position
from work import work

from nbattn import Axis, Mask, geometry
from nbattn.pictures import matrix as drawing
from nbattn.pictures import plot, signs, style

Count = Callable[[str, int], None]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(mask: Mask, *spaces, **options):
    return plot.picture(mask, *spaces, figure=style.plain_figure, **options)


@given(masks())
@settings(max_examples=40)
def test_cells_are_the_pairs_of_the_mask(cases: Count, case) -> None:
    mask, queries, keys = case
    rows, columns = math.prod(queries), math.prod(keys)
    if not rows * columns or max(rows, columns) > drawing.WHOLE:
        return
    axes = drawn(mask, queries, keys)
    shown = grid(axes, range(rows), range(columns))
    assert "" not in shown
    np.testing.assert_array_equal(attended(shown), matrix(mask.axes, queries, keys))
    want = {"": "", "■": "attended", "▣": "moved or wrapped", "▤": "prefix", "⬚": "not attended"}
    found = {want[sign] for sign in np.unique(shown) if sign in want}
    words = [word for word in legend(axes) if "own position" not in word]
    extra = {"not on the dilation grid", "window beyond the axis"}
    assert set(words) - extra == found
    assert ("not on the dilation grid" in words) == ("·" in shown)
    cases("figures, pairs", rows * columns)


@given(masks(max_rank=2))
@settings(max_examples=25)
def test_dots_are_at_own_positions(case) -> None:
    mask, queries, keys = case
    if not math.prod(queries) * math.prod(keys):
        return
    axes = drawn(mask, queries, keys)
    want: dict[tuple[float, float], bool] = {}
    lengths = list(zip(mask.axes, queries, keys, strict=True))
    for query in product(*map(range, queries)):
        try:
            key = [position(a, i, n, m) for i, (a, n, m) in zip(query, lengths, strict=True)]
        except AssertionError:  # a full axis of two lengths has no positions
            assert not dots(axes)
            return
        if all(0 <= at < m for at, m in zip(key, keys, strict=True)):
            sees = all(
                attends(a, i, j, n, m) for i, j, (a, n, m) in zip(query, key, lengths, strict=True)
            )
            flat = [
                int(np.ravel_multi_index(at, space))
                for at, space in ((key, keys), (query, queries))
            ]
            want[flat[0], flat[1]] = sees
    inside = {at: sees for at, sees in dots(axes).items() if 0 <= at[0] < math.prod(keys)}
    assert inside == want
    assert ("own position" in legend(axes)) == (True in dots(axes).values())
    assert ("own position, not attended" in legend(axes)) == (False in dots(axes).values())


@pytest.mark.parametrize(
    ("axis", "length", "columns", "rows"),
    [
        (Axis(1, 2, border="shift"), 5, range(-1, 7),
         ["x■■■▣⬚  ", " ■■■■⬚  ", " ⬚■■■■  ", " ⬚▣■■■x ", " ⬚▣▣■■xx"]),
        (Axis(1, 1, border="wrap"), 4, range(-1, 5), ["x■■⬚▣ ", " ■■■⬚ ", " ⬚■■■ ", " ▣⬚■■x"]),
        (Axis(0, causal=True, prefix=2), 4, range(4), ["■⬚⬚⬚", "▤■⬚⬚", "▤▤■⬚", "▤▤⬚■"]),
        (Axis(1, 0, dilation=2), 5, range(5), ["■·⬚·⬚", "·■·⬚·", "■·■·⬚", "·■·■·", "⬚·■·■"]),
        (Axis(0, causal=True, stride=2), 4, range(4), ["⬚⬚⬚⬚", "⬚■⬚⬚", "⬚⬚⬚⬚", "⬚⬚⬚■"]),
    ],
    ids=["shift", "wrap", "prefix", "dilation", "stride without keys"],
)  # fmt: skip
def test_signs_say_why(axis: Axis, length: int, columns: range, rows: list[str]) -> None:
    shown = grid(drawn(Mask(axis), length), range(length), columns)
    names = {"window beyond the axis": "x", "": " "}
    assert ["".join(names.get(sign, sign) for sign in row) for row in shown] == rows


LONG = [
    ("window", Mask.sliding_window(300), (4000,), (4000,)),
    ("tall", Mask(Axis(30, 40, align="bottom-right")), (70,), (3000,)),
    ("wrap", Mask(Axis(200, 90, border="wrap")), (3000,), (3000,)),
    ("prefix, shift", Mask(Axis(100, 100, border="shift", prefix=3)), (2000,), (2000,)),
    ("dilation", Mask(Axis(4, 0, dilation=50)), (2500,), (2500,)),
    ("grid", Mask.neighborhood((5, 7)), (60, 50), (60, 50)),
    ("video", Mask(Axis(2, causal=True), Axis(3, 3), Axis(2, 2)), (9, 8, 10), (9, 8, 10)),
    ("decode", Mask.sliding_window(511, align="bottom-right"), (1,), (4096,)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "queries", "keys"), [c[1:] for c in LONG], ids=[c[0] for c in LONG]
)
def test_long_sides_show_both_ends_and_the_window_at_their_true_indices(
    mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...], cases: Count
) -> None:
    """Cells around every label have the sign of the pair that the labels name."""
    axes = drawn(mask, queries, keys)
    lengths = list(zip(mask.axes, queries, keys, strict=True))
    down, across = (
        [(index + move, at + move) for index, at in ticks(axis) for move in (0, 1, 2)
         if index + move < math.prod(space)]
        for axis, space in ((axes.yaxis, queries), (axes.xaxis, keys))
    )  # fmt: skip
    signs = signs_at(axes, [(x, y) for _, y in down for _, x in across])
    for ((i, _), (j, _)), sign in zip(product(down, across), signs, strict=True):
        if not sign:  # in a gap
            continue
        places = zip(np.unravel_index(i, queries), np.unravel_index(j, keys), lengths, strict=True)
        assert (sign in "■▣▤") == all(
            attends(a, int(q), int(k), n, m) for q, k, (a, n, m) in places
        )
        cases("figures, long sides", 1)
    assert sum(map(bool, signs)) > 0.6 * len(signs)
    middle = tuple(n // 2 for n in queries)
    made = drawing.matrix(geometry.bind(mask, queries, keys), middle)
    flat = int(np.ravel_multi_index(middle, queries))
    for scale, space in ((made.down, queries), (made.across, keys)):
        length = math.prod(space)
        assert {0, flat, length - 1} <= {*scale.indices.tolist(), *[flat] * (queries != keys)}
        assert len(scale.parts) >= 3 or length <= drawing.WHOLE
        assert len(scale.indices) <= drawing.WHOLE + 40
    assert patches(axes)["break"]


@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (Mask(Axis(1, 1, border="shift"), Axis(2, 1, border="wrap")), (9, 20), (9, 20)),
        (Mask(Axis(2, causal=True, prefix=1), Axis(1, 1, dilation=2)), (12, 15), (12, 15)),
        (Mask(Axis(1, 0, align=0), Axis(1, 1), Axis(2, 2, align=0)), (3, 5, 11), (2, 5, 12)),
    ],
    ids=["shift, wrap", "prefix, dilation", "video, cross"],
)
def test_large_matrices_repeat_one_shape(mask: Mask, queries, keys, cases: Count) -> None:
    axes = drawn(mask, queries, keys)
    assert axes.collections
    random = np.random.default_rng(0)
    rows, columns = (random.integers(0, math.prod(n), 14).tolist() for n in (queries, keys))
    shown = grid(axes, rows, columns)
    assert "" not in shown
    made = drawing.matrix(geometry.bind(mask, queries, keys), tuple(n // 2 for n in queries))
    named = np.array(signs.KINDS)[made.kinds][np.ix_(rows, columns)]
    np.testing.assert_array_equal(shown, named)
    want = matrix(mask.axes, queries, keys)[np.ix_(rows, columns)]
    np.testing.assert_array_equal(attended(shown), want)
    cases("figures, repeated shapes", shown.size)


def test_cost_does_not_grow_with_the_length() -> None:
    mask = Mask(Axis(40, 40, border="wrap"))
    short, long = (work(lambda n=n: drawn(mask, n, query=7)) for n in (2000, 10**6))
    assert long.lines <= 1.2 * short.lines
    assert long.peak <= 2 * short.peak


def test_rows_of_the_space_end_with_lines() -> None:
    axes = drawn(Mask.neighborhood((3, 3, 3)), (3, 4, 5))
    paths = [patch.get_path().vertices for patch in patches(axes)[""] if patch.get_zorder() == 3]
    uprights = [
        sorted({x for (x, _), (u, _) in zip(p[::2], p[1::2], strict=True) if x == u}) for p in paths
    ]
    assert uprights[0] == [4.5 + 5 * n for n in range(11)]
    assert uprights[1] == [19.5, 39.5]
    assert {index % 5 for index, _ in ticks(axes.xaxis)} == {0}


def test_a_query_marks_its_row() -> None:
    mark = patches(drawn(Mask.neighborhood((3, 3)), (4, 6), query=(2, 1)))["query"][0]
    assert (mark.get_xy(), mark.get_width(), mark.get_height()) == ((-0.5, 12.5), 24, 1.0)
    far = drawn(Mask.causal(), 5000, query=1234)
    (mark,) = patches(far)["query"]
    place = mark.get_y() + 0.5
    index, at = min(ticks(far.yaxis), key=lambda tick: abs(tick[1] - place))
    assert index + place - at == 1234
    assert "query" not in patches(drawn(Mask.causal(), 5))

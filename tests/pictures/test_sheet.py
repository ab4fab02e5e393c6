"""Tests of the figures: their contents against an independent count, and their limited size."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from oracle import axis_matrix, bound_axes, box

import nbattn
from nbattn import Axis, InputError, Mask, geometry
from nbattn.pictures import sheet as plot

Count = Callable[[str, int], None]
KINDS = list(plot.COLOURS)


def plan(mask: Mask, query: tuple[int, ...], key: tuple[int, ...] | None = None, **wanted: object):
    shapes = [(1, *space, 1, 8) for space in (query, key or query)]
    return nbattn.plan(mask, *shapes, dtype="float32", device="cpu", **wanted)


def images(axes) -> list[np.ma.MaskedArray]:
    return [image.get_array() for image in axes.images]


def panels(figure) -> dict[str, object]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


@given(bound_axes(longest=16))
@settings(max_examples=100)
def test_cells_show_the_pairs_of_the_mask(cases: Count, chosen: tuple[Axis, int, int]) -> None:
    axis, queries, keys = chosen
    (bound_axis,) = geometry.bind(Mask(axis), queries, keys)
    kinds, before = plot.axis_kinds(bound_axis)
    inside = kinds[:, before : before + keys]
    np.testing.assert_array_equal(inside < KINDS.index("beyond"), axis_matrix(axis, queries, keys))
    outside = np.delete(kinds, range(before, before + keys), axis=1)
    assert set(np.unique(outside)) <= {KINDS.index("beyond"), KINDS.index("off")}
    cases("plot, cells", 1)


def test_a_clipped_window_is_shown_beyond_the_axis() -> None:
    (bound_axis,) = geometry.bind(Mask(Axis(2, 1)), 4, 4)
    kinds, before = plot.axis_kinds(bound_axis)
    signs = {"■": "r", "beyond": "b", "off": ".", "⬚": "_"}
    rows = ["".join(signs[KINDS[kind]] for kind in row) for row in kinds]
    assert before == 2
    assert rows == ["bbrr__.", ".brrr_.", "..rrrr.", ".._rrrb"]


def test_a_moved_window_and_a_prefix_have_their_colours() -> None:
    (bound_axis,) = geometry.bind(Mask(Axis(1, 1, border="shift")), 4, 4)
    kinds, before = plot.axis_kinds(bound_axis)
    moved = kinds[:, before : before + 4] == KINDS.index("▣")
    assert np.argwhere(moved).tolist() == [[0, 2], [3, 1]]
    (bound_axis,) = geometry.bind(Mask(Axis(0, causal=True, prefix=1)), 4, 4)
    prefix = plot.axis_kinds(bound_axis)[0] == KINDS.index("▤")
    assert np.argwhere(prefix).tolist() == [[1, 0], [2, 0], [3, 0]]


SHARES = [
    ("sliding window", Mask.sliding_window(5), (67,), None),
    ("shift, dilated", Mask(Axis(2, 2, dilation=3, border="shift")), (50,), None),
    ("wrap", Mask(Axis(3, 3, border="wrap")), (64,), None),
    ("prefix", Mask(Axis(4, causal=True, prefix=2)), (70,), None),
    ("bottom-right, tall", Mask.sliding_window(3, align="bottom-right"), (70,), (40,)),
    ("NAT", Mask.neighborhood((3, 3)), (14, 18), None),
    ("two axes, dilated", Mask(Axis(1, 1, dilation=2), Axis(2, 0)), (11, 13), None),
    ("video", Mask(Axis(1, causal=True), Axis(1, 1), Axis(1, 1, border="wrap")), (3, 6, 8), None),
]


@pytest.mark.parametrize(
    ("mask", "query", "key"), [s[1:] for s in SHARES], ids=[s[0] for s in SHARES]
)
def test_useful_share_of_every_tile(mask, query, key, cases: Count) -> None:
    """Counted pair by pair in the oracle's matrix."""
    key = key or query
    made = plan(mask, query, key, backend="tiled")
    shares = plot.block_shares(made)
    matrix = box([axis_matrix(*one) for one in zip(mask.axes, query, key, strict=True)])
    index = {
        "q": np.arange(len(matrix)).reshape(query),
        "k": np.arange(matrix.shape[1]).reshape(key),
    }
    want = np.full(shares.shape, np.nan)
    for visit in made.schedule():
        q = index["q"][np.ix_(*visit.queries)].ravel()
        k = np.concatenate([index["k"][np.ix_(*keys)].ravel() for keys in visit.keys] or [[]])
        share = matrix[np.ix_(q, k.astype(int))].mean() if k.size else np.nan
        if len(query) == 1:
            want[np.ix_(q, k.astype(int))] = share
        else:
            want.ravel()[q] = share
        cases("plot, tiles", 1)
    np.testing.assert_allclose(shares, want, rtol=1e-6)
    if len(query) == 1:
        useful = np.nansum(shares)
        assert useful == pytest.approx(matrix.sum(), rel=1e-5)
        assert not matrix[np.isnan(shares)].any()


def test_the_panel_shows_the_shares_and_the_total() -> None:
    made = plan(Mask.neighborhood((3, 3)), (14, 18), backend="tiled")
    figure = plot.figure(made)
    cost = made.chosen.cost
    useful = f"{100 * cost.useful_pairs / cost.computed_pairs:.3g}"
    axes = panels(figure)[f"blocks of tiled/tile on cpu\n{useful}% of visited pairs are attended"]
    np.testing.assert_allclose(images(axes)[0].filled(np.nan), plot.block_shares(made))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("query, axis 1", "query, axis 0")


def test_neighborhoods_of_corner_edge_and_centre(cases: Count) -> None:
    mask, space = Mask.neighborhood((3, 5)), (8, 9)
    figure = plot.figure(plan(mask, space))
    want = box([axis_matrix(*one) for one in zip(mask.axes, space, space, strict=True)])
    for name, query in {"corner": (0, 0), "edge": (0, 4), "centre": (4, 4)}.items():
        axes = panels(figure)[f"{name} query {query}: 15 keys"]
        read = images(axes)[0] < KINDS.index("beyond")
        np.testing.assert_array_equal(read, want[query[0] * 9 + query[1]].reshape(8, 9))
        assert axes.collections[-1].get_offsets().tolist() == [[query[1], query[0]]]
        cases("plot, neighborhoods", 1)


def test_slices_of_a_video(cases: Count) -> None:
    mask, space = Mask(Axis(2, causal=True), Axis(1, 1), Axis(1, 1, border="wrap")), (5, 6, 7)
    figure = plot.figure(plan(mask, space))
    want = box([axis_matrix(*one) for one in zip(mask.axes, space, space, strict=True)])
    want = want.reshape(*space, *space)
    for (name, query), at in product({"corner": (0, 0, 0), "centre": (2, 3, 3)}.items(), range(4)):
        read = want[query][at]
        title = f"{name} query {query}, keys at {at} on axis 0: {read.sum()} keys"
        axes = panels(figure)[title]
        np.testing.assert_array_equal(images(axes)[0] < KINDS.index("beyond"), read)
        cases("plot, slices", 1)


def test_dots_are_full_where_queries_attend_to_themselves() -> None:
    figure = plot.figure(plan(Mask(Axis(0, causal=True, stride=2)), (4,)))
    dots = figure.axes[0].collections[-1]
    assert dots.get_offsets().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert [face[3] > 0 for face in dots.get_facecolors()] == [False, True, False, True]


def test_titles_and_legend_describe_the_figure() -> None:
    figure = plot.figure(plan(Mask(Axis(1, 0, border="shift"), Axis(1, 1)), (5, 5)))
    assert figure.get_suptitle() == (
        "Mask(Axis(1, 0, border='shift'), Axis(1, 1))\n130 of 625 pairs; 4–6 keys per query"
    )
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        "attended",
        "attended, moved or wrapped",
        "window beyond the axis",
        "not attended",
        "own position",
        "own position, not attended",
    ]
    assert figure.axes[0].get_title() == "axis 0: 1 left, itself; shift\n2 keys per query"


def test_long_axes_are_drawn_by_tiles_whose_shares_are_counted() -> None:
    axis = Axis(30, 20)
    figure = plot.figure(plan(Mask(axis), (401,)))
    shown = images(figure.axes[0])[0].filled(0)
    matrix = axis_matrix(axis, 401, 401)
    want = [
        [matrix[i : i + 3, j : j + 3].mean() for j in range(0, 401, 3)] for i in range(0, 401, 3)
    ]
    np.testing.assert_allclose(shown, want)
    assert figure.axes[0].get_xlim() == (-0.5, 400.5)


def test_a_million_is_drawn_in_bounds() -> None:
    made = plan(Mask(Axis(1000, 1000, border="shift")), (10**6,), backend="tiled")
    tracemalloc.start()
    figure = plot.figure(made)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(image.size for axes in figure.axes[:2] for image in images(axes)) <= 160**2
    assert "1000000 x 1000000 cells are too many" in figure.axes[1].texts[0].get_text().replace(
        "\n", " "
    )
    assert peak <= 200e6


@pytest.mark.parametrize(
    ("mask", "query", "key"),
    [
        (Mask.full(), (0,), (0,)),
        (Mask.full(), (3,), (0,)),
        (Mask.full(2), (0, 4), None),
        (Mask.full(3), (2, 2, 2), (2, 0, 2)),
        (Mask(Axis(0, 0, offset=9)), (3,), None),
        (Mask(Axis(0, 0, offset=-9), Axis()), (3, 1), None),
        (Mask.full(3), (1, 1, 1), None),
    ],
)
def test_figures_of_masks_with_few_or_no_pairs(mask: Mask, query, key, tmp_path: Path) -> None:
    plot.save(plot.figure(plan(mask, query, key)), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    made = plan(Mask.neighborhood(3), (9,))
    for name in "ab":
        plot.save(plot.figure(made), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    figure = plot.figure(plan(Mask.causal(), (3,)))
    with pytest.raises(InputError) as caught:
        plot.save(figure, tmp_path / "no" / "such.png")
    assert str(caught.value) == (
        f"{str(tmp_path / 'no' / 'such.png')!r} cannot be written: No such file or directory.\n"
        f"  fix:   mkdir -p {tmp_path / 'no'}"
    )


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError) as caught:
        plot.figure(plan(Mask.causal(), (3,)))
    assert str(caught.value) == (
        "figures need matplotlib, which does not load here: No module named 'matplotlib'.\n"
        "  fix:   pip install matplotlib"
    )

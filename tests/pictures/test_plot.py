"""Tests of figures of masks as a whole: sizes, given Axes, empty masks, and misuse."""

from __future__ import annotations

import importlib
import threading
from io import BytesIO
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn_cells import attended, grid, legend
from drawn_text import faults
from matplotlib import colors
from matplotlib.figure import Figure

import nbattn
from nbattn import Axis, InputError, Mask, geometry
from nbattn.pictures import plot, queries, signs, style


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def luminance(colour: str) -> float:
    """Relative luminance, of which a greyscale print shows a power."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_kinds_differ_in_lightness_or_have_hatches() -> None:
    looks = [look for look in style.LOOKS.values() if not look.hatch]
    light = sorted(116 * luminance(look.face) ** (1 / 3) - 16 for look in looks)
    assert all(b - a >= 8 for a, b in pairwise(light))
    assert {kind for kind, look in style.LOOKS.items() if look.hatch} == {
        signs.PREFIX,
        signs.BEYOND,
    }


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize(
    ("mask", "space"),
    [(Mask.causal(), (40,)), (Mask.neighborhood((5, 5)), (9, 12)),
     (Mask.neighborhood((3, 3, 3)), (5, 4, 6))],
    ids=["line", "image", "video"],
)  # fmt: skip
def test_a_figure_is_as_wide_as_a_column_and_everything_is_inside(
    kind: str, mask: Mask, space
) -> None:
    axes = mask.plot(space, kind=kind)
    figure = axes.figure
    assert figure.get_figwidth() == pytest.approx(3.35)
    assert figure.get_figheight() <= 4.7
    figure.canvas.draw()
    box = axes.get_tightbbox()
    assert min(box.x0, box.y0) >= -0.5
    assert box.x1 <= figure.bbox.width + 0.5
    assert box.y1 <= figure.bbox.height + 0.5
    texts = [*axes.texts, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_legend().get_texts()]
    assert {text.get_fontsize() for text in texts if text.get_text()} <= {7.0, 8.0}


LOW = [
    ("weights without a legend", Mask.full(), (1,), (3,), {"weights": [0.2, 0.3, 0.5], "query": 0}),
    ("a wide grid of few rows", Mask(Axis(1, 0, align="bottom-right"), Axis(None, 8)),
     (4, 48), (4, 48), {}),
    ("one key", Mask.full(2), (1, 1), (1, 1), {}),
    ("narrow slices", Mask.full(3), (3, 1, 1), (3, 1, 1), {}),
    ("narrow and high slices", Mask.full(3), (4, 40, 1), (4, 40, 1), {}),
    ("sides at an end", Mask(Axis(5, 1, stride=2, align="bottom-right")), (3,), (54,),
     {"kind": "axes"}),
    ("narrow sides", Mask(Axis(1, 1)), (90,), (90,), {"kind": "axes"}),
    ("one row of many keys", Mask.full(), (1,), (640,), {"kind": "matrix"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "options"),
    [case[1:] for case in LOW],
    ids=[case[0] for case in LOW],
)
def test_words_of_low_and_narrow_pictures_are_whole_and_apart(
    mask: Mask, queries, keys, options
) -> None:
    options = {"kind": "neighborhood", **options}
    axes = plot.picture(mask, queries, keys, **options, figure=style.plain_figure)
    assert faults(axes.figure) == []


SETTINGS = {
    "axes.grid": True, "axes.titley": 0.5, "figure.constrained_layout.use": True,
    "legend.numpoints": 3, "savefig.facecolor": "black", "xtick.labeltop": True, "xtick.top": True,
    "ytick.minor.visible": True,
}  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_pictures_look_alike_whatever_the_style_sheet_is() -> None:
    def pixels() -> bytes:
        axes = Mask.neighborhood((3, 3)).plot((5, 5), query=(0, 0), kind="neighborhood")
        plan = nbattn.plan(Mask.causal(), (1, 40, 1, 8), dtype="float32", device="cpu").plot()
        return b"".join(savefig(one.figure) for one in (axes, plan))

    plain = pixels()
    with plt.style.context(["dark_background", SETTINGS]):
        before = dict(plt.rcParams)
        assert pixels() == plain
        assert dict(plt.rcParams) == before


def test_threads_leave_the_settings_of_the_caller() -> None:
    before, entered, leave = dict(plt.rcParams), threading.Event(), threading.Event()

    def other() -> None:
        with style.hatches():
            entered.set()
            leave.wait(9)

    thread = threading.Thread(target=other)
    with style.hatches():
        thread.start()
        assert not entered.wait(0.2)  # it would find and put back the settings of this block
    leave.set()
    thread.join()
    assert entered.is_set()
    assert dict(plt.rcParams) == before


def savefig(figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def test_words_on_a_dark_figure_of_the_caller_are_white() -> None:
    part = plt.figure(facecolor="black").subfigures(1, 2)[0]
    axes = Mask.causal().plot(5, ax=part.subplots())
    words = [*axes.get_legend().get_texts(), *axes.get_xticklabels(), axes.xaxis.label]
    assert {colors.to_hex(text.get_color()) for text in words} == {style.PAPER}


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize("size", [(2.0, 2.0), (3.3, 2.0)])
def test_words_in_small_given_axes_do_not_meet(kind: str, size: tuple[float, float]) -> None:
    mask = Mask(Axis(5, 1, stride=2), Axis(3, 3, border="shift"), Axis(1, 1, border="wrap"))
    _, panel = plt.subplots(figsize=size)
    mask.plot((8, 8, 6), query=(1, 0, 0), kind=kind, ax=panel)
    assert [fault for fault in faults(panel.figure) if " on " in fault] == []


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize("size", [(5.0, 2.5), (7.0, 5.0)])
def test_given_axes_are_drawn_into(kind: str, size: tuple[float, float]) -> None:
    figure, panels = plt.subplots(1, 2, figsize=size, layout="constrained")
    for panel, mask in zip(panels, (Mask.causal(), Mask(Axis(3, 3, border="wrap"))), strict=True):
        assert mask.plot(24, kind=kind, ax=panel) is panel
    figure.canvas.draw()
    assert len(plt.get_fignums()) == 1
    if kind == "matrix":
        assert attended(grid(panels[0], range(24), range(24))).sum() == 300
    assert "attended" in legend(panels[0])


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize(
    ("mask", "queries", "keys", "words"),
    [
        (Mask.full(), (0,), (0,), "no pairs: 0 queries, 0 keys"),
        (Mask.full(), (3,), (0,), "no pairs: 3 queries, 0 keys"),
        (Mask.full(2), (0, 4), None, "no pairs: 0 queries, 0 keys"),
        (Mask.full(3), (2, 2, 2), (2, 0, 2), "no pairs: 8 queries, 0 keys"),
        (Mask(Axis(0, 0, offset=9)), (3,), None, ""),
        (Mask(Axis(0, 0, offset=-9), Axis()), (3, 1), None, ""),
        (Mask(Axis(2, 2, dilation=5)), (3,), (3,), ""),
        (Mask(Axis(1, 0, dilation=4, align="top-left")), (9,), (2,), ""),
        (Mask(Axis(0, causal=True, stride=3)), (1,), None, ""),
        (Mask.full(3), (1, 1, 1), None, ""),
    ],
)  # fmt: skip
def test_masks_with_few_or_no_pairs(kind: str, mask: Mask, queries, keys, words: str) -> None:
    axes = plot.picture(mask, queries, keys, kind=kind, figure=style.plain_figure)
    assert not words or [text.get_text() for text in axes.texts] == [words]
    assert words or axes.patches


MISUSE = [
    ({"kind": "neighbourhood"},
     "kind='neighbourhood' is not one of 'matrix', 'neighborhood', 'axes'.\n"
     "  fix:   kind='neighborhood'"),
    ({"kind": 3},
     "kind=3 is not one of 'matrix', 'neighborhood', 'axes'.\n  fix:   kind='matrix'"),
    ({"query": (1, 9)},
     "query=(1, 9) is not on the grid of queries, whose lengths are (6, 8).\n"
     "  fix:   query=(1, 7)"),
    ({"query": (-7, 2)},
     "query=(-7, 2) is not on the grid of queries, whose lengths are (6, 8).\n"
     "  fix:   query=(-6, 2)"),
    ({"query": 3}, "query=3 has 1 number, the mask 2 axes.\n  fix:   query=(3, 4)"),
    ({"query": (1, 2.5)},
     "query=(1, 2.5) is not one integer per axis.\n  fix:   query=(3, 4)"),
    ({"ax": "here"},
     "ax is of type str, not plain Axes of matplotlib.\n"
     "  fix:   ax=matplotlib.pyplot.figure().subplots()"),
    ({"ax": np.array([None])},
     "ax is of type ndarray, not plain Axes of matplotlib.\n  fix:   ax=ax.flat[0]"),
    ({"ax": Figure().add_subplot(projection="3d")},
     "ax is of type Axes3D, not plain Axes of matplotlib.\n"
     "  fix:   ax=matplotlib.pyplot.figure().subplots()"),
    ({"weights": np.ones((6, 8), complex), "query": (1, 1), "kind": "neighborhood"},
     "weights is of type ndarray, not an array of numbers.\n  fix:   weights=None"),
    ({"weights": torch.ones(6, 8, device="meta"), "query": (1, 1), "kind": "neighborhood"},
     "weights is of type Tensor, not an array of numbers.\n  fix:   weights=None"),
]  # fmt: skip


def test_negative_numbers_count_queries_from_the_end() -> None:
    assert queries.given((-1, 2), geometry.bind(Mask.full(2), (6, 8))) == (5, 2)
    assert queries.given(-6, geometry.bind(Mask.full(), 6)) == (0,)


@pytest.mark.parametrize(("options", "text"), MISUSE)
def test_misuse(options, text: str) -> None:
    with pytest.raises(InputError) as caught:
        Mask.neighborhood((3, 3)).plot((6, 8), **options)
    assert str(caught.value) == text
    assert not plt.get_fignums()


@pytest.mark.parametrize("query", [np.array(3), np.int64(3), torch.tensor(3), torch.tensor([3])])
def test_a_query_may_be_an_array(query) -> None:
    drawn = [
        plot.picture(Mask.causal(), 9, query=one, kind="neighborhood", figure=style.plain_figure)
        for one in (query, 3)
    ]
    assert attended(grid(drawn[0], range(1), range(9))).sum() == 4
    assert savefig(drawn[0].figure) == savefig(drawn[1].figure)


def test_a_query_where_there_are_none() -> None:
    with pytest.raises(InputError, match="lengths are \\(0,\\)") as caught:
        Mask.full().plot(0, 4, query=0)
    assert caught.value.fix == "query=None"


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError) as caught:
        Mask.causal().plot(3)
    assert str(caught.value) == (
        "figures need matplotlib, which does not load here: No module named 'matplotlib'.\n"
        "  fix:   pip install matplotlib"
    )

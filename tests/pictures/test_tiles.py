"""Tests of the pictures of plans: the share of every block, counted pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from drawn_cells import patches, winding
from drawn_text import faults
from oracle import axis_matrix, box

import nbattn
from nbattn import Axis, Mask
from nbattn.pictures import style, tiles, zoom

Count = Callable[[str, int], None]


def plan(mask: Mask, query: tuple[int, ...], key: tuple[int, ...] | None = None, **wanted: object):
    shapes = [(1, *space, 1, 8) for space in (query, key or query)]
    return nbattn.plan(mask, *shapes, **{"dtype": "float32", "device": "cpu", **wanted})


def drawn(made: nbattn.Plan):
    return tiles.draw(made, figure=style.plain_figure)


def level_at(axes, points: np.ndarray) -> np.ndarray:
    """The level of colour at every point; -1 where nothing is computed."""
    found = np.full(len(points), -1)
    for label, made in patches(axes).items():
        if label.startswith("level"):
            inside = winding(made[0].get_path(), points) != 0
            assert (found[inside] == -1).all()
            found[inside] = int(label.split()[1])
    return found


CASES = [
    ("sliding window", Mask.sliding_window(5), (67,), None),
    ("shift, dilated", Mask(Axis(2, 2, dilation=3, border="shift")), (50,), None),
    ("wrap", Mask(Axis(3, 3, border="wrap")), (64,), None),
    ("prefix", Mask(Axis(4, causal=True, prefix=2)), (70,), None),
    ("bottom-right, tall", Mask.sliding_window(3, align="bottom-right"), (70,), (40,)),
    ("NAT", Mask.neighborhood((3, 3)), (14, 18), None),
    ("two axes, dilated", Mask(Axis(1, 1, dilation=2), Axis(2, 0)), (11, 13), None),
    ("video", Mask(Axis(1, causal=True), Axis(1, 1), Axis(1, 1, border="wrap")), (3, 6, 8), None),
]
# several blocks with the same queries
ON_GPU = {"backend": "cuda", "device": "sm_90", "dtype": "bfloat16"}
SEVERAL = [
    ("GPU, two axes", Mask.neighborhood((7, 7), dilation=2), (30, 30), ON_GPU),
    ("GPU, video", Mask.neighborhood((3, 5, 5)), (4, 12, 20), ON_GPU),
]


@pytest.mark.parametrize(
    ("mask", "query", "key", "options"),
    [(*s[1:], {"backend": "tiled"}) for s in CASES] + [(*s[1:3], None, s[3]) for s in SEVERAL],
    ids=[s[0] for s in (*CASES, *SEVERAL)],
)
def test_every_block_has_the_colour_of_its_share(mask, query, key, options, cases: Count) -> None:
    """Counted pair by pair in the oracle's matrix."""
    key = key or query
    made = plan(mask, query, key, **options)
    axes = drawn(made)
    pairs = box([axis_matrix(*one) for one in zip(mask.axes, query, key, strict=True)])
    number = {
        "q": np.arange(len(pairs)).reshape(query),
        "k": np.arange(pairs.shape[1]).reshape(key),
    }
    want = np.full((*query, *key) if len(query) == 1 else query, np.nan)
    found = np.zeros((2, *query))  # pairs that are attended, and visited
    for visit in made.schedule():
        q = number["q"][np.ix_(*visit.queries)].ravel()
        k = np.concatenate([number["k"][np.ix_(*keys)].ravel() for keys in visit.keys] or [[]])
        share = pairs[np.ix_(q, k.astype(int))].mean() if k.size else np.nan
        if len(query) == 1:
            want[np.ix_(q, k.astype(int))] = share
        else:
            here = pairs[np.ix_(q, k.astype(int))]
            found.reshape(2, -1)[:, q] += [[here.sum()], [here.size]]
        cases("figures, blocks", 1)
    if len(query) > 1:
        want = np.divide(found[0], found[1], out=want, where=found[1] > 0)
    want = want[len(want) // 2] if len(query) == 3 else want
    levels = np.where(np.isnan(want), -1, np.minimum(np.nan_to_num(want) * 32, 31)).astype(int)
    points = np.argwhere(np.ones(want.shape))[:, ::-1].astype(float)
    np.testing.assert_array_equal(level_at(axes, points).reshape(want.shape), levels)
    if len(query) == 1:
        assert not pairs[np.isnan(want)].any()


def test_words_say_what_is_chosen_and_the_share_of_all() -> None:
    made = plan(Mask.neighborhood((3, 3)), (14, 18), backend="tiled")
    cost = made.chosen.cost
    share = f"{100 * cost.useful_pairs / cost.computed_pairs:.3g}%"
    axes = drawn(made)
    assert axes.get_title() == f"tiled/tile: {share} of computed pairs attended"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("query, axis 0", "query, axis 1")
    assert [text.get_text() for text in axes.texts] == ["0% ", " 100%  of a block's pairs attended"]
    video = drawn(plan(Mask.neighborhood((3, 3, 3)), (5, 6, 7), backend="tiled"))
    assert video.get_title().endswith("\naxis 0 = 2")
    assert video.get_xlabel() == "query, axis 2"


def test_many_blocks_are_shown_at_both_ends_and_in_the_middle() -> None:
    made = plan(Mask.sliding_window(500), (40000,), backend="native")
    sheet = tiles.sheet(made)
    down, across = tiles.scales(sheet)
    assert len(down.parts) == len(across.parts) == 3
    assert {0, 20000, 39999} <= {*down.indices.tolist()}
    axes = drawn(made)
    (_, middle, _), (_, start, _) = down.starts, across.starts
    y, x = middle + 20000 - down.parts[1].start, start + 20000 - across.parts[1].start
    assert (
        level_at(
            axes, np.array([[x, y], [across.starts[2], down.starts[0]]], dtype=float)
        ).tolist()[0]
        > 0
    )
    assert patches(axes)["break"]


def test_too_many_blocks_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "BLOCKS", 20)
    axes = drawn(plan(Mask.sliding_window(8), (5000,), backend="tiled"))
    assert axes.texts[0].get_text().replace("\n", " ") == "more than 20 blocks, too many to draw"


def test_packed_grids_show_the_largest() -> None:
    made = nbattn.plan(
        Mask.neighborhood((3, 3)),
        (59, 1, 8),
        grids=[(3, 3), (5, 9), (1, 5)],
        device="cpu",
        dtype="float32",
    )
    axes = drawn(made)
    assert axes.get_title().endswith("\ngrid 1 of 3: 5 x 9")
    shown = [len(tile.rows) * len(tile.columns[0]) for tile in tiles.sheet(made).tiles]
    assert sum(shown) == 5 * 9
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 8.5), (4.5, -0.5))


def test_plans_without_pairs() -> None:
    made = plan(Mask(Axis(0, 0, offset=90)), (9,), backend="tiled")
    assert drawn(made).texts[0].get_text() == "no blocks: no query has a key"


@pytest.mark.parametrize("space", [(1,), (900,), (1, 1), (3, 1), (1, 90), (2, 1, 2)], ids=str)
def test_words_are_whole_and_apart(space: tuple[int, ...]) -> None:
    axes = drawn(plan(Mask(*[Axis(2, 1)] * len(space)), space))
    assert faults(axes.figure) == []


def test_a_long_name_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name, share = "flash:aten/virtual-pad+fold+merge+split", "26.2% of computed pairs attended"
    monkeypatch.setattr(tiles, "headline", lambda _: f"{name}: {share}")
    axes = drawn(plan(Mask.sliding_window(3), (50,), backend="tiled"))
    assert axes.get_title().splitlines() == [name, share]
    assert faults(axes.figure) == []


def test_no_grids() -> None:
    made = nbattn.plan(
        Mask.full(2), (0, 1, 8), grids=[], backend="tiled", device="cpu", dtype="float32"
    )
    assert [text.get_text() for text in drawn(made).texts] == ["no blocks: there are no grids"]


def test_public_method_draws_into_given_axes() -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2)
    made = plan(Mask.causal(), (40,))
    assert made.plot(ax=panels[1]) is panels[1]
    joint = nbattn.plan(
        Mask.neighborhood((3, 3)),
        (1, 8, 8, 2, 8),
        extra_keys=4,
        extra_queries=True,
        device="cpu",
        dtype="float32",
    )
    assert joint.plot(ax=panels[0]).get_xlabel() == "query, axis 1"
    plt.close(figure)


def test_spans_of_interleaved_positions_are_single() -> None:
    scale = zoom.whole(10)
    assert list(tiles.spans(range(1, 9, 3), scale)) == [(0.5, 1.5), (3.5, 4.5), (6.5, 7.5)]
    assert list(tiles.spans(range(2, 6), scale)) == [(1.5, 5.5)]
    parts = zoom.around(100, [50], 4)
    assert [math.ceil(b - a) for a, b in tiles.spans(range(0, 100), parts)] == [4, 4, 4]

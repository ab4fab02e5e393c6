"""Tests of attention weights in pictures: their colours cell by cell, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_cells import grid, legend, patches, winding
from matplotlib import colormaps
from matplotlib.colors import to_rgba

from nbattn import Axis, InputError, Mask
from nbattn.pictures import plot, style, weighing


def drawn(mask: Mask, *spaces, kind: str = "neighborhood", **options):
    return plot.picture(mask, *spaces, kind=kind, figure=style.plain_figure, **options)


def colour_at(axes, x: float, y: float):
    """The colour of the weight that is drawn at a place."""
    found = [
        patch.get_facecolor()
        for label, drawn in patches(axes).items()
        for patch in drawn
        if label.startswith("weight") and winding(patch.get_path(), np.array([[x, y]]))[0]
    ]
    return found[0] if found else None


def test_every_attended_key_has_the_colour_of_its_weight() -> None:
    mask, query = Mask.neighborhood((3, 5)), (1, 4)
    read = mask.dense((6, 9))[query[0] * 9 + query[1]].reshape(6, 9)
    weights = np.random.default_rng(0).random((6, 9)) * read
    axes = drawn(mask, (6, 9), query=query, weights=torch.tensor(weights, requires_grad=True))
    most = weights[read].max()
    for (y, x), weight in np.ndenumerate(weights):
        colour = colour_at(axes, x, y)
        assert (colour is not None) == read[y, x]
        if colour is not None:
            want = colormaps["cividis"](weight / most)
            assert np.abs(np.subtract(colour, to_rgba(want))).max() < 2 / weighing.LEVELS
    (outline,) = patches(axes)["window"]
    assert (winding(outline.get_path(), np.argwhere(np.ones((6, 9)))[:, ::-1]) != 0).reshape(
        6, 9
    ).tolist() == read.tolist()
    assert legend(axes) == ["not attended", "own position"]
    assert [text.get_text().split() for text in axes.texts] == [
        ["0"],
        [f"{most:.2g}", "attention", "weight"],
    ]


def test_weights_of_a_matrix_and_of_slices() -> None:
    mask = Mask(Axis(1, 1, border="wrap"))
    weights = np.arange(36.0).reshape(6, 6) * mask.dense(6)
    axes = drawn(mask, 6, kind="matrix", weights=weights)
    assert colour_at(axes, 5, 5) == colormaps["cividis"]((63 + 0.5) / 64)
    assert colour_at(axes, 3, 0) is None
    assert (grid(axes, range(6), range(6)) == "⬚").sum() == 18
    four = np.zeros((2, 3, 2, 3))
    assert drawn(Mask.full(2), (2, 3), kind="matrix", weights=four).get_xlabel() == "key"
    video = Mask(Axis(1, causal=True), Axis(1, 1), Axis(1, 1))
    made = np.zeros((4, 5, 6))
    made[2, 2, 3] = 0.25  # slices without weights have no part in the colours
    axes = drawn(video, (4, 5, 6), query=(2, 2, 3), weights=made)
    assert {label for label in patches(axes) if label.startswith("weight")} == {
        "weight 0",
        "weight 63",
    }


def test_weights_of_a_long_axis() -> None:
    weights = np.linspace(0, 1, 5000)
    weights[:2200] = weights[2501:] = 0
    axes = drawn(Mask.sliding_window(300), 5000, query=2500, weights=weights)
    shown = {label for label in patches(axes) if label.startswith("weight")}
    assert shown == {"weight 56", "weight 63"}  # the ends of the window


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": np.ones((8, 6)), "query": (1, 1)},
         "weights has the shape (8, 6), not (6, 8).\n  fix:   weights=weights.reshape((6, 8))"),
        ({"weights": np.ones((2, 4, 6, 8)), "query": (1, 1)},
         "weights has the shape (2, 4, 6, 8), not (6, 8).\n  fix:   weights=weights[0, 0]"),
        ({"weights": np.ones(5), "query": (1, 1)},
         "weights has the shape (5,), not (6, 8).\n  fix:   weights=numpy.zeros((6, 8))"),
        ({"weights": np.ones((6, 8))},
         "weights belong to one query, and query is missing.\n  fix:   query=(3, 4)"),
        ({"weights": np.full((6, 8), -0.5), "query": (1, 1)},
         "weights has -0.5 among its 48 numbers, and weights are 0 or more.\n"
         "  fix:   weights=numpy.nan_to_num(weights).clip(0)"),
        ({"weights": np.full((6, 8), np.nan), "query": (1, 1)},
         "weights has nan among its 48 numbers, and weights are 0 or more.\n"
         "  fix:   weights=numpy.nan_to_num(weights).clip(0)"),
        ({"weights": "much", "query": (1, 1)},
         "weights is of type str, not an array of numbers.\n  fix:   weights=None"),
        ({"weights": np.ones((6, 8)), "kind": "axes"},
         'kind="axes" shows no weights.\n  fix:   kind="neighborhood"'),
        ({"weights": np.ones((6, 8)), "kind": "matrix"},
         "weights has the shape (6, 8), not (48, 48) or (6, 8, 6, 8).\n"
         "  fix:   weights=numpy.zeros((6, 8, 6, 8))"),
        ({"weights": np.eye(6, 8), "query": (1, 1)},
         "weights has 1 at key (3, 3), to which query (1, 1) does not attend.\n"
         "  fix:   weights=nbattn.attention_weights(query, key, mask, at=[(1, 1)])[0, 0, 0]"),
        ({"weights": np.eye(48)[::-1], "kind": "matrix"},
         "weights has 1 at query 0 and key 47, and the query does not attend to it.\n"
         "  fix:   weights=numpy.where(mask.dense((6, 8), (6, 8)), weights.reshape((48, 48)), 0)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(options, text: str) -> None:
    with pytest.raises(InputError) as caught:
        drawn(Mask.neighborhood((3, 3)), (6, 8), **options)
    assert str(caught.value) == text


def test_weights_of_zero_everywhere_are_drawn() -> None:
    axes = drawn(Mask(Axis(0, causal=True, stride=4)), 8, query=1, weights=np.zeros(8))
    assert not [label for label in patches(axes) if label.startswith("weight")]

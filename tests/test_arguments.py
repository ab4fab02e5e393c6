"""Tests of warnings about layouts that fit by chance; the errors are in test_messages."""

from __future__ import annotations

import warnings

import pytest
import torch

import nbattn
from nbattn import Axis, Mask, NeighborhoodAttention, shapes

Shape = tuple[int, ...]


@pytest.fixture(autouse=True)
def no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_WARNED", set[str]())


def attention_warnings(query: Shape, key: Shape | None = None) -> list[str]:
    """The warnings of attention over these shapes, in two calls."""
    made, mask = torch.zeros(query), Mask(*[Axis(1, 0, align="bottom-right")] * (len(query) - 3))
    keys = made if key is None else torch.zeros(key)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            nbattn.attention(made, keys, keys, mask)
    for warning in caught:
        assert warning.category is UserWarning
        assert warning.filename == __file__
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "shape",
    [
        (2, 8, 1024, 4),  # heads for positions, positions for heads
        (1, 16, 197, 4),
        (2, 8, 128, 4),
        (2, 8, 64, 4),
        (2, 2, 300, 4),
        (1, 4, 64, 64, 4),
        (1, 8, 5, 64, 64, 4),
    ],
)
def test_heads_that_look_like_tokens_warn_once(shape: Shape) -> None:
    (text,) = attention_warnings(shape)
    assert text.startswith(f"query {list(shape)} is taken as")


def test_warning_contains_the_code_that_moves_the_axes() -> None:
    (text,) = attention_warnings((2, 8, 1024, 4))
    assert text == (
        "query [2, 8, 1024, 4] is taken as [B, N, H, D]: 1024 heads. If it is [B, H, N, D], as "
        "for torch's scaled_dot_product_attention, pass query.movedim(1, -2), key and value "
        "likewise, and use out.movedim(-2, 1)."
    )
    assert torch.zeros(2, 8, 1024, 4).movedim(1, -2).shape == (2, 1024, 8, 4)


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ((1, 1, 8, 4), (1, 300, 8, 4)),  # decoding
        ((1, 1, 128, 4), (1, 300, 128, 4)),
        ((1, 1, 232, 4), (1, 232, 8, 4)),
        ((1, 1, 256, 4), (1, 1, 256, 4)),
        ((1, 1, 128, 4), (1, 1, 128, 4)),
        ((1, 5, 128, 4), (1, 300, 128, 4)),  # a few rows against a cache
        ((1, 5, 128, 4), (1, 5, 8, 4)),  # grouped heads
        ((1, 12, 71, 4), (1, 12, 1, 4)),
        ((1, 40, 128, 4), None),  # a short text and a large model
        ((1, 9, 64, 4), None),
        ((1, 150, 232, 4), None),
        ((1, 4, 32, 4), None),  # a short text and a small model
        ((1, 8, 56, 4), None),
        ((1, 7, 7, 64, 4), None),
        ((1, 4, 32, 32, 4), None),  # too few to be sure
        ((1, 8, 64, 128, 4), None),
        ((1, 64, 64, 64, 4), None),
        ((0, 8, 1024, 4), (0, 8, 1, 4)),
    ],
)
def test_plausible_heads_do_not_warn(query: Shape, key: Shape | None) -> None:
    assert attention_warnings(query, key) == []


def layer_warnings(layer: NeighborhoodAttention, shape: Shape) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            layer(torch.zeros(shape))
    return [str(warning.message) for warning in caught]


def test_channels_that_may_come_first_warn_once() -> None:
    layer = NeighborhoodAttention(12, 2, Mask.neighborhood((3, 3)))
    (text,) = layer_warnings(layer, (2, 12, 5, 12))
    assert text == (
        "x [2, 12, 5, 12] is taken as [B, X, Y, dim], with channels last. If it is "
        "[B, dim, X, Y], pass x.movedim(1, -1), and use y.movedim(-1, 1)."
    )


@pytest.mark.parametrize(
    ("rank", "shape"),
    [(2, (2, 12, 12, 12)), (2, (2, 5, 12, 12)), (1, (2, 12, 12)), (3, (1, 12, 12, 12, 12))],
)
def test_channels_that_fit_only_last_do_not_warn(rank: int, shape: Shape) -> None:
    mask = Mask(*[Axis(1, 1)] * rank)
    assert layer_warnings(NeighborhoodAttention(12, 2, mask), shape) == []


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
def test_compilers_see_no_warning() -> None:
    """Nor a break of the graph."""
    layer = NeighborhoodAttention(64, 64, Mask.causal())

    def both(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (64, 1))
        return nbattn.attention(heads, heads, heads, Mask.causal()).flatten(-2) + layer(x)

    x = torch.zeros(1, 2, 64)
    torch.compile(both, fullgraph=True, backend="eager")(x)
    assert not shapes._WARNED
    with pytest.warns(UserWarning, match="is taken as"):
        both(x)

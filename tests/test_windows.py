"""Tests of NATTEN's and Flash's windows as axes, and of one axis repeated by a rank."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from nbattn import Axis, Mask, MaskError, windows


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_rank_repeats_one_axis(rank: int) -> None:
    assert Mask.neighborhood(7, rank=rank) == Mask.neighborhood((7,) * rank)
    strided = Mask.neighborhood(8, dilation=2, stride=4, is_causal=True, rank=rank)
    assert strided == Mask(*[Axis(7, dilation=2, stride=4, causal=True)] * rank)
    assert Mask.causal("top-left", rank=rank) == Mask(*[Axis(causal=True, align="top-left")] * rank)
    wide = Mask.sliding_window(6, None, align=3, dilation=2, rank=rank)
    assert wide == Mask(*[Axis(6, None, align=3, dilation=2)] * rank)
    assert windows.checked_rank(np.int64(rank)) == rank


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ({"kernel_size": (7, 5), "rank": 2}, Mask.neighborhood((7, 5))),
        ({"kernel_size": 7, "dilation": (1, 2), "rank": 2}, Mask.neighborhood(7, dilation=[1, 2])),
        ({"kernel_size": np.array([7, 5]), "rank": 2}, Mask.neighborhood((7, 5))),
    ],
)
def test_values_per_axis_agree_with_the_rank(named: dict[str, Any], wanted: Mask) -> None:
    assert Mask.neighborhood(**named) == wanted
    with pytest.raises(MaskError, match=r"is 2 per-axis values, but rank=3\."):
        Mask.neighborhood(**{**named, "rank": 3})


def test_causal_on_two_axes_is_a_product_and_not_raster_order() -> None:
    found = Mask.causal(rank=2).dense((3, 4))
    places = list(product(range(3), range(4)))
    for query, key in product(range(12), repeat=2):
        (i, j), (k, m) = places[query], places[key]
        assert found[query, key] == (k <= i and m <= j)
    assert not found[4, 3]  # (0, 3) comes before (1, 0) in rows, and is not attended to


@pytest.mark.parametrize("make", [Mask.causal, Mask.neighborhood, Mask.sliding_window])
@pytest.mark.parametrize(
    ("rank", "problem", "fix"),
    [
        (0, "rank=0 is below 1.", "rank=1."),
        (4, "a mask has 1 to 3 axes, not 4.", "rank=3."),
        (2.0, "rank=2.0 is a float, not an integer.", "rank=2."),
        (True, "rank=True is a bool, not an integer.", "rank=1."),
    ],
)
def test_a_rank_that_no_mask_has_is_refused(make: Any, rank: Any, problem: str, fix: str) -> None:
    first = () if make == Mask.causal else (7,)
    with pytest.raises(MaskError) as caught:
        make(*first, rank=rank)
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_no_value_for_any_axis_has_no_fix() -> None:
    with pytest.raises(MaskError) as caught:
        Mask.neighborhood((), rank=2)
    assert (caught.value.problem, caught.value.fix) == (
        "kernel_size=() is 0 per-axis values, but rank=2.",
        "",
    )

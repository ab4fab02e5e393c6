"""Tests of packed grids as parts of a cost, and of one call on all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nbattn
from nbattn import Axis, Mask
from nbattn.program.packed import BUCKETS
from nbattn.program.parts import PackedCall, farthest, longest, parts_of
from nbattn.program.request import Request

MASK = Mask(Axis(2, 2, align="bottom-right", offset=1), Axis(1, 1, align="top-left"))
GRIDS, KEY_GRIDS = [(2, 3), (5, 1), (2, 3), (0, 9)], [(4, 3), (5, 7), (4, 3), (1, 1)]


@pytest.fixture
def request_() -> Request:
    tokens = [sum(a * b for a, b in side) for side in (GRIDS, KEY_GRIDS)]
    shapes = [(count, 2, 16) for count in tokens]
    plan = nbattn.plan(
        MASK, *shapes, grids=GRIDS, key_grids=KEY_GRIDS, dtype=torch.float32, backend="native"
    )
    return plan.request


def lengths(axes: object) -> list[tuple[int, int]]:
    return [axis.lengths for axis in axes]  # pyright: ignore


def test_a_part_for_each_size(request_: Request) -> None:
    found = parts_of(request_, ())
    assert [(lengths(part.axes), part.times) for part in found] == [
        ([(2, 4), (3, 3)], 2),
        ([(5, 5), (1, 7)], 1),
    ]


def test_one_part_without_grids(request_: Request) -> None:
    alone = request_.of_size(0)
    axes = alone.axes()
    assert parts_of(alone, axes) == ((axes, 1, 1),)
    assert longest(alone, axes) is farthest(alone, axes) is axes


def test_the_longest_axes(request_: Request) -> None:
    assert lengths(longest(request_, ())) == [(5, 5), (9, 7)]
    assert lengths(farthest(request_, ())) == [(5, 5), (9, 1)]


@pytest.mark.parametrize(
    ("grids", "key_grids", "number"),
    [([8, 6], [12, 1], 1), ([5, 4], [2, 20], 1), ([30, 4], [2, 20], 0)],
    ids=["offset", "keys", "queries"],
)
def test_the_axis_with_the_greatest_number(
    grids: list[int], key_grids: list[int], number: int
) -> None:
    """Behind the keys, too: queries of six and one key are from -14 on."""
    mask = Mask(Axis(1, 1, align="bottom-right", offset=-9))
    shapes = [(sum(side), 2, 16) for side in (grids, key_grids)]
    plan = nbattn.plan(mask, *shapes, grids=grids, key_grids=key_grids, device="cpu")
    assert lengths(farthest(plan.request, ())) == [(grids[number], key_grids[number])]


def test_parts_have_the_tokens_of_all_grids() -> None:
    grids = [1 + n % 97 for n in range(300)]
    plan = nbattn.plan(Mask.causal(), (sum(grids), 2, 16), grids=grids, device="cpu")
    parts = parts_of(plan.request, ())
    assert len(parts) == BUCKETS == 2
    tokens = sum(part.times * part.axes[0].queries for part in parts)
    assert tokens == pytest.approx(sum(grids), rel=1e-9)


def test_the_offset_of_each_grid(request_: Request) -> None:
    plan = nbattn.plan(
        MASK, (request_.query_count, 2, 16), (request_.key_count, 2, 16), grids=GRIDS,
        key_grids=KEY_GRIDS, dtype=torch.float32, backend="native",
    )  # fmt: skip
    assert plan.chosen.program is not None
    call = plan.chosen.program.calls[0].arguments
    assert isinstance(call, PackedCall)
    assert call.offsets.tolist() == [[3, 0], [1, 0], [3, 0], [2, 0]]
    (own,) = call.of_size(1).calls
    assert own.query.lengths == (5, 1)
    assert own.arguments == replace(call.kernels, axes=own.arguments.axes)  # pyright: ignore

"""Tests of the tiles of a page: their ranges and useful shares, counted pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

import oracle
import pytest

import nbattn
from nbattn import Axis, Mask
from nbattn.explorer import tiles

CASES = [
    (Mask.sliding_window(5), (40,), "cpu", "auto"),
    (Mask(Axis(3, causal=True, prefix=4)), (40,), "cpu", "auto"),
    (Mask.neighborhood((3, 5), dilation=(2, 1)), (9, 10), "cpu", "auto"),
    (Mask(Axis(1, 1), Axis(2, 2, border="wrap", dilation=2)), (6, 12), "cpu", "tiled"),
    (Mask(Axis(2, 0), Axis(1, 1, border="wrap"), Axis(1, 1)), (3, 6, 7), "cpu", "auto"),
    (Mask.sliding_window(200), (600,), "sm_90", "flash"),
    (Mask.sliding_window(5, dilation=3), (70,), "sm_90", "auto"),
]


def planned(mask: Mask, space: tuple[int, ...], device: str, backend: str) -> nbattn.Plan:
    dtype = "float32" if device == "cpu" else "bfloat16"
    return nbattn.plan(mask, (1, *space, 2, 32), dtype=dtype, device=device, backend=backend)


def positions(parts: list[list[int]], space: tuple[int, ...]) -> list[int]:
    """The flat positions of ranges of `[start, count, step]` per axis."""
    places = [[start + step * n for n in range(count)] for start, count, step in parts]
    found: list[int] = []
    for place in itertools.product(*places):
        flat = 0
        for at, length in zip(place, space, strict=True):
            assert 0 <= at < length
            flat = flat * length + at
        found.append(flat)
    return found


@pytest.mark.parametrize(("mask", "space", "device", "backend"), CASES)
def test_tiles_hold_every_pair_and_say_their_share(mask, space, device, backend, cases):
    plan = planned(mask, space, device, backend)
    found = tiles.of_plan(plan, plan.request.axes())
    matrix = oracle.matrix(mask.axes, space, space)
    seen = matrix & False
    for queries, share, group in found["groups"]:
        rows, allowed, visited = positions(queries, space), 0, 0
        for part, boxes in group:
            columns = [key for box in boxes for key in positions(box, space)]
            block = matrix[rows][:, columns]
            assert part == round(1000 * block.sum() / block.size)
            allowed, visited = allowed + block.sum(), visited + block.size
            for row in rows:
                seen[row, columns] = True
        assert share == round(1000 * allowed / visited)
    assert (seen | ~matrix).all()
    assert found["tiles"] == sum(len(group) for _, _, group in found["groups"])
    cases("explorer: tiles", found["tiles"])


def test_too_many_tiles_are_a_reason_in_words():
    plan = planned(Mask.sliding_window(5), (400,), "cpu", "auto")
    found = tiles.of_plan(plan, plan.request.axes(), most=5)
    assert found == {"reason": "the plan visits more than 5 tiles, too many to draw"}


def test_a_long_axis_is_never_cut_into_tiles(monkeypatch: pytest.MonkeyPatch):
    plan = planned(Mask.sliding_window(5), (1 << 20,), "cpu", "auto")
    monkeypatch.setattr(nbattn.Plan, "schedule", lambda _: pytest.fail("tiles were cut"))
    found: dict[str, Any] = tiles.of_plan(plan, plan.request.axes())
    assert found == {"reason": "an axis has 1,048,576 queries; tiles are shown up to 65,536"}


def test_packed_grids_have_the_tiles_of_one_grid():
    grids = [(4, 4), (8, 6)]
    plan = nbattn.plan(
        Mask.neighborhood((3, 3)), (64, 2, 32), dtype="float32", device="cpu", grids=grids
    )
    for number, grid in enumerate(grids):
        found = tiles.of_plan(plan, plan.request.of_size(number).axes(), grid=number)
        every = [q for queries, _, _ in found["groups"] for q in positions(queries, grid)]
        assert sorted(every) == list(range(grid[0] * grid[1]))

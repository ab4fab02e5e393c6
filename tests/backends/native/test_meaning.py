"""Tests of the arguments of the native kernels: supports, runs and schedules at any tile size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import axis_matrix, masks, matrix
from parts_of_axes import Case, bound, parts
from small_requests import requests

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.native import tiles as native_tiles
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import Tiles
from nbattn.geometry import bind
from nbattn.planner import planner
from nbattn.program import device, tile_traversal
from nbattn.program.blocks import Block
from nbattn.program.tile_traversal import ColumnTile, Traversal

Count = Callable[[str, int], None]
Space = tuple[int, ...]
ONE = (1, 1, 1, 1)
TILES = {
    1: ((1, 1, 1, 16), (1, 1, 1, 4), (2, 1, 1, 3)),
    2: ((1, 1, 4, 4), (2, 1, 2, 4), (1, 1, 3, 1)),
    3: ((1, 2, 2, 4), (4, 1, 2, 2), (1, 3, 1, 2)),
}


def cells(boxes: tuple[tuple[range, ...], ...], space: Space) -> list[int]:
    """The positions of boxes of ranges, row-major over a space."""
    cells_of = (product(*box) for box in boxes)
    return [int(np.ravel_multi_index(at, space)) for box in cells_of for at in box]


def visited(blocks: list[Block], queries: Space, keys: Space) -> np.ndarray:
    """How many blocks contain each pair."""
    times = np.zeros((math.prod(queries), math.prod(keys)), dtype=int)
    for block in blocks:
        at = cells((block.queries,), queries), cells(block.keys, keys)
        assert len({*at[1]}) == len(at[1])
        times[np.ix_(*at)] += 1
    return times


@settings(max_examples=100)
@given(masks(), st.data())
@example((Mask(Axis(0, 0, prefix=1)), (6,), (6,)), None)
def test_support_at_any_tile(
    cases: Count, drawn: tuple[Mask, Space, Space], data: st.DataObject | None
) -> None:
    """Here seams and hulls are met on small tiles, too; each kernel has its own."""
    mask, queries, keys = drawn
    pick = st.sampled_from(TILES[mask.rank])
    tiles = [Tiles(data.draw(pick) if data else (1, 1, 1, 2), ONE) for _ in range(3)]
    call = NativeArguments(bind(mask, queries, keys), *tiles)
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(call.allowed(queries, keys), wanted)
    for number, lengths in enumerate(zip(queries, keys, strict=True)):
        starts, counts, step = call.key_runs(number, *lengths)
        found = np.zeros(lengths, dtype=int)
        for row, (at, n) in enumerate(zip(starts, counts, strict=True)):
            for start, count in zip(at, n, strict=True):
                found[row, start : start + step * count : step] += 1
        assert np.array_equal(found, axis_matrix(mask.axes[number], *lengths))
    cases("native tiles", 1)


@settings(max_examples=100)
@given(parts(), st.sampled_from(TILES[1]), st.sampled_from(TILES[1]))
def test_support_of_a_part_of_an_axis(
    cases: Count, case: Case, tile: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    axis, wanted = bound(case)
    call = NativeArguments((axis,), Tiles(tile, ONE), Tiles(tile, ONE), Tiles(other, ONE))
    assert np.array_equal(call.allowed((axis.queries,), (axis.keys,)), wanted)
    cases("native tiles of parts", 1)


@settings(max_examples=60)
@given(requests())
def test_a_plan_is_the_mask_and_its_blocks_cover_it(
    cases: Count, request_: planner.Request
) -> None:
    cpu = device.DEVICES["cpu"]
    plan = planner.make(replace(request_, device=cpu, backend="native", training=True))
    queries, keys = request_.query_space, request_.key_space
    wanted = matrix(request_.mask.axes, queries, keys)
    assert np.array_equal(plan.support(), wanted)
    assert plan.verify()
    for backward in (False, True):
        blocks = list(plan.schedule(backward=backward))
        times = visited(blocks, queries, keys)
        assert times.max(initial=0) <= 1
        assert (times >= wanted).all()
        for block in blocks:
            at = np.ix_(cells((block.queries,), queries), cells(block.keys, keys))
            assert wanted[at].all() or not block.full
    cases("native plans", 1)


def test_heads_of_a_key_head_share_a_tile() -> None:
    plan = nbattn.plan(
        Mask.neighborhood(5), (1, 40, 8, 16), (1, 40, 2, 16), device="cpu", backend="native"
    )
    (call,) = plan.chosen.program.calls
    assert call.arguments.forward.tile == (4, 1, 1, 4)
    assert call.arguments.describe().startswith("tiles of 4 queries of 4 heads, keys copied for ")
    assert plan.verify()
    assert np.array_equal(plan.support(), Mask.neighborhood(5).dense(40))


def test_proofs_find_a_kernel_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where the traversal of one kernel loses a column."""
    options = {"device": "cpu", "backend": "native", "training": True}
    plan = nbattn.plan(Mask.neighborhood((7, 5)), (1, 12, 20, 2, 32), **options)
    assert plan.support().any()
    whole = Traversal.tiles
    for lossy in (False, True):

        def tiles(self: Traversal, rows: int, columns: int, lossy: bool = lossy):
            for tile in whole(self, rows, columns):
                lost = tile.columns
                if self.inverse == lossy and lost:
                    first = lost[0]
                    some = ColumnTile(first.positions[1:], first.full, first.reads[:, 1:])
                    lost = (some, *lost[1:])
                yield tile._replace(columns=lost)

        monkeypatch.setattr(tile_traversal.Traversal, "tiles", tiles)
        with pytest.raises(AssertionError, match="gradients differ from the output's"):
            plan.support()


def test_a_kernel_whose_gradients_of_queries_differ_is_found() -> None:
    axes = bind(Mask.neighborhood(5), 20)
    right = native_tiles.Tiles((1, 1, 1, 16), ONE)
    call = NativeArguments(axes, right, right, right)
    assert call.allowed((20,), (20,)).sum() == 100
    assert NativeArguments(axes, right).describe() == "tiles of 16 queries, keys copied for 16"


def test_slabs_that_add_to_one_key_at_a_time_are_found() -> None:
    """By the keys of each slab, class by class."""
    line = Mask(Axis(127, 127, dilation=2))
    for axes in (bind(line, 2000), bind(Mask(Axis(1, 1), *line.axes), (3, 2000))):
        shape = tuple(axis.queries for axis in axes)
        for groups, legal in ((8, True), (4, False), (100, True)):
            slab = (1, 3, groups) if len(axes) == 2 else (1, 1, groups)
            cut = native_tiles.Tiles((1, 1, 1, 16), (1, 1, 1, 2), slab)
            call = NativeArguments(axes, cut, grad_all=cut)
            if legal:
                call._check_slabs(cut)
                continue
            with pytest.raises(AssertionError, match="add to the gradient of key 258") as caught:
                call._check_slabs(cut)
            assert f"axis {len(shape) - 1}: two slabs of 128 queries" in str(caught.value)

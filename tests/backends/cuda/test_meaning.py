"""Tests of the arguments of the CUDA kernels: supports and schedules at any tile size."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import few_examples
import numpy as np
import pytest
from cuda_plans import arguments, planned
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix

from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.geometry import bind
from nbattn.program import tile_counts
from nbattn.program.tile_traversal import row_tiles

Count = Callable[[str, int], None]
Space = tuple[int, ...]


TILES = {
    1: ((1, 1, 16), (1, 1, 8), (1, 1, 3)),
    2: ((1, 4, 4), (1, 2, 8), (1, 3, 1)),
    3: ((2, 2, 4), (1, 2, 3), (4, 1, 2)),
}


@few_examples.quick(100)
@given(masks(), st.data())
def test_support_at_any_tile(cases: Count, drawn: tuple[Mask, Space, Space], data: Any) -> None:
    """Plans choose large tiles for small shapes: here seams and hulls are met on small ones."""
    mask, queries, keys = drawn
    axes_of_mask = bind(mask, queries, keys)
    pick = st.sampled_from(TILES[mask.rank])
    tiles = [Tiles(data.draw(pick), data.draw(pick)) for _ in range(3)]
    call = CudaArguments(axes_of_mask, Build("float32", 32, 32), *tiles)
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(call.allowed(queries, keys), wanted)
    visited = [
        (row, visit)
        for row in row_tiles(axes_of_mask, *call._extents(call.forward), inverse=False)
        for visit in product(*(part.columns for part in row))
    ]
    counts = [math.prod(len(part.positions) for part in (*row, *visit)) for row, visit in visited]
    traversals = [cuda.Traversal(bound_axis) for bound_axis in tile_counts.padded(axes_of_mask)]
    extents = zip(traversals, tiles[0].rows, tiles[0].columns, strict=True)
    assert len(visited) == math.prod(traversal.tile_pairs(*sizes) for traversal, *sizes in extents)
    assert sum(counts) >= wanted.sum()
    cases("cuda tiles", 1)


def test_proofs_find_a_wrong_traversal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where the traversal of one kernel loses a column."""
    plan = planned(Mask.neighborhood((7, 5)), (1, 12, 20, 2, 32), training=True)
    assert plan.verify()
    original = cuda.Traversal.tiles

    def lossy(self: Any, rows: int, columns: int) -> Any:
        for tile in original(self, rows, columns):
            yield tile._replace(columns=tile.columns[:1]) if self.inverse else tile

    monkeypatch.setattr(cuda.Traversal, "tiles", lossy)
    with pytest.raises(AssertionError, match="the pairs of the keys' gradients differ"):
        plan.support()
    reads = cuda.Traversal.reads
    monkeypatch.setattr(cuda.Traversal, "reads", lambda self, *sizes: reads(self, *sizes)[::-1])
    with pytest.raises(AssertionError, match="axis 0: query 0 attends to other keys"):
        plan.verify()


def test_full_tiles_are_not_masked_and_the_schedule_shows_them() -> None:
    plan = planned(Mask.sliding_window(255, 0), (1, 1024, 8, 64))
    visits = list(plan.schedule())
    sizes = arguments(plan).forward
    assert all(len(visit.queries[0]) <= sizes.rows[2] for visit in visits)
    read = matrix((Axis(255, 0),), (1024,), (1024,))
    for visit in visits:
        (columns,) = visit.keys[0]
        assert visit.full <= read[np.ix_(visit.queries[0], columns)].all()
    assert sum(visit.full for visit in visits) > len(visits) / 3
    wrapped = planned(Mask(Axis(9, 9, border="wrap", dilation=2)), (1, 512, 1, 64)).schedule()
    assert {len(visit.keys) for visit in wrapped} == {1}  # no tile is over the seam


@few_examples.quick(100)
@given(masks())
def test_schedules_hold_every_pair_once(cases: Count, drawn: tuple[Mask, Space, Space]) -> None:
    """Forward and backward, also where windows wrap."""
    mask, queries, keys = drawn
    shapes = {"key_shape": (1, *keys, 1, 32), "training": True}
    plan = planned(mask, (1, *queries, 2, 32), **shapes)
    wanted = matrix(mask.axes, queries, keys)
    for backward in (False, True):
        times = np.zeros((*queries, *keys), dtype=int)
        for visit in plan.schedule(backward=backward):
            for box in visit.keys:
                times[np.ix_(*visit.queries, *box)] += 1
        assert times.max(initial=0) <= 1
        assert (times.reshape(wanted.shape) >= wanted).all()
        cases("cuda schedules", 1)


def test_numbers_of_an_axis_have_a_limit_each() -> None:
    for axis, name, limit in (
        (Axis(1, 1, dilation=(1 << 23) + 1), "dilation", 1 << 23),
        (Axis(1, 1, stride=1 << 28), "stride", 1 << 25),
        (Axis(1, 1, offset=-(1 << 28)), "offset", 1 << 25),
    ):
        with pytest.raises(BackendError, match=f"takes {name} up to {limit} on axis 0, not "):
            planned(Mask(axis), (1, 8, 2, 32))
    assert planned(
        Mask(Axis((1 << 31) - 1, (1 << 31) - 1)), (1, 8, 2, 32)
    ).verify()  # sides have none

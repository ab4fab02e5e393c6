"""Tests of the arguments of the Triton kernels: supports and schedules at any tile, and reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import few_examples
import numpy as np
import parts_of_axes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import masks, matrix
from triton_plans import arguments, candidate, device, planned, requested

from nbattn import Axis, Mask
from nbattn.backends.triton import meaning as triton
from nbattn.backends.triton.meaning import TritonArguments
from nbattn.backends.triton.tiles import Build, Tiles
from nbattn.geometry import Held, bind
from nbattn.program.program import Call, whole
from nbattn.program.tile_counts import padded
from nbattn.program.tile_traversal import Traversal

Count = Callable[[str, int], None]
Space = tuple[int, ...]

TILES = {
    1: ((1, 1, 16), (1, 1, 8), (1, 1, 2)),
    2: ((1, 4, 4), (1, 2, 8), (1, 4, 1)),
    3: ((2, 2, 4), (1, 2, 4), (4, 1, 2)),
}


@few_examples.quick(100)
@given(masks(), st.data())
def test_support_at_any_tile(cases: Count, drawn: tuple[Mask, Space, Space], data: Any) -> None:
    """Plans choose large tiles for small shapes: here seams and hulls are met on small ones."""
    mask, queries, keys = drawn
    axes = bind(mask, queries, keys)
    pick = st.sampled_from(TILES[mask.rank])
    forward, grad_query, grad_key, table = (
        Tiles(data.draw(pick), data.draw(pick)) for _ in range(4)
    )
    build = Build("float32", 32, 32, mask.rank)
    call = TritonArguments(axes, build, forward, grad_query, grad_key, grad_table=table)
    wanted = matrix(mask.axes, queries, keys)
    assert np.array_equal(call.allowed(queries, keys), wanted)
    visited = [
        visit
        for row in call.row_tiles(backward=False)
        for visit in product(*(part.columns for part in row))
    ]
    extents = zip(padded(axes), forward.rows, forward.columns, strict=True)
    assert len(visited) == math.prod(
        Traversal(axis, uncut=True).tile_pairs(*sizes) for axis, *sizes in extents
    )
    cases("triton tiles", 1)


@pytest.mark.parametrize("at", [0, 1])
@few_examples.quick(100)
@given(case=parts_of_axes.parts(), tiles=st.sampled_from(TILES[2]))
def test_parts_of_axes_are_supported(
    cases: Count, case: parts_of_axes.Case, tiles: tuple[int, int, int], at: int
) -> None:
    """Of either axis, beside a whole one; also where a circle is not whole."""
    part, block = parts_of_axes.bound(case)
    (beside,) = bind(Mask(Axis(1, 1)), 3)
    axes = (part, beside) if at == 0 else (beside, part)
    one = Tiles(tiles, tiles)
    call = TritonArguments(axes, Build("float32", 32, 32, 2), one, one, one)
    queries, keys = ([axis.queries for axis in axes], [axis.keys for axis in axes])
    sides = (block, beside.dense()) if at == 0 else (beside.dense(), block)
    wanted = np.kron(*(side.astype(int) for side in sides)).astype(bool)
    assert np.array_equal(call.allowed((*queries,), (*keys,)), wanted)
    starts, counts, step = call.key_runs(at, part.queries, part.keys)
    found = np.zeros_like(block)
    for row, start, count in zip(found, starts, counts, strict=True):
        for a, n in zip(start, count, strict=True):
            row[a : a + step * n : step] = True
    assert np.array_equal(found, block)
    cases("triton parts", 1)


def test_proofs_find_a_wrong_traversal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where the traversal of one kernel loses a column."""
    plan = planned(Mask.neighborhood((7, 5)), (1, 12, 20, 2, 32), training=True)
    assert plan.verify()
    original = triton.Traversal.tiles

    def lossy(self: Any, rows: int, columns: int) -> Any:
        for tile in original(self, rows, columns):
            yield tile._replace(columns=tile.columns[:1]) if self.inverse else tile

    monkeypatch.setattr(triton.Traversal, "tiles", lossy)
    with pytest.raises(AssertionError, match="the pairs of the keys' gradients differ"):
        plan.support()
    reads = triton.Traversal.reads
    monkeypatch.setattr(triton.Traversal, "reads", lambda self, *sizes: reads(self, *sizes)[::-1])
    with pytest.raises(AssertionError, match="axis 0: query 0 attends to other keys"):
        plan.verify()


def test_the_table_sees_the_pairs_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, shape = Mask.neighborhood((7, 5)), (1, 12, 20, 2, 32)
    plan = planned(mask, shape, training=True, relative_bias=True)
    plan.support()
    known = arguments(plan)
    assert known.grad_table is not None
    odd = Tiles(known.grad_table.rows, (1, 2, 32))
    call = replace(known, grad_table=odd)
    pairs = triton.tile_traversal.pairs

    def one_fewer(axes: Any, rows: Any, columns: Any, **named: Any) -> np.ndarray:
        found = pairs(axes, rows, columns, **named)
        found[0, 0] &= columns != (2, 32)
        return found

    monkeypatch.setattr(triton.tile_traversal, "pairs", one_fewer)
    with pytest.raises(AssertionError, match="the pairs of the table's gradient differ"):
        call.allowed((12, 20), (12, 20))


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


def test_a_block_at_the_seam_has_two_boxes() -> None:
    """Its columns are one tile, before and after the end of the circle."""
    plan = planned(Mask(Axis(9, 9, border="wrap", dilation=2)), (1, 512, 1, 64))
    boxes = [visit.keys for visit in plan.schedule()]
    assert {len(keys) for keys in boxes} == {1, 2}
    first = {keys[0][0][0] for keys in boxes if len(keys) == 2}
    assert all(at > 256 for at in first)


@few_examples.quick(100)
@given(masks())
def test_schedules_hold_every_pair(cases: Count, drawn: tuple[Mask, Space, Space]) -> None:
    """Forward and backward: once, but where a hull is longer than a circle's lap."""
    mask, queries, keys = drawn
    plan = planned(mask, (1, *queries, 2, 32), key_shape=(1, *keys, 1, 32), training=True)
    wanted = matrix(mask.axes, queries, keys)
    wraps = any(axis.border == "wrap" for axis in mask.axes)
    for backward in (False, True):
        times = np.zeros((*queries, *keys), dtype=int)
        for visit in plan.schedule(backward=backward):
            for box in visit.keys:
                times[np.ix_(*visit.queries, *box)] += 1
        assert wraps or times.max(initial=0) <= 1
        assert (times.reshape(wanted.shape) >= wanted).all()
        cases("triton schedules", 1)


def test_a_part_of_a_circle_has_a_schedule() -> None:
    """Visits whose columns the tensors do not hold have no block."""
    mask, tiles = Mask(Axis(4, 4, border="wrap")), Tiles((1, 1, 4), (1, 1, 2))
    axes = bind(mask, 8, 6, (Held(0, 16, 4, 16),))
    call = TritonArguments(axes, Build("float32", 32, 32, 1), tiles, tiles, tiles)
    request = requested(mask, (1, 16, 1, 32))
    wanted = axes[0].dense()
    for backward in (False, True):
        times = np.zeros_like(wanted, dtype=int)
        for visit in call.blocks(request, Call(whole((8,)), whole((6,)), call), backward=backward):
            for box in visit.keys:
                times[np.ix_(*visit.queries, *box)] += 1
        assert (times >= wanted).all()
        assert times.max() == 1


def test_arguments_describe_the_forward() -> None:
    tiles = Tiles((1, 4, 8), (1, 2, 16))
    axes = bind(Mask.neighborhood((3, 3)), (16, 16))
    build = Build("float32", 32, 32, 2, grids=True)
    call = TritonArguments(axes, build, tiles)
    assert call.describe() == "tiles of 4x8 queries and 2x16 keys"
    line = bind(Mask.causal(), 9)
    assert call.alone(line) == TritonArguments(line, build._replace(grids=False), tiles)
    assert [triton.two_runs(axes), triton.circle(axes)] == [False, False]
    assert triton.two_runs(bind(Mask(Axis(1, 0), Axis(1, 0, prefix=1)), (9, 9)))
    assert triton.circle(bind(Mask(Axis(1, 0), Axis(1, 1, border="wrap")), (9, 9)))


def test_the_oldest_gpu_is_that_of_tritons_readme() -> None:
    axes, mask = bind(Mask.causal(), 64), Mask.causal()
    for name, accepted in (("sm_75", False), ("sm_80", True), ("gfx90a", True), ("xe", True)):
        needs = requested(mask, (1, 64, 2, 32), device=device(name), dtype="float16").needs
        texts = [reason.text for reason in triton.reasons(needs, axes)]
        assert texts == ([] if accepted else ["Triton needs sm_80 or newer, not sm_75"])


def test_float64_on_gfx942_needs_a_triton_that_compiles_it() -> None:
    for version, dtype, name, accepted in (
        ((3, 8), "float64", "gfx942", True),
        ((3, 7), "float64", "gfx942", False),
        ((3, 7), "float64", "gfx90a", True),
        ((3, 7), "float64", "gfx950", True),
        ((3, 7), "float32", "gfx942", True),
    ):
        on = replace(device(name), triton=version)
        request = requested(Mask(Axis(1, 1)), (1, 8, 1, 16), device=on, dtype=dtype)
        wrong = [("dtype", "float64 on gfx942 needs Triton 3.8 or newer, not 3.7")]
        found = triton.reasons(request.needs, request.axes())
        assert [tuple(one) for one in found] == wrong * (not accepted)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float16", 256), ("bfloat16", 256), ("float32", 256), ("float64", 128)],
)
def test_head_sizes_have_a_limit(dtype: str, most: int) -> None:
    axes = bind(Mask.causal(), 64)
    for head, value in ((most, 1), (1, most)):
        needs = requested(Mask.causal(), (1, 64, 2, head), value_dim=value, dtype=dtype).needs
        assert triton.reasons(needs, axes) == []
        larger = needs._replace(head_dim=head + 1, value_dim=value + 1)
        name = "head_dim" if head == most else "value_dim"
        assert [tuple(reason) for reason in triton.reasons(larger, axes)] == [
            (name, f"takes a {name} up to {most} in {dtype}, not {most + 1}")
        ]


def test_what_is_missing_has_words() -> None:
    mask, shape = Mask.causal(), (1, 64, 2, 32)
    needs = requested(mask, shape, device=device("gfx942", providers=())).needs
    (reason,) = triton.absent(needs)
    assert reason == (
        "package",
        "needs Triton, which is not installed or does not work here: torch's wheels for CUDA, "
        "ROCm and XPU bring it",
    )
    cpu = requested(mask, shape, device=device("cpu", providers=())).needs
    assert [one.text for one in triton.absent(cpu)] == ["runs on cuda, xpu, not on cpu"]
    assert triton.absent(requested(mask, shape, device=device("xe")).needs) == []


def test_numbers_of_an_axis_have_a_limit_each() -> None:
    needs = requested(Mask.causal(), (1, 8, 2, 32)).needs
    for axis, name, limit in (
        (Axis(1, 1, dilation=(1 << 23) + 1), "dilation", 1 << 23),
        (Axis(1, 1, stride=1 << 28), "stride", 1 << 25),
        (Axis(1, 1, offset=-(1 << 28)), "offset", 1 << 25),
    ):
        (reason,) = triton.reasons(needs, bind(Mask(axis), 8))
        assert reason.text.startswith(f"takes {name} up to {limit} on axis 0, not ")
    assert planned(Mask(Axis((1 << 31) - 1, (1 << 31) - 1)), (1, 8, 2, 32)).verify()  # no limit


def test_launches_have_a_limit_by_vendor() -> None:
    """On AMD's, of threads: 64 in a warp."""
    for name, warps, most in (
        ("sm_90", 4, (1 << 31) - 1),
        ("xe", 4, (1 << 31) - 1),
        ("gfx942", 4, (1 << 24) - 1),
        ("gfx942", 1, (1 << 26) - 1),
    ):
        assert triton.grid_reason(most, warps, device(name)) is None
        reason = triton.grid_reason(most + 1, warps, device(name))
        assert reason == ("grid", f"{most + 1} programs are over the grid of {most}")


def test_tokens_of_a_sample_have_a_limit() -> None:
    """On all axes together; each of them is far below its own."""
    mask = Mask(Axis(1, 1), Axis(1, 1, align="top-left"))
    for width, counts in ((1 << 15, []), ((1 << 15) + 1, [(1 << 30) + (1 << 15)] * 2)):
        request = requested(mask, (2, 1 << 15, width, 1, 16), device=device("sm_90"))
        refused = candidate(request).reasons
        assert [reason.text for reason in refused] == [
            f"takes up to {1 << 30} {name} in a sample, not {count}"
            for name, count in zip(("queries", "keys"), counts, strict=False)
        ]


def test_tables_have_a_limit() -> None:
    """Of entries per head; and of heads, a dimension of the gradient's grid."""
    small, large = Mask.neighborhood((1023, 1025)), Mask.neighborhood((1025, 1025))
    shape = (1, 2048, 2048, 2, 32)
    assert triton.table_reasons(requested(small, shape, relative_bias=True)) == []
    (reason,) = triton.table_reasons(requested(large, shape, relative_bias=True))
    assert reason.text == f"takes tables of up to {1 << 22} entries per head, not {2049**2}"
    for heads, training, number in ((65535, True, 0), (65536, True, 1), (65536, False, 0)):
        request = requested(Mask.neighborhood(3), (1, 8, heads, 8), training=training)
        assert len(triton.table_reasons(request)) == number


def test_delta_has_as_many_rows_as_fit() -> None:
    for value, rows in ((16, 256), (17, 128), (64, 64), (256, 16), (1, 256)):
        request = requested(Mask.causal(), (3, 100, 5, 32), value_dim=value)
        assert triton.delta_programs(request) == -(-1500 // rows)

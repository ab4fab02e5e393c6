"""Tests of the choice of native tiles and groups: legal, cheap and the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from small_requests import request_for, requests

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.native import tiles
from nbattn.backends.native.costs import KERNELS, LANES
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import MOST, STATE, Tiles
from nbattn.planner import planner
from nbattn.program import device
from nbattn.program.request import Request

Count = Callable[[str, int], None]
CPU = device.DEVICES["cpu"]
CASES: dict[str, Request] = {
    "one axis": request_for(Mask.neighborhood(255), 4096, heads=8, kv_heads=8, head_dim=64),
    "causal": request_for(Mask.sliding_window(511), 2000, heads=8, kv_heads=2, head_dim=64),
    "grid": request_for(Mask.neighborhood((7, 7)), (56, 56), heads=2, head_dim=32, value_dim=32),
    "shared keys": request_for(Mask.neighborhood((7, 7)), (56, 56), heads=16, kv_heads=1),
    "dilated": request_for(Mask.neighborhood((7, 7), dilation=8), (56, 56), head_dim=32),
    "video": request_for(Mask.neighborhood((4, 8, 8)), (8, 24, 24), head_dim=64, value_dim=64),
    "long keys": request_for(Mask.causal("top-left"), 300, 4000, head_dim=128, value_dim=64),
    "circle": request_for(Mask(Axis(3, 3), Axis(6, 6, border="wrap")), (45, 96), head_dim=64),
    "float64": request_for(Mask.neighborhood(33), 3000, dtype="float64", head_dim=128),
}


def powers(limit: int) -> list[int]:
    return [1 << n for n in range(limit.bit_length())]


def all_tiles(kernel: str, request: Request) -> Iterator[Tiles]:
    """Every legal tile and group."""
    rank, heads = len(request.query_space), request.heads_per_key_head
    tile_heads = powers(LANES) if kernel != "grad_key" and heads > 1 else [1]
    state = tiles.state(kernel, request)
    for h, *extents in product(tile_heads, *[powers(LANES)] * rank):
        if h * math.prod(extents) != LANES:
            continue
        groups = [powers(8) if h > 1 or kernel != "grad_key" else [1], *[powers(MOST)] * rank]
        for group in product(*groups):
            if math.prod(group) * state <= STATE:
                ones = (1,) * (3 - rank)
                yield Tiles((h, *ones, *extents), (group[0], *ones, *group[1:]))


def lost(kernel: str, request: Request, cut: Tiles) -> float:
    """What the choice minimises."""
    return tiles.given(kernel, request, request.axes(), cut).seconds


@settings(max_examples=60)
@given(requests())
def test_tiles_are_legal_for_any_request(cases: Count, request_: Request) -> None:
    request_ = replace(request_, device=CPU)
    for kernel in KERNELS:
        chosen = tiles.choose(kernel, request_, request_.axes())
        cut = chosen.tiles
        for extent in (*cut.tile, *cut.group):
            assert extent >= 1
            assert extent & (extent - 1) == 0
        assert math.prod(cut.tile) == LANES
        assert max(cut.group) <= MOST
        assert math.prod(cut.group) * tiles.state(kernel, request_) <= STATE
        lacking = 3 - len(request_.query_space)
        assert cut.tile[1 : 1 + lacking] == cut.group[1 : 1 + lacking] == (1,) * lacking
        if kernel == "grad_key":
            assert cut.tile[0] == cut.group[0] == 1
        assert chosen == tiles.given(kernel, request_, request_.axes(), cut)
        assert cut.slab == (1, 1, 1) or kernel == "grad_all"
        if kernel == "grad_all":  # slab by slab, by the keys of each
            NativeArguments(request_.axes(), cut)._check_slabs(cut)
        cases("native choices", 1)


@pytest.mark.parametrize("name", CASES)
def test_the_work_is_that_of_the_blocks(name: str) -> None:
    """Closed forms against the tiles of the schedule, forward and backward."""
    request = replace(CASES[name], training=True, backend="native")
    if math.prod(request.query_space) * math.prod(request.key_space) > 2e7:
        request = replace(request, batch=1)
    plan = planner.make(request)
    arguments = plan.chosen.program.calls[0].arguments
    assert isinstance(arguments, NativeArguments)
    gradients = "grad_key" if arguments.grad_all is None else "grad_all"
    for backward, kernel in ((False, "forward"), (True, gradients)):
        cut, work, _ = tiles.choose(kernel, request, request.axes())
        blocks = list(plan.schedule(backward=backward))
        sides = [
            (math.prod(map(len, b.queries)), sum(math.prod(map(len, k)) for k in b.keys))
            for b in blocks
        ]
        inverse = kernel == "grad_key"
        columns = sum(q if inverse else k for q, k in sides)
        heads = request.heads_per_key_head
        times = heads if inverse else -(-heads // cut.tile[0])
        assert work.columns == columns * times
        if not inverse:
            assert work.tiles == len(blocks) * times


@pytest.mark.parametrize(
    ("mask", "space", "tile", "summed"),
    [
        # Of 16 rows on an axis, one attends to 7 columns; two to 7, 7, 8, 8, 8, 8, 7 and 7; four to
        # 7, 10, 10 and 7; eight to 11 and 11.
        (Mask.neighborhood((7, 7)), (16, 16), (1, 4, 4), 16 * 7 * (7 + 10 + 10 + 7) / 4),
        (Mask.neighborhood((7, 7)), (16, 16), (1, 2, 8), 16 * 7 * (11 + 11) * 2 / 4),
        (Mask.neighborhood((7, 7)), (16, 16), (1, 8, 2), (4 * 7 + 4 * 8) ** 2 / 4),
        (Mask.neighborhood((7, 7)), (16, 16), (1, 16, 1), (7 + 10 + 10 + 7) * 16 * 7 / 4),
        (Mask.neighborhood((7, 7)), (16, 16), (4, 2, 2), (4 * 7 + 4 * 8) ** 2),
        (Mask.neighborhood((3, 3, 3)), (4, 4, 4), (1, 2, 2, 4), 12 * 12 * 4 / 4),
        (Mask.neighborhood(7), (64,), (1, 16), 19 + 22 + 22 + 19),
    ],
    ids=str,
)
def test_columns_count_for_the_quarters_that_attend(
    mask: Mask, space: tuple[int, ...], tile: tuple[int, ...], summed: float
) -> None:
    request = request_for(mask, space, heads=8, kv_heads=8 // tile[0])
    rows = tiles._Rows("forward", request, request.axes())
    work = rows.work(tile, tile)
    assert work.summed == summed
    assert work.summed <= work.columns


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["grid", "causal", "dilated", "float64"])
def test_no_other_tiles_are_much_cheaper(name: str, kernel: str, cases: Count) -> None:
    request = CASES[name]
    own = lost(kernel, request, tiles.choose(kernel, request, request.axes()).tiles)
    every = [lost(kernel, request, cut) for cut in all_tiles(kernel, request)]
    assert min(every) >= own / 1.03
    cases("native tiles compared", len(every))


def test_extents_are_no_larger_than_useful() -> None:
    """An axis of 7 has tiles of up to 8; what heads fill is not left empty."""
    choose = tiles.choose
    seven = request_for(Mask.neighborhood((7, 7)), (7, 64))
    assert choose("forward", seven, seven.axes()).tiles.rows[2] <= 8
    step = request_for(Mask.causal("bottom-right"), 1, 5000, heads=32, kv_heads=2)
    cut = choose("forward", step, step.axes()).tiles
    assert (cut.tile, cut.group) == ((16, 1, 1, 1), (1, 1, 1, 1))
    alone = request_for(Mask.causal("bottom-right"), 1, 5000, heads=2, kv_heads=2)
    assert choose("forward", alone, alone.axes()).tiles.tile == (1, 1, 1, 16)
    few = request_for(Mask.causal("bottom-right"), 1, 5000, heads=6, kv_heads=2)
    assert choose("forward", few, few.axes()).tiles.tile == (4, 1, 1, 4)


def test_the_largest_heads_have_one_tile_to_a_group() -> None:
    request = request_for(Mask.neighborhood(9), 4096, head_dim=4096, value_dim=4096)
    for kernel in KERNELS:
        assert tiles.choose(kernel, request, request.axes()).tiles.group == (1, 1, 1, 1)


def test_work_is_cut_into_items_for_many_threads() -> None:
    """Large problems into 64 and more; small ones into none that take less time than to start."""
    large = CASES["one axis"]
    for kernel in KERNELS:
        cut, work, _ = tiles.choose(kernel, large, large.axes())
        assert work.items * large.batch * large.kv_heads >= 64
        assert math.prod(cut.group) > 1
    small = request_for(Mask.neighborhood(7), 512, batch=1, heads=1, kv_heads=1)
    work = tiles.choose("forward", small, small.axes()).work
    assert work.items <= 2
    one_head = request_for(Mask.causal(), 4096, batch=1, heads=1, kv_heads=1, head_dim=64)
    assert tiles.choose("forward", one_head, one_head.axes()).work.items >= 8


def choice(request: Request) -> dict[str, Tiles]:
    passes = tiles.choose_backward(request, request.axes())
    return {kernel: one.tiles for kernel, one in passes.items()}


def test_one_kernel_computes_all_gradients_where_its_sums_have_room() -> None:
    """Sums of columns are added to tensors of their own type, and extra keys have all queries."""
    grid = CASES["grid"]
    assert choice(replace(grid, dtype="float32")).keys() == {"grad_all"}
    assert choice(replace(grid, dtype="float64")).keys() == {"grad_all"}
    for other in (
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "float32", "extra_keys": 3},
    ):
        assert choice(replace(grid, **other)).keys() == {"grad_query", "grad_key"}


def test_a_few_long_items_are_no_way_to_share() -> None:
    """Queries that share all keys are one item of each key head: then there are two kernels."""
    every = request_for(
        Mask.causal(), 4096, batch=1, heads=2, kv_heads=2, head_dim=64, dtype="float32"
    )
    assert choice(every).keys() == {"grad_query", "grad_key"}
    assert choice(replace(every, batch=64)).keys() == {"grad_all"}


def test_slabs_that_share_no_key_are_many() -> None:
    """Windows of 255 keys: every other slab of 256 queries, on a ring one of all queries."""
    line = CASES["one axis"]
    cut = Tiles((1, 1, 1, 16), (1, 1, 1, 2))
    assert tiles.given("grad_all", line, line.axes(), cut).tiles.slab == (1, 1, 8)
    ring = replace(line, mask=Mask(Axis(127, 127, border="wrap")))
    assert tiles.given("grad_all", ring, ring.axes(), cut).tiles.slab == (1, 1, 128)
    grid = CASES["grid"]
    cut = Tiles((1, 1, 4, 4), (1, 1, 1, 14))
    assert tiles.given("grad_all", grid, grid.axes(), cut).tiles.slab == (1, 2, 1)


def test_the_choice_does_not_depend_on_threads() -> None:
    """The order of sums is the tiles': results are the same bits for any number of threads."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            planner.forget()
            shape = (2, 56, 56, 4, 32)
            plan = nbattn.plan(
                Mask.neighborhood((7, 7)), shape, device="cpu", backend="native", training=True
            )
            found.append(plan.chosen.program)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]

"""Tests of the choice of the Triton kernels' tiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
from triton_plans import device, requested

from nbattn import Axis, Mask
from nbattn.backends.triton import choice, rates
from nbattn.backends.triton.choice import Pass
from nbattn.backends.triton.tiles import EXTRA, TABLE, Build, legal_tiles
from nbattn.geometry import bind
from nbattn.grids import PackedGrids, grids_of
from nbattn.program.tile_traversal import Traversal

NAMES = ("sm_80", "sm_90", "gfx942", "xe")
KERNELS = ("fwd", "dq", "dkdv", TABLE)


def chosen(
    mask: Mask, space: tuple[int, ...], size: int, name: str, kernel: str = "fwd", **named: Any
) -> Pass:
    build = Build("bfloat16", size, size, mask.rank)
    options = {"samples": 1, "heads": 4} | named
    return choice.ranked(kernel, bind(mask, space), build, device(name), **options)[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_the_least_of_all_tiles(name: str, kernel: str) -> None:
    mask, space, build = Mask.neighborhood((9, 9)), (96, 96), Build("bfloat16", 64, 64, 2)
    best = chosen(mask, space, 64, name, kernel)
    times: dict[object, float] = {}
    for tiles in legal_tiles(kernel, build, device(name), (1, 2), (1, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "legal_tiles", lambda *_, only=tiles: (only,))
            one = chosen(mask, space, 64, name, kernel)
        assert one.tiles == tiles
        times[tiles] = one.seconds
    assert len(times) > 1
    assert best.seconds == times[best.tiles] == min(times.values())


@pytest.mark.parametrize("name", NAMES[:3])
def test_large_volumes_with_small_windows_get_large_tiles(name: str) -> None:
    found = chosen(Mask.neighborhood((11, 11, 11)), (79, 192, 192), 64, name)
    assert found.tiles.row_count >= 64


def test_few_rows_get_small_tiles() -> None:
    mask = Mask.neighborhood((7, 7))
    rows = [chosen(mask, (n, n), 64, "sm_90").tiles.row_count for n in (4, 16, 256)]
    assert rows[0] < rows[2]
    assert rows == sorted(rows)


@pytest.mark.parametrize("kernel", ["fwd", "dkdv"])
def test_passes_count_what_kernels_visit(kernel: str) -> None:
    """On a circle, hulls are not cut; a dilation has tiles of rows for every class."""
    mask = Mask(Axis(3, 3, dilation=3, border="shift"), Axis(2, 2, border="wrap"))
    axes = bind(mask, (20, 24))
    one = chosen(mask, (20, 24), 32, "sm_90", kernel)
    walks = [Traversal(axis, kernel == "dkdv", uncut=True) for axis in axes]
    sizes = [*zip(one.tiles.rows[1:], one.tiles.columns[1:], strict=True)]
    counts = [walk.tile_pairs(*size) for walk, size in zip(walks, sizes, strict=True)]
    tiles = [
        len([*walk.tiles(*size)]) for walk, size in zip(walks, sizes, strict=True)
    ]  # fmt: skip
    assert one.tile_pairs == math.prod(counts)
    assert one.row_tiles >= math.prod(tiles)
    assert one.pairs == one.tile_pairs * one.tiles.area


def test_a_group_of_heads_is_in_one_program() -> None:
    """Gradients of keys visit the queries of every head: as long as with as many more visits."""
    mask, space = Mask.neighborhood((9, 9)), (256, 256)
    one, four = (
        chosen(mask, space, 64, "sm_90", "dkdv", heads=8, group=group).seconds
        for group in (1, 4)
    )  # fmt: skip
    assert 2.5 < four / one < 4


def test_heads_of_keys_are_those_of_the_request() -> None:
    mask, shape = Mask.neighborhood((9, 9)), (2, 64, 64, 8, 64)
    request = requested(mask, shape, key_shape=(2, 64, 64, 2, 64), training=True)
    axes, build = request.axes(), Build("bfloat16", 64, 64, 2)
    for kernel, heads, group in (("fwd", 8, 1), ("dq", 8, 1), ("dkdv", 2, 4)):
        named = {"samples": 2, "heads": heads, "group": group}
        wanted = choice.ranked(kernel, axes, build, request.device, **named)
        assert choice.of_request(kernel, request, axes, build) == wanted


def test_no_tile_is_twice_as_large_as_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any axis, as long as there are such tiles."""
    axes, build = bind(Mask.neighborhood((3, 7)), (3, 100)), Build("bfloat16", 64, 64, 2)
    found = choice.ranked("fwd", axes, build, device(), samples=1, heads=4)
    assert found
    assert all(one.tiles.rows[1] < 6 for one in found)
    request = requested(Mask.neighborhood(7), (1, 100, 4, 64), extra_keys=9)
    found = choice.of_request(EXTRA, request, request.axes(), build)
    assert found
    assert all(one.tiles.row_count < 18 for one in found)
    legal = choice.legal_tiles
    monkeypatch.setattr(choice, "legal_tiles", lambda *given: legal(*given)[::-1])
    other = choice.of_request(EXTRA, request, request.axes(), build)
    times = [one.seconds for one in found]
    assert [one.seconds for one in other] == times == sorted(times)


def test_masked_visits_count() -> None:
    """Half of their pairs are useful: a dense mask has none, small windows have nothing else."""
    on, build = rates.machine(device("sm_90"), "bfloat16"), Build("bfloat16", 64, 64, 1)
    full = chosen(Mask.full(), (4096,), 64, "sm_90")
    some = chosen(Mask.sliding_window(15), (4096,), 64, "sm_90")
    for one, share in ((full, 0.0), (some, 1.0)):
        wanted = rates.seconds(
            "fwd", one.tiles, build, on,
            programs=4 * int(one.row_tiles), visits=one.tile_pairs / one.row_tiles, masked=share,
        )  # fmt: skip
        assert one.seconds == pytest.approx(wanted)


def test_nothing_is_chosen_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "legal_tiles", lambda *_: ())
    axes, build = bind(Mask.neighborhood((9, 9)), (32, 32)), Build("bfloat16", 256, 256, 2)
    assert choice.ranked("fwd", axes, build, device("sm_90"), samples=1, heads=1) == []


def test_shares_fill_a_device() -> None:
    """Up to one program for each tile, and as long as their sums have room."""
    for programs in (1, 3, 100, 1023, 1024, 10**6):
        count = choice.shares(programs, 10**9, 1)
        assert count * programs >= choice.PROGRAMS
        assert count == 1 or (count - 1) * programs < choice.PROGRAMS
    assert choice.shares(4, 7, 1) == 7
    assert choice.shares(4, 0, 1) == choice.shares(0, 1, 0) == 1
    for elements in (1 << 20, 1 << 24, 1 << 30):
        count = choice.shares(1, 10**9, elements)
        assert count == 1 or count * elements <= choice.SHARED_ELEMENTS


def test_programs_are_those_of_the_launch() -> None:
    mask, shape = Mask.neighborhood((7, 7)), (3, 30, 20, 8, 64)
    named = {"extra_keys": 70, "relative_bias": True, "training": True}
    request = requested(mask, shape, key_shape=(3, 30, 20, 2, 64), **named)
    build = Build("bfloat16", 64, 64, 2, extra=True, table=True)
    axes = request.axes()
    for kernel in (*KERNELS, EXTRA):
        one = choice.of_request(kernel, request, axes, build)[0]
        found = choice.programs(kernel, one, request)
        rows, size = one.tiles.rows, one.tiles
        tiles = -(-30 // rows[1]) * -(-20 // rows[2])
        entries, sums = 13 * 13, 3 * 70 * 2 * 64
        alone, queries = -(-70 // size.row_count) * 3 * 2, -(-600 // size.column_count)
        assert (
            found
            == {
                "fwd": tiles * 3 * 8,
                "dq": tiles * 3 * 8,
                "dkdv": tiles * 3 * 2,
                TABLE: 8 * choice.shares(8, 3 * tiles, 8 * entries),
                EXTRA: alone * choice.shares(alone, queries, sums),
            }[kernel]
        )
        assert one.seconds > 0


def test_programs_of_packed_grids_are_counted_grid_by_grid() -> None:
    sizes = ((5, 9), (30, 20), (1, 1))
    grids = PackedGrids(*2 * [grids_of([*sizes])])
    named = {"grids": grids, "training": True, "extra_keys": 5}
    request = requested(Mask.neighborhood((3, 3)), (45 + 600 + 1, 4, 32), **named)
    build = Build("bfloat16", 32, 32, 2, extra=True, grids=True)
    for kernel in ("fwd", "dkdv", EXTRA):
        one = choice.of_request(kernel, request, (), build)[0]
        found = choice.programs(kernel, one, request)
        rows = one.tiles.rows
        if kernel == EXTRA:
            alone = 3 * 4 * -(-5 // one.tiles.row_count)
            assert found == alone * choice.shares(
                alone, -(-646 // one.tiles.column_count), 3 * 5 * 4 * 32
            )
        else:
            assert found == 4 * sum(-(-a // rows[1]) * -(-b // rows[2]) for a, b in sizes)


def test_the_gradients_of_a_table_and_of_extra_keys_grow_with_the_queries() -> None:
    build = Build("bfloat16", 64, 64, 1, extra=True, table=True)
    for kernel in (TABLE, EXTRA):
        times = [
            choice.of_request(kernel, request, request.axes(), build)[0].seconds
            for request in (
                requested(Mask.neighborhood(9), (1, n, 4, 64), extra_keys=64, relative_bias=True)
                for n in (1 << 10, 1 << 16, 1 << 20)
            )
        ]
        assert times == sorted(times)
        assert times[2] / times[1] > 8

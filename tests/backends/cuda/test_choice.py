"""Tests of the choice of the CUDA kernels' tiles."""

from __future__ import annotations

import math

import pytest
from cuda_plans import device

import nbattn
from nbattn import Mask
from nbattn.backends.cuda import choice, pipes
from nbattn.backends.cuda.choice import Pass
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.pipes import Machine, Part
from nbattn.backends.cuda.tiles import KERNELS, Build, legal_tiles
from nbattn.geometry import bind

SHARED = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10}
FREE = Part(0.0, 0.0, 0.0)


def machine(name: str, dtype: str = "bfloat16") -> Machine:
    return pipes.machine(device(name), dtype, SHARED[name])


def chosen(
    mask: Mask, space: tuple[int, ...], size: int, name: str, kernel: str = "fwd", heads: int = 4
) -> Pass:
    build = Build("bfloat16", size, size)
    return choice.ranked(kernel, "mma", bind(mask, space), build, machine(name), heads=heads)[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SHARED)
def test_the_estimate_is_the_least_of_all_tiles(name: str, kernel: str) -> None:
    mask, space, build = Mask.neighborhood((9, 9)), (96, 96), Build("bfloat16", 64, 64)
    axes, on = bind(mask, space), machine(name)
    best = chosen(mask, space, 64, name, kernel)
    times: dict[object, float] = {}
    for tiles in legal_tiles(kernel, "mma", (1, 2), build, SHARED[name]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "legal_tiles", lambda *_, only=tiles: (only,))
            (one,) = choice.ranked(kernel, "mma", axes, build, on, heads=4)
        assert one.tiles == tiles
        times[tiles] = one.seconds
    assert len(times) > 5
    assert best.seconds == times[best.tiles] == min(times.values())


@pytest.mark.parametrize("ideal", [False, True], ids=["as compiled", "nothing but products"])
@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_large_volumes_with_small_windows_get_large_tiles(
    name: str, ideal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of 32 queries reads every key from L2 for 32 rows: that would bound the kernel, the
    more so the faster the rest of it is.
    """
    if ideal:
        for part in ("COPY", "MASK", "OUTPUT"):
            monkeypatch.setattr(pipes, part, FREE)
        for table in ("VISIT", "SCORE"):
            monkeypatch.setattr(pipes, table, dict.fromkeys(KERNELS, FREE))
    found = chosen(Mask.neighborhood((11, 11, 11)), (79, 192, 192), 64, name)
    assert found.tiles.row_count >= 64


def test_few_rows_get_small_tiles() -> None:
    """One block per multiprocessor, of as few rows as that takes."""
    mask = Mask.neighborhood((7, 7))
    rows = [chosen(mask, (n, n), 64, "sm_90").tiles.row_count for n in (4, 16, 256)]
    assert rows[0] < rows[2]
    assert rows == sorted(rows)


def test_narrow_columns_are_offered_beside_wide_ones() -> None:
    """Which of them wins depends on the memory of a multiprocessor."""
    build = Build("bfloat16", 128, 128)
    for kernel in ("fwd", "dq"):
        legal = legal_tiles(kernel, "mma", (1, 2), build, SHARED["sm_90"])
        sizes = {(tiles.row_count, math.prod(tiles.columns)) for tiles in legal}
        assert {(64, 64), (64, 32)} <= sizes
    mask, space = Mask.neighborhood((80, 80)), (256, 256)
    found = {n: chosen(mask, space, 128, n, "dq", 24).tiles for n in SHARED}
    blocks = {
        name: pipes.blocks_at_once("dq", tiles, build, machine(name))
        for name, tiles in found.items()
    }
    assert blocks["sm_80"] == 2
    assert math.prod(found["sm_86"].columns) == 32


def test_gradients_of_keys_may_have_eight_warps() -> None:
    """With 128 rows; without tensor cores, and in the other kernels, four are the most."""
    for kernel in KERNELS:
        for size in (64, 128):
            build = Build("bfloat16", size, size)
            legal = legal_tiles(kernel, "mma", (1, 2), build, SHARED["sm_90"])
            wide = {tiles.row_count for tiles in legal if tiles.warps == 8}
            assert wide == ({128} if kernel == "dkdv" else set())
        legal = legal_tiles(kernel, "simt", (1, 2), Build("float32", 64, 64), SHARED["sm_90"])
        assert {tiles.warps for tiles in legal} == {4}


def test_a_group_of_heads_is_in_one_block() -> None:
    """Gradients of keys visit the queries of every head: as long as with as many more visits."""
    axes, build = bind(Mask.neighborhood((9, 9)), (256, 256)), Build("bfloat16", 64, 64)
    one, four = (
        choice.ranked("dkdv", "mma", axes, build, machine("sm_90"), heads=8, group=group)[0]
        for group in (1, 4)
    )
    assert 3 < four.seconds / one.seconds < 4


def test_heads_are_packed_where_queries_of_one_leave_rows_empty() -> None:
    mask = Mask.sliding_window(100, 0, align="bottom-right")
    for queries, packed in ((1, 8), (63, 8), (64, 1)):
        plan = nbattn.plan(
            mask, (1, queries, 32, 64), key_shape=(1, 4096, 4, 64), device="sm_90", backend="cuda"
        )
        assert plan.chosen.program is not None
        arguments = plan.chosen.program.calls[0].arguments
        assert isinstance(arguments, CudaArguments)
        assert arguments.packed == packed
        assert (arguments.forward.rows[0] > 1) == (packed > 1)
        assert plan.chosen.cost is not None
        assert plan.chosen.cost.computed_pairs >= plan.chosen.cost.useful_pairs


def test_nothing_is_chosen_where_nothing_fits() -> None:
    axes, build = bind(Mask.neighborhood((9, 9)), (32, 32)), Build("bfloat16", 256, 256)
    small = machine("sm_90")._replace(memory=20 << 10)
    assert choice.ranked("fwd", "mma", axes, build, small, heads=1) == []


def test_masked_visits_count() -> None:
    """Half of their pairs are useful: a dense mask has none, small windows have nothing else."""
    full = chosen(Mask.full(), (4096,), 64, "sm_90")
    some = chosen(Mask.sliding_window(15), (4096,), 64, "sm_90")
    for one, useful, share in ((full, 4096**2, 0.0), (some, 16 * 4096, 1.0)):
        wanted = pipes.seconds(
            "fwd", one.tiles, Build("bfloat16", 64, 64), machine("sm_90"),
            blocks=4 * one.row_tiles, visits=one.tile_pairs / one.row_tiles, masked=share,
        )  # fmt: skip
        assert useful <= one.pairs
        assert one.seconds == pytest.approx(wanted)

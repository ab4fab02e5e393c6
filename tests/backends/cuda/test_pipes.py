"""Tests of the model of pipes: against the instructions counted in the compiled kernels, and of how
its estimates change with a device and a problem. No time here is measured.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from counted_visits import Counted, counted, fit, modelled, work_of

from nbattn.backends.cuda import pipes
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.pipes import Machine, Part
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.program.device import DEVICES, DeviceInfo

COUNTED = counted()
CLOSE = 0.12  # of a count
BUILD = Build("bfloat16", 128, 128)
TILES = Tiles((1, 8, 16), (1, 4, 8), 4, 2, 2)
SHARED = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10}


def on(name: str) -> Machine:
    return pipes.machine(DEVICES[name], "bfloat16", SHARED[name])


def test_the_tiles_of_large_problems_are_counted() -> None:
    """For both targets; `whole/test_compile_matrix.py` compares the counts with the kernels."""
    found = {one.label for one in COUNTED}
    forward = ("fwd D128 128x32", "fwd D128 64x64", "fwd D64 128x64", "fwd D64 64x64")
    backward = ("dq D128 64x64", "dq D64 128x32", "dkdv D128 64x32", "dkdv D64 64x64")
    for tile in (*forward, *backward):
        assert {f"{tile} 4w sm_80", f"{tile} 4w sm_90a"} <= found


@pytest.mark.parametrize("one", COUNTED, ids=lambda one: one.label)
def test_the_model_is_close_to_the_counts(one: Counted) -> None:
    """The busiest pipe, and those that are three quarters as busy."""
    for masked, kinds in ((False, one.interior), (True, one.masked)):
        real, guess = work_of(kinds), modelled(one, masked=masked)
        assert guess.hmma == real.hmma
        wanted = real.clocks(one.machine.hmma)
        found = guess.clocks(one.machine.hmma)
        busy = {name for name, value in wanted.items() if value >= 0.75 * max(wanted.values())}
        for name in busy:
            assert found[name] == pytest.approx(wanted[name], rel=CLOSE), (name, masked)
        assert max(found.values()) == pytest.approx(max(wanted.values()), rel=CLOSE)


@pytest.mark.parametrize("one", COUNTED, ids=lambda one: one.label)
def test_loads_and_copies_are_exact(one: Counted) -> None:
    (steps, loads), *_ = pipes._products(one.kernel, one.tiles, one.build)
    columns = one.tiles.area // one.tiles.row_count
    assert steps * columns * one.tiles.row_blocks == 8 * one.interior["HMMA"]
    assert loads == one.interior["LDSM"]
    (work,) = pipes.visit(one.kernel, one.tiles, one.build)
    (fewer,) = pipes.visit(one.kernel, one.tiles, one.build._replace(value_dim=16))
    assert work.issued > fewer.issued
    copies = pipes._copies(columns, one.build.head_dim // 8, 32 * one.tiles.warps)
    assert 2 * copies + (one.kernel == "dkdv") == one.interior["LDGSTS"]


def test_the_coefficients_are_those_that_fit() -> None:
    """Rounded; after a change of the kernels `--fit` prints them."""
    used = {"COPY": pipes.COPY, "MASK": pipes.MASK, "OUTPUT": pipes.OUTPUT}
    used |= {f"VISIT {kernel}": part for kernel, part in pipes.VISIT.items()}
    used |= {f"SCORE {kernel}": part for kernel, part in pipes.SCORE.items()}
    found = fit()
    assert set(found) == set(used)
    for name, part in found.items():
        assert part == Part(*(pytest.approx(value, abs=0.6) for value in used[name])), name


def test_clocks_of_each_pipe() -> None:
    """Four schedulers share one port to shared memory, which moves a word of a warp in a clock."""
    assert pipes.Work(hmma=10, mufu=3, issued=100, alu=20, words=5).clocks(8.0) == {
        "issue": 100,
        "alu": 40,
        "mufu": 24,
        "tensor": 80,
        "shared": 20,
    }


def test_occupancy_is_what_memory_and_registers_leave() -> None:
    """70 KB and 256 registers of 128 threads: two blocks of an A100, one of smaller devices."""
    blocks = {name: pipes.blocks_at_once("fwd", TILES, BUILD, on(name)) for name in SHARED}
    assert blocks == {"sm_80": 2, "sm_86": 1, "sm_90": 2}
    wide = Tiles((1, 8, 16), (1, 4, 8), 8, 1, 2)  # 256 threads
    assert pipes.blocks_at_once("dkdv", wide, BUILD, on("sm_90")) == 1
    small = Tiles((1, 4, 4), (1, 4, 8), 1, 1, 2)
    assert pipes.blocks_at_once("fwd", small, Build("float16", 16, 16), on("sm_90")) > 8


@pytest.mark.parametrize("one", COUNTED, ids=lambda one: one.label)
def test_registers_are_near_those_of_the_compiler(one: Counted) -> None:
    """Within a tenth of all that a thread can have."""
    used = cuda_tiles.accumulators(one.kernel, one.tiles, one.build) + pipes.OTHER_REGISTERS
    assert abs(min(used, pipes.MOST_REGISTERS) - one.registers) <= 26


def test_matrix_products_take_what_the_device_gives() -> None:
    """512 multiply-adds a clock and scheduler on A100, twice that on H100 but for 62%."""
    assert on("sm_80").hmma == pytest.approx(8, rel=0.01)
    assert on("sm_90").hmma == pytest.approx(6.45, rel=0.01)
    slow = replace(DEVICES["sm_80"], flops=(("float32", 1e13), ("bfloat16", 156e12)))
    assert pipes.machine(slow, "bfloat16", 1 << 16).hmma == pytest.approx(16, rel=0.01)
    mine = DeviceInfo("mine", "cuda", (("float32", 312e12),), 1e12, 1e-6, "a guess")
    assert pipes.machine(mine, "float16", 163 << 10).hmma == pytest.approx(8, rel=0.01)
    assert pipes.machine(mine, "float16", 163 << 10).multiprocessors == 108


def time(**changes: float) -> float:
    named = {"blocks": 10**6, "visits": 100.0, "masked": 0.0} | changes
    tiles = Tiles((1, 8, 16), (1, 4, 8), 4, 2, 2)
    return pipes.seconds("fwd", tiles, BUILD, on("sm_90"), **named)  # pyright: ignore


def test_time_grows_with_the_work() -> None:
    one = time()
    assert time(blocks=2 * 10**6) == pytest.approx(2 * one, rel=0.01)
    assert 1.9 < time(visits=200.0) / one < 2
    assert 1.05 < time(masked=1.0) / one < 1.3
    assert time(blocks=0) == 0
    # One multiprocessor for one block: the others do not help, and neither do two blocks at once.
    assert time(blocks=1) == time(blocks=132)
    assert time(blocks=132) < time(blocks=133) < 2 * time(blocks=132)


def test_a_launch_reaches_what_two_warps_per_scheduler_do() -> None:
    """0.7 to 0.8 of the bound of the busiest pipe."""
    bound = max(pipes.visit("fwd", TILES, BUILD)[0].clocks(on("sm_90").hmma).values())
    share = 10**6 / 132 * 100 * bound / on("sm_90").clock / time()
    assert 0.7 < share < 0.8


def test_every_block_reads_its_columns_from_the_second_level_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And its rows, which it writes as well; a slow cache bounds the launch."""
    monkeypatch.setattr(pipes, "L2", 0.5)
    machine = on("sm_90")
    for visits in (10.0, 100.0):
        vectors = 1000 * (visits * 32 + 2 * 128)
        found = time(blocks=132 * 1000, visits=visits) * machine.clock
        assert found == pytest.approx(vectors * 256 * 2 / 0.5)


def test_gradients_of_wide_heads_take_two_launches() -> None:
    build, tiles = Build("bfloat16", 256, 256), Tiles((1, 4, 4), (1, 4, 8), 1, 1, 2)
    values, keys = pipes.visit("dkdv", tiles, build)
    assert (values.hmma, keys.hmma) == (128, 192)
    assert keys.issued - values.issued == 64 + 16 * (2 + 1)  # products; rows and columns


@pytest.mark.parametrize(("dtype", "ratio"), [("float32", 1.0), ("float64", 2.0)])
def test_without_tensor_cores(dtype: str, ratio: float) -> None:
    """A multiply-add of a lane in four clocks, and twice as long where the device takes that."""
    tiles, build = Tiles((1, 8, 8), (1, 4, 8)), Build(dtype, 64, 64)
    machine = pipes.machine(DEVICES["sm_80"], dtype, 163 << 10)
    found = pipes.clocks("fwd", tiles, build, machine, 0.0) - pipes.SIMT_VISIT
    assert found == pytest.approx(4 * ratio * 64 * 32 * 128 / 64, rel=0.01)


def test_a_table_costs_what_is_counted() -> None:
    """Its loads are not among the counted words."""
    ones = counted(table=True)
    assert [one.kernel for one in ones] == ["fwd", "dq", "dkdv"]
    for one in ones:
        for masked, kinds in ((False, one.interior), (True, one.masked)):
            real, guess = work_of(kinds), modelled(one, masked=masked)
            assert guess.issued == pytest.approx(real.issued, rel=CLOSE)
            assert guess.alu == pytest.approx(real.alu, rel=2 * CLOSE)

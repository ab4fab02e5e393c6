"""Tests of the rates of the Triton kernels: what a visit and a launch cost, by device."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from triton_plans import device

from nbattn.backends.triton import rates
from nbattn.backends.triton.rates import WORK
from nbattn.backends.triton.tiles import Build, Tiles
from nbattn.program.device import DeviceInfo

BUILD = Build("bfloat16", 64, 64, 2)
TILES = Tiles((1, 8, 8), (1, 8, 8))
LARGE = {"programs": 10**6, "visits": 64.0, "masked": 0.0}


def seconds(name: str = "sm_90", kernel: str = "fwd", **changed: Any) -> float:
    build = changed.pop("build", BUILD)
    tiles = changed.pop("tiles", TILES)
    on = rates.machine(device(name), build.dtype)
    return rates.seconds(kernel, tiles, build, on, **{**LARGE, **changed})


def share(name: str, kernel: str, size: int, dtype: str = "bfloat16") -> float:
    """Of the peak, with as many rows as the fastest kernels have."""
    build, tiles = Build(dtype, size, size, 2), Tiles((1, 8, 16), (1, 8, 8), 8)
    flops = LARGE["programs"] * LARGE["visits"] * 2 * tiles.area * rates.products(kernel, build)
    return flops / seconds(name, kernel, build=build, tiles=tiles) / device(name).peak(dtype)


@pytest.mark.parametrize(
    ("name", "kernel", "most"),
    [
        ("sm_80", "fwd", 0.73 * 0.9), ("sm_80", "dq", 0.63 * 0.85), ("sm_80", "dkdv", 0.63 * 0.85),
        ("sm_90", "fwd", 395 / 989), ("sm_100", "fwd", 395 / 989), ("sm_89", "fwd", 0.73 * 0.9),
        ("gfx942", "fwd", 0.3), ("gfx942", "dkdv", 0.25), ("xe", "fwd", 0.3),
    ],
)  # fmt: skip
def test_no_kernel_is_faster_than_what_is_published(name: str, kernel: str, most: float) -> None:
    """Wide heads come near it, narrow ones have more other instructions for each product."""
    shares = [share(name, kernel, size) for size in (16, 64, 128, 256)]
    assert shares == sorted(shares)
    assert 0.8 * most < shares[-1] < most
    assert shares[0] < shares[-1] / 1.2


def test_dtypes_without_matrix_instructions_reach_a_quarter() -> None:
    """NVIDIA has them for float64 but not for exact products of float32, Instincts for both."""
    for name, dtype, wanted in (
        ("sm_80", "float32", rates.WITHOUT),
        ("sm_80", "float64", rates.AMPERE),
        ("gfx942", "float32", rates.OTHERS),
        ("gfx942", "float64", rates.OTHERS),
        ("gfx1100", "float32", rates.WITHOUT),
        ("gfx1100", "float16", rates.OTHERS),
        ("xe", "float64", rates.WITHOUT),
    ):
        on = rates.machine(device(name), dtype)
        assert (on.forward, on.backward) == wanted, (name, dtype)


def test_a_warp_has_as_many_threads_as_on_the_device() -> None:
    names = ("sm_90", "gfx942", "gfx90a", "gfx1100", "xe")
    assert [rates.machine(device(name), "float16").warp for name in names] == [32, 64, 64, 32, 32]
    assert seconds("gfx942", tiles=Tiles((1, 4, 4), (1, 4, 4), 4)) > seconds(
        "gfx942", tiles=Tiles((1, 4, 4), (1, 4, 4), 2)
    )


def test_an_unknown_device_has_the_numbers_of_an_a100() -> None:
    flops = (("float32", 1e13), ("float16", 312e12))
    unknown = DeviceInfo("mine", "cuda", flops, 1e12, 5e-6, "guessed", ("triton",))
    on = rates.machine(unknown, "float16")
    assert (on.multiprocessors, on.clock) == (108, 1.41e9)
    assert on.flops == pytest.approx(rates.machine(device("sm_80"), "float16").flops)


def test_heads_cost_as_much_as_the_next_power_of_two() -> None:
    def of(head: int, value: int) -> float:
        return seconds(build=Build("bfloat16", head, value, 2))

    assert of(33, 64) == of(64, 64) == of(64, 40)
    assert of(1, 1) == of(16, 16) < of(17, 17)
    assert rates.padded(Build("float16", 96, 65, 1))[:4] == ("float16", 128, 128, 1)


@pytest.mark.parametrize("kernel", WORK)
def test_what_is_added_costs(kernel: str) -> None:
    build = BUILD._replace(head_dim=16, value_dim=16)
    plain = seconds(kernel=kernel, build=build)
    for option in ("table", "slopes", "softcap", "circle", "two_runs"):
        assert seconds(kernel=kernel, build=build._replace(**{option: True})) > plain
    has_masks = kernel in ("fwd", "dq", "dkdv")  # and visits without any
    assert (seconds(kernel=kernel, build=build, masked=1.0) > plain) == has_masks


def test_small_tiles_cost_more() -> None:
    """For as many pairs: each visit has instructions of its own."""
    sizes = [(1, 4, 4), (1, 4, 8), (1, 8, 8)]
    times = [
        seconds(
            tiles=Tiles(size, size), programs=10**6 * 64 // area, visits=64 * 64 / area
        )
        for size, area in zip(sizes, (16, 32, 64), strict=True)
    ]  # fmt: skip
    assert times == sorted(times, reverse=True)
    assert times[0] > 3 * times[2]


def test_few_programs_leave_multiprocessors_idle() -> None:
    """The time of one is that of as many as there are multiprocessors; more take no less."""
    alone, all_busy = (seconds(programs=n) for n in (1, 132))
    assert alone == all_busy
    times = [seconds(programs=n) for n in (132, 133, 264, 10**4, 10**5)]
    assert all(less <= more for less, more in pairwise(times))
    assert times[1] == times[2]  # one multiprocessor has two
    assert times[2] < 2 * times[0]  # which hide each other's waits


def test_more_visits_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [seconds(visits=n) for n in (0, 1, 2, 4, 64)]
    assert times == sorted(times)
    assert times[4] / times[3] > 9
    monkeypatch.setattr(rates, "_PROGRAM", 0)
    monkeypatch.setattr(rates, "_L2", 1e9)
    none, one = (seconds(visits=n) for n in (0, 1))
    assert none == pytest.approx(one - none)  # the first visit waits for its columns


def test_columns_are_read_again_for_every_tile_of_rows() -> None:
    """Where a tile has few rows, that takes longest: on a device whose products cost nothing."""
    on = rates.machine(device("sm_90"), "bfloat16")
    free = on._replace(flops=1e12, lanes=10**9)
    few, many = (
        rates.seconds("fwd", Tiles(rows, (1, 8, 8)), BUILD, free, programs=1000, **one)
        for rows, one in (
            ((1, 4, 4), {"visits": 1000.0, "masked": 0.0}),
            ((1, 8, 8), {"visits": 250.0, "masked": 0.0}),
        )
    )
    assert few == pytest.approx(4 * many, rel=0.05)
    wide = BUILD._replace(dtype="float64")
    double = rates.seconds("fwd", TILES, wide, free, programs=1000, visits=250.0, masked=0.0)
    assert double == pytest.approx(4 * many)

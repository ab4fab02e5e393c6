"""Owns the guards on the planner's latency: ten times its budget, in process time, by the median.

Guards against work in proportion to a length or a cache that misses, not benchmarks.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

import nbattn
from nbattn import Axis, Mask
from nbattn.planner import dispatch, planner

HIT, DECODE, LARGEST = 50e-6, 10e-3, 200e-3  # ten times 5 us, 1 ms, 20 ms
FLAGS = (False,) * 6


def seconds(run: Callable[[int], object], times: int) -> float:
    """Process time of one run: the median of `times`."""
    found: list[float] = []
    for number in range(times):
        start = time.process_time()
        run(number)
        found.append(time.process_time() - start)
    return statistics.median(found)


def forget() -> None:
    """Plans anew from here on."""
    planner.make.cache_clear()
    dispatch.planned.cache_clear()


def cold(mask: Mask, query: tuple[int, ...], key: tuple[int, ...], device: str) -> float:
    """Seconds of a plan that no cache has, imports and lazy set-up excluded."""
    nbattn.plan(mask, query, key, device=device)

    def run(_: int) -> None:
        forget()
        nbattn.plan(mask, query, key, device=device)

    return seconds(run, 9)


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_a_second_plan_is_a_look_up(device: str) -> None:
    mask, shape = Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128)
    first = nbattn.plan(mask, shape, device=device)
    repeats = 100

    def run(_: int) -> None:
        for _ in range(repeats):
            assert nbattn.plan(mask, shape, device=device) is first

    assert seconds(run, 9) / repeats <= HIT


def test_a_call_looks_its_plan_up() -> None:
    mask, shape = Mask.neighborhood((7, 7)), torch.Size((1, 56, 56, 2, 32))
    device = torch.device("cpu")

    def look_up() -> object:
        return dispatch.planned(
            tuple(mask.code()),
            shape,
            shape,
            32,
            torch.float32,
            device,
            "contiguous",
            0,
            FLAGS,
            "auto",
            (),
            (),
        )

    first, repeats = look_up(), 100

    def run(_: int) -> None:
        for _ in range(repeats):
            assert look_up() is first

    assert seconds(run, 9) / repeats <= HIT


WINDOWS = {
    "causal": Mask.causal("bottom-right"),
    "window": Mask.from_transformers(4096),
    "dilated": Mask(Axis(511, causal=True, dilation=8, align="bottom-right")),
    "prefix": Mask(Axis(4095, causal=True, prefix=4, align="bottom-right")),
    "two sides": Mask(Axis(100, 100, align="bottom-right")),
    "strided": Mask(Axis(63, causal=True, stride=16, align="bottom-right")),
    "shifted": Mask(Axis(63, 64, border="shift", align="bottom-right")),
}


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_decode_step_is_planned_whatever_the_length(name: str, device: str) -> None:
    for queries in (1, 16):
        for keys in (10**3, 10**6, 10**9):
            key = (1, keys, 8, 128)
            took = cold(WINDOWS[name], (1, queries, 32, 128), key, device)
            assert took <= DECODE, (queries, keys)


def test_a_new_length_every_step_is_planned_in_time() -> None:
    """As decoding does: no plan is found again."""
    mask, start = Mask.from_transformers(4096), 700_000
    nbattn.plan(mask, (1, 1, 32, 128), (1, start, 8, 128), device="cpu")

    def step(number: int) -> None:
        nbattn.plan(mask, (1, 1, 32, 128), (1, start + 1 + number, 8, 128), device="cpu")

    assert seconds(step, 50) <= DECODE


LARGE: dict[str, tuple[Mask, tuple[int, ...]]] = {
    "FLUX-4K": (Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128)),
    "Hunyuan": (Mask.neighborhood((18, 24, 24)), (1, 30, 48, 80, 24, 128)),
    "Hunyuan, strided": (
        Mask.neighborhood((18, 24, 24), stride=(16, 8, 8)),
        (1, 30, 48, 80, 24, 128),
    ),
    "Cosmos": (Mask.neighborhood((16, 4, 16), dilation=(1, 11, 5)), (1, 16, 44, 80, 16, 128)),
    "sphere": (Mask(Axis(3, 3), Axis(6, 6, border="wrap")), (1, 721, 1440, 8, 64)),
    "sphere, dilated": (
        Mask(Axis(3, 3, border="shift"), Axis(6, 6, border="wrap", dilation=8)),
        (1, 721, 1440, 8, 64),
    ),
    "one axis": (Mask.neighborhood(2048), (1, 32768, 1, 128)),
    "one axis, strided": (Mask.neighborhood(2048, stride=256), (1, 32768, 1, 128)),
    "blocks": (Mask.neighborhood(2048, stride=2048), (1, 32768, 1, 128)),
    "causal": (Mask.causal(), (1, 131072, 8, 64)),
    "a million tokens": (Mask.sliding_window(4095), (1, 1 << 20, 8, 64)),
}


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_configurations_are_planned_in_time(name: str, device: str) -> None:
    mask, shape = LARGE[name]
    assert cold(mask, shape, shape, device) <= LARGEST

"""Tests of the work of planning, counted in lines of Python and peak memory.

They guard against work in proportion to a length and caches that miss. How long all this takes is
measured by `benchmarks/overhead.py`.
"""

from collections.abc import Callable

import pytest
import torch
from work import Work, lines, peak, work

import nbattn
from nbattn import Axis, Mask, arguments, execute
from nbattn.backends.inputs import Inputs
from nbattn.planner import planner

# Lines of Python and bytes: what it takes today, and half as much again or twice.
PLAN_AGAIN, CALL_AGAIN = 150, 60
DECODE = Work(lines=7000, peak=64 << 10)
DECODE_ON_GPU = Work(lines=14_000, peak=64 << 10)  # a dozen tiles are compared, packed heads too
LARGEST = Work(lines=100_000, peak=4 << 20)


def cold(
    mask: Mask, query: tuple[int, ...], key: tuple[int, ...], device: str
) -> Callable[[], object]:
    """Planning that finds nothing in a cache, imports and lazy set-up excluded."""
    nbattn.plan(mask, query, key, device=device)

    def run() -> None:
        planner.forget()
        nbattn.plan(mask, query, key, device=device)

    return run


def within(found: Work, limit: Work) -> bool:
    return found.lines <= limit.lines and found.peak <= limit.peak


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_a_second_plan_is_a_look_up(device: str) -> None:
    mask, shape = Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128)
    first = nbattn.plan(mask, shape, device=device)
    found: list[object] = []
    assert lines(lambda: found.append(nbattn.plan(mask, shape, device=device))) <= PLAN_AGAIN
    assert found[0] is first


def test_a_call_looks_its_plan_up() -> None:
    mask, query = Mask.neighborhood((7, 7)), torch.empty(1, 56, 56, 2, 32)
    inputs = Inputs(query, query, query, scale=1.0)
    found: list[object] = []

    def look_up() -> None:
        found.append(
            execute.planned(
                mask, inputs, backend="auto", require=(), forbid=(), training=False,
                deterministic=False, return_lse=False,
            )
        )  # fmt: skip

    look_up()
    assert lines(look_up) <= CALL_AGAIN
    assert found[1] is found[0]


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
def test_a_decode_step_takes_as_much_at_any_length(name: str, device: str) -> None:
    limit = DECODE if device == "cpu" else DECODE_ON_GPU
    for queries in (1, 16):
        found = {
            keys: work(cold(WINDOWS[name], (1, queries, 32, 128), (1, keys, 8, 128), device))
            for keys in (10**3, 10**6, 10**9)
        }
        assert all(within(one, limit) for one in found.values()), (queries, found)
        far, further = found[10**6], found[10**9]
        assert further.lines <= 1.05 * far.lines, (queries, found)
        assert further.peak <= far.peak + (8 << 10), (queries, found)


def test_a_new_length_every_step_takes_no_more() -> None:
    """As decoding does: no plan is found again."""
    mask, start = Mask.from_transformers(4096), 700_000
    nbattn.plan(mask, (1, 1, 32, 128), (1, start, 8, 128), device="cpu")

    def step(keys: int) -> Callable[[], object]:
        return lambda: nbattn.plan(mask, (1, 1, 32, 128), (1, keys, 8, 128), device="cpu")

    counts = [lines(step(start + number)) for number in range(1, 51)]
    assert max(counts) <= DECODE.lines
    assert max(counts) <= 1.05 * min(counts)


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
# Arrays with an element for each block of a kernel or each stride group, by device: their memory
# may grow with the length, and no faster.
LISTED = {
    "cpu": {"blocks", "causal"},
    "sm_90": {
        "blocks",
        "causal",
        "one axis",
        "one axis, strided",
        "a million tokens",
        "Hunyuan, strided",
    },
}


def grown(shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    return (shape[0], *(min(factor * n, arguments.LONGEST) for n in shape[1:-2]), *shape[-2:])


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_configurations_take_little(name: str, device: str) -> None:
    mask, shape = LARGE[name]
    found = work(cold(mask, shape, shape, device))
    assert within(found, LARGEST), found


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
@pytest.mark.parametrize("name", LARGE)
def test_much_larger_ones_take_no_more(name: str, device: str) -> None:
    """Every axis is 10,000 times as long, where an array of a row each is beyond the limit; 16
    times where blocks are listed.
    """
    mask, shape = LARGE[name]
    large = grown(shape, 16 if name in LISTED[device] else 10_000)
    run = cold(mask, large, large, device)
    assert lines(run) <= LARGEST.lines
    if name in LISTED[device]:
        assert peak(run) <= 16 * max(peak(cold(mask, shape, shape, device)), 1 << 15)
    else:
        assert peak(run) <= LARGEST.peak

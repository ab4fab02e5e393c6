"""Tests of decoding: planning at every length in time, and steps that add up to one pass.

Queries arrive one or a few at a time against keys that grow. A cache that grows is aligned
bottom-right; a static one holds all its keys from the start and is given the position of the query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_library import backends
from oracle import axes
from work import lines

import nbattn
from nbattn import Axis, Mask
from nbattn.planner import planner

Count = Callable[[str, int], None]
STEPS = 3 * 7 * 16  # every mask with every number of queries, in both kinds of cache
LINES = {"cpu": 10_000, "sm_90": 19_000}  # on a GPU more backends and tiles are compared
CAPACITY = 100_000


def end(left: int | None, **fields: Any) -> Mask:
    return Mask(Axis(left, align="bottom-right", **fields))


GROWING = {
    "causal": end(None, causal=True),
    "window": end(4095, causal=True),
    "short": end(16, causal=True),
    "behind": end(1023, causal=True, offset=-7),
    "dilated": end(511, causal=True, dilation=8),
    "sinks": end(4095, causal=True, prefix=4),
    "two sides": end(100, right=100),
}


def requests(steps: int) -> list[tuple[Mask, int, int]]:
    """Masks with query lengths 1 … 16, and keys that grow by them; then the same masks where the
    cache is static and the offset moves.
    """
    found: list[tuple[Mask, int, int]] = []
    keys = 30_000
    for step, mask in zip(range(steps), cycle(GROWING.values()), strict=False):
        queries = 1 + step % 16
        keys += queries
        if step % 4 == 3:
            (axis,) = mask.axes
            static = replace(axis, align="top-left", offset=keys - queries + axis.offset)
            found.append((Mask(static), queries, CAPACITY))
        else:
            found.append((mask, queries, keys))
    return found


def planned(steps: list[tuple[Mask, int, int]], device: str) -> list[int]:
    """Lines of Python of every step, each with a new plan."""
    planner.forget()
    took: list[int] = []
    for mask, queries, keys in steps:
        shapes = (1, queries, 32, 128), (1, keys, 8, 128)
        took.append(lines(partial(nbattn.plan, mask, *shapes, device=device, dtype="bfloat16")))
    assert planner.planned.cache_info().hits == 0
    return took


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_hundreds_of_steps_are_planned_in_few_lines_each(device: str, cases: Count) -> None:
    took = planned(requests(STEPS + 20), device)[20:]  # imports and lazy set-up
    assert max(took) <= LINES[device]
    cases("decode, planned", STEPS)


@pytest.mark.parametrize("device", ["cpu", "sm_90"])
def test_every_step_is_proved(device: str, cases: Count) -> None:
    for mask, queries, keys in requests(60):
        shapes = (1, queries, 4, 64), (1, keys, 2, 64)
        assert nbattn.plan(mask, *shapes, device=device, dtype="bfloat16").verify()
        cases("decode, proved", 1)


# Prefill and decode are one pass


def forward_only(axis: Axis) -> Axis:
    return replace(axis, right=0, stride=1, offset=min(axis.offset, 0), align="bottom-right")


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_steps(mask: Mask, lengths: list[int], backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of these many queries, each against the keys so far, and the one dense pass."""
    total = sum(lengths)
    query, key, value = (
        random(seed, 1, total, heads, 4) for seed, heads in ((1, 2), (2, 1), (3, 1))
    )
    parts, at = [], 0
    for length in lengths:
        at, start = at + length, at
        parts.append(
            nbattn.attention(query[:, start:at], key[:, :at], value[:, :at], mask, backend=backend)
        )
    whole = nbattn.attention(query, key, value, mask, backend="reference")
    return torch.cat(parts, 1), whole


@pytest.mark.parametrize("backend", backends(["flash-model", "flash-model:fa4", "tiled", "native"]))
@settings(max_examples=60)
@given(
    st.builds(forward_only, axes(("clip", "shift"), most=6)),
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
)
def test_decoding_in_steps_equals_one_pass(
    backend: str, cases: Count, axis: Axis, lengths: list[int]
) -> None:
    mask = Mask(axis)
    if mask.decodes() is not None:
        return
    found, want = in_steps(mask, lengths, backend)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    cases(f"decode, {backend}", len(lengths))


def test_steps_of_a_mask_that_looks_ahead_differ_from_one_pass() -> None:
    """The reason is real: the first chunk cannot attend to what comes later."""
    found, want = in_steps(Mask(Axis(2, 2, align="bottom-right")), [3, 2], "tiled")
    assert not torch.allclose(found, want)


@pytest.mark.parametrize(
    "backend",
    backends(["flash-model:aten", "flash-model:fa3", "flash-model:fa4", "tiled", "native"]),
)
def test_a_static_cache_is_a_growing_one(backend: str, cases: Count) -> None:
    """Keys after the query exist already, as garbage: an int offset must not let them in."""
    total = 23
    query, key, value = (random(seed, 1, total, 1, 4) for seed in (1, 2, 3))
    garbage = torch.full_like(key, 1e3)
    for (name, mask), queries in product(GROWING.items(), (1, 2, 5)):
        (axis,) = mask.axes
        if mask.decodes() is not None:
            continue
        axis = replace(
            axis, left=None if axis.left is None else axis.left % 6, dilation=min(3, axis.dilation)
        )
        for start in (0, 7, total - queries):
            stop = start + queries
            static = replace(axis, align="top-left", offset=start + axis.offset)
            caches = [torch.cat([t[:, :stop], garbage[:, stop:]], 1) for t in (key, value)]
            rows = query[:, start:stop]
            found = nbattn.attention(rows, *caches, Mask(static), backend=backend)
            want = nbattn.attention(
                rows, key[:, :stop], value[:, :stop], Mask(axis), backend="reference"
            )
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12, msg=f"{name} {start}")
            cases("decode, static cache", 1)

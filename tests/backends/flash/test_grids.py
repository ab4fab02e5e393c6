"""Tests of packed grids as one varlen call of Flash: which masks, which windows, exactly."""

from __future__ import annotations

from typing import Any

import pytest

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.flash.meaning import FlashArguments
from nbattn.planner.plan import Plan

SIZES = [(5,), (0,), (13,), (7,), (1,)]
KEYS = [(9,), (4,), (13,), (2,), (30,)]
RIGHT = Mask.sliding_window(3, 1, align="bottom-right")


def plan(mask: Mask, keys: Any = None, **options: Any) -> Plan:
    counts = [sum(n for (n,) in sizes) for sizes in (SIZES, keys or SIZES)]
    shapes = [(count, 4, 16) for count in counts]
    options = {"backend": "flash-model", "dtype": "float32", **options}
    return nbattn.plan(mask, *shapes, grids=SIZES, key_grids=keys, **options)


@pytest.mark.parametrize(
    ("mask", "keys", "sides"),
    [
        (Mask.causal(), None, (-1, 0)),
        (Mask.sliding_window(3, 1), None, (3, 1)),
        (Mask.sliding_window(3, 1, align="top-left"), None, (3, 1)),
        (RIGHT, KEYS, (3, 1)),
        (Mask(Axis(3, 1, align="bottom-right", offset=-1)), KEYS, (4, 0)),
        (Mask.full(rank=1), KEYS, (-1, -1)),
    ],
)
def test_one_call_with_one_window(mask: Mask, keys: Any, sides: tuple[int, int]) -> None:
    found = plan(mask, keys)
    assert found.chosen.name in ("flash-model:aten/pack", "flash-model:fa2/pack")
    (call,) = found.chosen.program.calls  # pyright: ignore
    assert isinstance(call.arguments, FlashArguments)
    assert (call.arguments.window.left, call.arguments.window.right) == sides
    assert found.verify()
    row = column = 0
    pairs = found.support()
    for (queries,), (count,) in zip(SIZES, keys or SIZES, strict=True):
        block = pairs[row : row + queries, column : column + count]
        assert (block == mask.dense(queries, count)).all()
        row, column = row + queries, column + count
    assert pairs.sum() == sum(
        mask.dense(queries, count).sum()
        for (queries,), (count,) in zip(SIZES, keys or SIZES, strict=True)
    )


@pytest.mark.parametrize(
    ("mask", "keys", "options", "text"),
    [
        (Mask.sliding_window(3, 1, align="top-left"), KEYS, {}, "the corner from which Flash"),
        (Mask.sliding_window(3, 1, dilation=2), None, {}, "not one band for grids of all lengths"),
        (Mask.neighborhood(3), None, {}, "not one band for grids of all lengths"),
        (Mask.causal(), None, {"key_range": True}, "a varlen call has no key_range for each grid"),
        (Mask.causal(), None, {"extra_keys": 2}, "a varlen call has no extra_keys for each grid"),
        (Mask(Axis(1, 0, causal=True, align="bottom-right", offset=2)), KEYS, {}, ""),
    ],
)
def test_what_is_no_such_call(mask: Mask, keys: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendError) as raised:
        plan(mask, keys, require=("pack",), **options)
    assert text in str(raised.value)


def test_two_axes_and_too_many_grids() -> None:
    options = {"backend": "flash-model", "require": ("pack",), "dtype": "float32"}
    with pytest.raises(BackendError, match="Flash has one-dimensional windows; grids have 2 axes"):
        nbattn.plan(Mask.full(rank=2), (6, 4, 16), grids=[(2, 3)], **options)
    with pytest.raises(BackendError, match="70000 sequences are over the grid of 65535"):
        nbattn.plan(Mask.causal(), (70_000, 4, 16), grids=[1] * 70_000, **options)


def test_providers_on_a_gpu() -> None:
    found = plan(Mask.causal(), backend="auto", dtype="float16", device="sm_90", training=True)
    assert found.chosen.name == "flash:aten/pack"
    assert "5 sequences" in found.chosen.work()
    assert found.chosen.cost is not None
    assert found.chosen.cost.calls == 3

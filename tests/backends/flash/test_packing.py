"""Tests of packing: which pieces are sequences of one varlen call, and why others are not."""

from __future__ import annotations

import numpy as np
import pytest
from flash_programs import flash_candidates_for, pair_counts
from oracle import axis_matrix

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.flash.meaning import FlashArguments

# Sequences of one varlen call


def test_a_trimmed_batch_is_one_call_without_a_copy() -> None:
    """Boundaries 0, a, b, N for queries and 0, k0, k1, M for keys; the rest are rows of zeros."""
    mask = Mask(Axis(150, 0, align=-20))  # rows 20 … 269 read, of 1000
    shapes = (3, 1000, 2, 8), (3, 100, 2, 8)
    plan = nbattn.plan(mask, *shapes, device="sm_80", backend="flash")
    assert plan.chosen.name == "flash:aten/pack"
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    assert isinstance(call.arguments, FlashArguments)
    assert call.arguments.runs == ((20, 0, 1), (250, 100, 1), (730, 0, 1))
    assert call.arguments.describe().endswith(", 3 sequences")
    assert plan.verify()
    assert np.array_equal(plan.support(), axis_matrix(mask.axes[0], 1000, 100))
    others = {c.strategy: c.cost for c in plan.candidates if c.cost and c.backend == "flash:aten"}
    assert plan.chosen.cost is not None
    assert plan.chosen.cost.calls == 1
    assert others["virtual-pad"].calls > 1
    assert others["virtual-pad"].bytes > plan.chosen.cost.bytes
    assert others["virtual-pad"].computed_pairs == plan.chosen.cost.computed_pairs
    visits = list(plan.schedule())
    assert {row for visit in visits for row in visit.queries[0]} == set(range(20, 270))


def test_blocks_and_a_ragged_one_are_sequences_of_one_call() -> None:
    """Which are two calls otherwise."""
    for fields, runs in (
        ({}, ((4, 4, 4), (2, 4, 1))),
        ({"causal": True}, ((4, 4, 4), (2, 2, 1), (0, 2, 1))),
    ):
        axis = Axis(3, causal=True, stride=4, align=0) if fields else Axis(2, 1, stride=4, align=0)
        every = [
            c for c in flash_candidates_for(Mask(axis), (18,), (20,)) if c.backend.endswith("aten")
        ]
        found = {c.strategy: c.program for c in every if c.program}
        packed, dense = found["pack"], found.get("translate", found.get("trim"))
        assert dense is not None
        assert (len(packed.calls), len(dense.calls)) == (1, 2)
        assert packed.calls[0].arguments.runs == runs
        assert np.array_equal(
            pair_counts(packed.calls, 18, 20), axis_matrix(axis, 18, 20).astype(int)
        )


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (Axis(3, 3, border="shift"), "its pieces share keys: sequences do not"),
        (Axis(3, 3), "one sequence: nothing to pack"),
        (Axis(2, 1, border="wrap"), "its pieces share queries: sequences do not"),
        (Axis(2, dilation=3), "its pieces are not contiguous ranges of positions"),
        (Axis(9, 0, stride=4), "its pieces share keys: sequences do not"),
    ],
)
def test_pack_refusals_have_a_reason(axis: Axis, text: str) -> None:
    named = {"device": "cpu", "backend": "flash-model:aten", "require": ("pack",)}
    with pytest.raises(BackendError, match=f"pack[^:]*: {text}"):
        nbattn.plan(Mask(axis), (1, 24, 2, 8), **named)


def test_too_many_sequences_for_the_grid() -> None:
    mask = Mask(Axis(3, causal=True, stride=4, align="top-left"))
    named = {"device": "sm_80", "backend": "flash"}
    with pytest.raises(BackendError, match="aten/pack: 80016 sequences are over the grid of 65535"):
        nbattn.plan(mask, (8, 40_002, 2, 8), (8, 40_004, 2, 8), **named)

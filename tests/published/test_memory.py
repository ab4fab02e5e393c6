"""Tests of the memory of planned attention: against numbers that are counted by hand."""

from __future__ import annotations

import pytest

import nbattn
from nbattn import Mask
from nbattn.published import memory

TOKENS, TEXT, HEADS, DIM = 64 * 64, 77, 4, 32


def joint(device: str, *, training: bool = False, dtype: str = "bfloat16") -> nbattn.Plan:
    return nbattn.plan(
        Mask.neighborhood((7, 7)),
        (2, 64, 64, HEADS, DIM),
        extra_keys=TEXT,
        extra_queries=True,
        device=device,
        dtype=dtype,
        training=training,
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4), ("float64", 8)])
def test_tensors_of_grid_and_text_are_counted_once(dtype: str, size: int, training: bool) -> None:
    plan = joint("cpu", training=training, dtype=dtype)
    numbers = 2 * (TOKENS + TEXT) * HEADS * DIM
    lse = 2 * (TOKENS + TEXT) * HEADS * max(size, 4)
    assert memory.tensors(plan) == 4 * numbers * size * (1 + training) + lse


def test_grouped_heads_have_fewer_keys() -> None:
    plan = nbattn.plan(Mask.full(), (1, 10, 8, 16), (1, 10, 2, 16), dtype="float32", device="cpu")
    assert memory.tensors(plan) == 10 * 16 * (8 + 2) * 2 * 4 + 10 * 8 * 4


def test_our_kernels_need_nothing_beside_the_tensors() -> None:
    plan = joint("cpu")
    assert [part.chosen.backend for part in memory.parts(plan)] == ["native", "native"]
    assert memory.beside(plan) == 0


def test_a_merge_keeps_an_exact_output_and_a_part() -> None:
    """Flash takes extra keys by a second call, whose output is added in float32."""
    plan = nbattn.plan(
        Mask.full(2), (2, 64, 64, HEADS, DIM), extra_keys=TEXT, device="sm_90", backend="flash:aten"
    )
    assert plan.chosen.name == "flash:aten/translate+merge"
    assert memory.beside(plan) == 2 * TOKENS * HEADS * DIM * (4 + 2)


def test_copies_are_counted() -> None:
    """Cosmos' dilated layers fold residues, which copies the tensors: once in q, k, v and out."""
    plan = nbattn.load("cosmos_predict2").plans["global"].plan(device="sm_90")
    assert "fold" in plan.chosen.traits
    numbers = 24 * 44 * 80 * 16 * 128
    assert memory.beside(plan) == pytest.approx(4 * numbers * 2, rel=0.01)


def test_parts_run_one_after_another() -> None:
    """The larger of both parts counts, not their sum."""
    plan = nbattn.plan(
        Mask.full(2),
        (1, 64, 64, HEADS, DIM),
        extra_keys=TEXT,
        extra_queries=True,
        device="sm_90",
        backend="flash:aten",
    )
    grid, text = memory.parts(plan)
    assert memory.beside(plan) == memory.beside(grid) > memory.beside(text) > 0

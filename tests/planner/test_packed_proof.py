"""Tests of the proof of plans for packed grids: it finds a wrong size and tokens in no grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import nbattn
from nbattn import Grids, InputError, Mask
from nbattn.planner import packed_proof
from nbattn.program.program import Program

MASK, SIZES = Mask.neighborhood((3, 3)), [(5, 6), (0, 2), (3, 4), (5, 6)]
PLAN = nbattn.plan(MASK, (72, 4, 8), grids=SIZES, dtype="float32", device="cpu", backend="tiled")


@dataclass(frozen=True)
class Wrong:
    """The programs of a plan, with that of one size in the place of another."""

    right: Any

    def of_size(self, number: int) -> Program:
        return self.right.of_size(0 if number == 2 else number)

    def describe(self) -> str:
        return "wrong"


def with_arguments(arguments: Any) -> Any:
    assert PLAN.chosen.program is not None
    (call,) = PLAN.chosen.program.calls
    program = Program((replace(call, arguments=arguments),))
    return replace(PLAN.chosen, program=program)


def test_a_size_with_another_program() -> None:
    (call,) = PLAN.chosen.program.calls  # pyright: ignore
    wrong = with_arguments(Wrong(call.arguments))
    with pytest.raises(AssertionError, match="grids of 3x4: "):
        packed_proof.verify(PLAN.request, wrong)
    assert packed_proof.verify(PLAN.request, PLAN.chosen)


def test_tokens_that_no_grid_has(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Grids.rows
    monkeypatch.setattr(Grids, "rows", lambda grids, at: rows(grids, at)[:-1])
    with pytest.raises(AssertionError, match="grids of the queries do not have each of 72 once"):
        packed_proof.verify(PLAN.request, PLAN.chosen)
    monkeypatch.setattr(Grids, "rows", lambda grids, at: rows(grids, at) // 2)
    with pytest.raises(AssertionError, match="do not have each of 72 once"):
        packed_proof.support(PLAN.request, PLAN.chosen)


def test_tokens_that_the_tensors_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Grids.rows
    more = {0: [72]}  # one row too many, of the first size
    monkeypatch.setattr(
        Grids, "rows", lambda grids, at: np.append(rows(grids, at), more.get(at[0], []))
    )
    with pytest.raises(AssertionError, match="grids of the queries do not have each of 72 once"):
        packed_proof.verify(PLAN.request, PLAN.chosen)


def test_blocks_are_those_of_each_grid() -> None:
    blocks = [*PLAN.schedule()]
    assert [block.grid for block in blocks] == sorted(block.grid for block in blocks)
    assert {block.grid for block in blocks} == {0, 2, 3}
    alone = nbattn.plan(
        MASK, (2, 5, 6, 4, 8), dtype="float32", device="cpu", backend="tiled"
    ).schedule()
    assert [replace(b, grid=0) for b in blocks if b.grid == 3] == [*alone]


def test_a_matrix_over_the_limit() -> None:
    """Of all grids, whose own are below it."""
    plan = nbattn.plan(Mask.causal(), (9000, 1, 8), grids=[(4500,)] * 2, device="cpu")
    with pytest.raises(InputError, match="9000 x 9000 pairs are over the limit"):
        plan.support()
    assert plan.verify()

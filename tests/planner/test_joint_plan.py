"""Tests of plans of joint attention: both parts are shown, proved and run."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from oracle import matrix

import nbattn
from nbattn import Grids, InputError, Mask, plan_runs
from nbattn.grids import PackedGrids
from nbattn.planner import planner
from nbattn.planner.joint_plan import JointPlan
from nbattn.planner.plan import Plan
from nbattn.program.program import Program

MASK = Mask.neighborhood((3, 3))
SPACE, EXTRAS, HEADS, DIM = (4, 5), 3, 2, 8
SHAPE = (2, *SPACE, HEADS, DIM)


def made(**options: Any) -> Any:
    named = {"extra_keys": EXTRAS, "extra_queries": True, "dtype": "float32", "device": "cpu"}
    return nbattn.plan(MASK, SHAPE, **(named | options))


def tensors() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    grid = [*torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))]
    names = ("extra_query", "extra_key", "extra_value")
    shape = (3, 2, EXTRAS, HEADS, DIM)
    extras = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return grid, dict(zip(names, extras, strict=True))


@pytest.mark.parametrize("device", ["cpu", "sm_80", "sm_90"])
@pytest.mark.parametrize("training", [False, True])
def test_support_is_all_pairs_of_both_parts(device: str, training: bool) -> None:
    plan = made(device=device, training=training)
    grid = matrix(MASK.axes, SPACE, SPACE)
    wanted = np.pad(grid, (0, EXTRAS), constant_values=True)
    assert np.array_equal(plan.support(), wanted)
    assert plan.verify()


def test_a_wrong_part_is_not_proved() -> None:
    plan = made()
    grid, extras = plan.parts()
    for wrong in (
        JointPlan(grid.request, grid.chosen, grid.candidates, extras=_without_calls(extras)),
        JointPlan(grid.request, _without_calls(grid).chosen, grid.candidates, extras=extras),
    ):
        with pytest.raises(AssertionError):
            wrong.verify()


def _without_calls(plan: Plan) -> Plan:
    chosen = copy.copy(plan.chosen)
    object.__setattr__(chosen, "program", Program(()))
    return Plan(plan.request, chosen, plan.candidates)


def test_the_parts_are_the_plans_of_two_attentions() -> None:
    for options in ({}, {"key_range": True}, {"sink": True, "softcap": 3.0, "training": True}):
        grid, extras = made(**options).parts()
        named = {"extra_keys": EXTRAS, "dtype": "float32", "device": "cpu", **options}
        assert grid == nbattn.plan(MASK, SHAPE, **named)
        assert extras == nbattn.plan(Mask.full(2), (2, EXTRAS, 1, HEADS, DIM), SHAPE, **named)


def test_what_has_positions_concerns_the_grid() -> None:
    plan = made(relative_bias=True, extra_range=True, backend="reference")
    assert (plan.request.relative_bias, plan.extras.request.relative_bias) == (True, False)
    assert plan.request.extra_range
    assert plan.extras.request.extra_range
    line = nbattn.plan(
        Mask.causal(), (1, 9, 2, 8), alibi_slopes=True, backend="reference", extra_keys=2,
        extra_queries=True, device="cpu", dtype="float32",
    )  # fmt: skip
    assert isinstance(line, JointPlan)
    assert line.request.alibi_slopes
    assert not line.extras.request.alibi_slopes


def test_it_shows_both_parts() -> None:
    plan = made()
    grid, extras = plan.parts()
    assert plan.explain() == f"{grid.explain()}\n\nextra tokens as queries\n{extras.explain()}"
    assert str(plan) == plan.explain()
    assert extras.explain(all=True) in plan.explain(all=True)
    found = json.loads(json.dumps(plan.to_dict()))
    assert found == {**grid.to_dict(), "extras": extras.to_dict()}
    assert repr(plan) == f"JointPlan({grid!r}, extras={extras!r})"
    assert plan._repr_html_() == grid._repr_html_() + extras._repr_html_()


def test_it_is_a_value() -> None:
    plan = made()
    assert plan == made()
    assert plan != made(extra_keys=4)
    assert plan not in plan.parts()
    assert {plan, made(), pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)} == {plan}


@pytest.mark.parametrize("return_lse", [False, True])
def test_it_runs_what_it_shows(return_lse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made(return_lse=return_lse, backend="tiled")
    grid, extras = tensors()
    plan.warmup()
    wanted = nbattn.joint_attention(*grid, MASK, *extras.values(), return_lse=return_lse)
    monkeypatch.setattr(planner, "planned", None)
    found = plan.run(*grid, **extras)
    assert len(found) == 2 + 2 * return_lse
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_both_parts_are_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []
    monkeypatch.setattr(plan_runs, "warmup", seen.append)
    plan = made()
    plan.warmup()
    assert seen == [*plan.parts()]


def test_keys_with_grids_of_their_own() -> None:
    """Extra tokens read the keys' grids, whatever those of the queries are."""
    sizes, key_sizes = [(4, 5), (2, 3)], [(2, 4), (3, 2)]
    mask, shapes = Mask.full(2), ((26, HEADS, DIM), (14, HEADS, DIM))
    packed = {"grids": sizes, "key_grids": key_sizes}
    plan = nbattn.plan(
        mask, *shapes, **packed, extra_keys=EXTRAS, extra_queries=True, device="cpu",
        dtype="float32",
    )  # fmt: skip
    assert plan.verify()
    assert isinstance(plan, JointPlan)
    assert plan.extras.request.grids == PackedGrids(Grids([(EXTRAS, 1)] * 2), Grids(key_sizes))
    query, key = (torch.randn(shape) for shape in shapes)
    _, extras = tensors()
    found = plan.run(query, key, key, **extras)
    wanted = nbattn.joint_attention(query, key, key, mask, *extras.values(), **packed)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_it_trains() -> None:
    plan, (grid, extras) = made(training=True), tensors()
    leaves = [t.requires_grad_() for t in (*grid, *extras.values())]
    bounds = torch.tensor([[[0, 3], [1, 5]]] * 2, dtype=torch.int32)
    found = made(training=True, key_range=True).run(*grid, **extras, key_range=bounds)
    wanted = nbattn.joint_attention(*grid, MASK, *extras.values(), key_range=bounds)
    upward = [torch.randn_like(t) for t in wanted]
    grads = (torch.autograd.grad(results, leaves, upward) for results in (found, wanted))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(InputError, match="the plan is for key_range=False"):
        plan.run(*grid, **extras, key_range=bounds)


def test_tensors_that_it_is_not_for() -> None:
    grid, extras = tensors()
    plan = made()
    named = "extra_query=extra_query, extra_key=extra_key, extra_value=extra_value"
    for missing in extras:
        with pytest.raises(InputError) as caught:
            plan.run(*grid, **{n: t for n, t in extras.items() if n != missing})
        assert caught.value.fix == f"plan.run(query, key, value, {named})."
    with pytest.raises(InputError) as caught:
        plan.run(*grid, **{n: t[:, :2] for n, t in extras.items()})
    assert caught.value.problem == "the plan is for extra_keys=3, the tensors have 2."
    call = "nbattn.joint_attention(query, key, value, mask, extra_query, extra_key, extra_value)"
    assert "extra_keys=2, extra_queries=True, dtype" in caught.value.fix
    assert caught.value.fix.endswith(f", or {call}.")
    trained = extras["extra_query"].clone().requires_grad_()
    with pytest.raises(InputError) as caught:
        plan.run(*grid, **(extras | {"extra_query": trained}))
    assert caught.value.problem == "the plan is for training=False, the tensors have True."
    assert "extra_queries=True, training=True" in caught.value.fix  # not that of its second part
    assert caught.value.fix.endswith(f", or {call}.")
    with pytest.raises(InputError, match="extra_query has 2 tokens, extra_key 3"):
        plan.run(*grid, **(extras | {"extra_query": extras["extra_query"][:, :2]}))


def test_an_unknown_argument_is_left_out_and_the_others_stay() -> None:
    plan = nbattn.plan(Mask.causal(), (1, 4, 2, 8), extra_keys=3, extra_queries=True,
                       dtype="float32", device="cpu")  # fmt: skip
    grid, extra = torch.zeros(1, 4, 2, 8), torch.zeros(1, 3, 2, 8)
    extras = {"extra_query": extra, "extra_key": extra, "extra_value": extra}
    with pytest.raises(InputError) as caught:
        plan.run(grid, grid, grid, **extras, scale=0.5, dropout=0.1)
    assert "it takes extra_query, sink" in caught.value.problem
    named = "extra_query=extra_query, extra_key=extra_key, extra_value=extra_value, scale=0.5"
    assert caught.value.fix == f"plan.run(query, key, value, {named})."


def test_no_extra_tokens() -> None:
    plan = made(extra_keys=0)
    assert plan.verify()
    assert np.array_equal(plan.support(), matrix(MASK.axes, SPACE, SPACE))


def test_a_switch_that_is_no_bool() -> None:
    with pytest.raises(InputError, match="extra_queries=3 is an int, not a bool"):
        made(extra_queries=3)

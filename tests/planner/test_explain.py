"""Owns the check of a plan's text: every candidate and reason, what decided, and its one line."""

from dataclasses import replace

from hypothesis import given, settings
from small_requests import requests

import nbattn
from nbattn import Mask
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.program.request import Request

# explain and to_dict


@settings(max_examples=80)
@given(requests())
def test_explain_names_every_candidate_and_reason(request_: Request) -> None:
    plan = planner.make(request_)
    text = plan.explain(all=True)
    lines = text.splitlines()
    assert str(plan) == plan.explain()
    assert lines[0].startswith(f"plan    {plan.chosen.name}: estimated ")
    assert lines[1].strip() == f"{request_.mask!r}  {request_.summary()}"
    assert lines[2].startswith("faster  ")
    for candidate in plan.candidates:
        state = (
            "chosen" if candidate is plan.chosen else "refused" if candidate.reasons else "slower"
        )
        (line,) = [one for one in lines[3:-1] if one.split()[:2] == [state, candidate.name]]
        for reason in candidate.reasons:
            assert reason.text in text
        if not candidate.reasons:
            assert " estimated " in line
            assert "measured" not in line
    assert lines[-1].startswith("  ranked by estimates")
    assert request_.device.source in lines[-1]


def test_a_plan_is_one_line() -> None:
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 32), dtype="float32", device="cpu")
    assert repr(plan) == (
        "Plan(sdpa/causal, estimated 0.053 ms, query [1, 64, 2, 32] key [1, 64, 2, 32] float32 "
        "cpu, Mask(Axis(None, 0, causal=True)))"
    )


def test_explain_says_when_measurements_decided() -> None:
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device="cpu")
    assert plan.chosen.cost is not None
    timed = replace(plan.chosen, cost=replace(plan.chosen.cost, measured=2e-3))
    text = Plan(plan.request, timed, (timed, *plan.candidates[1:])).explain()
    assert "ranked by measured times" in text
    assert "measured 2 ms" in text
    assert timed.cost is not None
    assert timed.cost.seconds == 2e-3

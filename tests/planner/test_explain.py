"""Tests of a plan's explanation: all candidates and reasons, what decided, and one-line form."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from small_requests import requests

import nbattn
from nbattn import Axis, Mask
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.program import device
from nbattn.program.candidate import Candidate
from nbattn.program.request import Request


def state(plan: Plan, candidate: Candidate) -> str:
    """What explain() calls a candidate."""
    if candidate is plan.chosen or candidate.reasons:
        return "refused" if candidate.reasons else "chosen"
    assert candidate.cost is not None
    assert plan.chosen.cost is not None
    shown = [f"{1e3 * one.cost.seconds:.3g}" for one in (candidate, plan.chosen) if one.cost]
    return "equal" if shown[0] == shown[1] else "slower"


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
        (line,) = [
            one
            for one in lines[3:-1]
            if one.split()[:2] == [state(plan, candidate), candidate.name]
        ]
        for reason in candidate.reasons:
            assert reason.text in text
        if not candidate.reasons:
            assert " estimated " in line
            assert "measured" not in line
    assert lines[-1].startswith("  ranked by estimates")
    assert request_.device.source in lines[-1]


def test_a_plan_is_one_line() -> None:
    bare = replace(device.DEVICES["cpu"], providers=())
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 32), dtype="float32", device=bare)
    assert repr(plan) == (
        "Plan(sdpa/causal, estimated 0.053 ms, query [1, 64, 2, 32] key [1, 64, 2, 32] float32 "
        "cpu, Mask(Axis(None, 0, causal=True)))"
    )


def test_explain_shows_when_measurements_decided() -> None:
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device="cpu")
    assert plan.chosen.cost is not None
    timed = replace(plan.chosen, cost=replace(plan.chosen.cost, measured=2e-3))
    text = Plan(plan.request, timed, (timed, *plan.candidates[1:])).explain()
    assert "ranked by measured times" in text
    assert "measured 2 ms" in text
    assert timed.cost is not None
    assert timed.cost.seconds == 2e-3


def test_the_note_of_the_chosen_candidate_follows_its_work() -> None:
    """No other candidate's is shown."""
    plan = nbattn.plan(Mask.neighborhood(7), (1, 64, 2, 16), device="cpu")
    first, second, *rest = (replace(c, note=f"a note of {c.name}") for c in plan.candidates)
    assert not second.reasons
    text = Plan(plan.request, first, (first, second, *rest)).explain()
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  chosen"))
    assert lines[at].endswith(first.work())
    assert lines[at + 1].strip() == f"a note of {first.name}"
    assert text.count("a note of") == 1
    assert "a note" not in plan.explain()


@settings(max_examples=80)
@given(requests())
def test_the_short_explanation_has_a_line_for_every_backend(request_: Request) -> None:
    plan = planner.make(request_)
    lines = plan.explain().splitlines()
    assert lines[:3] == plan.explain(all=True).splitlines()[:3]
    listed = " ".join(line.split("  ")[1] for line in lines[3:-2])
    for runner in {candidate.runner for candidate in plan.candidates}:
        assert runner in "\n".join(lines[3:-2]), listed
    accepted = [candidate for candidate in plan.candidates if not candidate.reasons]
    for candidate in accepted[:6]:
        assert sum(line.split()[1] == candidate.name for line in lines[3:-2]) == 1
    assert lines[-2] == f"  explain(all=True) lists all {len(plan.candidates)} candidates"
    assert lines[-1] == plan.explain(all=True).splitlines()[-1]


def test_only_a_slower_candidate_is_called_slower() -> None:
    """Times as three digits, in seconds from one second on."""
    mask = Mask(Axis(2, 2, align="bottom-right"))
    text = nbattn.plan(mask, (1, 1, 8, 64), (1, 10_000, 8, 64), device="sm_80").explain()
    assert re.search(r"^  equal +flash:aten/trim +estimated 0\.015 ms  no mask; ", text, re.M)
    assert "(1x)" not in text
    bare = replace(device.DEVICES["cpu"], providers=())
    text = nbattn.plan(Mask.full(), (8, 80_000, 16, 64), dtype="float32", device=bare).explain()
    assert re.search(r"^plan    sdpa/dense: estimated \d[.\de+]* s; ", text)


def test_backends_that_are_not_requested_share_a_line() -> None:
    mask = Mask.neighborhood((7, 7))
    text = nbattn.plan(mask, (1, 56, 56, 2, 32), device="sm_90", backend="tiled").explain()
    line = "  refused   reference, sdpa, flash, flash-model, cuda, triton, native, flex, natten "
    end = "backend='tiled' is requested"
    assert [one for one in text.splitlines() if "is requested" in one] == [line + end]
    text = nbattn.plan(mask, (1, 56, 56, 2, 32), device="sm_90").explain()
    assert re.search(r"reference, flex +only if requested, for example backend='ref", text)


def test_a_backend_by_name_is_one_that_runs_if_requested() -> None:
    mask = Mask.neighborhood((7, 7))
    options = {"dtype": "float32", "device": "cpu"}
    lines = nbattn.plan(mask, (1, 56, 56, 2, 32), **options, training=True).explain().splitlines()
    shown = [line.split(maxsplit=2) for line in lines]
    assert ["refused", "flex", "its CPU kernel has no backward"] in shown
    assert "  by name   reference" in "\n".join(lines)
    (model,) = [rest for state, name, rest in shown if name == "flash-model"]
    assert model.startswith("Flash has one-dimensional windows; this mask has windows on 2 axes")
    inference = nbattn.plan(mask, (1, 56, 56, 2, 32), **options).explain()
    assert "  by name   reference, flex " in inference


def test_a_dtype_that_the_device_has_is_advised() -> None:
    plan = nbattn.plan(Mask.full(), (1, 4096, 4, 64), dtype="float32", device="sm_75")
    assert "dtype=torch.float16, which rounds more: " in plan.explain()


def test_nothing_is_measured_on_a_device_that_is_not_here() -> None:
    text = nbattn.plan(Mask.full(), (1, 4096, 16, 64), device="sm_80").explain()
    assert text.splitlines()[2] == "faster  no faster choice is known."


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a package": (
        {"device": replace(device.DEVICES["sm_90"], providers=())},
        'pip install "cupy-cuda1',  # 12 or 13, as torch has it
    ),
    "a compiler": (
        {"device": replace(device.DEVICES["cpu"], providers=())},
        'pip install "ziglang>=0.13": native/window, ',
    ),
    "a dtype": (
        {"device": replace(device.DEVICES["sm_90"], providers=("cupy",)), "dtype": "float32"},
        "dtype=torch.bfloat16, which rounds more: ",
    ),
    "a backend": (
        {"device": "cpu", "backend": "reference"},
        'backend="auto": ',
    ),
    "nothing": ({"device": "cpu"}, "no faster choice is known; `nbattn tune` with "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_third_line_is_how_to_get_a_faster_plan(name: str) -> None:
    """The plan that it promises is the plan after the change."""
    named, start = CHANGES[name]
    plan = nbattn.plan(Mask.neighborhood((7, 7)), (1, 64, 64, 4, 64), **named)
    line = plan.explain().splitlines()[2]
    assert line.startswith(f"faster  {start}")
    changed = {
        "a package": {"device": replace(device.DEVICES["sm_90"], providers=("cupy",))},
        "a compiler": {"device": "cpu"},
        "a dtype": {"dtype": "bfloat16"},
        "a backend": {"backend": "auto"},
        "nothing": {},
    }[name]
    after = nbattn.plan(Mask.neighborhood((7, 7)), (1, 64, 64, 4, 64), **named | changed)
    assert name == "nothing" or f": {after.chosen.name}, estimated " in line

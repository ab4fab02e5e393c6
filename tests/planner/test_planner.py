"""Tests of the planner: its choice, required and forbidden strategies, and its cache."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_requests import all_of, requests, requests_with_dense_programs

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends import families
from nbattn.planner import cost_table, devices, planner
from nbattn.program.candidate import Candidate
from nbattn.program.request import Request

Count = Callable[[str, int], None]


# The choice


def traits_of(candidate: Candidate) -> set[str]:
    return {candidate.runner, candidate.backend, candidate.strategy, *candidate.traits}


@given(requests())
def test_candidates_are_ranked_and_every_refusal_has_a_reason(request_: Request) -> None:
    plan = planner.make(request_)
    assert plan.candidates[0] is plan.chosen
    assert not plan.chosen.reasons
    refused = [bool(candidate.reasons) for candidate in plan.candidates]
    assert refused == sorted(refused)
    seconds = [c.cost.seconds for c in plan.candidates if not c.reasons and c.cost is not None]
    assert seconds == sorted(seconds)
    assert len(seconds) == refused.count(False)
    names = [candidate.name for candidate in plan.candidates]
    assert len(set(names)) == len(names)
    for candidate in plan.candidates:
        assert candidate.backend in families.BACKENDS[1:]
        assert {candidate.strategy, *candidate.traits} <= set(families.STRATEGIES)
        assert (candidate.program is None) == (candidate.cost is None)
        assert candidate.program is not None or candidate.reasons
        for reason in candidate.reasons:
            assert reason.limit
            assert len(reason.text.split()) > 1
            assert "\n" not in reason.text


@settings(max_examples=80)
@given(requests())
def test_auto_never_picks_the_reference(request_: Request) -> None:
    assert planner.make(request_).chosen.backend != "reference"
    for asked in (
        {"require": ("reference",)},
        {"forbid": ("tiled", "sdpa", "flash", "cuda", "triton", "native")},
    ):
        with pytest.raises(BackendError):
            planner.make(replace(request_, **asked))


@given(requests(), st.sampled_from(families.BACKENDS[1:]))
def test_an_explicit_backend_runs_or_raises(cases: Count, request_: Request, backend: str) -> None:
    able = [
        c for c in all_of(replace(request_, backend=backend)) if backend in (c.backend, c.runner)
    ]
    willing = [c for c in able if {reason.limit for reason in c.reasons} <= {"backend"}]
    if willing:
        plan = planner.make(replace(request_, backend=backend))
        assert backend in (plan.chosen.backend, plan.chosen.runner)
        others = (c for c in plan.candidates if backend not in (c.backend, c.runner))
        assert all(c.reasons for c in others)
        cases("planner, explicit backend runs", 1)
        return
    with pytest.raises(BackendError) as error:
        planner.make(replace(request_, backend=backend))
    for candidate in able:
        for reason in candidate.reasons:
            assert reason.limit == "backend" or f"{candidate.name}: {reason.text}" in str(
                error.value
            )
    cases("planner, explicit backend refused", 1)


@given(st.one_of(requests(), requests_with_dense_programs()), st.data())
def test_require_and_forbid_are_obeyed(
    cases: Count, request_: Request, data: st.DataObject
) -> None:
    plan = planner.make(request_)
    some = st.lists(
        st.sampled_from((*families.STRATEGIES, *families.BACKENDS[1:])), max_size=2
    ).map(tuple)
    require, forbid = data.draw(some), data.draw(some)
    able = [
        candidate
        for candidate in plan.candidates
        if not candidate.reasons
        and traits_of(candidate) >= set(require)
        and not traits_of(candidate) & set(forbid)
    ]
    try:
        found = planner.make(replace(request_, require=require, forbid=forbid)).chosen
    except BackendError:
        assert not able
        cases("planner, nothing left", 1)
    else:
        assert found == able[0]
        cases("planner, required and forbidden", 1)


def test_all_reasons_are_listed_when_every_candidate_is_refused() -> None:
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask(Axis(1, 1)), (1, 8, 2, 16), device="cpu", softcap=1.0, backend="sdpa")
    assert error.value.problem.splitlines() == [
        "sdpa cannot run this:",
        "  sdpa/dense: has no softcap",
        "  sdpa/dense: axis 0: its windows differ from query to query",
        "  sdpa/mask: has no softcap",
    ]
    with pytest.raises(BackendError) as error:
        nbattn.plan(
            Mask(Axis(1, 1)), (1, 8, 2, 16), device="cpu", forbid=("tiled", "sdpa", "native")
        )
    for line in (
        "reference/dense: runs only if requested: backend='reference'",
        "tiled/tile: uses 'tiled', which is forbidden",
        "sdpa/dense: axis 0: its windows differ from query to query",
        "sdpa/mask: uses 'sdpa', which is forbidden",
        "native/window: uses 'native', which is forbidden",
    ):
        assert f"\n  {line}\n" in f"{error.value.problem}\n"


def test_equal_requests_share_one_plan() -> None:
    first = nbattn.plan(Mask.causal(), (1, 77, 2, 16), device="cpu")
    assert nbattn.plan(Mask.causal(), [1, 77, 2, 16], device="cpu") is first
    assert nbattn.plan(Mask(Axis(causal=True)), torch.Size((1, 77, 2, 16)), device="cpu") is first
    assert planner.make(copy.deepcopy(first.request)) is first


def test_caches_of_plans_are_bounded() -> None:
    for cached in (
        planner._make,
        planner.planned,
        devices._data,
        cost_table._rated,
        cost_table._valid_entries,
        cost_table._devices,
    ):
        limit = cached.cache_parameters()["maxsize"]
        assert limit is not None
        assert 0 < limit <= 1 << 14
        assert cached.cache_info().currsize <= limit


def test_a_refusal_is_not_cached_as_a_plan() -> None:
    for _ in range(2):
        with pytest.raises(BackendError):
            nbattn.plan(Mask(Axis(1, 1)), (1, 8, 2, 16), device="cpu", require=("causal",))

"""Tests of plans: their data, their schedules, and that they are values."""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_requests import (
    all_of,
    calls_of,
    oracle_of,
    program_of,
    request_for,
    requests,
    requests_with_dense_programs,
    with_arguments,
)

import nbattn
from nbattn import Axis, Mask
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES
from nbattn.program.request import Request

Count = Callable[[str, int], None]
ROOT = Path(__file__).resolve().parents[2]

BLOCKS = request_for(Mask.neighborhood(4, stride=4), 16)
RING = request_for(Mask(Axis(1, 2, border="wrap")), 9)


@settings(max_examples=80)
@given(requests())
def test_a_plan_is_json(request_: Request) -> None:
    plan = planner.make(request_)
    found = plan.to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["chosen"] == plan.chosen.name
    assert [c["name"] for c in found["candidates"]] == [c.name for c in plan.candidates]
    assert set(found["request"]) == {f.name for f in fields(Request) if f.init} - {"held", "grids"}
    again = Mask(*request_.mask.axes)
    assert json.dumps(planner.make(replace(request_, mask=again)).to_dict()) == text


PRINT_PLANS = """
import json, nbattn
from nbattn import Axis, Mask
for mask, shape in [
    (Mask.causal(), (1, 64, 2, 16)),
    (Mask(Axis(dilation=3)), (2, 12, 4, 16)),
    (Mask(Axis(2, 2, dilation=3)), (2, 10, 4, 16)),
    (Mask.neighborhood((4, 4), stride=4), (2, 16, 16, 4, 16)),
    (Mask(Axis(3, 3), Axis(6, 6, border="wrap")), (1, 21, 40, 8, 64)),
]:
    for device in ("cpu", "sm_90"):
        plan = nbattn.plan(mask, shape, device=device, training=True, extra_keys=1)
        print(json.dumps(plan.to_dict()))
        print(plan.explain())
"""


def test_a_plan_does_not_depend_on_the_hash_seed() -> None:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # other than this process's
    other = subprocess.run(
        [sys.executable, "-c", PRINT_PLANS],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(PRINT_PLANS, {})
    assert other == here.getvalue()
    assert len(other.splitlines()) > 40


# Values and the cache


@settings(max_examples=80)
@given(requests())
def test_plans_are_values(request_: Request) -> None:
    plan = planner.make(request_)
    for other in (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert other == plan
        assert hash(other) == hash(plan)
        assert other.explain() == plan.explain()
        assert other.to_dict() == plan.to_dict()
    with pytest.raises(AttributeError):
        plan.chosen = None
    assert plan != planner.make(replace(request_, batch=request_.batch + 1))


# schedule


def pairs_of(space: tuple[int, ...], ranges: tuple[range, ...]) -> np.ndarray:
    """Row-major numbers of a product of ranges."""
    grids = np.meshgrid(*[np.array(one, dtype=int) for one in ranges], indexing="ij")
    flat = [grid.reshape(-1) for grid in grids]
    return np.ravel_multi_index(flat, space) if math.prod(space) else np.zeros(0, dtype=int)


def check_schedule(plan: Plan, *, backward: bool = False) -> None:
    request, allowed = plan.request, oracle_of(plan.request)
    visits = np.zeros(allowed.shape, dtype=int)
    for visit in plan.schedule(backward=backward):
        rows = pairs_of(request.query_space, visit.queries)
        columns = [pairs_of(request.key_space, box) for box in visit.keys]
        together = np.concatenate([*columns, np.zeros(0, dtype=int)])
        assert len(set(together.tolist())) == len(together)
        visits[np.ix_(rows, together)] += 1
        if visit.full:
            assert allowed[np.ix_(rows, together)].all()
    assert (visits[allowed] == 1).all()
    assert visits.max(initial=0) <= 1


@given(st.one_of(requests(), requests_with_dense_programs()))
def test_a_schedule_visits_every_pair_once(cases: Count, request_: Request) -> None:
    for candidate in all_of(request_):
        if candidate.program is not None:
            check_schedule(Plan(request_, candidate, (candidate,)))
            cases(f"planner, schedule: {candidate.backend}/{candidate.strategy}", 1)
            if request_.training:
                check_schedule(Plan(request_, candidate, (candidate,)), backward=True)


def test_a_schedule_marks_full_blocks() -> None:
    blocks = program_of(BLOCKS, "sdpa/dense+fold")
    visits = list(Plan(BLOCKS, blocks, (blocks,)).schedule())
    assert [visit.full for visit in visits] == [True] * 4
    assert [visit.queries for visit in visits] == [(range(n, n + 4),) for n in (0, 4, 8, 12)]
    assert [visit.keys for visit in visits] == [((range(n, n + 4),),) for n in (0, 4, 8, 12)]
    ring = program_of(RING, "tiled/tile")
    parts = replace(calls_of(ring)[0].arguments, tile=(3,))
    first = next(Plan(RING, with_arguments(ring, parts), (ring,)).schedule())
    assert not first.full
    assert first.queries == (range(3),)
    assert first.keys == ((range(5),), (range(8, 9),))


def test_schedules_are_lazy() -> None:
    plan = nbattn.plan(Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128), device="cpu")
    visits = plan.schedule()
    assert isinstance(visits, Iterator)
    assert next(visits).queries[0].start == 0


# What it is decided by


@pytest.mark.parametrize(
    ("name", "packages", "end"),
    [
        ("cpu", ("c++",), "; assumes a C++ compiler"),
        ("cpu", (), ""),
        (
            "sm_90",
            ("cupy", "triton"),
            "; assumes that CuPy, NVRTC and Triton are installed; for torch 2.13 with cuDNN 9.20.0",
        ),
        (
            "sm_90",
            ("cupy",),
            "; assumes that CuPy and NVRTC are installed; for torch 2.13 with cuDNN 9.20.0",
        ),
        (
            "rtx_4090",
            ("natten", "triton"),
            "; assumes that Triton is installed; for torch 2.13 with cuDNN 9.20.0",
        ),
        ("sm_90", (), "; for torch 2.13 with cuDNN 9.20.0"),
        # CuPy does nothing on them, and which kernel torch takes was not looked up
        ("gfx942", ("cupy", "triton"), "; assumes that Triton is installed"),
        ("xe", ("triton",), "; assumes that Triton is installed"),
        ("xe", (), ""),
    ],
)
def test_a_plan_tells_what_is_assumed_of_its_device(
    name: str, packages: tuple[str, ...], end: str
) -> None:
    info = replace(DEVICES[name], providers=packages)
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 32), device=info)
    start = "ranked by estimates (no measurement of this request is known); device data of"
    assert plan.decided_by() == f"{start} {name}: {info.source}{end}"
    assert plan.explain().endswith(plan.decided_by())


@pytest.mark.parametrize("name", ["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "xe"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_plans_for_gpus_of_others_are_proved(name: str, dtype: str) -> None:
    for mask, shape in ((Mask.neighborhood((3, 3)), (1, 8, 8, 2, 32)), (RING.mask, (1, 9, 2, 16))):
        for training in (False, True):
            plan = nbattn.plan(mask, shape, device=name, dtype=dtype, training=training)
            assert plan.verify()
            assert plan.chosen.runner not in ("cuda", "native")

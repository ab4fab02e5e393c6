"""Owns the check of the planner: its law on every candidate, its choice, its reasons, its data."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import masks, matrix
from work import work

import nbattn
from nbattn import Axis, BackendError, DeviceInfo, InputError, Mask
from nbattn.backends import families
from nbattn.backends.dense import meaning as dense
from nbattn.backends.dense.meaning import DenseMask, NoMask, TopLeftCausal
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.geometry import BoundAxis, bind
from nbattn.planner import cost_table, devices, planner, proof
from nbattn.planner.plan import Plan
from nbattn.planner.planner import candidates
from nbattn.program import device
from nbattn.program.candidate import Candidate
from nbattn.program.limits import Limits
from nbattn.program.program import AxisView, Call, Program, View
from nbattn.program.request import DTYPES, LAYOUTS, Request

Count = Callable[[str, int], None]
ROOT = Path(__file__).resolve().parents[1]
NAMES = tuple(device.DEVICES)


def request_for(mask: Mask, queries: Any, keys: Any = None, **fields: Any) -> Request:
    """A small request; `fields` replace the rest."""
    queries = (queries,) if isinstance(queries, int) else queries
    keys = queries if keys is None else (keys,) if isinstance(keys, int) else keys
    plain: dict[str, Any] = {
        "batch": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "value_dim": 8,
        "dtype": "float32",
        "device": device.DEVICES["cpu"],
    }
    return Request(mask=mask, query_space=queries, key_space=keys, **(plain | fields))


def all_of(request: Request) -> list[Candidate]:
    return candidates(request, bind(request.mask, request.query_space, request.key_space))


def oracle_of(request: Request) -> np.ndarray:
    return matrix(request.mask.axes, request.query_space, request.key_space)


@st.composite
def requests(draw: st.DrawFn, max_rank: int = 3) -> Request:
    """Anything a plan can be for, small."""
    mask, queries, keys = draw(masks(max_rank))
    kv_heads = draw(st.integers(1, 2))
    dim = draw(st.sampled_from((8, 16)))
    flags = {
        name: draw(st.booleans())
        for name in ("training", "deterministic", "return_lse", "softcap", "sink", "key_range")
    }
    return request_for(
        mask,
        queries,
        keys,
        batch=draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 3)),
        head_dim=dim,
        value_dim=draw(st.sampled_from((dim, dim, 4))),
        dtype=draw(st.sampled_from(DTYPES)),
        device=device.DEVICES[draw(st.sampled_from(("cpu", "cpu", "sm_90")))],
        layout=draw(st.sampled_from(LAYOUTS)),
        extra_keys=draw(st.sampled_from((0, 0, 3))),
        **flags,
    )


# The law

SAYABLE = [
    Axis(),
    Axis(causal=True, align="top-left"),
    Axis(dilation=2, align="top-left"),
    Axis(dilation=3, align="top-left"),
    Axis(dilation=2, causal=True, align="top-left"),
    Axis(3, causal=True, stride=4, align="top-left"),
    Axis(3, causal=True, align="top-left"),
    Axis(1, 0, stride=4, align="top-left"),
    Axis(0, 0, align="top-left"),
    Axis(2, 1, stride=4, border="shift", align="top-left"),
    Axis(1, 0, stride=2, border="shift", dilation=2, align="top-left"),
    Axis(9, 9, align="top-left"),
    Axis(9, 9, border="shift", align="top-left"),
    Axis(None, 2, align="bottom-right"),
    Axis(causal=True, align="bottom-right"),
    Axis(causal=True, align="bottom-right", dilation=2),
    Axis(causal=True, align=1),
    Axis(causal=True, align=3),
    Axis(causal=True, align=-2),
    Axis(0, 0, prefix=2, align="top-left"),
]


@st.composite
def sayable_requests(draw: st.DrawFn, shortest: int = 0, max_rank: int = 3) -> Request:
    """Requests that dense kernels often have programs for: folds, triangles, blocks, slices."""
    rank = draw(st.integers(1, max_rank))
    longest = {1: 17, 2: 6, 3: 4}[rank]
    axes = [draw(st.sampled_from(SAYABLE)) for _ in range(rank)]
    spaces = [tuple(draw(st.integers(shortest, longest)) for _ in range(rank)) for _ in range(2)]
    return request_for(
        Mask(*axes),
        *spaces,
        batch=draw(st.integers(1, 2)),
        kv_heads=draw(st.integers(1, 2)),
        layout=draw(st.sampled_from(LAYOUTS)),
        extra_keys=draw(st.sampled_from((0, 2))),
        softcap=draw(st.booleans()),
    )


def check_law(request: Request, cases: Count) -> None:
    want = oracle_of(request)
    for candidate in all_of(request):
        if candidate.program is None:
            assert candidate.reasons
            continue
        found = proof.support(request, candidate)
        assert found.dtype == np.bool_
        assert np.array_equal(found, want), candidate.name
        assert proof.verify(request, candidate) is True
        cases(f"planner, law: {candidate.backend}/{candidate.strategy}", 1)


@given(requests())
def test_every_program_is_its_mask(cases: Count, request_: Request) -> None:
    check_law(request_, cases)


@given(sayable_requests())
def test_every_dense_program_is_its_mask(cases: Count, request_: Request) -> None:
    check_law(request_, cases)


@pytest.mark.parametrize("axis", SAYABLE, ids=repr)
def test_every_dense_program_of_every_short_axis(cases: Count, axis: Axis) -> None:
    for queries, keys in product(range(8), repeat=2):
        request = request_for(Mask(axis), queries, keys, batch=1, kv_heads=1, heads=2)
        check_law(request, cases)


def test_the_law_without_batch() -> None:
    request = request_for(Mask(Axis(1, 1)), 5, batch=0)
    for candidate in all_of(request):
        assert candidate.program is not None or candidate.reasons
        if candidate.program is not None:
            assert proof.verify(request, candidate)


# Programs made wrong on purpose: what follows can fail


def verdicts(request: Request, candidate: Candidate) -> tuple[bool, bool]:
    """What verify and support make of a candidate: True where they let it pass."""
    try:
        by_intervals = proof.verify(request, candidate)
    except AssertionError:
        by_intervals = False
    try:
        by_pairs = np.array_equal(proof.support(request, candidate), oracle_of(request))
    except AssertionError:
        by_pairs = False
    return by_intervals, by_pairs


def program_of(request: Request, name: str) -> Candidate:
    (found,) = [c for c in all_of(request) if c.name == name and c.program is not None]
    return found


def with_calls(candidate: Candidate, *calls: Call) -> Candidate:
    return replace(candidate, program=Program(tuple(calls)))


def moved(view: View, axis: int, **fields: Any) -> View:
    """The view with other fields on one axis."""
    changed = replace(view.axes[axis], **fields)
    return View((*view.axes[:axis], changed, *view.axes[axis + 1 :]))


BLOCKS = request_for(Mask.neighborhood(4, stride=4), 16)
FOLDED = request_for(Mask(Axis(dilation=3)), 12)
PIECES = request_for(Mask(Axis(2, 2, dilation=3)), 10)
EQUAL = request_for(Mask(Axis(1, 0, stride=4, align="top-left")), 8, 5)
TRIANGLE = request_for(Mask.causal(), 6)
WIDE = request_for(Mask.causal("top-left"), 4, 7)
SLICE = request_for(Mask.sliding_window(3, align="bottom-right"), 1, 10)
PLANE = request_for(Mask(Axis(), Axis(causal=True)), (1, 5))
TILES = request_for(Mask(Axis(2, 2, dilation=2), Axis(1, 1, border="shift")), (9, 5))
PREFIX = request_for(Mask(Axis(2, 0, causal=True, prefix=3)), 12, backend="flash-model:aten")
RING = request_for(Mask(Axis(1, 2, border="wrap")), 9)

Wrong = tuple[Request, str, Callable[[Candidate], Candidate]]


def each(candidate: Candidate) -> tuple[Call, ...]:
    assert candidate.program is not None
    return candidate.program.calls


def first_query(candidate: Candidate, **fields: Any) -> Candidate:
    one, *rest = each(candidate)
    return with_calls(candidate, replace(one, query=moved(one.query, 0, **fields)), *rest)


def first_key(candidate: Candidate, **fields: Any) -> Candidate:
    one, *rest = each(candidate)
    return with_calls(candidate, replace(one, key=moved(one.key, 0, **fields)), *rest)


def first_both(candidate: Candidate, **fields: Any) -> Candidate:
    return first_key(first_query(candidate, **fields), **fields)


def told(candidate: Candidate, arguments: Any) -> Candidate:
    one, *rest = each(candidate)
    return with_calls(candidate, replace(one, arguments=arguments), *rest)


def widened(lines: tuple[BoundAxis, ...]) -> tuple[BoundAxis, ...]:
    """The same lengths under a mask one key wider."""
    axis = lines[0].spec
    assert axis.left is not None
    return (replace(lines[0], spec=replace(axis, left=axis.left + 1)), *lines[1:])


WRONG: dict[str, Wrong] = {
    "a key slice one too early": (SLICE, "sdpa/dense+trim", lambda c: first_key(c, start=5)),
    "a key slice one short": (SLICE, "sdpa/dense+trim", lambda c: first_key(c, length=3)),
    "a key slice one long": (
        SLICE,
        "sdpa/dense+trim",
        lambda c: first_key(c, start=5, length=5),
    ),
    "rows of other queries": (PIECES, "sdpa/dense+fold+split", lambda c: first_query(c, start=1)),
    "rows missing": (FOLDED, "sdpa/dense+fold", lambda c: first_query(c, length=3)),
    "keys missing": (FOLDED, "sdpa/dense+fold", lambda c: first_key(c, length=3)),
    "query steps swapped with group steps": (
        FOLDED,
        "sdpa/dense+fold",
        lambda c: first_query(c, step=1, group_step=4),
    ),
    "key steps swapped with group steps": (
        FOLDED,
        "sdpa/dense+fold",
        lambda c: first_key(c, step=1, group_step=4),
    ),
    "both steps swapped": (
        FOLDED,
        "sdpa/dense+fold",
        lambda c: first_both(c, step=1, group_step=4),
    ),
    "a group missing": (FOLDED, "sdpa/dense+fold", lambda c: first_both(c, groups=2)),
    "one block again and again": (
        BLOCKS,
        "sdpa/dense+fold",
        lambda c: first_both(c, group_step=0),
    ),
    "blocks that overlap": (
        BLOCKS,
        "sdpa/dense+fold",
        lambda c: first_both(c, group_step=3),
    ),
    "all blocks read the first": (
        BLOCKS,
        "sdpa/dense+fold",
        lambda c: first_key(c, group_step=0),
    ),
    "queries in the batch, keys in the heads": (
        FOLDED,
        "sdpa/dense+fold",
        lambda c: first_query(c, into="batch"),
    ),
    "the first call dropped": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, *each(c)[1:]),
    ),
    "the last call dropped": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, *each(c)[:-1]),
    ),
    "every call dropped": (PIECES, "sdpa/dense+fold+split", with_calls),
    "a call twice": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, *each(c), each(c)[1]),
    ),
    "the only call twice": (TRIANGLE, "sdpa/causal", lambda c: with_calls(c, *each(c) * 2)),
    "a joined call twice": (
        PREFIX,
        "flash-model:aten/split+merge",
        lambda c: with_calls(c, *each(c), each(c)[-1]),
    ),
    "a call instead of another": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, each(c)[0], each(c)[0], *each(c)[2:]),
    ),
    "a call instead of another with as many pairs": (
        EQUAL,
        "sdpa/dense+split",
        lambda c: with_calls(c, each(c)[0], each(c)[0]),
    ),
    "causal run dense": (TRIANGLE, "sdpa/causal", lambda c: told(c, NoMask())),
    "dense run causal": (FOLDED, "sdpa/dense+fold", lambda c: told(c, TopLeftCausal(0))),
    "causal on another axis": (PLANE, "sdpa/causal", lambda c: told(c, NoMask())),
    "a triangle moved along the keys": (WIDE, "sdpa/causal+trim", lambda c: first_key(c, start=1)),
    "a triangle of fewer keys": (WIDE, "sdpa/causal+trim", lambda c: first_key(c, length=3)),
    "a matrix of a wider mask": (
        RING,
        "reference/dense",
        lambda c: told(c, DenseMask(widened(each(c)[0].arguments.axes))),
    ),
    "tiles of a wider mask": (
        TILES,
        "tiled/tile",
        lambda c: told(c, replace(each(c)[0].arguments, axes=widened(each(c)[0].arguments.axes))),
    ),
    "tiles of a wider ring": (
        RING,
        "tiled/tile",
        lambda c: told(c, replace(each(c)[0].arguments, axes=widened(each(c)[0].arguments.axes))),
    ),
}


@pytest.mark.parametrize(("request_", "name", "spoil"), WRONG.values(), ids=WRONG)
def test_proofs_notice_a_wrong_program(
    request_: Request, name: str, spoil: Callable[[Candidate], Candidate]
) -> None:
    right = program_of(request_, name)
    assert verdicts(request_, right) == (True, True)
    wrong = spoil(right)
    assert wrong != right
    assert verdicts(request_, wrong) == (False, False)


def test_any_tile_size_is_right() -> None:
    """Tiles are a choice of speed alone; the wrong ones below are wrong in their columns."""
    candidate = program_of(TILES, "tiled/tile")
    for tile in product((1, 2, 3, 9), (1, 2, 5)):
        other = told(candidate, replace(each(candidate)[0].arguments, tile=tile))
        assert verdicts(TILES, other) == (True, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tiles: tiles[1:],
        lambda tiles: tiles[:-1],
        lambda tiles: [*tiles, tiles[-1]],
        lambda tiles: [tiles[0], *tiles],
        lambda tiles: [replace(tiles[0], lo=tuple(n + 1 for n in tiles[0].lo)), *tiles[1:]],
        lambda tiles: [replace(tiles[0], hi=tuple(n - 1 for n in tiles[0].hi)), *tiles[1:]],
        lambda tiles: [replace(tiles[0], lo=tiles[0].lo[::-1], hi=tiles[0].hi[::-1]), *tiles[1:]],
        lambda tiles: [
            replace(tiles[0], keys=tuple((start + 2, n) for start, n in tiles[0].keys)),
            *tiles[1:],
        ],
        lambda tiles: [replace(tiles[0], queries=tiles[1].queries), *tiles[1:]],
    ],
    ids=[
        "first tile dropped",
        "last tile dropped",
        "last tile twice",
        "first tile twice",
        "one key less on the left",
        "one key less on the right",
        "rows upside down",
        "hull moved",
        "another tile's queries",
    ],
)
def test_proofs_notice_wrong_tiles(monkeypatch: pytest.MonkeyPatch, spoil: Callable) -> None:
    request = request_for(Mask(Axis(1, 1, dilation=2)), 12)
    arguments = TiledArguments(bind(request.mask, 12, 12), (3,))
    candidate = told(program_of(request, "tiled/tile"), arguments)
    assert verdicts(request, candidate) == (True, True)
    honest = BoundAxis.tiles
    monkeypatch.setattr(BoundAxis, "tiles", lambda self, n: iter(spoil(list(honest(self, n)))))
    assert verdicts(request, candidate) == (False, False)


def fits(view: AxisView, length: int) -> bool:
    """Whether a view reads only positions that there are."""
    return bool(view.positions().min() >= 0 and view.positions().max() < length)


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[Request, Candidate]:
    """A candidate whose views of one axis are others, inside the tensors and grouped alike."""
    request = draw(sayable_requests(1, 2))
    able = [c for c in all_of(request) if c.program is not None and c.program.calls]
    candidate = draw(st.sampled_from(able))
    number = draw(st.integers(0, len(each(candidate)) - 1))
    axis = draw(st.integers(0, request.mask.rank - 1))
    call = each(candidate)[number]
    keeps_rows = isinstance(
        call.arguments, DenseMask | TiledArguments
    )  # they have as many as the mask
    groups = draw(st.integers(1, 3))
    for side, space in (("query", request.query_space), ("key", request.key_space)):
        now = getattr(call, side).axes[axis]
        changed = [
            replace(now, start=start, length=length, step=step, groups=groups, group_step=apart)
            for start, length, step, apart in product(
                {now.start, 0, 1, 2},
                {now.length, 1, 2, 3},
                {now.step, 1, 2},
                {now.group_step, 0, 1, 2},
            )
        ]
        changed = [v for v in changed if v.length == now.length or not keeps_rows]
        changed = [view for view in changed if fits(view, space[axis])]
        changed += [now] * (now.groups == groups)
        view = View(
            tuple(
                draw(st.sampled_from(changed)) if n == axis else one
                for n, one in enumerate(getattr(call, side).axes)
            )
        )
        call = replace(call, **{side: view})
    before, after = each(candidate)[:number], each(candidate)[number + 1 :]
    return request, with_calls(candidate, *before, call, *after)


@settings(max_examples=200)
@given(spoiled())
def test_both_proofs_judge_alike(cases: Count, chosen: tuple[Request, Candidate]) -> None:
    by_intervals, by_pairs = verdicts(*chosen)
    assert by_intervals == by_pairs, each(chosen[1])
    cases("planner, proofs agree on " + ("right" if by_pairs else "wrong"), 1)


@pytest.mark.parametrize(("side", "start"), [("query", -1), ("query", 2), ("key", -1), ("key", 2)])
def test_a_view_out_of_bounds_is_no_proof(side: str, start: int) -> None:
    request = request_for(Mask(Axis()), 5)
    candidate = program_of(request, "sdpa/dense")
    (call,) = each(candidate)
    outside = replace(call, **{side: moved(getattr(call, side), 0, start=start)})
    with pytest.raises(AssertionError):
        proof.verify(request, with_calls(candidate, outside))


def test_a_candidate_without_program_has_no_proof() -> None:
    request = request_for(Mask(Axis(1, 1)), 5)
    (candidate,) = [c for c in all_of(request) if c.name == "sdpa/dense"]
    assert candidate.program is None
    for prove in (proof.support, proof.verify):
        with pytest.raises(InputError, match="sdpa/dense has no program: axis 0: its windows"):
            prove(request, candidate)


def test_support_stops_at_2_to_the_26_pairs() -> None:
    at_limit = nbattn.plan(Mask.causal(), (1, 1 << 13, 1, 8), device="cpu")
    assert proof.SUPPORT_LIMIT == 1 << 26
    mask = Mask.causal("top-left")
    with pytest.raises(InputError, match="8193 x 8192 pairs are over the limit of 67108864"):
        nbattn.plan(mask, (1, 8193, 1, 8), (1, 8192, 1, 8), device="cpu").support()
    assert at_limit.verify()
    small = nbattn.plan(Mask(Axis(0, 0)), (1, 1 << 10, 1, 8), device="cpu")
    assert np.array_equal(small.support(), np.eye(1 << 10, dtype=bool))


# Proof at real sizes

LARGE: dict[str, tuple[Mask, tuple[int, ...]]] = {
    "FLUX-4K": (Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128)),
    "FLUX-4K, stride 16": (Mask.neighborhood((80, 80), stride=16), (1, 256, 256, 24, 128)),
    "Hunyuan": (Mask.neighborhood((18, 24, 24)), (1, 30, 48, 80, 24, 128)),
    "Hunyuan, strided": (
        Mask.neighborhood((18, 24, 24), stride=(16, 8, 8)),
        (1, 30, 48, 80, 24, 128),
    ),
    "one axis": (Mask.neighborhood(2048), (1, 32768, 1, 128)),
    "one axis, stride 256": (Mask.neighborhood(2048, stride=256), (1, 32768, 1, 128)),
    "one axis, stride 2048": (Mask.neighborhood(2048, stride=2048), (1, 32768, 1, 128)),
    "causal window": (Mask.sliding_window(4095), (1, 32768, 32, 128)),
    "causal": (Mask.causal(), (1, 131072, 8, 64)),
    "sphere": (Mask(Axis(3, 3), Axis(6, 6, border="wrap")), (1, 721, 1440, 8, 64)),
    "sphere, dilated": (
        Mask(Axis(3, 3, border="shift"), Axis(6, 6, border="wrap", dilation=8)),
        (1, 721, 1440, 8, 64),
    ),
    "Cosmos": (Mask.neighborhood((16, 4, 16), dilation=(1, 11, 5)), (1, 16, 44, 80, 16, 128)),
    "three strided axes": (
        Mask.neighborhood((16, 16, 16), stride=(2, 4, 8), dilation=(1, 2, 2)),
        (1, 64, 64, 64, 8, 64),
    ),
}


def proves(request: Request, candidate: Candidate) -> None:
    assert proof.verify(request, candidate)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_plan_is_proved_in_lines_and_memory_of_its_rows(name: str, cases: Count) -> None:
    """No loop over 131,072 rows, and a few numbers for each; never a matrix."""
    mask, shape = LARGE[name]
    rows = sum(shape[1:-2])
    for on in ("cpu", replace(device.DEVICES["sm_90"], providers=())):
        plan = nbattn.plan(mask, shape, device=on)
        for candidate in plan.candidates:
            if candidate.program is None:
                continue
            found = work(partial(proves, plan.request, candidate))
            assert found.lines <= 100_000
            assert found.peak <= (1 << 16) + 400 * rows
            cases("planner, large proofs", 1)


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
    for asked in ({"require": ("reference",)}, {"forbid": ("tiled", "sdpa", "flash", "cuda")}):
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


@given(st.one_of(requests(), sayable_requests()), st.data())
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


def test_all_reasons_are_listed_when_nothing_is_left() -> None:
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask(Axis(1, 1)), (1, 8, 2, 16), device="cpu", softcap=1.0, backend="sdpa")
    assert error.value.problem.splitlines() == [
        "sdpa cannot run this:",
        "  sdpa/dense: has no softcap",
        "  sdpa/dense: axis 0: its windows differ from query to query",
        "  sdpa/mask: has no softcap",
    ]
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask(Axis(1, 1)), (1, 8, 2, 16), device="cpu", forbid=("tiled", "sdpa"))
    for line in (
        "reference/dense: runs only if requested: backend='reference'",
        "tiled/tile: uses 'tiled', which is forbidden",
        "sdpa/dense: axis 0: its windows differ from query to query",
        "sdpa/mask: uses 'sdpa', which is forbidden",
    ):
        assert f"\n  {line}\n" in f"{error.value.problem}\n"


# One negative test per limit

FACTS = {
    "device": device.DEVICES["sm_90"],
    "dtype": "float32",
    "head_dim": 64,
    "value_dim": 64,
    "training": False,
    "return_lse": False,
    "softcap": False,
    "key_range": False,
    "sink": False,
    "extra_keys": 0,
    "deterministic": False,
}
LIMITS: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("kinds", ("cpu",), {}, "device", "runs on cpu, not on sm_90"),
    ("kinds", ("cpu", "mps"), {}, "device", "runs on cpu, mps, not on sm_90"),
    ("dtypes", ("float16", "bfloat16"), {}, "dtype", "takes float16, bfloat16, not float32"),
    ("softcap", False, {"softcap": True}, "softcap", "has no softcap"),
    ("key_range", False, {"key_range": True}, "key_range", "has no key_range"),
    (
        "value_dim",
        False,
        {"value_dim": 32},
        "value_dim",
        "needs value_dim = head_dim, not 32 and 64",
    ),
    ("lse", False, {"return_lse": True}, "lse", "returns no logsumexp, which "),
    ("lse", False, {"sink": True}, "lse", "returns no logsumexp, which "),
    ("lse", False, {"extra_keys": 1}, "lse", "returns no logsumexp, which "),
    (
        "lse_gradient",
        False,
        {"training": True, "return_lse": True},
        "lse_gradient",
        "its backward cannot use a gradient of the logsumexp",
    ),
    (
        "deterministic",
        False,
        {"training": True, "deterministic": True},
        "deterministic",
        "its backward is not deterministic",
    ),
]


@pytest.mark.parametrize(
    ("limit", "value", "facts", "name", "text"),
    LIMITS,
    ids=[f"{row[0]}={row[1]} with {[*row[2]]}" for row in LIMITS],
)
def test_a_limit_is_a_reason(
    limit: str, value: Any, facts: dict[str, Any], name: str, text: str
) -> None:
    asked = SimpleNamespace(**(FACTS | facts))
    (reason,) = Limits(name="some", **{limit: value}).reasons(asked)
    assert reason.limit == name
    assert reason.text.startswith(text)
    assert Limits(name="some").reasons(asked) == []
    if facts:
        assert Limits(name="some", **{limit: value}).reasons(SimpleNamespace(**FACTS)) == []


def test_every_limit_has_a_negative_test() -> None:
    of_calls = {"grid"}  # which the strategies look at, call by call
    assert {row[0] for row in LIMITS} == {f.name for f in fields(Limits)} - {"name"} - of_calls


def test_limits_are_collected_not_cut_short() -> None:
    strict = Limits(
        name="some",
        kinds=("cpu",),
        dtypes=("float64",),
        **dict.fromkeys(
            ("softcap", "key_range", "value_dim", "lse", "lse_gradient", "deterministic"), False
        ),
    )
    wild = FACTS | {name: True for name, value in FACTS.items() if value is False}
    found = strict.reasons(SimpleNamespace(**(wild | {"value_dim": 8, "extra_keys": 2})))
    assert [reason.limit for reason in found] == [
        "device",
        "dtype",
        "softcap",
        "key_range",
        "value_dim",
        "lse",
        "lse_gradient",
        "deterministic",
    ]


@pytest.mark.parametrize("limit", ["lse_gradient", "deterministic"])
def test_a_limit_of_the_backward_needs_training(limit: str) -> None:
    limits = Limits(name="some", **{limit: False})
    asked = SimpleNamespace(**(FACTS | {"return_lse": True, "deterministic": True}))
    assert limits.reasons(asked) == []


# fmt: off
DECLARED: list[tuple[str, Limits, dict[str, Any], str]] = [
    ("cpu", dense.SDPA_CPU, {"softcap": True}, "softcap"),
    ("cpu", dense.SDPA_CPU, {"key_range": True}, "key_range"),
    ("cpu", dense.SDPA_CPU, {"value_dim": 4}, "value_dim"),
    ("cpu", dense.SDPA_CPU, {"training": True, "return_lse": True}, "lse_gradient"),
    ("sm_90", dense.SDPA, {"softcap": True}, "softcap"),
    ("sm_90", dense.SDPA, {"key_range": True}, "key_range"),
    ("sm_90", dense.SDPA, {"return_lse": True}, "lse"),
    ("sm_90", dense.SDPA, {"sink": True}, "lse"),
    ("sm_90", dense.SDPA, {"extra_keys": 2}, "lse"),
    ("sm_90", dense.SDPA, {"training": True, "deterministic": True}, "deterministic"),
]
# fmt: on


@pytest.mark.parametrize(("on", "limits", "asked", "name"), DECLARED)
def test_sdpa_is_refused_by_its_declared_limits(
    on: str, limits: Limits, asked: dict[str, Any], name: str
) -> None:
    request = request_for(Mask.causal(), 8, device=device.DEVICES[on], **asked)
    for candidate in all_of(request):
        found = [reason.limit for reason in candidate.reasons]
        if candidate.backend == "sdpa":
            assert name in found
            assert limits.reasons(request)[0] in candidate.reasons
        elif candidate.runner != "flash":
            assert name not in found
    free = request_for(Mask.causal(), 8, device=device.DEVICES[on])
    assert not [c for c in all_of(free) if c.backend == "sdpa" and c.reasons]


@pytest.mark.parametrize(
    ("request_", "name", "limit"),
    [
        (request_for(Mask.sliding_window(3), 8), "sdpa/dense", "mask"),
        (request_for(Mask(Axis(causal=True), Axis(causal=True)), (3, 3)), "sdpa/dense", "mask"),
        (request_for(Mask.causal("bottom-right"), 3, 8), "sdpa/dense", "mask"),
        (
            request_for(Mask.sliding_window(3, align="top-left"), 1 << 11, (1 << 11) + 1),
            "sdpa/mask",
            "mask",
        ),
        (request_for(Mask(Axis(0, causal=True, stride=2)), 8), "sdpa/mask", "mask"),
        (request_for(Mask.causal(), 8, extra_keys=2), "sdpa/mask", "extra_keys"),
    ],
)
def test_sdpa_is_refused_where_it_cannot_say_the_mask(
    request_: Request, name: str, limit: str
) -> None:
    (found,) = [candidate for candidate in all_of(request_) if candidate.name == name]
    assert [reason.limit for reason in found.reasons] == [limit]
    assert found.program is None


@pytest.mark.parametrize(
    ("mask", "shape", "name", "text"),
    [
        (Mask.causal(), (65_536, 16, 2, 8), "sdpa/causal", "65536 samples"),
        (Mask.causal(), (2, 16, 65_536, 8), "sdpa/causal", "65536 heads"),
        (Mask.full(), (65_536, 1, 1, 8), "sdpa/dense", "65536 samples"),
        (Mask.sliding_window(3), (65_536, 16, 2, 8), "sdpa/mask", "65536 samples"),
        (Mask.sliding_window(3), (2, 16, 65_536, 8), "sdpa/mask", "65536 heads"),
        (Mask(Axis(dilation=32)), (1, 64, 4_000, 8), "sdpa/dense+fold", "128000 heads"),
        (Mask(Axis(0, 0), Axis()), (2_048, 64, 16, 1, 8), "sdpa/dense+fold", "131072 samples"),
    ],
)
def test_sdpa_on_cuda_is_refused_beyond_its_grid(
    mask: Mask, shape: tuple[int, ...], name: str, text: str
) -> None:
    """Folded residues and axes count: they are samples and heads of the call."""
    wanted = [f"{text} after folding are over the grid of 65535"]
    for on, expected in (("sm_90", wanted), ("cpu", [])):
        plan = nbattn.plan(mask, shape, device=on)
        (found,) = [one for one in plan.candidates if one.name == name]
        assert [r.text for r in found.reasons if r.limit == "grid"] == expected
    most = tuple(65_535 if size == 65_536 else size for size in shape)
    if most != shape:
        plan = nbattn.plan(mask, most, device="sm_90")
        (found,) = [one for one in plan.candidates if one.name == name]
        assert not found.reasons


def test_a_matrix_at_its_limit_is_taken() -> None:
    request = request_for(Mask.sliding_window(3), 1 << 11)
    (found,) = [candidate for candidate in all_of(request) if candidate.name == "sdpa/mask"]
    assert not found.reasons


# Devices


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_data(name: str) -> None:
    info = device.named(name)
    assert info.name == name
    assert info.kind == ("cpu" if name == "cpu" else "cuda")
    assert info.source
    assert info.bandwidth > 1e9
    assert 0 < info.launch < 1e-3
    rates = dict(info.flops)
    assert set(rates) <= set(DTYPES)
    assert {"float16", "float32", "float64"} <= set(rates)
    assert all(info.peak(dtype) > 0 for dtype in DTYPES)
    assert info.peak("float16") >= info.peak("float32") >= info.peak("float64")
    assert hash(info) == hash(pickle.loads(pickle.dumps(info)))
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=name)
    assert plan.request.device is info
    assert plan.verify()
    assert name in plan.explain()
    assert info.source in plan.explain()


def test_a_dtype_without_a_rate_counts_as_float32() -> None:
    turing = device.named("sm_75")
    assert "bfloat16" not in dict(turing.flops)
    assert turing.peak("bfloat16") == turing.peak("float32")


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 1), "sm_100"),
        ((10, 3), "sm_103"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((15, 0), "sm_120"),
        ((7, 0), "sm_75"),
    ],
)
def test_a_capability_counts_as_the_nearest_older_one(
    capability: tuple[int, int], name: str
) -> None:
    assert device.cuda(*capability).name == name


def test_a_device_of_ones_own() -> None:
    rates = (("float16", 1e15), ("bfloat16", 1e15), ("float32", 1e14), ("float64", 1e13))
    mine = DeviceInfo("mine", "cuda", rates, 1e12, 1e-6, "a guess", providers=("natten",))
    plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=mine)
    assert plan.request.device == mine
    assert "rates of mine: a guess" in plan.explain()
    assert plan.to_dict()["request"]["device"] == "mine"
    slow = replace(mine, flops=tuple((name, rate / 1e6) for name, rate in rates))
    slower = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=slow)
    assert slower != plan
    assert slower.chosen.cost is not None
    assert plan.chosen.cost is not None
    assert slower.chosen.cost.bound > plan.chosen.cost.bound


PAIRS = "is not a tuple of pairs of a dtype and its rate that includes float32."


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flops": {"float32": 1e12}}, f"flops={{'float32': 1000000000000.0}} {PAIRS}"),
        ({"flops": ("float32",)}, f"flops=('float32',) {PAIRS}"),
        ({"flops": (("bfloat16", 1e12),)}, f"flops=(('bfloat16', 1000000000000.0),) {PAIRS}"),
        ({"flops": None}, f"flops=None {PAIRS}"),
        *(
            ({"flops": (("float32", 1e12), ("float16", rate))},
             f"the rate of float16 is {rate!r}, which is not between 1e-03 and 1e+24 per second.")
            for rate in (0, -1.0, 5e-324, 1e308, float("inf"), float("nan"), "1", True, None)
        ),
        *(
            ({"bandwidth": rate},
             f"bandwidth is {rate!r}, which is not between 1e-03 and 1e+24 per second.")
            for rate in (0, -1.0, 1e-310, 1e308, float("nan"), "1")
        ),
        ({"bandwidth": 10**5000},
         "bandwidth is 10^…, which is not between 1e-03 and 1e+24 per second."),
        *(
            ({"launch": time}, f"launch={time!r} is not a time from 0 to 1e+06 seconds.")
            for time in (-1e-6, 1e308, float("nan"), "1", None)
        ),
        ({"name": 3}, "name=3 is an int."),
        ({"kind": None}, "kind=None is a NoneType."),
        ({"source": 1.5}, "source=1.5 is a float."),
        ({"providers": "natten"}, "providers='natten' is not a tuple of names."),
        ({"providers": ["natten"]}, "providers=['natten'] is not a tuple of names."),
    ],
)  # fmt: skip
def test_a_device_that_cannot_be_is_refused_when_it_is_made(
    wrong: dict[str, Any], text: str
) -> None:
    fields_ = {"name": "mine", "kind": "cpu", "flops": (("float32", 1e12),), "bandwidth": 1e11}
    with pytest.raises(InputError) as error:
        DeviceInfo(**(fields_ | {"launch": 1e-6, "source": "a guess"} | wrong))
    assert str(error.value).splitlines()[0] == text


@pytest.mark.parametrize("kind", ["mps", "xpu", "meta"])
def test_a_kind_without_data_says_so(kind: str) -> None:
    for given_ in (kind, torch.device(kind)):
        plan = nbattn.plan(Mask(Axis(1, 1)), (1, 64, 2, 16), device=given_)
        assert (plan.request.device.kind, plan.request.device.name) == (kind, kind)
        assert "no data" in plan.request.device.source
        assert "no data" in plan.explain()
        assert plan.verify()


def test_the_default_device_is_this_machine() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert nbattn.plan(Mask.causal(), (1, 64, 2, 16)).request.device.kind == kind
    for given_ in ("cpu", torch.device("cpu"), device.DEVICES["cpu"]):
        plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=given_)
        assert plan.request.device is device.DEVICES["cpu"]


# Requests


def test_every_argument_of_plan_reaches_the_request() -> None:
    plan = nbattn.plan(
        Mask(Axis(1, 1, align=0), Axis(2, 2, align=0)),
        (2, 5, 6, 4, 16),
        (2, 7, 8, 2, 16),
        value_dim=24,
        dtype=torch.float16,
        device="sm_80",
        training=True,
        backend="tiled",
        require=["tile"],
        forbid=["sdpa"],
        return_lse=True,
        extra_keys=3,
        softcap=2.0,
        sink=True,
        key_range=True,
        deterministic=True,
        packed=True,
    )
    assert plan.request == Request(
        mask=Mask(Axis(1, 1, align=0), Axis(2, 2, align=0)),
        batch=2,
        query_space=(5, 6),
        key_space=(7, 8),
        heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=24,
        dtype="float16",
        device=device.DEVICES["sm_80"],
        layout="packed",
        training=True,
        deterministic=True,
        return_lse=True,
        extra_keys=3,
        softcap=True,
        sink=True,
        key_range=True,
        backend="tiled",
        require=("tile",),
        forbid=("sdpa",),
    )


def test_defaults_of_plan() -> None:
    request = nbattn.plan(Mask.causal(), (2, 5, 4, 16), device="cpu").request
    assert (request.key_space, request.kv_heads, request.value_dim) == ((5,), 4, 16)
    assert (request.dtype, request.layout, request.backend) == ("bfloat16", "contiguous", "auto")
    flags = ("training", "deterministic", "return_lse", "softcap", "sink", "key_range")
    assert not any(getattr(request, name) for name in flags)
    assert (request.extra_keys, request.require, request.forbid) == (0, (), ())


def test_deterministic_is_the_switch_of_torch_unless_given() -> None:
    shape = (1, 64, 2, 16)

    def asked(**named: Any) -> bool:
        return nbattn.plan(Mask.causal(), shape, device="sm_90", **named).request.deterministic

    assert [asked(), asked(deterministic=True), asked(deterministic=False)] == [False, True, False]
    torch.use_deterministic_algorithms(True)
    try:
        assert [asked(), asked(deterministic=True), asked(deterministic=False)] == [
            True,
            True,
            False,
        ]
        training = nbattn.plan(Mask.causal(), shape, device="sm_90", training=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert training.chosen.backend == "flash:aten"
    free = nbattn.plan(Mask.causal(), shape, device="sm_90", training=True)
    assert free.chosen.backend == "sdpa"


@pytest.mark.parametrize(("name", "value"), [("layout", "rows"), ("dtype", "int8")])
def test_a_request_knows_its_names(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{name}='{value}' is not known"):
        request_for(Mask.causal(), 4, **{name: value})


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


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a package": (
        {"device": replace(device.DEVICES["sm_90"], providers=())},
        'pip install "cupy-cuda13x',
    ),
    "a dtype": (
        {"device": replace(device.DEVICES["sm_90"], providers=("cupy",)), "dtype": "float32"},
        "dtype=torch.bfloat16, with its rounding: ",
    ),
    "a backend": (
        {"device": "cpu", "backend": "reference"},
        'backend="auto" without require= and forbid=: ',
    ),
    "nothing": ({"device": "cpu"}, "nothing else is estimated to be; "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_third_line_is_how_to_get_a_faster_plan(name: str) -> None:
    """And what it promises is what a plan after the change says."""
    named, start = CHANGES[name]
    plan = nbattn.plan(Mask.neighborhood((7, 7)), (1, 64, 64, 4, 64), **named)
    line = plan.explain().splitlines()[2]
    assert line.startswith(f"faster  {start}")
    changed = {
        "a package": {"device": replace(device.DEVICES["sm_90"], providers=("cupy",))},
        "a dtype": {"dtype": "bfloat16"},
        "a backend": {"backend": "auto"},
        "nothing": {},
    }[name]
    after = nbattn.plan(Mask.neighborhood((7, 7)), (1, 64, 64, 4, 64), **named | changed)
    assert name == "nothing" or f": {after.chosen.name}, estimated " in line


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


@settings(max_examples=80)
@given(requests())
def test_a_plan_is_json(request_: Request) -> None:
    plan = planner.make(request_)
    found = plan.to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["chosen"] == plan.chosen.name
    assert [c["name"] for c in found["candidates"]] == [c.name for c in plan.candidates]
    assert set(found["request"]) == {f.name for f in fields(Request) if f.init} - {"held"}
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
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PRINT_PLANS],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) > 40


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


def test_equal_requests_share_one_plan() -> None:
    first = nbattn.plan(Mask.causal(), (1, 77, 2, 16), device="cpu")
    assert nbattn.plan(Mask.causal(), [1, 77, 2, 16], device="cpu") is first
    assert nbattn.plan(Mask(Axis(causal=True)), torch.Size((1, 77, 2, 16)), device="cpu") is first
    assert planner.make(copy.deepcopy(first.request)) is first


def test_caches_of_plans_are_bounded() -> None:
    for cached in (
        planner.make,
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


@given(st.one_of(requests(), sayable_requests()))
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
    parts = replace(each(ring)[0].arguments, tile=(3,))
    first = next(Plan(RING, told(ring, parts), (ring,)).schedule())
    assert not first.full
    assert first.queries == (range(3),)
    assert first.keys == ((range(5),), (range(8, 9),))


def test_schedules_are_lazy() -> None:
    plan = nbattn.plan(Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128), device="cpu")
    visits = plan.schedule()
    assert isinstance(visits, Iterator)
    assert next(visits).queries[0].start == 0


# Views


@given(
    st.integers(0, 9), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)
)
def test_positions_of_a_view(start: int, length: int, step: int, groups: int, apart: int) -> None:
    view = AxisView(start, length, step=step, groups=groups, group_step=apart)
    wanted = [[start + apart * g + step * t for t in range(length)] for g in range(groups)]
    assert view.positions().tolist() == wanted

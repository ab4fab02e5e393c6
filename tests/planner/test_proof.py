"""Tests of proofs: every candidate computes its mask, wrong programs are found, real sizes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import few_examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_requests import (
    all_of,
    calls_of,
    check_programs_compute_the_mask,
    oracle_of,
    program_of,
    request_for,
    requests,
    requests_with_dense_programs,
    with_arguments,
    with_calls,
)
from work import work

import nbattn
from nbattn import Axis, InputError, Mask
from nbattn.backends.dense.meaning import DenseMask, NoMask, TopLeftCausal
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.geometry import BoundAxis, bind
from nbattn.planner import proof
from nbattn.program import device
from nbattn.program.candidate import Candidate
from nbattn.program.program import AxisView, View
from nbattn.program.request import Request

Count = Callable[[str, int], None]


@few_examples.quick(100)
@given(requests())
def test_every_program_computes_its_mask(cases: Count, request_: Request) -> None:
    check_programs_compute_the_mask(request_, cases)


def test_proofs_with_an_empty_batch() -> None:
    request = request_for(Mask(Axis(1, 1)), 5, batch=0)
    for candidate in all_of(request):
        assert candidate.program is not None or candidate.reasons
        if candidate.program is not None:
            assert proof.verify(request, candidate)


# Programs made wrong on purpose: what follows can fail


def both_proofs(request: Request, candidate: Candidate) -> tuple[bool, bool]:
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


def first_query(candidate: Candidate, **fields: Any) -> Candidate:
    one, *rest = calls_of(candidate)
    return with_calls(candidate, replace(one, query=moved(one.query, 0, **fields)), *rest)


def first_key(candidate: Candidate, **fields: Any) -> Candidate:
    one, *rest = calls_of(candidate)
    return with_calls(candidate, replace(one, key=moved(one.key, 0, **fields)), *rest)


def first_both(candidate: Candidate, **fields: Any) -> Candidate:
    return first_key(first_query(candidate, **fields), **fields)


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
        lambda c: with_calls(c, *calls_of(c)[1:]),
    ),
    "the last call dropped": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, *calls_of(c)[:-1]),
    ),
    "every call dropped": (PIECES, "sdpa/dense+fold+split", with_calls),
    "a call twice": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, *calls_of(c), calls_of(c)[1]),
    ),
    "the only call twice": (TRIANGLE, "sdpa/causal", lambda c: with_calls(c, *calls_of(c) * 2)),
    "a joined call twice": (
        PREFIX,
        "flash-model:aten/split+merge",
        lambda c: with_calls(c, *calls_of(c), calls_of(c)[-1]),
    ),
    "a call instead of another": (
        PIECES,
        "sdpa/dense+fold+split",
        lambda c: with_calls(c, calls_of(c)[0], calls_of(c)[0], *calls_of(c)[2:]),
    ),
    "a call instead of another with as many pairs": (
        EQUAL,
        "sdpa/dense+split",
        lambda c: with_calls(c, calls_of(c)[0], calls_of(c)[0]),
    ),
    "causal run dense": (TRIANGLE, "sdpa/causal", lambda c: with_arguments(c, NoMask())),
    "dense run causal": (FOLDED, "sdpa/dense+fold", lambda c: with_arguments(c, TopLeftCausal(0))),
    "causal on another axis": (PLANE, "sdpa/causal", lambda c: with_arguments(c, NoMask())),
    "a triangle moved along the keys": (WIDE, "sdpa/causal+trim", lambda c: first_key(c, start=1)),
    "a triangle of fewer keys": (WIDE, "sdpa/causal+trim", lambda c: first_key(c, length=3)),
    "a matrix of a wider mask": (
        RING,
        "reference/dense",
        lambda c: with_arguments(c, DenseMask(widened(calls_of(c)[0].arguments.axes))),
    ),
    "tiles of a wider mask": (
        TILES,
        "tiled/tile",
        lambda c: with_arguments(
            c, replace(calls_of(c)[0].arguments, axes=widened(calls_of(c)[0].arguments.axes))
        ),
    ),
    "native tiles of a wider ring": (
        RING,
        "native/window",
        lambda c: with_arguments(
            c, replace(calls_of(c)[0].arguments, axes=widened(calls_of(c)[0].arguments.axes))
        ),
    ),
    "tiles of a wider ring": (
        RING,
        "tiled/tile",
        lambda c: with_arguments(
            c, replace(calls_of(c)[0].arguments, axes=widened(calls_of(c)[0].arguments.axes))
        ),
    ),
}


@pytest.mark.parametrize(("request_", "name", "make_wrong"), WRONG.values(), ids=WRONG)
def test_proofs_notice_a_wrong_program(
    request_: Request, name: str, make_wrong: Callable[[Candidate], Candidate]
) -> None:
    right = program_of(request_, name)
    assert both_proofs(request_, right) == (True, True)
    wrong = make_wrong(right)
    assert wrong != right
    assert both_proofs(request_, wrong) == (False, False)


def test_any_tile_size_is_right() -> None:
    """Tiles are a choice of speed alone; the wrong ones below are wrong in their columns."""
    candidate = program_of(TILES, "tiled/tile")
    for tile in product((1, 2, 3, 9), (1, 2, 5)):
        other = with_arguments(candidate, replace(calls_of(candidate)[0].arguments, tile=tile))
        assert both_proofs(TILES, other) == (True, True)


@pytest.mark.parametrize(
    "make_wrong",
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
def test_proofs_notice_wrong_tiles(monkeypatch: pytest.MonkeyPatch, make_wrong: Callable) -> None:
    request = request_for(Mask(Axis(1, 1, dilation=2)), 12)
    arguments = TiledArguments(bind(request.mask, 12, 12), (3,))
    candidate = with_arguments(program_of(request, "tiled/tile"), arguments)
    assert both_proofs(request, candidate) == (True, True)
    original_tiles = BoundAxis.tiles
    monkeypatch.setattr(
        BoundAxis, "tiles", lambda self, n: iter(make_wrong(list(original_tiles(self, n))))
    )
    assert both_proofs(request, candidate) == (False, False)


def fits(view: AxisView, length: int) -> bool:
    """Whether all positions of a view exist."""
    return bool(view.positions().min() >= 0 and view.positions().max() < length)


@st.composite
def candidates_with_other_views(draw: st.DrawFn) -> tuple[Request, Candidate]:
    """A candidate whose views of one axis are others, inside the tensors and grouped alike."""
    request = draw(requests_with_dense_programs(1, 2))
    able = [c for c in all_of(request) if c.program is not None and c.program.calls]
    candidate = draw(st.sampled_from(able))
    number = draw(st.integers(0, len(calls_of(candidate)) - 1))
    axis = draw(st.integers(0, request.mask.rank - 1))
    call = calls_of(candidate)[number]
    keeps_rows = isinstance(
        call.arguments, DenseMask | TiledArguments | NativeArguments
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
    before, after = calls_of(candidate)[:number], calls_of(candidate)[number + 1 :]
    return request, with_calls(candidate, *before, call, *after)


@settings(max_examples=200)
@given(candidates_with_other_views())
def test_both_proofs_accept_the_same_candidates(
    cases: Count, chosen: tuple[Request, Candidate]
) -> None:
    by_intervals, by_pairs = both_proofs(*chosen)
    assert by_intervals == by_pairs, calls_of(chosen[1])
    cases("planner, proofs agree on " + ("right" if by_pairs else "wrong"), 1)


@pytest.mark.parametrize(("side", "start"), [("query", -1), ("query", 2), ("key", -1), ("key", 2)])
def test_a_view_out_of_bounds_is_no_proof(side: str, start: int) -> None:
    request = request_for(Mask(Axis()), 5)
    candidate = program_of(request, "sdpa/dense")
    (call,) = calls_of(candidate)
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

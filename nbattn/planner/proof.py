"""The proof that a program is its mask: by index grids pair by pair, and per axis by intervals at
any size.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nbattn import geometry
from nbattn.errors import InputError
from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.program.candidate import Candidate
from nbattn.program.program import AxisView, Call, Program
from nbattn.program.request import Request

SUPPORT_LIMIT = 1 << 26


def support(request: Request, candidate: Candidate) -> NDArray[np.bool_]:
    """The pairs that a candidate's program computes, from index grids sent through its views.

    The grids have the request's groups of heads, at most two samples and two key heads: views treat
    all alike.
    """
    nq, nk = request.query_count, request.key_count
    if nq * nk > SUPPORT_LIMIT:
        raise InputError(
            f"{nq} x {nk} pairs are over the limit of {SUPPORT_LIMIT}.", "plan.verify()"
        )
    program = _program(candidate)
    batch, kv_heads = min(request.batch, 2), min(request.kv_heads, 2)
    heads = kv_heads * request.heads_per_key_head
    times = np.zeros((batch, heads, nq, nk), dtype=np.int8)
    written = np.zeros((batch, heads, nq), dtype=np.bool_)
    for call in program.calls:
        _count_call(request, call, times, written, kv_heads)
    if times.size == 0:
        return np.zeros((nq, nk), dtype=np.bool_)
    if times.max() > 1:
        b, h, i, j = np.argwhere(times > 1)[0].tolist()
        raise AssertionError(
            f"query {i} attends to key {j} {times.max()} times (sample {b}, head {h})"
        )
    if (times != times[:1, :1]).any():
        raise AssertionError("samples or heads attend to different keys")
    return times[0, 0].astype(np.bool_)


def _count_call(
    request: Request,
    call: Call,
    times: NDArray[np.int8],
    written: NDArray[np.bool_],
    kv_heads: int,
) -> None:
    """Add the pairs of one call, for every sample and head of its folded tensors."""
    import torch

    _check_groups(call)
    batch, heads = times.shape[:2]

    def grid(space: tuple[int, ...], heads: int) -> torch.Tensor:
        count = batch * int(np.prod(space)) * heads
        return torch.arange(count, device="cpu").reshape(batch, *space, heads, 1)

    query = call.query.folded(grid(request.query_space, heads)).squeeze(-1).flatten(1, -2).numpy()
    key = call.key.folded(grid(request.key_space, kv_heads)).squeeze(-1).flatten(1, -2).numpy()
    allowed = call.arguments.allowed(call.query.lengths, call.key.lengths).astype(np.int8)
    group = query.shape[2] // key.shape[2]
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            rest, head = np.divmod(query[b, :, h], heads)
            sample, i = np.divmod(rest, request.query_count)
            key_rest, key_head = np.divmod(key[b, :, h // group], kv_heads)
            key_sample, j = np.divmod(key_rest, request.key_count)
            if not (len(i) and len(j)):
                continue
            origin = {*zip(sample.tolist(), head.tolist(), strict=True)}
            source = {
                *zip(
                    key_sample.tolist(),
                    (key_head * request.heads_per_key_head).tolist(),
                    strict=True,
                )
            }
            first = next(iter(origin))
            if origin != {first} or source != {
                (first[0], first[1] // request.heads_per_key_head * request.heads_per_key_head)
            }:
                raise AssertionError("a call mixes samples or heads")
            if written[first[0], first[1], i].any() and not call.joins:
                raise AssertionError("a call overwrites rows of an earlier one")
            written[first[0], first[1], i] = True
            times[first[0], first[1], i[:, None], j] += allowed


def verify(request: Request, candidate: Candidate) -> bool:
    """Whether the program's calls are the mask, per axis: every query's keys, and how many pairs.

    Calls that share queries must join and share no pair. Together they are the mask if each of them
    computes allowed pairs only, and their pairs are as many as the mask's.
    """
    axes = request.axes()
    calls = _program(candidate).calls
    for call in calls:
        _check_groups(call)
    shared = _sharing(calls, axes)
    joined = {place for pair in shared for place in pair}
    runs = [
        [
            _verify_axis(number, axis, call, whole=place not in joined)
            for number, axis in enumerate(axes)
        ]
        for place, call in enumerate(calls)
    ]
    for first, second in shared:
        if all(_meet(a, b) for a, b in zip(runs[first], runs[second], strict=True)):
            raise AssertionError(f"calls {first} and {second} share pairs")
    useful = geometry.pairs(axes)
    done = sum(math.prod(int(run[..., 1].sum()) for run in per_axis) for per_axis in runs)
    if done != useful:
        raise AssertionError(f"the calls compute {done} pairs, the mask has {useful}")
    return True


def _sharing(calls: tuple[Call, ...], axes: Axes) -> list[tuple[int, int]]:
    """The calls that share queries, of which the later one must join."""
    covered = [
        [_covered(number, axis.queries) for number, axis in zip(call.query.axes, axes, strict=True)]
        for call in calls
    ]
    shared = [
        (first, second)
        for (first, one), (second, other) in combinations(enumerate(covered), 2)
        if all((a & b).any() for a, b in zip(one, other, strict=True))
    ]
    for first, second in shared:
        if not calls[second].joins:
            raise AssertionError(f"calls {first} and {second} share queries")
    return shared


def _program(candidate: Candidate) -> Program:
    if candidate.program is None:
        reasons = "; ".join(reason.text for reason in candidate.reasons)
        raise InputError(f"{candidate.name} has no program: {reasons}", "plan.chosen")
    return candidate.program


def _covered(axis: AxisView, length: int) -> NDArray[np.bool_]:
    """Which queries of an axis a view has: none outside of it, and each once."""
    positions = axis.positions().reshape(-1)
    _check_inside("queries", positions, length)
    covered = np.zeros(length, dtype=np.bool_)
    covered[positions] = True
    if np.count_nonzero(covered) != positions.size:
        raise AssertionError(f"a call computes a query twice: {axis}")
    return covered


def _check_inside(name: str, positions: Ints, length: int) -> None:
    if positions.size and not 0 <= positions.min() <= positions.max() < length:
        raise AssertionError(f"a view of {name} leaves the axis of {length}")


def _check_groups(call: Call) -> None:
    """Queries and keys of a call are grouped alike."""
    for number, (query, key) in enumerate(zip(call.query.axes, call.key.axes, strict=True)):
        if (query.groups, query.into) != (key.groups, key.into):
            raise AssertionError(f"axis {number}: queries and keys are grouped differently")


def _verify_axis(number: int, axis: BoundAxis, call: Call, *, whole: bool) -> Ints:
    """The keys of every query of the axis in a call, as runs `[queries, 2, 3]` of (start, count,
    step).

    Raises:
        AssertionError: with `whole`, they are not the mask's keys; else, not all of them are.
    """
    at = call.query.axes[number].positions()
    computed = _computed_runs(number, axis, call)
    starts, counts = axis.key_runs()
    allowed = _canonical(starts[at], counts[at], axis.spec.dilation)
    wrong = (computed != allowed).any(axis=-1) if whole else ~_within(computed, allowed)
    wrong = wrong.any(axis=-1)
    if wrong.any():
        raise AssertionError(
            f"axis {number}: query {int(at[wrong][0])} attends to other keys than the mask allows"
        )
    runs = np.zeros((axis.queries, 2, 3), dtype=np.int64)
    runs[at] = computed
    return runs


def _computed_runs(number: int, axis: BoundAxis, call: Call) -> Ints:
    """The runs that the kernel of a call computes, `[groups, length, 2, 3]` for the queries of its
    view: the kernel's own rows, moved to where the view of the keys has them.
    """
    query, key = call.query.axes[number], call.key.axes[number]
    _check_inside("keys", key.positions(), axis.keys)
    starts, counts, step = call.arguments.key_runs(number, query.length, key.length)
    group_start = key.start + key.group_step * np.arange(key.groups)[:, None, None]
    shape = (query.groups, query.length, 2)
    starts, counts = group_start + key.step * starts, np.broadcast_to(counts, shape)
    return _canonical(starts, counts, step * key.step)


def _within(reads: Ints, wanted: Ints) -> NDArray[np.bool_]:
    """Which runs `[..., 2, 3]` lie inside one of the wanted runs of the same query."""
    start, count, step = (reads[..., None, side] for side in range(3))
    first, length, stride = (wanted[..., None, :, side] for side in range(3))
    ahead = start - first
    unit = np.maximum(stride, 1)
    inside = (ahead >= 0) & (ahead % unit == 0) & (ahead // unit + count <= length)
    return ((count == 0) | (inside & ((count == 1) | (step == stride)))).any(axis=-1)


def _meet(one: Ints, other: Ints) -> bool:
    """Whether two calls read a key of the same query in common: runs `[queries, 2, 3]` inside the
    mask's, so that runs of one query that overlap share a key.
    """
    start, count, step = (one[:, :, None, side] for side in range(3))
    other_start, other_count, other_step = (other[:, None, :, side] for side in range(3))
    last = start + step * (count - 1)
    other_last = other_start + other_step * (other_count - 1)
    both = (count > 0) & (other_count > 0)
    return bool((both & (start <= other_last) & (other_start <= last)).any())


def _canonical(starts: Ints, counts: Ints, step: int) -> Ints:
    """Runs as `[..., 2, 3]` (start, count, step) in one form: no start without keys, no step below
    two, non-empty last.
    """
    starts, counts = np.broadcast_arrays(np.where(counts == 0, 0, starts), counts)
    only_first = (counts[..., 1:] == 0) & (counts[..., :1] != 0)
    starts, counts = (np.where(only_first, side[..., ::-1], side) for side in (starts, counts))
    return np.stack([starts, counts, np.where(counts > 1, step, 0)], axis=-1)

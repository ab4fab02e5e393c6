"""Candidates: every way each backend has to run a request, with its program and cost, or the
reasons why not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from nbattn import geometry
from nbattn.dialects import dense, tiled
from nbattn.dialects.bands import CAUSAL
from nbattn.dialects.limits import Limits, Reason, over_grid
from nbattn.geometry import BoundAxis
from nbattn.planner import costs, cuda, flash, peers
from nbattn.planner.candidate import Candidate
from nbattn.planner.costs import Cost
from nbattn.planner.programs import Call, Program, View, whole
from nbattn.planner.request import Request
from nbattn.planner.rewrites import Piece, dense_pieces, fold_into_heads

Lines = tuple[BoundAxis, ...]
_BY_NAME = Reason("backend", "runs only by name: backend='reference'")


def candidates(request: Request, lines: Lines) -> list[Candidate]:
    """All of them, refused ones too, with the reasons of require=, forbid= and backend= added."""
    found = [
        *(maker(request, lines) for maker in _MAKERS),
        *flash.candidates(request, lines),
        *cuda.candidates(request, lines),
        peers.flex(request, lines),
        peers.natten(request, lines),
    ]
    return [_refused(one, _asked(request, one)) for one in found]


def _refused(candidate: Candidate, reasons: list[Reason]) -> Candidate:
    """The candidate with these reasons against it, too."""
    return replace(candidate, reasons=(*candidate.reasons, *reasons)) if reasons else candidate


def _asked(request: Request, candidate: Candidate) -> list[Reason]:
    """Reasons that the request itself gives."""
    reasons: list[Reason] = []
    if request.require or request.forbid:
        has = {candidate.family, candidate.backend, candidate.strategy, *candidate.traits}
        reasons += [
            Reason("require", f"does not use {name!r}")
            for name in request.require
            if name not in has
        ]
        reasons += [
            Reason("forbid", f"uses {name!r}, which is forbidden")
            for name in request.forbid
            if name in has
        ]
    if request.backend == "auto":
        return [*reasons, _BY_NAME] if candidate.backend == "reference" else reasons
    if request.backend not in (candidate.family, candidate.backend):
        reasons.append(Reason("backend", f"backend={request.backend!r} was asked for"))
    return reasons


def _reference(request: Request, lines: Lines) -> Candidate:
    """The definition, dense."""
    visited = request.query_count * request.key_count
    cost = costs.roofline(
        request,
        useful=geometry.pairs(lines),
        visited=visited,
        calls=12,
        rate=costs.sdpa_rate(request),
        copied=4.0 * visited * request.batch * request.heads,
    )
    program = Program(
        (Call(whole(request.query_space), whole(request.key_space), dense.Matrix(lines)),)
    )
    return Candidate(
        "reference", "dense", (), program, cost, tuple(dense.REFERENCE.reasons(request))
    )


def _tiled(request: Request, lines: Lines) -> Candidate:
    """Tiles of queries against the hull of their keys."""
    item = tiled.Item(
        request.batch * request.kv_heads,
        request.group,
        request.head_dim,
        request.value_dim,
        request.extra_keys,
    )
    arguments = tiled.Tiled(lines, tiled.choose_tile(lines, item))
    totals = arguments.totals()
    batches = max(1, int(tiled.batches(totals, item)))
    cost = costs.roofline(
        request, useful=geometry.pairs(lines), visited=totals.pairs, calls=8 * batches
    )
    if request.device.kind == "cpu":
        seconds = float(tiled.cost(totals, item)) * (1 + 2.5 * request.training)
        cost = replace(cost, bound=seconds / costs.cpu_speed(request))
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    return Candidate("tiled", "tile", (), program, cost, tuple(tiled.TILED.reasons(request)))


def _sdpa_limits(request: Request) -> Limits:
    known = {"cpu": dense.SDPA_CPU, "cuda": dense.SDPA_CUDA}
    return known.get(request.device.kind, dense.SDPA)


def _over_grid(request: Request, program: Program) -> list[Reason]:
    """Why the first call that is too large for the grid is."""
    most = _sdpa_limits(request).grid
    sizes = (call.query.batch_and_heads(request.batch, request.heads) for call in program.calls)
    found = (over_grid(*both, most) for both in sizes if most)
    return [reason for reason in found if reason][:1]


def _sdpa_dense(request: Request, lines: Lines) -> Candidate:
    """Unmasked or causal calls on views: folded, trimmed, with extra keys merged."""
    reasons = _sdpa_limits(request).reasons(request)
    per_axis = [dense_pieces(line) for line in lines]
    for number, pieces in enumerate(per_axis):
        if isinstance(pieces, str):
            reasons.append(Reason("mask", f"axis {number}: {pieces}"))
    programs = None
    if not any(isinstance(pieces, str) for pieces in per_axis):
        programs = _product(request, [p for p in per_axis if not isinstance(p, str)])
        if isinstance(programs, Reason):
            reasons.append(programs)
            programs = None
    if programs is None:
        return Candidate("sdpa", "dense", (), None, None, tuple(reasons))
    strategy, traits, program = programs
    reasons += _over_grid(request, program)
    return Candidate(
        "sdpa", strategy, traits, program, _sdpa_cost(request, lines, program), tuple(reasons)
    )


def _product(
    request: Request, per_axis: list[list[Piece]]
) -> tuple[str, tuple[str, ...], Program] | Reason:
    """The calls of every combination of pieces, or why a combination is not sayable."""
    if request.layout == "contiguous":
        per_axis = [*per_axis[:-1], [fold_into_heads(piece) for piece in per_axis[-1]]]
    calls: list[Call] = []
    for pieces in product(*per_axis):
        arguments = _arguments(pieces)
        if isinstance(arguments, Reason):
            return arguments
        views = (View(tuple(p.query for p in pieces)), View(tuple(p.key for p in pieces)))
        calls.append(Call(*views, arguments))
    causal = any(isinstance(call.arguments, dense.Causal) for call in calls)
    return "causal" if causal else "dense", _traits(request, calls), Program(tuple(calls))


def _arguments(pieces: tuple[Piece, ...]) -> dense.Dense | dense.Causal | Reason:
    """What a dense kernel is told: causal when the one long axis is."""
    long = [n for n, p in enumerate(pieces) if max(p.query.length, p.key.length) > 1]
    causal = [n for n in long if pieces[n].band == CAUSAL]
    if not causal:
        return dense.Dense()
    if long == causal[:1]:
        return dense.Causal(long[0])
    other = next(n for n in long if n != causal[0])
    text = f"causal on axis {causal[0]} while axis {other} is long"
    return Reason("mask", f"{text}: a product, not the raster order of is_causal")


def _traits(request: Request, calls: list[Call]) -> tuple[str, ...]:
    """The rewrites that a program took."""
    traits = {"fold"} if any(call.query.groups > 1 for call in calls) else set[str]()
    traits |= {"split"} if len(calls) > 1 else set()
    traits |= {"merge"} if request.extra_keys else set()
    if len(calls) == 1:
        sizes = (calls[0].query, request.query_count), (calls[0].key, request.key_count)
        traits |= {"trim"} if any(v.count * v.groups < size for v, size in sizes) else set()
    return tuple(sorted(traits))


def _sdpa_mask(request: Request, lines: Lines) -> Candidate:
    """One call with the mask as a matrix: small problems."""
    reasons = _sdpa_limits(request).reasons(request)
    count = request.query_count * request.key_count
    if count > dense.MASK_LIMIT:
        reasons.append(
            Reason("mask", f"a matrix of {count} pairs is over the limit of {dense.MASK_LIMIT}")
        )
    if request.extra_keys:
        reasons.append(Reason("extra_keys", "extra keys have no column in the matrix"))
    if not count:
        reasons.append(Reason("mask", "no pairs, for which its kernel is not defined"))
    elif geometry.has_empty_queries(lines):
        reasons.append(Reason("mask", "rows without keys, for which it is not defined"))
    program = Program(
        (Call(whole(request.query_space), whole(request.key_space), dense.Matrix(lines)),)
    )
    reasons += _over_grid(request, program)
    if reasons:
        return Candidate("sdpa", "mask", (), None, None, tuple(reasons))
    return Candidate("sdpa", "mask", (), program, _sdpa_cost(request, lines, program))


def _sdpa_cost(request: Request, lines: Lines, program: Program) -> Cost:
    """Pairs that the calls compute, and what views copy where they do not merge."""
    visited = sum(
        call.query.groups * call.arguments.visited(call.query.count, call.key.count)  # pyright: ignore
        for call in program.calls
    )
    copies = any(costs.copies(request, call.query) for call in program.calls)
    return costs.roofline(
        request,
        useful=geometry.pairs(lines),
        visited=visited,
        calls=_launches(request, len(program.calls)) * (1 + bool(request.extra_keys)),
        copied=costs.tensor_bytes(request) * copies,
        rate=costs.sdpa_rate(request),
    )


def _launches(request: Request, calls: int) -> int:
    """Launches with the views around them: one call writes its output itself, several scatter."""
    single, each = (8, 25) if request.device.kind == "cpu" else (1, 6)
    return single if calls <= 1 else each * calls


_MAKERS: tuple[Callable[[Request, Lines], Candidate], ...] = (
    _reference,
    _tiled,
    _sdpa_dense,
    _sdpa_mask,
)

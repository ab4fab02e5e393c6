"""Dense attention as candidates: the reference; SDPA without a mask, causal, or with a matrix."""

from __future__ import annotations

from itertools import product

from nbattn import geometry
from nbattn.backends.dense import costs, meaning
from nbattn.geometry import Axes
from nbattn.program.bands import CAUSAL
from nbattn.program.candidate import Candidate
from nbattn.program.dense_pieces import Piece, dense_pieces, fold_into_heads
from nbattn.program.limits import Limits, Reason, over_grid, whole_axes
from nbattn.program.program import Call, Program, View, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """The reference, SDPA by pieces, and SDPA with the mask as a matrix."""
    return [make(request, axes) for make in (_reference, _sdpa_dense, _sdpa_mask)]


def _reference(request: Request, axes: Axes) -> Candidate:
    """The definition, dense."""
    reasons = meaning.REFERENCE.reasons(request.needs) + whole_axes(axes)
    cost = costs.reference(request, geometry.pairs(axes))
    return Candidate("reference", "dense", (), _matrix(request, axes), cost, tuple(reasons))


def _matrix(request: Request, axes: Axes) -> Program:
    """One call on whole tensors with the mask as a matrix."""
    call = Call(whole(request.query_space), whole(request.key_space), meaning.DenseMask(axes))
    return Program((call,))


def _sdpa_limits(request: Request) -> Limits:
    known = {"cpu": meaning.SDPA_CPU, "cuda": meaning.SDPA_CUDA}
    return known.get(request.device.kind, meaning.SDPA)


def _over_grid(request: Request, program: Program) -> list[Reason]:
    """Why the first call that is too large for the grid is."""
    most = _sdpa_limits(request).grid
    sizes = (call.query.batch_and_heads(request.batch, request.heads) for call in program.calls)
    found = (over_grid(*both, most) for both in sizes if most)
    return [reason for reason in found if reason][:1]


def _sdpa_dense(request: Request, axes: Axes) -> Candidate:
    """Unmasked or causal calls on views: folded, trimmed, with extra keys merged."""
    reasons = _sdpa_limits(request).reasons(request.needs)
    per_axis = [dense_pieces(axis) for axis in axes]
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
        "sdpa",
        strategy,
        traits,
        program,
        costs.sdpa(request, program, geometry.pairs(axes)),
        tuple(reasons),
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
    causal = any(isinstance(call.arguments, meaning.TopLeftCausal) for call in calls)
    return "causal" if causal else "dense", _traits(request, calls), Program(tuple(calls))


def _arguments(pieces: tuple[Piece, ...]) -> meaning.NoMask | meaning.TopLeftCausal | Reason:
    """What a dense kernel is told: causal when the one long axis is."""
    long = [n for n, p in enumerate(pieces) if max(p.query.length, p.key.length) > 1]
    causal = [n for n in long if pieces[n].band == CAUSAL]
    if not causal:
        return meaning.NoMask()
    if long == causal[:1]:
        return meaning.TopLeftCausal(long[0])
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


def _sdpa_mask(request: Request, axes: Axes) -> Candidate:
    """One call with the mask as a matrix: small problems."""
    reasons = _sdpa_limits(request).reasons(request.needs)
    count = request.query_count * request.key_count
    if count > meaning.MASK_LIMIT:
        reasons.append(
            Reason("mask", f"a matrix of {count} pairs is over the limit of {meaning.MASK_LIMIT}")
        )
    if request.extra_keys:
        reasons.append(Reason("extra_keys", "extra keys have no column in the matrix"))
    if not count:
        reasons.append(Reason("mask", "no pairs, for which its kernel is not defined"))
    elif geometry.has_empty_queries(axes):
        reasons.append(Reason("mask", "rows without keys, for which it is not defined"))
    program = _matrix(request, axes)
    reasons += _over_grid(request, program)
    if reasons:
        return Candidate("sdpa", "mask", (), None, None, tuple(reasons))
    return Candidate(
        "sdpa", "mask", (), program, costs.sdpa(request, program, geometry.pairs(axes))
    )

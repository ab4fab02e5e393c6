"""The peers as candidates: FlexAttention and the natten package, one call each on whole tensors."""

from __future__ import annotations

import math

from nbattn import geometry
from nbattn.dialects import flex as flex_dialect
from nbattn.dialects import natten as natten_dialect
from nbattn.dialects.limits import Reason, over_grid
from nbattn.geometry import BoundAxis
from nbattn.planner import costs
from nbattn.planner.candidate import Candidate, refused
from nbattn.planner.programs import Call, CallArguments, Program, whole
from nbattn.planner.request import Request

Lines = tuple[BoundAxis, ...]


def flex(request: Request, lines: Lines) -> Candidate:
    """One FlexAttention call over blocks of tokens, which are counted only when it is asked for."""
    reasons: list[Reason] = []
    if request.backend == "auto":
        reasons = [Reason("compile", "compiles for seconds: runs only by name: backend='flex'")]
    if request.backend == "flex":
        reasons = flex_dialect.reasons(request)
        if request.device.kind == "cuda":
            reasons += filter(None, [flex_dialect.over_grid(request.batch, request.heads)])
        if not request.query_count * request.key_count:
            reasons.append(Reason("mask", "no pairs, for which its kernel is not defined"))
        elif geometry.has_empty_queries(lines):
            reasons.append(Reason("mask", "rows without keys, for which it is not defined"))
    if reasons or request.backend != "flex":
        return refused("flex", "blocks", *reasons)
    call = flex_dialect.Blocks(lines)
    return _peer("flex", "blocks", request, lines, call, call.visited())


def natten(request: Request, lines: Lines) -> Candidate:
    """One call of the natten package, where every axis is a neighborhood."""
    if request.backend not in ("auto", "natten"):
        return refused("natten", "window")
    reasons, windows = natten_dialect.reasons(request), natten_dialect.windows(lines)
    if isinstance(windows, Reason) or reasons:
        reasons += [windows] if isinstance(windows, Reason) else []
        return Candidate("natten", "window", (), None, None, tuple(reasons))
    # its grids: tiles, heads and residue classes, samples
    classes = math.prod(line.axis.dilation for line in lines)
    if reason := over_grid(request.batch, request.heads * classes):
        return refused("natten", "window", reason)
    if request.backend == "auto":  # its bound, without its tiles, would beat everyone's
        unproven = Reason("unproven", "not yet run on a GPU: runs only by name: backend='natten'")
        return refused("natten", "window", unproven)
    # at least the useful pairs: how many its tiles visit is not modelled
    useful = geometry.pairs(lines)
    return _peer("natten", "window", request, lines, windows, useful)


def _peer(
    backend: str, strategy: str, request: Request, lines: Lines, call: CallArguments, visited: int
) -> Candidate:
    """One call of another library on the tensors as they are."""
    cost = costs.roofline(
        request,
        useful=geometry.pairs(lines),
        visited=visited,
        calls=1,
        rate=costs.sdpa_rate(request),
    )
    program = Program((Call(whole(request.query_space), whole(request.key_space), call),))
    return Candidate(backend, strategy, (), program, cost)

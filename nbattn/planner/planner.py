"""From a request to its plan: candidates, ranked; and the bounded cache of plans."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from nbattn import geometry
from nbattn.errors import BackendError
from nbattn.planner import measured
from nbattn.planner.candidate import Candidate
from nbattn.planner.plan import Plan
from nbattn.planner.request import Request
from nbattn.planner.strategies import candidates

CACHE_SIZE = 4096


@lru_cache(CACHE_SIZE)
def make(request: Request) -> Plan:
    """The plan of a request.

    Raises:
        MaskError: the mask does not fit the shape.
        BackendError: every candidate is refused, with all reasons.
    """
    lines = geometry.bind(request.mask, request.query_space, request.key_space)
    found = candidates(request, lines)
    usable, note = _timed(request, [one for one in found if not one.reasons])
    accepted = sorted(usable, key=_seconds)
    refused = [one for one in found if one.reasons]
    if not accepted:
        raise BackendError(
            _refusals(request, refused), _fix(request), f"{request.mask!r}  {request.summary()}"
        )
    return Plan(request, accepted[0], (*accepted, *refused), note)


def _timed(request: Request, usable: list[Candidate]) -> tuple[list[Candidate], str]:
    """Candidates with their measured times where every one has its own, and what to say if not.

    A time does not compare with a bound, which is a model's: one unmeasured candidate, and all are
    ranked by their bounds.
    """
    times, note = measured.look_up(request)
    have = [one.name for one in usable if one.name in times]
    if times and len(have) == len(usable):
        return [_with_time(one, times[one.name]) for one in usable], ""
    if have:
        only = ", ".join(f"{name} {times[name] * 1e3:.3g} ms" for name in have)
        note = f"times of {len(have)} of {len(usable)} candidates only: {only}"
    return usable, note


def _with_time(candidate: Candidate, seconds: float) -> Candidate:
    assert candidate.cost is not None
    return replace(candidate, cost=replace(candidate.cost, measured=seconds))


def _seconds(candidate: Candidate) -> float:
    return float("inf") if candidate.cost is None else candidate.cost.seconds


def _refusals(request: Request, refused: list[Candidate]) -> str:
    """Every candidate with every reason; where a backend was asked for by name, its own."""
    if request.backend == "auto":
        shown = [(one, one.reasons) for one in refused]
    else:
        own = [one for one in refused if one.family == request.backend.partition(":")[0]]
        asked = [(one, [r for r in one.reasons if r.limit != "backend"]) for one in own]
        shown = [(one, reasons or one.reasons) for one, reasons in asked]
    who = "no backend can" if request.backend == "auto" else f"{request.backend} cannot"
    lines = [f"  {one.name}: {reason.text}" for one, reasons in shown for reason in reasons]
    return "\n".join([f"{who} run this:", *lines])


def _fix(request: Request) -> str:
    if request.require or request.forbid:
        return "relax require= or forbid=."
    return 'backend="auto", or backend="reference", which runs whatever fits in memory densely.'

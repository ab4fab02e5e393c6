"""From a request to its plan: candidates, ranked; and the bounded cache of plans."""

from __future__ import annotations

from functools import lru_cache

from nbattn import geometry
from nbattn.errors import BackendError
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
    accepted = sorted((one for one in found if not one.reasons), key=_seconds)
    refused = [one for one in found if one.reasons]
    if not accepted:
        raise BackendError(
            _refusals(refused), where=f"{request.mask!r}  {request.summary()}", fix=_fix(request)
        )
    return Plan(request, accepted[0], (*accepted, *refused))


def _seconds(candidate: Candidate) -> float:
    return float("inf") if candidate.cost is None else candidate.cost.seconds


def _refusals(refused: list[Candidate]) -> str:
    lines = ["no backend can run this:"]
    for candidate in refused:
        lines += [f"  {candidate.name}: {reason.text}" for reason in candidate.reasons]
    return "\n".join(lines)


def _fix(request: Request) -> str:
    if request.require or request.forbid:
        return "relax require= or forbid=."
    return 'backend="auto", or backend="reference", which runs whatever fits in memory densely.'

"""From a request to its plan: the candidates of every family, ranked; and the bounded caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from nbattn.backends import families
from nbattn.errors import BackendError
from nbattn.geometry import Axes
from nbattn.mask import Mask
from nbattn.planner import cost_table, devices
from nbattn.planner.plan import Plan
from nbattn.program.candidate import Candidate, refused
from nbattn.program.device import DeviceInfo
from nbattn.program.limits import Reason
from nbattn.program.request import Request, request_of

CACHE_SIZE = 4096


class Signature(NamedTuple):
    """What a plan depends on, of a call or of `nbattn.plan`, in torch's terms: the key of a cache.

    The shapes are `[B, *space, H, D]` and `[B, *key_space, Hk, D]`; the rest is as in `Request`.
    """

    mask: Mask
    query_shape: Sequence[int]
    key_shape: Sequence[int]
    value_dim: int
    dtype: torch.dtype | str
    device: torch.device | str | DeviceInfo | None
    layout: str
    extra_keys: int
    softcap: bool
    sink: bool
    key_range: bool
    training: bool
    deterministic: bool
    return_lse: bool
    backend: str
    require: tuple[str, ...]
    forbid: tuple[str, ...]

    def request(self) -> Request:
        """The request, for this machine's device where none is named."""
        options: dict[str, Any] = self._asdict()
        options["device"] = devices.device_info(self.device)
        return request_of(**options)


@lru_cache(CACHE_SIZE)
def planned(signature: Signature) -> Plan:
    """The plan of a signature, kept for the next call like it."""
    return make(signature.request())


# What `nbattn.known_calls` keeps of calls, which hold plans: forgotten with them.
KNOWN_CALLS: dict[tuple[object, ...], Any] = {}


def forget() -> None:
    """Plan anew from here on, with the cost table as it is now."""
    cost_table.forget()
    KNOWN_CALLS.clear()
    for kept in (planned, make):
        kept.cache_clear()


@lru_cache(CACHE_SIZE)
def make(request: Request) -> Plan:
    """The plan of a request.

    Raises:
        InputError: a name of a backend or a strategy is not known.
        MaskError: the mask does not fit the shape.
        BackendError: every candidate is refused, with all reasons.
    """
    families.check_names(request.backend, request.require, request.forbid)
    axes = request.axes()
    found = candidates(request, axes)
    usable, note = _timed(request, [one for one in found if not one.reasons])
    accepted = sorted(usable, key=_seconds)
    refused = [one for one in found if one.reasons]
    if not accepted:
        raise BackendError(
            _refusals(request, refused), _fix(request), f"{request.mask!r}  {request.summary()}"
        )
    return Plan(request, accepted[0], (*accepted, *refused), note)


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Those of every family, refused ones too, with the reasons of require=, forbid= and backend=
    added.
    """
    found = (one for family in families.FAMILIES for one in family.candidates(request, axes))
    return [_refused(one, _asked(request, one)) for one in found]


def _refused(candidate: Candidate, reasons: list[Reason]) -> Candidate:
    """The candidate with these reasons against it, too."""
    if not reasons:
        return candidate
    name, strategy, traits = candidate.backend, candidate.strategy, candidate.traits
    against = (*candidate.reasons, *reasons)
    if candidate.program is None:
        return refused(name, strategy, *against, traits=traits)
    return Candidate(name, strategy, traits, candidate.program, candidate.cost, against)


def _asked(request: Request, candidate: Candidate) -> list[Reason]:
    """Reasons that the request itself gives."""
    reasons: list[Reason] = []
    if request.require or request.forbid:
        has = {candidate.runner, candidate.backend, candidate.strategy, *candidate.traits}
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
    if request.backend == families.AUTO:
        why = families.backend(candidate.runner).by_name
        if why is None or candidate.reasons:
            return reasons
        return [why, *reasons] if candidate.program is None else [*reasons, why]
    if request.backend not in (candidate.runner, candidate.backend):
        reasons.append(Reason("backend", f"backend={request.backend!r} was asked for"))
    return reasons


def _timed(request: Request, usable: list[Candidate]) -> tuple[list[Candidate], str]:
    """Candidates with their measured times where every one has its own, and what to say if not.

    A time does not compare with a bound, which is a model's: one unmeasured candidate, and all are
    ranked by their bounds.
    """
    times, note = cost_table.look_up(request)
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
        own = [one for one in refused if one.runner == request.backend.partition(":")[0]]
        asked = [(one, [r for r in one.reasons if r.limit != "backend"]) for one in own]
        shown = [(one, reasons or one.reasons) for one, reasons in asked]
    who = "no backend can" if request.backend == "auto" else f"{request.backend} cannot"
    lines = [f"  {one.name}: {reason.text}" for one, reasons in shown for reason in reasons]
    return "\n".join([f"{who} run this:", *lines])


def _fix(request: Request) -> str:
    if request.require or request.forbid:
        return "relax require= or forbid=."
    return 'backend="auto", or backend="reference", which runs whatever fits in memory densely.'

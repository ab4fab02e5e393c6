"""Makes plans from requests: gathers the candidates of every family, ranks them, caches plans."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from nbattn.backends import families
from nbattn.errors import BackendError
from nbattn.geometry import Axes
from nbattn.grids import PackedGrids
from nbattn.mask import Mask
from nbattn.planner import cost_table, devices, gathering, notices, remedies
from nbattn.planner.plan import Plan
from nbattn.planner.remedies import Outcome
from nbattn.program.candidate import Candidate, refused
from nbattn.program.device import DeviceInfo
from nbattn.program.limits import Reason
from nbattn.program.request import Request, request_of

CACHE_SIZE = 4096


class Signature(NamedTuple):
    """Everything that a plan of a call or of `nbattn.plan` depends on, with torch's types: the key
    of the cache.

    The shapes are `[B, *space, H, D]` and `[B, *key_space, Hk, D]`, or with grids `[T, H, D]` and
    `[Tk, Hk, D]`; `threads` is torch's number of them, since measured times are for one; the rest
    is as in `Request`.
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
    extra_range: bool
    relative_bias: bool
    alibi_slopes: bool
    training: bool
    deterministic: bool
    return_lse: bool
    backend: str
    require: tuple[str, ...]
    forbid: tuple[str, ...]
    threads: int
    grids: PackedGrids | None = None

    def request(self) -> Request:
        """Returns the request; a device of None becomes this machine's."""
        options: dict[str, Any] = self._asdict()
        del options["threads"]
        options["device"] = devices.device_info(self.device)
        return request_of(**options)


@lru_cache(CACHE_SIZE)
def planned(signature: Signature) -> Plan:
    """Returns the plan of a signature, cached for the next call like it."""
    return make(signature.request())


@lru_cache(CACHE_SIZE)
def planned_to_run(signature: Signature) -> Plan:
    """Returns the plan of a signature for a call that runs it, and tells of one that is new."""
    plan = planned(signature)
    notices.tell(plan)
    return plan


# The cache of `nbattn.known_calls`. It is here because it has plans and is cleared with them.
KNOWN_CALLS: dict[tuple[object, ...], Any] = {}


def forget() -> None:
    """Clears all caches, so that new plans use the current cost table."""
    cost_table.forget()
    KNOWN_CALLS.clear()
    for cached in (planned, planned_to_run, _make):
        cached.cache_clear()


def make(request: Request) -> Plan:
    """Makes the plan of a request, or returns the one that was made for it before.

    Raises:
        InputError: a name of a backend or a strategy is not known.
        MaskError: the mask does not fit the shape.
        BackendError: every candidate is refused, with all reasons.
    """
    return _make(request, cost_table.torch_threads())


@lru_cache(CACHE_SIZE)
def _make(request: Request, threads: int) -> Plan:
    """Makes the plan of a request; measured times are for one number of threads."""
    families.check_names(request.backend, request.require, request.forbid)
    accepted, refused, note = _ranked(request)
    if not accepted:
        raise BackendError(
            _refusals(request, refused),
            remedies.fix(request, _outcome),
            f"{request.mask!r}  {request.summary()}",
        )
    return Plan(request, accepted[0], (*accepted, *refused), note)


def _ranked(request: Request) -> tuple[list[Candidate], list[Candidate], str]:
    """Returns the accepted candidates, the cheapest first, the refused ones, and a note."""
    offered = candidates(request, request.axes())
    usable, note = _timed(request, [c for c in offered if not c.reasons])
    return sorted(usable, key=_seconds), [c for c in offered if c.reasons], note


def _outcome(request: Request) -> Outcome:
    """Returns what would run a request, or the limits that are in the way of its backend."""
    accepted, refused, _ = _ranked(request)
    if accepted:
        return Outcome(accepted[0].name, frozenset())
    against = (reason.limit for c in _requested(request, refused) for reason in c.reasons)
    return Outcome("", frozenset(against))


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns the candidates of every family, including refused ones, with the reasons of
    require=, forbid= and backend= added. Kernels have the tiles that were measured fastest.
    """
    found = [*offered(request, axes)]
    if request.grids is not None:
        found += gathering.candidates(request, found)
    return [_refused(candidate, _not_requested(request, candidate)) for candidate in found]


def offered(request: Request, axes: Axes, without: Collection[str] = ()) -> Iterator[Candidate]:
    """Yields the families' own candidates, whatever the request says of backends, without those of
    some families. Of packed grids, which have no axes, only some families have one.
    """
    times = cost_table.tiles(request)
    for family in families.FAMILIES:
        if family.name not in without and (request.grids is None or family.takes_grids):
            for candidate in family.candidates(request, axes):
                yield family.retiled(candidate, request, axes, times)


def _refused(candidate: Candidate, reasons: list[Reason]) -> Candidate:
    """Returns the candidate with additional reasons against it."""
    if not reasons:
        return candidate
    name, strategy, traits = candidate.backend, candidate.strategy, candidate.traits
    against = (*candidate.reasons, *reasons)
    if candidate.program is None:
        return refused(name, strategy, *against, traits=traits)
    return Candidate(name, strategy, traits, candidate.program, candidate.cost, against)


def _not_requested(request: Request, candidate: Candidate) -> list[Reason]:
    """Returns the reasons that follow from require=, forbid= and backend= of the request."""
    reasons: list[Reason] = []
    if request.require or request.forbid:
        has = {candidate.runner, candidate.backend, candidate.strategy, *candidate.traits}
        reasons += [
            Reason("require", f"does not use {name!r}")
            for name in request.require
            if name not in has
        ]
        reasons += candidate.forbidden(request.forbid)
    if request.backend == families.AUTO:
        why = families.backend(candidate.runner).by_name
        if why is None or candidate.reasons:
            return reasons
        by_name = [Reason(*why)]
        return by_name + reasons if candidate.program is None else reasons + by_name
    if request.backend not in (candidate.runner, candidate.backend):
        reasons.append(Reason("backend", f"backend={request.backend!r} is requested"))
    return reasons


def _timed(request: Request, usable: list[Candidate]) -> tuple[list[Candidate], str]:
    """Returns candidates with their measured times if all of them have one, else the reason.

    A measured time is not comparable with an estimate: if one candidate is not measured, all are
    ranked by their estimates.
    """
    times, note = cost_table.look_up(request)
    measured = [candidate.name for candidate in usable if candidate.name in times]
    if times and len(measured) == len(usable):
        return [_with_time(candidate, times[candidate.name]) for candidate in usable], ""
    if measured:
        listed = ", ".join(f"{name} {times[name] * 1e3:.3g} ms" for name in measured)
        note = f"only {len(measured)} of {len(usable)} candidates are measured: {listed}"
    return usable, note


def _with_time(candidate: Candidate, seconds: float) -> Candidate:
    assert candidate.cost is not None
    return replace(candidate, cost=replace(candidate.cost, measured=seconds))


def _seconds(candidate: Candidate) -> float:
    return float("inf") if candidate.cost is None else candidate.cost.seconds


def _requested(request: Request, refused: list[Candidate]) -> list[Candidate]:
    """Returns the candidates of the requested backend, with its provider if any has it; of "auto",
    all.
    """
    if request.backend == families.AUTO:
        return refused
    runner = request.backend.partition(":")[0]
    exact = [c for c in refused if c.backend == request.backend]
    return exact or [c for c in refused if c.runner == runner]


def _refusals(request: Request, refused: list[Candidate]) -> str:
    """Lists every candidate with every reason; of a requested backend only its candidates."""
    if request.backend == "auto":
        shown = [(c, c.reasons) for c in refused]
    else:
        requested = _requested(request, refused)
        limits = [(c, [r for r in c.reasons if r.limit != "backend"]) for c in requested]
        shown = [(c, reasons or c.reasons) for c, reasons in limits]
    subject = "no backend can" if request.backend == "auto" else f"{request.backend} cannot"
    lines = [f"  {c.name}: {reason.text}" for c, reasons in shown for reason in reasons]
    return "\n".join([f"{subject} run this:", *lines])

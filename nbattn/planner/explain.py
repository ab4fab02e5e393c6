"""A plan in words: the choice, how to get a faster one, the candidates with costs or reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nbattn.backends import families
from nbattn.errors import NbattnError
from nbattn.program.candidate import Candidate
from nbattn.program.request import Request

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

_SLOWER = 5  # slower candidates that the short form lists
_WORTH = 0.95  # of the chosen cost: what saves less is not advised
_TUNE = "; `nbattn tune` with this mask and query measures the candidates"


class Line(NamedTuple):
    """One line of the list of candidates.

    Args:
        state: "chosen", "equal", "slower", "refused" or "by name".
        name: of the candidate, or of the backends whose candidates are refused.
        cost: "estimated 1.5 ms"; empty when refused.
        ratio: the cost over that of the chosen candidate, if it is slower; else 0.
        reasons: what the candidate does, with the note of the chosen one; or every reason against
            it.
    """

    state: str
    name: str
    cost: str
    ratio: float
    reasons: tuple[str, ...]


def explain(plan: Plan, *, every: bool, how: str = "explain(all=True)") -> str:
    """The plan as text: the choice, the request, how to get a faster one, then the candidates.

    `how` lists all candidates.
    """
    chosen, request = plan.chosen, plan.request
    text = [
        f"plan    {chosen.name}: {cost_of(chosen)}; {chosen.work()}",
        f"        {request.mask!r}  {request.summary()}",
        f"faster  {faster(plan)}",
    ]
    lines = list(candidate_lines(plan, every=every))
    width = max(len(line.name) for line in lines)
    for line in lines:
        ratio = f" ({line.ratio:.3g}x)" if line.ratio else ""
        first, *rest = line.reasons
        text.append(
            f"  {line.state:<9} {line.name:<{width}} "
            f"{f'{line.cost}{ratio}  ' if line.cost else ''}{first}"
        )
        text += [f"{'':{width + 13}}{reason}" for reason in rest]
    if not every:
        text.append(f"  {how} lists all {len(plan.candidates)} candidates")
    return "\n".join([*text, f"  {plan.decided_by()}"])


def cost_of(candidate: Candidate) -> str:
    """The cost in words: measured, or estimated."""
    assert candidate.cost is not None
    return str(candidate.cost)


def candidate_lines(plan: Plan, *, every: bool) -> Iterator[Line]:
    """The candidates: accepted ones by cost, then refused ones.

    The short form leaves out the slowest ones and what a backend refuses beside a candidate that it
    offers. A backend that offers none has one line; those that are not requested share one.
    """
    accepted = [candidate for candidate in plan.candidates if not candidate.reasons]
    refused = [candidate for candidate in plan.candidates if candidate.reasons]
    for candidate in accepted if every else accepted[: _SLOWER + 1]:
        yield _accepted(candidate, plan.chosen)
    if every:
        for candidate in refused:
            reasons = tuple(reason.text for reason in candidate.reasons)
            if candidate.reasons[0] == families.backend(candidate.runner).by_name:
                reasons += _against(_if_requested(plan.request, candidate.runner))
            yield Line("refused", candidate.name, "", 0.0, reasons)
        return
    offering = {candidate.runner for candidate in accepted}
    by_name: list[str] = []
    others: list[str] = []
    for runner in dict.fromkeys(candidate.runner for candidate in refused):
        own = [candidate for candidate in refused if candidate.runner == runner]
        if all(candidate.reasons[0] == families.backend(runner).by_name for candidate in own):
            against = _against(_if_requested(plan.request, runner))
            if against:
                yield Line("refused", runner, "", 0.0, against)
            else:
                by_name.append(runner)
        elif plan.request.backend != families.AUTO and own[0].reasons[-1].limit == "backend":
            others.append(runner)
        elif runner not in offering:
            yield Line("refused", runner, "", 0.0, (_shared_reason(own),))
    if others:
        text = f"backend={plan.request.backend!r} is requested"
        yield Line("refused", ", ".join(others), "", 0.0, (text,))
    if by_name:
        example = ":" if len(by_name) == 1 else ", for example"
        text = f"only if requested{example} backend={by_name[0]!r}"
        yield Line("by name", ", ".join(by_name), "", 0.0, (text,))


def _if_requested(request: Request, runner: str) -> list[Candidate]:
    """The candidates of a backend that runs only if requested, as if it were."""
    from nbattn.planner import planner

    request = replace(request, backend=runner)
    candidates = planner.candidates(request, request.axes())
    return [candidate for candidate in candidates if candidate.runner == runner]


def _against(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The first reason against a backend; none if it accepts one of the candidates."""
    is_refused = all(candidate.reasons for candidate in candidates)
    return (candidates[0].reasons[0].text,) if is_refused else ()


def _accepted(candidate: Candidate, chosen: Candidate) -> Line:
    assert candidate.cost is not None
    assert chosen.cost is not None
    cost = cost_of(candidate)
    if candidate is chosen:
        note = [candidate.note] * bool(candidate.note)
        return Line("chosen", candidate.name, cost, 0.0, (candidate.work(), *note))
    ratio = candidate.cost.seconds / max(chosen.cost.seconds, 1e-12)
    if cost == cost_of(chosen):
        return Line("equal", candidate.name, cost, 0.0, (candidate.work(),))
    return Line("slower", candidate.name, cost, ratio, (candidate.work(),))


def _shared_reason(candidates: Sequence[Candidate]) -> str:
    """Why a backend offers nothing: what its candidates share, else the reason of the first one
    whose packages are installed.
    """
    reasons = [candidate.reasons[0] for candidate in candidates]
    installed = [reason for reason in reasons if reason.limit not in ("package", "provider")]
    first, *others = (reason.text for reason in installed or reasons)
    different = len({*others} - {first})
    return first if not different else f"{first} (and {different} more)"


def faster(plan: Plan, tune: str = _TUNE) -> str:
    """How to get a faster plan for the same mask and shapes, as far as costs show it.

    `tune` follows where only measurements could tell more.
    """
    assert plan.chosen.cost is not None
    now, best = plan.chosen.cost, ("", plan)
    for how, request in _changes(plan.request):
        other = _planned(request)
        if other is None or _is_measured(other) != _is_measured(plan):
            continue  # an estimate does not compare with a measured time
        if _seconds(other) < min(_seconds(best[1]), _WORTH * now.seconds):
            best = how, other
    how, other = best
    if not how and _is_measured(plan):
        return "this is the fastest of the measured candidates."
    if not how:
        return f"no faster choice is known{tune * measuring_helps(plan)}."
    times = now.seconds / max(_seconds(other), 1e-12)
    return f"{how}: {other.chosen.name}, {cost_of(other.chosen)}, {times:.3g}x as fast."


def measuring_helps(plan: Plan) -> bool:
    """Whether several candidates are ranked by estimates that this machine can replace by times."""
    from nbattn.planner import devices

    accepted = [candidate for candidate in plan.candidates if not candidate.reasons]
    is_here = devices.is_here(plan.request.device)
    return len(accepted) > 1 and not _is_measured(plan) and is_here


def _changes(request: Request) -> Iterator[tuple[str, Request]]:
    """What a user can change without changing the mask, and the request after it."""
    if request.backend != families.AUTO or request.require or request.forbid:
        free = replace(request, backend=families.AUTO, require=(), forbid=())
        auto = ['backend="auto"'] * (request.backend != families.AUTO)
        given = [f"{name}=" for name in ("require", "forbid") if getattr(request, name)]
        without = ["without " + " and ".join(given)] * bool(given)
        yield " ".join(auto + without), free
    if request.training and request.deterministic:
        switch = "torch.use_deterministic_algorithms(False)"
        yield switch, replace(request, deterministic=False)
    if request.layout != "contiguous":
        yield "contiguous query, key and value", replace(request, layout="contiguous")
    if request.dtype in ("float64", "float32"):
        is_old = request.device.kind == "cuda" and "bfloat16" not in dict(request.device.flops)
        half = "float16" if is_old else "bfloat16"
        lower = "float32" if request.dtype == "float64" else half
        yield f"dtype=torch.{lower}, which rounds more", replace(request, dtype=lower)
    for package in families.INSTALL:
        here = package in families.packages_on(request.device.kind)
        if here and package not in request.device.providers:
            providers = tuple(sorted((*request.device.providers, package)))
            device = replace(request.device, providers=providers)
            yield families.install(package, device.kind), replace(request, device=device)


def _planned(request: Request) -> Plan | None:
    """The plan of a changed request; None where no backend supports it."""
    from nbattn.planner import planner

    try:
        return planner.make(request)
    except NbattnError:
        return None


def _is_measured(plan: Plan) -> bool:
    return plan.chosen.cost is not None and plan.chosen.cost.measured is not None


def _seconds(plan: Plan) -> float:
    assert plan.chosen.cost is not None
    return plan.chosen.cost.seconds

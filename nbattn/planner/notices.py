"""Tells of plans that run: a line of the logger "nbattn" for each, and a warning, once a process,
where a package that is missing would make the tile loop much faster.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from nbattn.backends import families
from nbattn.errors import NbattnError
from nbattn.program.device import ASSUMED

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan
    from nbattn.program.candidate import Candidate

LOG = logging.getLogger("nbattn")
LOG.addHandler(logging.NullHandler())  # else Python prints warnings of a logger without a handler
TILE_LOOP = "tiled"
_WORTH = 1.05  # times as fast: a package that gives less is not advised
_GIVEN: set[str] = set()  # warnings that this process has given


def tell(plan: Plan) -> None:
    """Tells of the plan of a call that runs; the cache of plans calls this once per plan."""
    LOG.debug("%s: %s, for %r", plan.chosen.name, plan.chosen.cost, plan.request)
    if plan.chosen.runner == TILE_LOOP and plan.request.backend == families.AUTO:
        _tell_what_is_missing(plan)


def tell_of_another(plan: Plan, candidate: Candidate, why: str) -> None:
    """Logs, once per plan, that another of its candidates runs than the chosen one."""
    if candidate is plan.chosen or not LOG.isEnabledFor(logging.DEBUG):
        return
    key = f"{id(plan)} {candidate.name}"
    if key not in _GIVEN:
        _GIVEN.add(key)
        LOG.debug("%s instead of %s: %s", candidate.name, plan.chosen.name, why)


def warn_once(key: str, text: str, category: type[Warning]) -> None:
    """Gives a warning if this process has not given one with this key, for the line of the user's
    code that called nbattn or torch.
    """
    if key not in _GIVEN:
        _GIVEN.add(key)  # first, so that it is given once even if warnings are errors
        warnings.warn(text, category, stacklevel=_level_of_the_user())


def _level_of_the_user() -> int:
    level, frame = 1, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back and _package(frame.f_globals) in ("nbattn", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]


def _tell_what_is_missing(plan: Plan) -> None:
    device = plan.request.device
    missing = [name for name in ASSUMED.get(device.kind, ()) if name not in device.providers]
    key = f"tile loop on {device.kind}"
    if not missing or key in _GIVEN:
        return
    other = _with(plan, tuple(missing))
    if other is None or other.chosen.runner == TILE_LOOP:
        return
    assert plan.chosen.cost is not None
    assert other.chosen.cost is not None
    times = plan.chosen.cost.estimate / max(other.chosen.cost.estimate, 1e-12)
    if times < _WORTH:
        return
    text = (
        f"nbattn computes {plan.request.mask!r} by its loop over tiles in plain torch, because "
        f"{_NAMES[device.kind]} missing. {other.chosen.name} would be {times:.3g}x as fast, by "
        f"estimates: {'; '.join(families.install(name) for name in missing)}"
    )
    warn_once(key, text, UserWarning)


_NAMES = {"cuda": "CuPy and NVRTC are", "cpu": "a C++ compiler is"}


def _with(plan: Plan, packages: tuple[str, ...]) -> Plan | None:
    """Returns the plan of the same request on a device that also has these packages."""
    from nbattn.planner import planner

    device = plan.request.device
    device = replace(device, providers=tuple(sorted((*device.providers, *packages))))
    try:
        return planner.make(replace(plan.request, device=device))
    except NbattnError:
        return None

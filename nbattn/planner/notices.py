"""Tells of plans that run: a line of the logger "nbattn" for each, and a warning, once a process,
where a package that is missing would make a call much faster.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from nbattn.backends import families
from nbattn.errors import NbattnError

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan
    from nbattn.program.candidate import Candidate

LOG = logging.getLogger("nbattn")
LOG.addHandler(logging.NullHandler())  # else Python prints warnings of a logger without a handler
# What runs where the fastest kernels are missing.
_SLOWER = {"tiled": "its loop over tiles in plain torch", "triton": "its Triton kernels"}
_MISSING = {"cupy": "CuPy and NVRTC are", "triton": "Triton is", "c++": "a C++ compiler is"}
_WORTH = 1.05  # times as fast: a package that gives less is not advised
_GIVEN: set[str] = set()  # warnings that this process has given


def tell(plan: Plan) -> None:
    """Tells of the plan of a call that runs; the cache of plans calls this once per plan."""
    LOG.debug("%s: %s, for %r", plan.chosen.name, plan.chosen.cost, plan.request)
    if plan.chosen.runner in _SLOWER and plan.request.backend == families.AUTO:
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
    """Warns of the first package that is missing on the device and worth its installation."""
    device, runner = plan.request.device, plan.chosen.runner
    key = f"{runner} on {device.kind}"
    if key in _GIVEN:
        return
    for package in device.assumed:
        times, better = _gain(plan, package) if package not in device.providers else (0.0, "")
        if times >= _WORTH:
            text = (
                f"nbattn computes {plan.request.mask!r} by {_SLOWER[runner]}, because "
                f"{_MISSING[package]} missing. {better} would be {times:.3g}x as fast, by "
                f"estimates: {families.install(package, device.kind)}"
            )
            warn_once(key, text, UserWarning)
            return


def _gain(plan: Plan, package: str) -> tuple[float, str]:
    """Returns how many times as fast the same request is on a device that also has a package, by
    estimates, and what would run; 0 if the same kernels do.
    """
    from nbattn.planner import planner

    device = plan.request.device
    device = replace(device, providers=tuple(sorted((*device.providers, package))))
    try:
        other = planner.make(replace(plan.request, device=device))
    except NbattnError:
        return 0.0, ""
    if other.chosen.runner == plan.chosen.runner:
        return 0.0, ""
    assert plan.chosen.cost is not None
    assert other.chosen.cost is not None
    times = plan.chosen.cost.estimate / max(other.chosen.cost.estimate, 1e-12)
    return times, other.chosen.name

"""The cost of one call of the natten package."""

from __future__ import annotations

from nbattn import geometry
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.request import Request


def of(request: Request, axes: Axes) -> Cost:
    """The cost of the useful pairs: its tiles compute at least as many, but their number has no
    model.
    """
    useful = geometry.pairs(axes)
    return costs.one_call(request, useful, useful)

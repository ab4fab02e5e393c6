"""What one call of the natten package costs."""

from __future__ import annotations

from nbattn import geometry
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.request import Request


def of(request: Request, axes: Axes) -> Cost:
    """The useful pairs, which are at least what its tiles compute: their number has no model."""
    useful = geometry.pairs(axes)
    return costs.one_call(request, useful, useful)

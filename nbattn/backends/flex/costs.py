"""The cost of one call of FlexAttention."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.flex.meaning import FlexArguments
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.request import Request


def of(request: Request, arguments: FlexArguments) -> Cost:
    """The pairs of the blocks that are not empty."""
    useful = geometry.pairs(arguments.axes)
    return costs.one_call(request, useful, arguments.computed())

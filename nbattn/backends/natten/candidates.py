"""The natten package as a candidate: one call, where every axis is a neighborhood."""

from __future__ import annotations

import math

from nbattn import geometry
from nbattn.backends.natten import meaning
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.candidate import Candidate, refused
from nbattn.program.limits import Reason, over_grid, whole_axes
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """One call on the tensors as they are.

    It runs only by name: its cost is that of the useful pairs, which are at least what its tiles
    compute, and would beat every other estimate.
    """
    if request.backend not in ("auto", "natten"):
        return [refused("natten", "window")]
    reasons = meaning.reasons(request.needs) + whole_axes(axes)
    windows = meaning.windows(axes)
    if isinstance(windows, Reason) or reasons:
        reasons += [windows] if isinstance(windows, Reason) else []
        return [Candidate("natten", "window", (), None, None, tuple(reasons))]
    # its grids: tiles, heads and residue classes, samples
    classes = math.prod(axis.spec.dilation for axis in axes)
    if reason := over_grid(request.batch, request.heads * classes):
        return [refused("natten", "window", reason)]
    if request.backend == "auto":
        return [refused("natten", "window")]
    useful = geometry.pairs(axes)
    cost = costs.one_call(request, useful, useful)
    program = Program((Call(whole(request.query_space), whole(request.key_space), windows),))
    return [Candidate("natten", "window", (), program, cost)]

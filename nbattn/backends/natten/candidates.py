"""The natten package as a candidate: one call, if every axis is a neighborhood."""

from __future__ import annotations

import math

from nbattn.backends.natten import costs, meaning
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate, refused
from nbattn.program.limits import Reason, over_grid, whole_axes
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns one candidate: one call on whole tensors.

    It runs only if requested: its cost counts only the useful pairs, although its tiles compute
    more, and would be lower than every other estimate.
    """
    if request.backend not in ("auto", "natten"):
        return [refused("natten", "window")]
    reasons = meaning.reasons(request.needs) + whole_axes(axes)
    windows = meaning.windows(axes)
    if isinstance(windows, Reason) or reasons:
        reasons += [windows] if isinstance(windows, Reason) else []
        return [Candidate("natten", "window", (), None, None, tuple(reasons))]
    # the dimensions of its grids: tiles, heads times residue classes, samples
    classes = math.prod(axis.spec.dilation for axis in axes)
    if reason := over_grid(request.batch, request.heads * classes):
        return [refused("natten", "window", reason)]
    if request.backend == "auto":
        return [refused("natten", "window")]
    cost = costs.of(request, axes)
    program = Program((Call(whole(request.query_space), whole(request.key_space), windows),))
    return [Candidate("natten", "window", (), program, cost)]

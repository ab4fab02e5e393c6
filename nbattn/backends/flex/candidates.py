"""FlexAttention as a candidate: one call, whose blocks are counted only for backend="flex"."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.flex import costs, meaning
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate, refused
from nbattn.program.limits import Reason
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """Returns one candidate: one call on whole tensors."""
    if request.backend != "flex":
        return [refused("flex", "blocks")]
    reasons = meaning.reasons(request.needs)
    if request.device.kind == "cuda":
        reasons += filter(None, [meaning.over_grid(request.batch, request.heads)])
    if not request.query_count * request.key_count:
        reasons.append(Reason("mask", "does not support zero pairs of queries and keys"))
    elif geometry.has_empty_queries(axes):
        reasons.append(Reason("mask", "does not support queries without keys"))
    reasons += filter(None, [meaning.over_blocks(request.query_count, request.key_count)])
    if reasons:
        return [refused("flex", "blocks", *reasons)]
    call = meaning.FlexArguments(axes)
    cost = costs.of(request, call)
    program = Program((Call(whole(request.query_space), whole(request.key_space), call),))
    return [Candidate("flex", "blocks", (), program, cost)]

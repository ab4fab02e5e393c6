"""What dense attention costs: the reference, and programs of SDPA calls."""

from __future__ import annotations

from nbattn.backends.dense.meaning import DenseMask, NoMask, TopLeftCausal
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.program import Program
from nbattn.program.request import Request


def reference(request: Request, useful: int) -> Cost:
    """All pairs, and their scores written and read."""
    visited = request.query_count * request.key_count
    return costs.roofline(
        request,
        useful=useful,
        computed=visited,
        calls=12,
        rate=costs.sdpa_rate(request),
        copied=4.0 * visited * request.batch * request.heads,
    )


def sdpa(request: Request, program: Program, useful: int) -> Cost:
    """Pairs that the calls compute, and what views copy where they do not merge."""
    visited = 0
    for call in program.calls:
        assert isinstance(call.arguments, NoMask | TopLeftCausal | DenseMask)
        pairs = call.arguments.computed(call.query.count, call.key.count)
        visited += call.query.groups * pairs
    copies = any(costs.copies(request, call.query) for call in program.calls)
    return costs.roofline(
        request,
        useful=useful,
        computed=visited,
        calls=_launches(request, len(program.calls)) * (1 + bool(request.extra_keys)),
        copied=costs.tensor_bytes(request) * copies,
        rate=costs.sdpa_rate(request),
    )


def _launches(request: Request, calls: int) -> int:
    """Launches with the views around them: one call writes its output itself, several scatter."""
    single, each = (8, 25) if request.device.kind == "cpu" else (1, 6)
    return single if calls <= 1 else each * calls

"""The costs of dense attention: the reference, and programs of SDPA calls."""

from __future__ import annotations

from nbattn.backends.dense.meaning import DenseMask, NoMask, TopLeftCausal
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.program import Program
from nbattn.program.request import Request


def reference(request: Request, useful: int) -> Cost:
    """Returns the cost of all pairs, and of writing and reading their scores."""
    computed = request.query_count * request.key_count
    return costs.roofline(
        request,
        useful=useful,
        computed=computed,
        calls=12,
        rate=costs.sdpa_rate(request),
        copied=4.0 * computed * request.batch * request.heads,
    )


def sdpa(request: Request, program: Program, useful: int) -> Cost:
    """Returns the cost of the pairs that the calls compute, and of copies by views."""
    computed = 0
    for call in program.calls:
        assert isinstance(call.arguments, NoMask | TopLeftCausal | DenseMask)
        pairs = call.arguments.computed(call.query.count, call.key.count)
        computed += call.query.groups * pairs
    copies = any(costs.copies(request, call.query) for call in program.calls)
    return costs.roofline(
        request,
        useful=useful,
        computed=computed,
        calls=_launches(request, len(program.calls)) * (1 + bool(request.extra_keys)),
        copied=costs.tensor_bytes(request) * copies,
        rate=costs.sdpa_rate(request),
    )


def _launches(request: Request, calls: int) -> int:
    """Returns the launches including those of views: one call writes its output itself, the outputs
    of several calls are copied into place.
    """
    single, each = (8, 25) if request.device.kind == "cpu" else (1, 6)
    return single if calls <= 1 else each * calls

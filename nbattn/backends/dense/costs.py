"""The costs of dense attention: the reference, and programs of SDPA calls."""

from __future__ import annotations

from nbattn.backends.dense import kernels
from nbattn.backends.dense.kernels import Taken
from nbattn.backends.dense.meaning import DenseArguments, DenseMask, NoMask
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.program import Call, Program
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
    """Returns the cost of the pairs that the calls compute, of copies by views and of repeated
    heads, and of the scores that torch's math kernel keeps. On devices other than the CPU the
    backward repeats the forward.
    """
    computed, copied, seconds = 0, 0.0, 0.0
    repeats_forward = request.device.kind != "cpu"
    for call in program.calls:
        arguments = call.arguments
        assert isinstance(arguments, DenseArguments)
        pairs = call.query.groups * arguments.computed(call.query.count, call.key.count)
        computed += pairs
        if arguments.taken is not None:
            seconds += pairs / _rate(request, arguments.taken)
            copied += _kept(request, call, arguments, pairs)
    copies = any(costs.copies(request, call.query) for call in program.calls)
    return costs.roofline(
        request,
        useful=useful,
        computed=computed,
        calls=_launches(request, len(program.calls)) * (1 + bool(request.extra_keys)),
        copied=costs.tensor_bytes(request) * copies + copied,
        rate=computed / seconds if seconds else costs.sdpa_rate(request),
        backward_flops=costs.BACKWARD_FLOPS + repeats_forward,
    )


def _rate(request: Request, taken: Taken) -> float:
    """Returns the FLOP/s of a call, forward and backward."""
    device, dtype = request.device, request.dtype
    forward = kernels.rate(taken.forward, device, dtype)
    if not taken.backward:
        return forward
    share = 1 / (2 + costs.BACKWARD_FLOPS)  # the forward runs twice
    return 1 / (share / forward + (1 - share) / kernels.rate(taken.backward, device, dtype))


def _kept(request: Request, call: Call, arguments: DenseArguments, pairs: int) -> float:
    """Returns the bytes that a call writes and reads once in addition to its inputs and output.

    The math kernel writes and reads every score twice, and once more to add a mask. For the
    memory-efficient one torch pads a mask over a number of keys that is no multiple of 16, for each
    head (`preprocess_mask` in attention.cpp). Repeated key heads are written and read.
    """
    taken, copied = arguments.taken, 0.0
    assert taken is not None
    if "math" in (taken.forward, taken.backward):
        times = 2 if isinstance(arguments, NoMask) else 3
        scores = kernels.score_bytes(request.dtype, pairs * request.batch * request.heads)
        copied += times * scores
    if taken.forward == "efficient" and isinstance(arguments, DenseMask) and call.key.count % 16:
        copied += pairs * request.batch * request.heads * costs.ITEMSIZE[request.dtype]
    if taken.repeats:
        keys = request.batch * call.key.groups * call.key.count * request.heads
        dims = request.head_dim + request.value_dim
        copied += float(keys * dims * costs.ITEMSIZE[request.dtype])
    return copied


def _launches(request: Request, calls: int) -> int:
    """Returns the launches including those of views: one call writes its output itself, the outputs
    of several calls are copied into place.
    """
    single, each = (8, 25) if request.device.kind == "cpu" else (1, 6)
    return single if calls <= 1 else each * calls

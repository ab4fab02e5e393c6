"""What Flash programs cost: blocks that kernels visit, launches, and what is copied around them.

A call writes its rows into the output itself where its heads are whole and nothing joins; else its
output is copied there.
"""

from __future__ import annotations

from nbattn.dialects.bands import FULL
from nbattn.dialects.flash import Flash, Run
from nbattn.dialects.flash_providers import Provider, padded, tile
from nbattn.planner import costs
from nbattn.planner.costs import Cost
from nbattn.planner.programs import Call, Program, View
from nbattn.planner.request import Request

_JOIN = 6  # launches that merge two parts by logsumexp


def cost(request: Request, provider: Provider, program: Program, useful: int) -> Cost:
    """Pairs of the key blocks that the kernels visit, launches, and what views, heads and outputs
    copy.
    """
    calls = program.calls
    joins = sum(call.joins for call in calls) + bool(request.extra_keys)
    parts = [call for call in calls if joins or not _writes(request, call)]
    copied = sum(_bytes(request, call) for call in calls if _uneven(request, call))
    launches = 1
    if len(calls) != 1 or not calls[0].query.covers(request.query_space):
        copied += sum(_output_bytes(request, call.query) for call in parts)
        # the kernel and its logsumexp, the rows of parts, and zeros where no call writes
        launches = 2 * len(calls) + len(parts) + (not program.writes_all(request.query_space))
    # a kv-cache call is told its lengths by a tensor
    launches += sum(_flash(call).entry == "kvcache" for call in calls)
    return costs.roofline(
        request,
        useful=useful,
        visited=sum(_visited(request, provider, call) for call in calls),
        backward=sum(_visited(request, provider, call, backward=True) for call in calls)
        if request.training
        else None,
        calls=launches + _JOIN * joins + 3 * request.sink,
        copied=copied,
        rate=provider.rate(request.device, request.dtype),
    )


def copies(request: Request, call: Call) -> bool:
    """Whether a call copies its inputs: folds that are no views, and slices of several samples
    that a varlen call wants packed.
    """
    return bool(_flash(call).pad) or costs.copies(request, call.query) or not _packs(request, call)


def _flash(call: Call) -> Flash:
    assert isinstance(call.arguments, Flash)
    return call.arguments


def _packs(request: Request, call: Call) -> bool:
    """Whether the samples lie one behind the other where a varlen call needs that."""
    spaces = ((call.query, request.query_space), (call.key, request.key_space))
    return (
        _flash(call).entry != "varlen"
        or request.batch == 1
        or all(view.covers(space) for view, space in spaces)
    )


def _uneven(request: Request, call: Call) -> bool:
    """Whether a call copies its inputs and output: its views, or heads that kernels want padded."""
    size = max(request.head_dim, request.value_dim)
    return request.head_dim != request.value_dim or size != padded(size) or copies(request, call)


def _writes(request: Request, call: Call) -> bool:
    """Whether the kernel of a call can write its rows into the output."""
    return _flash(call).entry != "kvcache" and not _uneven(request, call)


def _bytes(request: Request, call: Call) -> float:
    """Bytes of q, k, v and the output of one call."""
    rows, keys = (view.groups * view.count for view in (call.query, call.key))
    positions = rows * request.heads + keys * request.kv_heads
    dims = request.head_dim + request.value_dim
    return float(request.batch * positions * dims * costs.ITEMSIZE[request.dtype])


def _output_bytes(request: Request, rows: View) -> float:
    """Bytes of the output of one call."""
    positions = request.batch * rows.groups * rows.count * request.heads
    return float(positions * request.value_dim * costs.ITEMSIZE[request.dtype])


def _visited(request: Request, provider: Provider, call: Call, *, backward: bool = False) -> int:
    """Pairs of the blocks of one call, per (batch, head)."""
    told = _flash(call)
    size = max(request.head_dim, request.value_dim)
    shape = tile(provider.name, request.device, size, backward=backward)
    runs = told.runs or (Run(call.query.count, told.read(call.key.count)),)
    visited = (
        run.times * _blocks(told, shape, run, backward=backward)
        for run in runs
        if run.queries and run.keys
    )
    return call.query.groups * sum(visited)


def _blocks(told: Flash, shape: tuple[int, int], run: Run, *, backward: bool) -> int:
    """Pairs of the blocks of one sequence."""
    if told.band(run.queries, run.keys) == FULL:
        return run.queries * run.keys
    blocks = told.query_blocks if backward else told.key_blocks
    first, end = blocks(shape, run.queries, run.keys)
    return int((end - first).sum()) * min(shape[0], run.queries) * shape[1]

"""The costs of Flash programs: the blocks that kernels compute, the launches, and the copied bytes.

A call writes its rows into the program's output itself if its heads need no padding and no parts
are merged; otherwise its output is copied there.
"""

from __future__ import annotations

from nbattn.backends.flash.meaning import FlashArguments, Sequences
from nbattn.backends.flash.providers import Provider, padded, tile
from nbattn.grids import PackedGrids
from nbattn.program import costs
from nbattn.program.bands import FULL
from nbattn.program.costs import Cost
from nbattn.program.packed import buckets
from nbattn.program.program import Call, Program, View
from nbattn.program.request import Request

_JOIN = 6  # launches to merge two parts by logsumexp
_RANGES = 18  # launches to compute the boundaries of sequences from key_range


def cost(request: Request, provider: Provider, program: Program, useful: int) -> Cost:
    """The cost of a program: the pairs of the blocks that its kernels visit, its launches, and the
    bytes copied for views, padded heads and outputs.
    """
    calls = program.calls
    joins = sum(call.joins for call in calls) + bool(request.extra_keys)
    single = len(calls) == 1 and calls[0].query.covers(request.query_space)
    copied, launches, whole_heads = 0.0, 1 if single else 2 * len(calls), _whole_heads(request)
    for call in calls:
        cached = _flash(call).entry == "kvcache"
        in_place = whole_heads and not copies(request, call)
        copied += 0 if in_place else _bytes(request, call)
        launches += cached  # fills the tensor of the cache lengths
        launches += _RANGES * _flash(call).ranged
        if not single and (joins or cached or not in_place):
            copied += _output_bytes(request, call.query)
            launches += 1
    if not single:
        launches += not program.writes_all(request.query_space)  # zeros for the other rows
    visited = sum(_visited(request, provider, call) for call in calls)
    visited_backward = (_visited(request, provider, call, backward=True) for call in calls)
    return costs.roofline(
        request,
        useful=useful,
        computed=visited,
        backward=sum(visited_backward) if request.training else None,
        calls=launches + _JOIN * joins + 3 * request.sink,
        copied=copied,
        rate=provider.rate(request.device, request.dtype),
    )


def copies(request: Request, call: Call) -> bool:
    """Whether a call copies its inputs: for padded keys, for folds that are not views, and for
    slices of several samples, which a varlen call needs packed.
    """
    return bool(_flash(call).pad) or costs.copies(request, call.query) or not _packs(request, call)


def _flash(call: Call) -> FlashArguments:
    assert isinstance(call.arguments, FlashArguments)
    return call.arguments


def _packs(request: Request, call: Call) -> bool:
    """Whether the samples are adjacent in memory, or the call needs no such packing."""
    spaces = ((call.query, request.query_space), (call.key, request.key_space))
    return (
        _flash(call).entry != "varlen"
        or request.batch == 1
        or all(view.covers(space) for view, space in spaces)
    )


def _whole_heads(request: Request) -> bool:
    """Whether kernels take the heads without padding: one aligned size for queries and values."""
    size = request.head_dim
    return size == request.value_dim and size == padded(size)


def _bytes(request: Request, call: Call) -> float:
    """Bytes of q, k, v and output of one call."""
    rows, keys = (view.groups * view.count for view in (call.query, call.key))
    positions = rows * request.heads + keys * request.kv_heads
    dims = request.head_dim + request.value_dim
    return float(request.batch * positions * dims * costs.ITEMSIZE[request.dtype])


def _output_bytes(request: Request, rows: View) -> float:
    """Bytes of the output of one call."""
    positions = request.batch * rows.groups * rows.count * request.heads
    return float(positions * request.value_dim * costs.ITEMSIZE[request.dtype])


def _visited(request: Request, provider: Provider, call: Call, *, backward: bool = False) -> int:
    """Pairs of all blocks that one call visits, per (batch, head)."""
    arguments = _flash(call)
    size = max(request.head_dim, request.value_dim)
    shape = tile(provider.name, request.device, size, backward=backward)
    if arguments.grids is not None:
        return _visited_of_grids(arguments, arguments.grids, shape, backward=backward)
    runs = arguments.runs or (Sequences(call.query.count, arguments.read(call.key.count)),)
    visited = (
        run.times * _blocks(arguments, shape, run, backward=backward)
        for run in runs
        if run.queries and run.keys
    )
    return call.query.groups * sum(visited)


def _visited_of_grids(
    arguments: FlashArguments, packed: PackedGrids, shape: tuple[int, int], *, backward: bool
) -> int:
    """Pairs of the blocks of packed grids, by the sizes that stand for many."""
    total = 0.0
    for bucket in buckets(packed):
        sides = (packed.sizes.query, packed.sizes.key)
        run = Sequences(*(int(side[bucket.number, 0]) for side in sides))
        if run.keys:
            blocks = _blocks(arguments, shape, run, backward=backward)
            total += bucket.grids * bucket.scale * blocks
    return round(total)


def _blocks(
    arguments: FlashArguments, shape: tuple[int, int], run: Sequences, *, backward: bool
) -> int:
    """Pairs of all blocks that a call visits in one sequence."""
    if arguments.band(run.queries, run.keys) == FULL:
        return run.queries * run.keys
    blocks = arguments.query_blocks if backward else arguments.key_blocks
    first, end = blocks(shape, run.queries, run.keys)
    return int((end - first).sum()) * min(shape[0], run.queries) * shape[1]

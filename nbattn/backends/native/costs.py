"""What the native kernels cost: the cycles of one core for columns, copies and tiles, and the
seconds that follow.

A column of a tile costs one vector product per channel of its scores, and one exponential; all
lanes of the tile share it. Sums cost a product per channel, but not for quarters of the lanes that
do not attend. Copying columns costs by element, a tile its loads, stores and transposes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from nbattn import biases
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.request import Request

LANES = 16  # rows of a tile
KERNELS = ("forward", "grad_query", "grad_key", "grad_all")

# The coefficients, of a core that begins one vector product of 16 floats per cycle: fitted to the
# 322 tiles and groups of `benchmarks/results/native-tiles-2026-11-29-fp32.json`, float32, with a
# relative error of 5 % (root mean square).
CLOCK = 3.6e9  # cycles per second
PRODUCT = 1.13  # cycles per column and channel, with the loads of the column
SCORE = 8.0  # cycles per column: the mask, the exponential, the running maximum
SUM = 1.2  # cycles per element of copied columns that have sums: zeros, and an addition to memory
COPY = {"float16": 0.75, "bfloat16": 0.75, "float32": 0.52, "float64": 1.2}  # cycles per element
TILE = 1500.0  # cycles per tile
CHANNEL = 1.21  # cycles per tile and channel of its rows: loads, stores, transposes
MEMORY = 0.28  # cycles per byte of the tensors that are not in the cache
CACHE = 2 << 20  # bytes of the cache: fitted, too
# Cycles per column of what is added to scores, and of sums for a table's gradient; per lane and
# entry of a table, which is laid out once for each head. Not fitted: from a few times with and
# without.
ADDED = {"relative_bias": 2.0, "alibi_slopes": 5.0}
TABLE_SUM, TABLE = 3.0, 0.4
WIDE = {"float64": 2.0}  # of 16 rows there are two vectors of such elements
ITEM = 0.33e-6  # seconds per item: a thread takes it, and finds its columns
CALL = 8e-6  # seconds per kernel, not fitted: arguments, Python, threads that start and end


class Work(NamedTuple):
    """The work of one kernel per sample and key head.

    Args:
        columns: columns of all tiles, those of every query head counted.
        summed: the same, each counted by the share of the lanes in quarters that attend to its
            line of columns.
        extra: the same for extra keys.
        tiles: tiles that have rows.
        copied: columns that are copied for groups of tiles.
        items: groups, each the work of one thread.
    """

    columns: float
    summed: float
    extra: float
    tiles: float
    copied: float
    items: float


def products(kernel: str, request: Request) -> tuple[int, int]:
    """Returns the vector products of one column: of its scores, and of the sums."""
    keys, values = request.head_dim, request.value_dim
    sums = {
        "forward": values,
        "grad_query": keys,
        "grad_key": keys + values,
        "grad_all": 2 * keys + values,
    }
    return keys + (values if kernel != "forward" else 0), sums[kernel]


def seconds(kernel: str, request: Request, work: Work) -> float:
    """Returns the seconds that one core needs for a kernel."""
    channels, vectors = request.head_dim + request.value_dim, WIDE.get(request.dtype, 1.0)
    rows = channels * (1 if kernel == "forward" else 2)  # gradients are read and written, too
    scores, sums = products(kernel, request)
    cycles = (
        (work.columns + work.extra) * vectors * (PRODUCT * scores + SCORE)
        + work.columns * vectors * added(kernel, request)
        + (work.summed + work.extra) * vectors * PRODUCT * sums
        + work.copied * channels * (COPY[request.dtype] + SUM * (kernel == "grad_all"))
        + work.tiles * (TILE + CHANNEL * rows * vectors)
    )
    heads = request.batch * request.kv_heads
    memory = max(0.0, moved(kernel, request, work) - CACHE) * MEMORY
    cycles, seconds = heads * cycles + memory + laid_out(request), heads * work.items * ITEM + CALL
    return cycles / CLOCK + seconds


def added(kernel: str, request: Request) -> float:
    """Returns the cycles per column of what is added to its scores."""
    cycles = sum(each for name, each in ADDED.items() if getattr(request, name))
    summed = request.relative_bias and kernel in ("grad_query", "grad_all")
    return cycles + TABLE_SUM * summed


def laid_out(request: Request) -> float:
    """Returns the cycles to lay out the table of every head, and to add up its sums."""
    if not request.relative_bias:
        return 0.0
    return TABLE * LANES * request.heads * math.prod(biases.table_sizes(request.mask.axes))


def moved(kernel: str, request: Request, work: Work) -> float:
    """Returns the bytes of the rows and of the columns that a kernel reads or writes."""
    queries, keys = request.query_count * request.heads_per_key_head, request.key_count
    rows, columns = (keys, queries) if kernel == "grad_key" else (queries, keys)
    channels = (request.head_dim + request.value_dim) * costs.ITEMSIZE[request.dtype]
    with_gradients = {"forward": (1, 1), "grad_all": (1.5, 3.5)}.get(kernel, (1.5, 1.5))
    positions = with_gradients[0] * rows + with_gradients[1] * min(columns, work.copied)
    return request.batch * request.kv_heads * positions * channels


def of(request: Request, useful: int, works: Mapping[str, Work]) -> Cost:
    """Returns the cost of the kernels that run. Pairs are those of all lanes; a pair of the
    backward counts as much as its products do.
    """
    per_head = LANES / request.heads_per_key_head
    pairs = {kernel: -(-work.columns * per_head // 1) for kernel, work in works.items()}
    channels = request.head_dim + request.value_dim
    others = sum(pairs[kernel] * sum(products(kernel, request)) for kernel in [*works][1:])
    cost = costs.roofline(
        request,
        useful=useful,
        computed=int(pairs["forward"]),
        calls=1,
        backward=round(others / channels / costs.BACKWARD_FLOPS),
        backward_calls=len(works) - 1,
    )
    total = sum(seconds(kernel, request, work) for kernel, work in works.items())
    return replace(cost, estimate=total / costs.cpu_speed(request))

"""The cost of tiles, and the choice of the cheapest tile.

The cost of a tile size is a sum over the tiles of the actual shape: matrix products at a rate that
depends on their extents, softmax and copies at theirs, and a fixed price per torch call. The rates
were fitted to the sweeps of `benchmarks/fit_tiles.py` on one core of an AMD EPYC (Zen 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.geometry import Axes, BoundAxis, TileTotals
from nbattn.program import costs
from nbattn.program.costs import Cost
from nbattn.program.request import Request
from nbattn.rows import operations

# Limits of one batch of tiles: larger temporaries cause page faults or leave the cache, smaller
# ones give a call too little work.
SCORE_BYTES = 2 << 20
WORK_BYTES = 3 << 20  # scores, keys and values
# The share of an accelerator's peak that batches of small products reach: assumed.
SMALL = 0.15
_ROWS_LIMIT = 512
_FEW = 16


def of(request: Request, arguments: TiledArguments, item: Item, useful: int) -> Cost:
    """Returns the cost of a tiled call: on CPUs by the fitted model, elsewhere by the roofline."""
    totals = arguments.totals()
    calls = 8 * max(1, int(batches(totals, item)))
    is_cpu = request.device.kind == "cpu"
    rate = None if is_cpu else SMALL * request.device.peak(request.dtype)
    roofline = costs.roofline(request, useful=useful, computed=totals.pairs, calls=calls, rate=rate)
    if not is_cpu:
        return roofline
    seconds = float(cost(totals, item)) * (1 + costs.BACKWARD_FLOPS * request.training)
    return replace(roofline, estimate=seconds / costs.cpu_speed(request))


class Item(NamedTuple):
    """A problem for the engine: how many (sample, key head) pairs, the sizes of one pair, and how
    many things are added to scores by position.
    """

    items: int
    group: int
    head_dim: int
    value_dim: int
    extra_keys: int
    added: int = 0


def choose_tile(axes: Axes, item: Item) -> tuple[int, ...]:
    """Returns the tile with the lowest cost among all combinations of a few sizes per axis."""
    if math.prod(axis.queries for axis in axes) <= _FEW:  # a decode step: one tile, no search
        return tuple(_longest_class(axis) for axis in axes)
    sizes = [_sizes(axis) for axis in axes]
    totals = [
        [axis.tile_totals(size) for size in choices]
        for axis, choices in zip(axes, sizes, strict=True)
    ]
    fields = range(len(TileTotals._fields))
    grids = [_outer([[total[field] for total in sums] for sums in totals]) for field in fields]
    rows = _outer(sizes) * item.group
    seconds = np.where(rows > max(_ROWS_LIMIT, rows.min()), np.inf, cost(grids, item))
    best = np.unravel_index(int(np.argmin(seconds)), seconds.shape)
    return tuple(choices[index] for choices, index in zip(sizes, best, strict=True))


def cost(totals: Sequence[Any], item: Item) -> Any:
    """Returns the seconds that one core needs for the forward pass of a problem.

    `totals` are the fields of `TileTotals`, or arrays of them.
    """
    _, all_rows, keys, pairs = (1.0 * total for total in totals)
    rows, width = _typical_tile(totals, item)
    scores = pairs * item.group + all_rows * item.group * item.extra_keys
    dims = item.head_dim + item.value_dim
    flops = 2 * item.items * scores * dims
    rate = 100e9 * rows / (rows + 6) * width / (width + 40) * dims / (dims + 20)
    softmax = item.items * scores / 1.2e9
    added = item.items * pairs * item.group * item.added / 3e9
    copies = item.items * (keys + 2 * all_rows * item.group) * dims * 4 / 8e9
    return flops / rate + softmax + added + copies + batches(totals, item) * 22e-6


def batches(totals: Sequence[Any], item: Item) -> Any:
    """Returns the number of batches that the engine runs: a batch is one tile of all heads or
    neighbouring tiles of a few heads, with scores that stay in the cache.
    """
    ops, (rows, width) = operations(totals[0]), _typical_tile(totals, item)
    tiles, items = ops.maximum(1.0 * totals[0], 1), max(item.items, 1)
    fit = SCORE_BYTES / (4 * rows * width)
    most = ops.maximum(items, ops.minimum(fit / 2, 8 * items))
    return -(-tiles * item.items / ops.minimum(ops.maximum(fit, 1), most) // 1)


def _typical_tile(totals: Sequence[Any], item: Item) -> tuple[Any, Any]:
    """Returns the rows and columns of the average tile."""
    ops = operations(totals[0])
    count, all_rows, keys, _ = (1.0 * total for total in totals)
    tiles = ops.maximum(count, 1)
    rows = ops.maximum(all_rows / tiles * item.group, 1)
    return rows, ops.maximum(keys / tiles + item.extra_keys, 1)


def _outer(choices: list[list[int]]) -> NDArray[np.float64]:
    """Returns the products of all combinations of one choice per axis."""
    return np.asarray(math.prod(np.ix_(*(np.array(axis, dtype=np.float64) for axis in choices))))


def _longest_class(axis: BoundAxis) -> int:
    return max((group.queries for group in axis.classes()), default=1)


def _sizes(axis: BoundAxis) -> list[int]:
    """Returns the tile sizes to compare on one axis: even divisions of its longest class, so that
    no small rest remains, and common sizes.
    """
    longest = _longest_class(axis)
    parts = (
        (1, 2)
        if longest <= 16
        else (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
    )
    sizes = {-(-longest // part) for part in parts}
    if longest > 64:
        sizes |= {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    return sorted(size for size in sizes if size <= max(_ROWS_LIMIT, min(sizes)))

"""The CPU engine's dialect: any mask, as tiles of queries against the hull of their keys; and which
tile is cheapest.

The cost of a tile size is a sum over the tiles of the actual shape: matrix products at a rate that
depends on their extents, softmax and copies at theirs, and a fixed price per torch call. The rates
were fitted to the sweeps of `benchmarks/fit_tiles.py` on one core of an AMD EPYC (Zen 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.dialects.limits import Limits
from nbattn.geometry import AxisTile, BoundAxis, Ints, TileTotals

TILED = Limits(name="tiled")
# Of one batch of tiles: larger temporaries page-fault or leave the cache, smaller ones do not fill
# the calls.
SCORE_BYTES = 2 << 20
WORK_BYTES = 3 << 20  # scores, keys and values
_ROWS_LIMIT = 512
_FEW = 16


@dataclass(frozen=True, slots=True)
class Tiled:
    """The mask by tiles of `tile` queries per axis; every tile reads the hull of its keys and masks
    inside it.
    """

    lines: tuple[BoundAxis, ...]
    tile: tuple[int, ...]

    def rows(self, axis: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The rows as the tiles of one axis have them, read back from their columns."""
        d = self.lines[axis].axis.dilation
        starts, counts = (
            np.zeros((queries, 2), dtype=np.int64),
            np.full((queries, 2), -1, dtype=np.int64),
        )
        for tile in self.lines[axis].tiles(self.tile[axis]):
            columns = _key_positions(tile, d)
            low, lo, hi = (np.array(side) for side in (tile.low, tile.lo, tile.hi))
            first, end = np.stack([np.zeros_like(lo), lo], axis=1), np.stack([low, hi], axis=1)
            count = end - first
            start, last = columns[first], columns[np.maximum(end, 1) - 1]
            straight = (count == 0) | (last - start == d * (count - 1))
            rows = tile.queries[0] + d * np.arange(tile.queries[1])
            if (counts[rows] != -1).any():
                raise AssertionError("two tiles share queries")
            starts[rows], counts[rows] = start, np.where(straight, count, -1)
        return starts, counts, d

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """What the tiles compute, tile by tile; raises if two tiles share a query."""
        pairs = np.zeros((math.prod(queries), math.prod(keys)), dtype=np.bool_)
        seen = np.zeros(math.prod(queries), dtype=np.int64)
        for tiles in self.visits():
            row, column, inside = (
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.ones((1, 1), np.bool_),
            )
            for tile, line, nq, nk in zip(tiles, self.lines, queries, keys, strict=True):
                d = line.axis.dilation
                q = tile.queries[0] + d * np.arange(tile.queries[1])
                row = (row[:, None] * nq + q).reshape(-1)
                column = (column[:, None] * nk + _key_positions(tile, d)[:-1]).reshape(-1)
                inside = np.kron(inside, tile.allowed())
            seen[row] += 1
            pairs[row[:, None], column] = inside
        if (seen != 1).any():
            raise AssertionError(f"{int((seen != 1).sum())} queries are not in exactly one tile")
        return pairs

    def visits(self) -> Iterator[tuple[AxisTile, ...]]:
        """Every tile, as one `AxisTile` per axis."""
        return product(
            *(list(line.tiles(size)) for line, size in zip(self.lines, self.tile, strict=True))
        )

    def totals(self) -> TileTotals:
        """Sums over all tiles."""
        per_axis = [
            line.tile_totals(size) for line, size in zip(self.lines, self.tile, strict=True)
        ]
        return TileTotals(*(math.prod(sums) for sums in zip(*per_axis, strict=True)))

    def describe(self) -> str:
        """In words."""
        return f"tile {'x'.join(map(str, self.tile))}"


class Item(NamedTuple):
    """What one (batch, key head) of a problem looks like to the engine."""

    items: int
    group: int
    head_dim: int
    value_dim: int
    extra_keys: int


def choose_tile(lines: tuple[BoundAxis, ...], item: Item) -> tuple[int, ...]:
    """The tile with the lowest cost: a few sizes per axis, all combinations."""
    if math.prod(line.queries for line in lines) <= _FEW:  # a decode step: one tile, no search
        return tuple(_longest_class(line) for line in lines)
    sizes = [_sizes(line) for line in lines]
    totals = [
        [line.tile_totals(size) for size in choices]
        for line, choices in zip(lines, sizes, strict=True)
    ]
    fields = range(len(TileTotals._fields))
    grids = [_outer([[total[field] for total in axis] for axis in totals]) for field in fields]
    rows = _outer(sizes) * item.group
    seconds = np.where(rows > max(_ROWS_LIMIT, rows.min()), np.inf, cost(grids, item))
    best = np.unravel_index(int(np.argmin(seconds)), seconds.shape)
    return tuple(choices[index] for choices, index in zip(sizes, best, strict=True))


def cost(totals: Sequence[Any], item: Item) -> NDArray[np.float64]:
    """Seconds of one core for the forward pass of a problem.

    Totals are those of `TileTotals`, or arrays of them.
    """
    count, all_rows, keys, pairs = (np.asarray(total, dtype=np.float64) for total in totals)
    tiles = np.maximum(count, 1)
    rows = np.maximum(all_rows / tiles * item.group, 1)
    width = np.maximum(keys / tiles + item.extra_keys, 1)
    scores = pairs * item.group + all_rows * item.group * item.extra_keys
    dims = item.head_dim + item.value_dim
    flops = 2 * item.items * scores * dims
    rate = 100e9 * rows / (rows + 6) * width / (width + 40) * dims / (dims + 20)
    softmax = item.items * scores / 1.2e9
    copies = item.items * (keys + 2 * all_rows * item.group) * dims * 4 / 8e9
    return flops / rate + softmax + copies + batches(totals, item) * 22e-6


def batches(totals: Sequence[Any], item: Item) -> NDArray[np.float64]:
    """How many batches of tiles the engine runs: tiles of all heads, or neighbours of a few, whose
    scores stay in the cache.
    """
    count, all_rows, keys, _ = (np.asarray(total, dtype=np.float64) for total in totals)
    tiles, items = np.maximum(count, 1), max(item.items, 1)
    rows = np.maximum(all_rows / tiles * item.group, 1)
    width = np.maximum(keys / tiles + item.extra_keys, 1)
    fit = SCORE_BYTES / (4 * rows * width)
    batch = np.clip(fit, 1, np.maximum(items, np.minimum(fit / 2, 8 * items)))
    return np.ceil(tiles * item.items / batch)


def _outer(choices: list[list[int]]) -> NDArray[np.float64]:
    """Products of one choice per axis, for all of them."""
    return np.asarray(math.prod(np.ix_(*(np.array(axis, dtype=np.float64) for axis in choices))))


def _longest_class(line: BoundAxis) -> int:
    return max((group.queries for group in line.classes()), default=1)


def _sizes(line: BoundAxis) -> list[int]:
    """Tile sizes worth a look on one axis: even divisions of its longest class, so that no sliver
    remains.
    """
    longest = _longest_class(line)
    parts = (
        (1, 2)
        if longest <= 16
        else (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
    )
    sizes = {-(-longest // part) for part in parts}
    if longest > 64:
        sizes |= {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    return sorted(size for size in sizes if size <= max(_ROWS_LIMIT, min(sizes)))


def _key_positions(tile: AxisTile, dilation: int) -> Ints:
    """The key of every column, and one column more, so that an empty tile has one too."""
    runs = [start + dilation * np.arange(count) for start, count in tile.keys]
    return np.concatenate([*runs, np.zeros(1, dtype=np.int64)])

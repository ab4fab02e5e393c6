"""What the tiled engine computes: any mask, as tiles of queries against the hull of their keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, AxisTile, Ints, TileTotals
from nbattn.program.blocks import Block, range_of
from nbattn.program.limits import Limits
from nbattn.program.program import Call
from nbattn.program.request import Request

TILED = Limits(name="tiled", extra_range=True, relative_bias=True, alibi_slopes=True)


@dataclass(frozen=True, slots=True)
class TiledArguments:
    """The mask as tiles of `tile` queries per axis; every tile computes the scores of the hull of
    its keys and masks them. With `adds_by_step`, what is added to a score depends on the step
    from query to key.
    """

    axes: Axes
    tile: tuple[int, ...]
    adds_by_step: bool = False

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns the rows of one axis, computed from the columns of its tiles."""
        d = self.axes[number].spec.dilation
        starts, counts = (
            np.zeros((queries, 2), dtype=np.int64),
            np.full((queries, 2), -1, dtype=np.int64),
        )
        for tile in self.axes[number].tiles(self.tile[number]):
            columns = key_positions(tile, d)
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
        """Returns the mask that the tiles compute; raises if two tiles share a query."""
        pairs = np.zeros((math.prod(queries), math.prod(keys)), dtype=np.bool_)
        seen = np.zeros(math.prod(queries), dtype=np.int64)
        for tiles in self.visits():
            row, column, inside = (
                np.zeros(1, np.int64),
                np.zeros(1, np.int64),
                np.ones((1, 1), np.bool_),
            )
            for tile, axis, nq, nk in zip(tiles, self.axes, queries, keys, strict=True):
                d = axis.spec.dilation
                q = tile.queries[0] + d * np.arange(tile.queries[1])
                row = (row[:, None] * nq + q).reshape(-1)
                column = (column[:, None] * nk + key_positions(tile, d)[:-1]).reshape(-1)
                inside = np.kron(inside, tile.allowed())
            seen[row] += 1
            pairs[row[:, None], column] = inside
        if (seen != 1).any():
            raise AssertionError(f"{int((seen != 1).sum())} queries are not in exactly one tile")
        return pairs

    def visits(self) -> Iterator[tuple[AxisTile, ...]]:
        """Yields every tile, as one `AxisTile` per axis."""
        return product(
            *(list(axis.tiles(size)) for axis, size in zip(self.axes, self.tile, strict=True))
        )

    def totals(self) -> TileTotals:
        """Returns the sums over all tiles."""
        per_axis = [axis.tile_totals(size) for axis, size in zip(self.axes, self.tile, strict=True)]
        return TileTotals(*(math.prod(sums) for sums in zip(*per_axis, strict=True)))

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block per tile; the backward has the same blocks as the forward."""
        steps = [axis.spec.dilation for axis in self.axes]
        for tiles in self.visits():
            parts = list(zip(tiles, steps, strict=True))
            queries = tuple(range_of(tile.queries, step) for tile, step in parts)
            runs = [[range_of(run, step) for run in tile.keys] for tile, step in parts]
            yield Block(queries, tuple(product(*runs)), all(tile.is_full for tile in tiles))

    def describe(self) -> str:
        """Describes the arguments in words."""
        sizes = "x".join(map(str, self.tile))
        return "tiles of 1 query" if sizes == "1" else f"tiles of {sizes} queries"


def key_positions(tile: AxisTile, dilation: int) -> Ints:
    """Returns the key of every column, and one more column, so that an empty tile has one, too."""
    runs = [start + dilation * np.arange(count) for start, count in tile.keys]
    return np.concatenate([*runs, np.zeros(1, dtype=np.int64)])

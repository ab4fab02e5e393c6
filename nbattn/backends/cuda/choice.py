"""Chooses the tiles of a CUDA kernel: of all that fit the device, those that `pipes.py` finds to be
the fastest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nbattn import geometry
from nbattn.axis import Axis
from nbattn.backends.cuda import meaning, pipes
from nbattn.backends.cuda.pipes import Machine
from nbattn.backends.cuda.tiles import (
    RANK,
    TABLE,
    TRIVIAL,
    Build,
    Tiles,
    legal_tiles,
    padded,
    row_tiles,
)
from nbattn.geometry import Axes, BoundAxis
from nbattn.program.request import Request
from nbattn.program.tile_traversal import Traversal

_FULL = 64  # queries of a head that fill a tile
_FEWEST = 16  # rows of the smallest tile; larger ones have less than twice the problem's rows


class Pass(NamedTuple):
    """A kernel's tiles for a mask, with their numbers per head: visits, and tiles of rows; and the
    estimated time of its launches. Where query heads are packed, a head is that of a key.
    """

    tiles: Tiles
    tile_pairs: int
    row_tiles: int
    seconds: float = 0.0
    packed: int = 1

    @property
    def pairs(self) -> int:
        """Pairs of (query, key) that the kernel computes, per query head."""
        return -(-self.tile_pairs * self.tiles.area // self.packed)


def of_request(
    kernel: str, instructions: str, request: Request, axes: Axes, build: Build
) -> list[Pass]:
    """All tiles that fit a request's device, those with the shortest estimate first."""
    if kernel == TABLE:
        instructions = "simt"
    machine = pipes.machine(request.device, request.dtype, meaning.memory(request.needs))
    together = request.heads // request.kv_heads
    group = together if kernel == "dkdv" else 1
    packed = together if kernel == "fwd" and _packs(request, axes) else 1
    heads = request.batch * request.heads // group // packed
    return ranked(
        kernel, instructions, axes, build, machine, heads=heads, group=group, packed=packed
    )


def _packs(request: Request, axes: Axes) -> bool:
    """Whether query heads of a key head are rows of the same tile: where the queries of one head
    would leave rows empty, and the mask leaves an axis to heads.
    """
    return request.query_count < _FULL and len(axes) < RANK


def ranked(
    kernel: str,
    instructions: str,
    axes: Axes,
    build: Build,
    machine: Machine,
    *,
    heads: int,
    group: int = 1,
    packed: int = 1,
) -> list[Pass]:
    """All tiles that fit, those with the shortest estimate first, with their numbers of visits.

    Args:
        axes: the mask's axes.
        heads: heads of all samples together: of keys for their gradients, else of queries.
        group: query heads of each, for the gradients of keys.
        packed: query heads of each key head that are rows of the same tile; `heads` are of keys.
    """
    grid, inverse = packed_grid(axes, packed), kernel == "dkdv"
    lengths = [(axis.queries, axis.keys) for axis in grid]
    rows, columns = zip(*(pair[::-1] if inverse else pair for pair in lengths), strict=True)
    long, long_columns = (
        tuple(n for n, length in enumerate(side) if length > 1) for side in (rows, columns)
    )
    traversals = [Traversal(axis, inverse) for axis in grid]
    known: dict[tuple[int, int, int], int] = {}

    def tile_pairs(number: int, rows: int, columns: int) -> int:
        case = (number, rows, columns)
        if case not in known:
            traversal = traversals[number]
            trivial = traversal.axis is TRIVIAL
            known[case] = 1 if trivial else traversal.tile_pairs(rows, columns)
        return known[case]

    passes = [
        Pass(
            tiles,
            math.prod(map(tile_pairs, range(RANK), tiles.rows, tiles.columns)),
            math.prod(
                row_tiles(axis, rows, inverse=inverse)
                for axis, rows in zip(grid, tiles.rows, strict=True)
            ),
            packed=packed,
        )
        for tiles in _no_larger(
            legal_tiles(
                kernel, instructions, long, build, machine.memory - pipes.RESERVED, long_columns
            ),
            rows,
        )
    ]
    useful = geometry.pairs(axes)
    timed = [
        one._replace(seconds=_seconds(kernel, one, build, machine, useful, heads, group))
        for one in passes
    ]
    return sorted(timed, key=lambda one: one.seconds)


def _no_larger(legal: tuple[Tiles, ...], lengths: tuple[int, ...]) -> list[Tiles]:
    """The tiles with less than twice the problem's rows, on every axis if there are such."""
    few = max(_FEWEST + 1, 2 * math.prod(lengths))
    fewer = [tiles for tiles in legal if tiles.row_count < few]
    inside = [
        tiles
        for tiles in fewer
        if all(rows < 2 * length for rows, length in zip(tiles.rows, lengths, strict=True))
    ]
    return inside or fewer


def packed_grid(axes: Axes, packed: int) -> Axes:
    """The kernels' three axes; packed query heads are the first, which a mask may not need."""
    grid = padded(axes)
    if packed == 1:
        return grid
    assert grid[0] is TRIVIAL, "a mask of three axes leaves none to heads"
    return (BoundAxis(Axis(align="top-left"), packed, 1), *grid[1:])


def _seconds(
    kernel: str, one: Pass, build: Build, machine: Machine, useful: int, heads: int, group: int
) -> float:
    """The estimated time of a kernel's launches. Half of the pairs of a masked visit count as
    useful: so many visits are masked.
    """
    masked = min(1.0, 2 - 2 * useful / max(one.pairs, 1))
    return pipes.seconds(
        kernel,
        one.tiles,
        build,
        machine,
        blocks=one.row_tiles * heads,
        visits=one.tile_pairs * group / max(one.row_tiles, 1),
        masked=masked,
    )

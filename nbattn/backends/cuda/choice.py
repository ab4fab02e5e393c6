"""Chooses the tiles of a CUDA kernel: of all that fit the device, those that `pipes.py` or
`group_pipes.py` finds to be the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from nbattn import geometry
from nbattn.axis import Axis
from nbattn.backends.cuda import group_pipes, meaning, pipes
from nbattn.backends.cuda.group_limits import unmapped
from nbattn.backends.cuda.pipes import Machine
from nbattn.backends.cuda.tiles import TABLE, Build, Tiles, legal_tiles
from nbattn.geometry import Axes, BoundAxis
from nbattn.program.parts import Part, longest, parts_of
from nbattn.program.request import Request
from nbattn.program.tile_counts import RANK, TRIVIAL, padded, row_tiles, row_tiles_of
from nbattn.program.tile_traversal import Traversal

_FULL = 64  # queries of a head that fill a tile
_FEWEST = 16  # rows of the smallest tile; larger ones have less than twice the problem's rows


class Pass(NamedTuple):
    """A kernel's tiles for a mask, with their numbers per head: visits, and tiles of rows; and the
    estimated time of its launches. Where query heads are packed, a head is that of a key.
    """

    tiles: Tiles
    tile_pairs: float
    row_tiles: float
    seconds: float = 0.0
    packed: int = 1

    @property
    def pairs(self) -> int:
        """Pairs of (query, key) that the kernel computes, per query head."""
        return round(-(-self.tile_pairs * self.tiles.area // self.packed))


def of_request(
    kernel: str, instructions: str, request: Request, axes: Axes, build: Build
) -> list[Pass]:
    """All tiles that can run a request, those with the shortest estimate first."""
    found = fitting(kernel, instructions, request, axes, build)
    if instructions == "wgmma":
        return [one for one in found if not unmapped(kernel, one.tiles, request, axes)]
    return found


def fitting(
    kernel: str, instructions: str, request: Request, axes: Axes, build: Build
) -> list[Pass]:
    """All tiles that fit a request's device, those with the shortest estimate first."""
    if kernel == TABLE:
        instructions = "simt"
    machine = pipes.machine(request.device, request.dtype, meaning.memory(request.needs))
    together = request.heads // request.kv_heads
    group = together if kernel == "dkdv" else 1
    packs = kernel == "fwd" and instructions != "wgmma" and _packs(request, axes)
    packed = together if packs else 1
    heads = request.batch * request.heads // group // packed
    return ranked(
        kernel,
        instructions,
        longest(request, axes),
        build,
        machine,
        heads=heads,
        group=group,
        packed=packed,
        parts=parts_of(request, axes),
    )


def blocks(kernel: str, one: Pass, request: Request) -> int:
    """The blocks of a kernel's launch, exactly."""
    inverse, grids = kernel == "dkdv", request.grids
    extra = -(-request.extra_keys // one.tiles.row_count) if inverse else 0
    tiles = int(one.row_tiles) + extra
    if grids is not None:
        of_grids = row_tiles_of(request.mask, grids, one.tiles.rows, inverse=inverse)
        tiles = int(of_grids.sum()) + extra * len(grids)
    return tiles * request.batch * (request.kv_heads if inverse else request.heads) // one.packed


def _packs(request: Request, axes: Axes) -> bool:
    """Whether query heads of a key head are rows of the same tile: where the queries of one head
    would leave rows empty, and the mask leaves an axis to heads.
    """
    return request.grids is None and request.query_count < _FULL and len(axes) < RANK


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
    parts: Sequence[Part] = (),
) -> list[Pass]:
    """All tiles that fit, those with the shortest estimate first, with their numbers of visits.

    Args:
        axes: the mask's axes.
        heads: heads of all samples together: of keys for their gradients, else of queries.
        group: query heads of each, for the gradients of keys.
        packed: query heads of each key head that are rows of the same tile; `heads` are of keys.
        parts: the grids that are packed, of which `axes` are the longest; default: one of `axes`.
    """
    grid, inverse = packed_grid(axes, packed), kernel == "dkdv"
    lengths = [(axis.queries, axis.keys) for axis in grid]
    rows, columns = zip(*(pair[::-1] if inverse else pair for pair in lengths), strict=True)
    long, long_columns = (
        tuple(n for n, length in enumerate(side) if length > 1) for side in (rows, columns)
    )
    parts = parts or (Part(axes, 1),)
    grids = [(packed_grid(part.axes, packed), part.times) for part in parts]

    @cache
    def tile_pairs(axis: BoundAxis, rows: int, columns: int) -> int:
        return 1 if axis is TRIVIAL else Traversal(axis, inverse).tile_pairs(rows, columns)

    def visits(tiles: Tiles) -> float:
        counts = (math.prod(map(tile_pairs, axes, tiles.rows, tiles.columns)) for axes, _ in grids)
        return sum(count * times for count, (_, times) in zip(counts, grids, strict=True))

    def row_count(tiles: Tiles) -> float:
        return sum(
            times
            * math.prod(
                row_tiles(a, n, inverse=inverse) for a, n in zip(axes, tiles.rows, strict=True)
            )
            for axes, times in grids
        )

    passes = [
        Pass(tiles, visits(tiles), row_count(tiles), packed=packed)
        for tiles in _no_larger(
            legal_tiles(
                kernel, instructions, long, build, machine.memory - pipes.RESERVED, long_columns
            ),
            rows,
        )
    ]
    useful = sum(part.times * geometry.pairs(part.axes) for part in parts)
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
    if not fewer and legal:  # of warpgroups, whose least tiles have more rows
        least = min(tiles.row_count for tiles in legal)
        return [tiles for tiles in legal if tiles.row_count == least]
    return inside or fewer


def packed_grid(axes: Axes, packed: int) -> Axes:
    """The kernels' three axes; packed query heads are the first, which a mask may not need."""
    grid = padded(axes)
    if packed == 1:
        return grid
    assert grid[0] is TRIVIAL, "a mask of three axes leaves none to heads"
    return (BoundAxis(Axis(align="top-left"), packed, 1), *grid[1:])


def _seconds(
    kernel: str, one: Pass, build: Build, machine: Machine, useful: float, heads: int, group: int
) -> float:
    """The estimated time of a kernel's launches. Half of the pairs of a masked visit count as
    useful: so many visits are masked.
    """
    masked = min(1.0, 2 - 2 * useful / max(one.pairs, 1))
    model = group_pipes if one.tiles.warpgroups else pipes
    return model.seconds(
        kernel,
        one.tiles,
        build,
        machine,
        blocks=round(one.row_tiles * heads),
        visits=one.tile_pairs * group / max(one.row_tiles, 1),
        masked=masked,
    )

"""Chooses the tiles of a Triton kernel: of all that are legal for the device, those that `rates.py`
finds to be the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from nbattn import biases, geometry
from nbattn.axis import Axis
from nbattn.backends.triton import rates
from nbattn.backends.triton.tiles import EXTRA, TABLE, Build, Tiles, legal_tiles
from nbattn.geometry import Axes, BoundAxis
from nbattn.program.device import DeviceInfo
from nbattn.program.parts import Part, longest, parts_of
from nbattn.program.request import Request
from nbattn.program.tile_counts import TRIVIAL, padded, row_tiles, row_tiles_of
from nbattn.program.tile_traversal import Traversal

# Programs that fill a device, for the kernels whose programs share their work: never the number of
# this device's processors, so that results are the same on all; and elements of all their sums.
PROGRAMS, SHARED_ELEMENTS = 1024, 1 << 24
_FEWEST = 16  # rows of the smallest tile; larger ones have less than twice the problem's rows


class Pass(NamedTuple):
    """A kernel's tiles for a mask, with their numbers per head of the rows: visits, of which a
    group of query heads has as many each, and tiles of rows; and the estimated time of the launch.
    """

    tiles: Tiles
    tile_pairs: float
    row_tiles: float
    seconds: float = 0.0

    @property
    def pairs(self) -> int:
        """Pairs of (query, key) that the kernel computes, per query head."""
        return round(self.tile_pairs * self.tiles.area)


def shares(programs: int, most: int, elements: int) -> int:
    """How many programs share the work of one: enough to fill a device, as far as there is work,
    and memory for their sums.

    Args:
        programs: how many there are if none is shared.
        most: tiles of one of them.
        elements: of the sums of all.

    >>> shares(8, 1000, 1 << 12), shares(8, 5, 1 << 12), shares(4096, 1000, 1)
    (128, 5, 1)
    """
    room = SHARED_ELEMENTS // max(elements, 1)
    return max(1, min(-(-PROGRAMS // max(programs, 1)), most, room))


def of_request(kernel: str, request: Request, axes: Axes, build: Build) -> list[Pass]:
    """All legal tiles for a request, those with the shortest estimate first."""
    if kernel == EXTRA:
        return _of_extra_keys(request, build)
    group = request.heads_per_key_head if kernel == "dkdv" else 1
    return ranked(
        kernel,
        longest(request, axes),
        build,
        request.device,
        samples=request.batch,
        heads=request.heads // group,
        group=group,
        parts=parts_of(request, axes),
    )


def programs(kernel: str, one: Pass, request: Request) -> int:
    """The programs of a kernel's launch, exactly."""
    tiles, inverse = int(one.row_tiles), kernel == "dkdv"
    if request.grids is not None and kernel != EXTRA:
        of_grids = row_tiles_of(request.mask, request.grids, one.tiles.rows, inverse=inverse)
        tiles = int(of_grids.sum())
    if kernel == TABLE:
        entries = table_entries(request.mask.axes)
        return request.heads * shares(request.heads, tiles * request.batch, request.heads * entries)
    if kernel == EXTRA:
        return _extra_programs(one.tiles, request)[0]
    return tiles * request.batch * (request.kv_heads if inverse else request.heads)


def ranked(
    kernel: str,
    axes: Axes,
    build: Build,
    device: DeviceInfo,
    *,
    samples: int,
    heads: int,
    group: int = 1,
    parts: Sequence[Part] = (),
) -> list[Pass]:
    """All legal tiles, those with the shortest estimate first, with their numbers of visits.

    Args:
        axes: the mask's axes.
        samples: how many.
        heads: of each: of keys for their gradients, else of queries.
        group: query heads of each, for the gradients of keys.
        parts: the grids that are packed, of which `axes` are the longest; default: one of `axes`.
    """
    grid, inverse = padded(axes), kernel == "dkdv"
    lengths = [(axis.queries, axis.keys) for axis in grid]
    rows, columns = zip(*(pair[::-1] if inverse else pair for pair in lengths), strict=True)
    long, long_columns = (
        tuple(n for n, length in enumerate(side) if length > 1) for side in (rows, columns)
    )
    parts = parts or (Part(axes, 1),)
    grids = [(padded(part.axes), part.times) for part in parts]

    @cache
    def tile_pairs(axis: BoundAxis, rows: int, columns: int) -> int:
        if axis is TRIVIAL:
            return 1
        return Traversal(axis, inverse, uncut=True).tile_pairs(rows, columns)

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

    legal = legal_tiles(kernel, build, device, long, long_columns)
    passes = [Pass(tiles, visits(tiles), row_count(tiles)) for tiles in _no_larger(legal, rows)]
    useful = sum(part.times * geometry.pairs(part.axes) for part in parts)
    on = rates.machine(device, build.dtype)

    def timed(one: Pass) -> Pass:
        """With its time; half of the pairs of a masked visit count as useful."""
        launched = one.row_tiles * samples * heads
        if kernel == TABLE:
            entries = table_entries([axis.spec for axis in axes])
            launched = heads * shares(heads, round(one.row_tiles * samples), heads * entries)
        seconds = rates.seconds(
            kernel,
            one.tiles,
            build,
            on,
            programs=round(launched),
            visits=one.tile_pairs * group * samples * heads / max(launched, 1),
            masked=min(1.0, 2 - 2 * useful / max(one.pairs, 1)),
        )
        return one._replace(seconds=seconds)

    return sorted(map(timed, passes), key=lambda one: one.seconds)


def table_entries(axes: Sequence[Axis]) -> int:
    """The entries of a head's table of relative positions."""
    return math.prod(biases.table_sizes(axes))


def _of_extra_keys(request: Request, build: Build) -> list[Pass]:
    """The tiles of the kernel of the extra keys' gradients: rows are extra keys and columns all
    queries of a sample, one after another.
    """
    on = rates.machine(request.device, build.dtype)

    def timed(tiles: Tiles) -> Pass:
        launched, visits = _extra_programs(tiles, request)
        row_tiles = -(-request.extra_keys // tiles.row_count)
        seconds = rates.seconds(
            EXTRA, tiles, build, on, programs=launched, visits=visits, masked=0.0
        )
        columns = -(-request.query_count // tiles.column_count)
        return Pass(tiles, row_tiles * columns, row_tiles, seconds)

    legal = _no_larger(legal_tiles(EXTRA, build, request.device, ()), (1, 1, request.extra_keys))
    return sorted(map(timed, legal), key=lambda one: one.seconds)


def _extra_programs(tiles: Tiles, request: Request) -> tuple[int, float]:
    """The programs of the kernel of the extra keys' gradients, and the visits of each."""
    samples = request.batch if request.grids is None else len(request.grids)
    alone = -(-request.extra_keys // tiles.row_count) * request.kv_heads * samples
    elements = samples * request.extra_keys * request.kv_heads
    elements *= max(request.head_dim, request.value_dim)
    columns = -(-request.query_count // tiles.column_count)
    count = shares(alone, columns, elements)
    visits = request.batch * columns / max(samples, 1) / count * request.heads_per_key_head
    return alone * count, visits


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

"""The blocks that a program computes, forward and backward: what `plan.schedule()` lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from nbattn import geometry
from nbattn.dialects import flash_providers
from nbattn.dialects.cuda import Window
from nbattn.dialects.dense import Dense
from nbattn.dialects.flash import Flash
from nbattn.dialects.tiled import Tiled
from nbattn.planner.programs import Call, Program, View
from nbattn.planner.request import Request


@dataclass(frozen=True, slots=True)
class Visit:
    """One block that a kernel computes: ranges of queries and keys per axis, and whether every pair
    is read.

    Keys are products of one range per axis; where windows wrap or a prefix stands apart, there are
    several.
    """

    queries: tuple[range, ...]
    keys: tuple[tuple[range, ...], ...]
    full: bool


def of(request: Request, program: Program, *, backward: bool) -> Iterator[Visit]:
    """The blocks of a program, call by call."""
    for call in program.calls:
        if isinstance(call.arguments, Tiled):
            yield from _tile_visits(call.arguments)
        elif isinstance(call.arguments, Flash):
            yield from _flash_visits(request, call, call.arguments, backward=backward)
        elif isinstance(call.arguments, Window):
            yield from _walk_visits(call.arguments, backward=backward)
        else:
            full = isinstance(call.arguments, Dense)
            yield from _group_visits(call.query, call.key, full=full)


def _tile_visits(tiles: Tiled) -> Iterator[Visit]:
    steps = [line.axis.dilation for line in tiles.lines]
    for parts in tiles.visits():
        runs = [[_range(run, d) for run in tile.keys] for tile, d in zip(parts, steps, strict=True)]
        queries = tuple(_range(tile.queries, d) for tile, d in zip(parts, steps, strict=True))
        yield Visit(queries, tuple(product(*runs)), all(tile.is_full for tile in parts))


def _walk_visits(window: Window, *, backward: bool) -> Iterator[Visit]:
    """The tiles of rows and columns; positions that wrap are several boxes."""
    steps = [line.axis.dilation for line in window.lines]
    for queries, keys, full in window.visits(backward=backward):
        boxes = tuple(product(*map(_ranges, keys, steps)))
        for box in product(*map(_ranges, queries, steps)):
            yield Visit(box, boxes, full)


def _ranges(positions: geometry.Ints, step: int) -> list[range]:
    """Positions that lie a step apart, but for a seam where they wrap."""
    seams = np.flatnonzero(np.diff(positions) != step) + 1
    parts = np.split(positions, seams.tolist())
    return [range(int(part[0]), int(part[-1]) + 1, step) for part in parts]


def _range(run: geometry.Run, step: int) -> range:
    return range(run[0], run[0] + run[1] * step, step)


def _flash_visits(request: Request, call: Call, told: Flash, *, backward: bool) -> Iterator[Visit]:
    """The blocks of every sequence of a call."""
    lengths = (view.axes[told.axis].length for view in (call.query, call.key))
    for at, to in told.sequences(*lengths):
        views = call.query.cut(told.axis, at), call.key.cut(told.axis, to)
        if told.has_window:
            yield from _block_visits(request, *views, told, backward=backward)
        else:
            yield from _group_visits(*views, full=True)


def _block_visits(
    request: Request, query: View, key: View, told: Flash, *, backward: bool
) -> Iterator[Visit]:
    """The blocks of one sequence, for all groups, as the loop of its kernel walks them: the keys of
    every block of queries, or in the backward the queries of every block of keys.
    """
    rows, keys = query.count, key.count
    size = max(request.head_dim, request.value_dim)
    tile = flash_providers.tile(told.provider, request.device, size, backward=backward)
    lo, hi = told.band(rows, keys).rows(np.arange(rows), keys)
    blocks = told.query_blocks if backward else told.key_blocks
    for outer, (first, end) in enumerate(zip(*blocks(tile, rows, keys), strict=True)):
        for inner in range(int(first), int(end)):
            row, column = (inner, outer) if backward else (outer, inner)
            queries = slice(row * tile[0], min((row + 1) * tile[0], rows))
            columns = slice(column * tile[1], min((column + 1) * tile[1], keys))
            if columns.start >= keys:
                continue  # padded keys
            full = bool(
                (lo[queries] <= columns.start).all() and (hi[queries] >= columns.stop).all()
            )
            parts = query.cut(told.axis, queries), key.cut(told.axis, columns)
            yield from _group_visits(*parts, full=full)


def _group_visits(query: View, key: View, *, full: bool) -> Iterator[Visit]:
    """One visit per combination of groups."""
    for groups in product(*(range(axis.groups) for axis in query.axes)):
        spans = [
            tuple(
                _range((axis.start + axis.group_step * g, axis.length), axis.step)
                for axis, g in zip(view.axes, groups, strict=True)
            )
            for view in (query, key)
        ]
        yield Visit(spans[0], (spans[1],), full)

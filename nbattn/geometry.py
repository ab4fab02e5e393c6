"""Masks at given lengths, in integers: the keys of every query, the queries of every key, the keys
of tiles of queries, and how many pairs there are.

A mask axis at its lengths is a `BoundAxis`. Its queries and keys fall into residue classes of the
dilation; inside a class, query coordinate u attends to the key coordinates `[0, low)` and
`[lo, hi)`: one interval, or two where a window wraps or where a gap follows the prefix. Everything
here follows from the rule of one row, `rows.window_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import sub
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn import alignment, circles
from nbattn.axis import Axis
from nbattn.errors import MaskError, counted
from nbattn.fixes import masks as repairs
from nbattn.mask import Mask, Space, as_space
from nbattn.piecewise_sum import piecewise_sum
from nbattn.rows import Ints, Rows, bends, plain_window, readers_of, rows_of, window_of

Run = tuple[int, int]  # start and count; the step is the dilation

_DENSE_LIMIT = 1 << 28
_FEW = 64  # up to so many queries, visiting each is faster than the sum in closed form
_FEWEST = 4  # up to so many queries, ints are faster than arrays


class Held(NamedTuple):
    """Which part of an axis tensors hold: of `query_length` queries those from `first_query` on, of
    `key_length` keys those from `first_key` on.
    """

    first_query: int
    query_length: int
    first_key: int
    key_length: int


class Classes(NamedTuple):
    """Neighbouring residue classes with as many keys and queries each.

    Of these `size` classes, class c has the keys at `first + c + d * t` for t < keys, and queries
    of coordinates `[start, start + queries)`, the earliest of which is `origin + c`. Of the
    `length` keys that the class has on the axis, tensors hold `keys`, from coordinate `skip` on.
    """

    first: int
    size: int
    keys: int
    start: int
    queries: int
    origin: int
    length: int
    skip: int


@dataclass(frozen=True, slots=True)
class AxisTile:
    """Neighbouring queries of one class against the hull of their keys.

    `low`, `lo`, `hi` give every row's keys as column intervals `[0, low)` and `[lo, hi)` of the
    hull, whose columns are the keys of `keys`, run after run.
    """

    queries: Run
    keys: tuple[Run, ...]
    width: int
    low: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @property
    def pattern(self) -> tuple[object, ...]:
        """What two tiles share when one boolean matrix serves both."""
        return (self.width, self.low, self.lo, self.hi)

    @property
    def pairs(self) -> int:
        """Allowed pairs."""
        return sum(self.low) + sum(self.hi) - sum(self.lo)

    @property
    def is_full(self) -> bool:
        """Whether every row attends to every column."""
        return self.pairs == self.width * len(self.lo)

    def allowed(self) -> NDArray[np.bool_]:
        """The tile's own mask, bool `[rows, width]`."""
        column = np.arange(self.width)
        low, lo, hi = (np.array(side)[:, None] for side in (self.low, self.lo, self.hi))
        return (column < low) | ((column >= lo) & (column < hi))


class TileTotals(NamedTuple):
    """Sums over the tiles of one axis: tiles, their rows, their hull keys, and rows times keys."""

    tiles: int
    rows: int
    keys: int
    pairs: int


@dataclass(frozen=True, slots=True)
class BoundAxis:
    """One axis of a mask at its lengths.

    Args:
        spec: the axis of the mask.
        queries, keys: how many positions the tensors hold.
        held: which part of the axis that is; None is all of it. Queries and keys are counted from
            the first one that is held; which keys a query attends to depends on its position on the
            whole axis.

    >>> axis = bind(Mask.sliding_window(1), 4, None)[0]
    >>> axis.pairs(), axis.key_intervals(3), axis.query_intervals(0)
    (7, ((2, 2),), ((0, 2),))
    """

    spec: Axis
    queries: int
    keys: int
    held: Held | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Queries and keys of the whole axis."""
        held = self.held
        return (self.queries, self.keys) if held is None else (held.query_length, held.key_length)

    @property
    def first_key(self) -> int:
        """Position of the first key that is held."""
        return 0 if self.held is None else self.held.first_key

    @property
    def offset(self) -> int:
        """Position of the first query on the key axis."""
        queries, keys = self.lengths
        corner = keys - queries if self.spec.align == "bottom-right" else 0
        first = 0 if self.held is None else self.held.first_query
        return corner + self.spec.offset + first

    @property
    def is_placed(self) -> bool:
        """Whether queries have positions on the key axis; a full axis needs none."""
        queries, keys = self.lengths
        return self.spec.align is not None or queries == keys

    def classes(self) -> tuple[Classes, ...]:
        """The residue classes that have queries, alike ones together: at most six groups."""
        return _classes(self)

    def rows(self, u: Any, group: Classes) -> Rows:
        """The keys of the queries at class coordinates `u`, counted from the first one held."""
        raw = rows_of(self.spec, *window_of(self.spec, u, group.length), group.length)
        return raw if self.held is None else _held_rows(raw, group.skip, group.keys)

    def key_intervals(self, query: int) -> tuple[Run, ...]:
        """The keys of a query: at most two runs (start, count), the dilation apart, in order."""
        u, group = self.place(query + self.offset)
        low, lo, hi = self.rows(u, group)
        return _runs(((0, low), (lo, hi)), group.first, self.spec.dilation)

    def place(self, position: int) -> tuple[int, Classes]:
        """The class coordinate of a query's position, and its class."""
        d, first = self.spec.dilation, self.first_key
        u, residue = divmod(position, d)
        skip = max(0, _ceil_div(first - residue, d))
        keys = max(0, _ceil_div(first + self.keys - residue, d)) - skip
        length = max(0, _ceil_div(self.lengths[1] - residue, d))
        return u, Classes(residue + d * skip - first, 1, keys, u, 1, 0, length, skip)

    def query_intervals(self, key: int) -> tuple[Run, ...]:
        """The queries that attend to a key: at most two runs (start, count), in order."""
        d, o = self.spec.dilation, self.offset
        t, r = divmod(key + self.first_key, d)
        start, stop = _ceil_div(o - r, d), _ceil_div(o + self.queries - r, d)
        keys = _ceil_div(self.lengths[1] - r, d)
        since, until = readers_of(self.spec, t, keys)
        laps = (-keys, 0, keys) if self.spec.border == "wrap" else (0,)
        held = [(max(since + lap, start), min(until + lap, stop)) for lap in laps]
        return _runs(held, r - o, d)

    def pairs(self) -> int:
        """How many (query, key) pairs the axis allows, without visiting every row."""
        return int(_counts(self).sum()) if self.queries <= _FEW else self._sum(Rows.counts)

    def empty_queries(self) -> int:
        """How many queries of the axis have no key."""
        if self.queries <= _FEW:
            return self.queries - int(np.count_nonzero(_counts(self)))
        return self._sum(lambda rows: (rows.counts() == 0).astype(np.int64))

    def _sum(self, value: Callable[[Rows], Ints]) -> int:
        """Sum of a value of the rows that is piecewise linear in the row."""
        return sum(
            group.size
            * piecewise_sum(
                lambda u, group=group: value(self.rows(u, group)),
                group.start,
                group.start + group.queries,
                self.spec.stride,
                self._bends(group),
            )
            for group in self.classes()
        )

    def _bends(self, group: Classes) -> list[int]:
        """Class coordinates around which rows change their dependence on the row."""
        corners = {0, group.length}
        if self.held is not None:
            laps = (-group.length, 0, group.length)
            corners |= {group.skip + end + lap for end in (0, group.keys) for lap in laps}
        return bends(self.spec, corners)

    def query_rows(self, first: int, stop: int, step: int = 1) -> tuple[Ints, Rows]:
        """Of the queries `range(first, stop, step)`: the first held key of their class, and their
        rows.
        """
        d = self.spec.dilation
        u, residue = np.divmod(np.arange(first, stop, step, dtype=np.int64) + self.offset, d)
        length = np.maximum(0, -((residue - self.lengths[1]) // d))
        rows = rows_of(self.spec, *window_of(self.spec, u, length), length)
        if self.held is None:
            return residue, rows
        skip, end = (
            np.maximum(0, -((residue - position) // d))
            for position in (self.first_key, self.first_key + self.keys)
        )
        return residue + d * skip - self.first_key, _held_rows(rows, skip, end - skip)

    def windows(self, queries: Ints | None = None) -> tuple[Ints, Ints, Ints]:
        """Every query's window `[lo, hi)` in class coordinates before causality and borders act on
        it, and the number of keys in its class; or those of some queries.
        """
        each = np.arange(self.queries, dtype=np.int64) if queries is None else queries
        u, residue = np.divmod(each + self.offset, self.spec.dilation)
        keys = np.maximum(0, -((residue - self.keys) // self.spec.dilation))
        return *plain_window(self.spec, u, keys), keys

    def key_runs(self) -> tuple[Ints, Ints]:
        """Every query's keys at once: starts and counts `[queries, 2]` of runs the dilation apart,
        empty ones first.
        """
        first, (low, lo, hi) = self.query_rows(0, self.queries)
        starts = np.stack([first, first + self.spec.dilation * lo], axis=1)
        return starts, np.stack([low, hi - lo], axis=1)

    def dense(self) -> NDArray[np.bool_]:
        """The axis as a bool matrix `[queries, keys]`."""
        first, rows = self.query_rows(0, self.queries)
        low, lo, hi = (side[:, None] for side in rows)
        t, rest = np.divmod(np.arange(self.keys) - first[:, None], self.spec.dilation)
        return (rest == 0) & (((t >= 0) & (t < low)) | ((t >= lo) & (t < hi)))

    def coverage(self, query_tile: int, key_tile: int) -> Ints:
        """Allowed pairs in each `query_tile` x `key_tile` tile: 0 is empty, its area is full."""
        edges = np.minimum(np.arange(0, self.keys + key_tile, key_tile, dtype=np.int64), self.keys)
        parts: list[Ints] = []
        for query in range(0, self.queries, query_tile):
            first, rows = self.query_rows(query, min(query + query_tile, self.queries))
            t = -((first[:, None] - edges) // self.spec.dilation)
            low, lo, hi = (side[:, None] for side in rows)
            before = np.minimum(t, low) + np.clip(t, lo, hi)
            parts.append(np.diff(before, axis=1).sum(axis=0))
        return np.array(parts, dtype=np.int64).reshape(len(parts), max(0, len(edges) - 1))

    def _hull(self, group: Classes, first: Any, last: Any) -> Rows:
        """The hull of the keys of the queries from `first` to `last`."""
        lo, _, _ = window_of(self.spec, first, group.length)
        _, hi, prefix = window_of(self.spec, last, group.length)
        raw = rows_of(self.spec, lo, hi, prefix, group.length)
        return raw if self.held is None else _held_rows(raw, group.skip, group.keys)

    def tile_totals(self, size: int) -> TileTotals:
        """What tiles of `size` queries add up to on this axis, without visiting every tile."""
        period = self.spec.stride // math.gcd(self.spec.stride, size)
        totals = [0, 0, 0, 0]
        for group in self.classes():
            full = (group.queries - 1) // size  # the last tile is counted by itself

            def width(tile: Ints, group: Classes = group) -> Ints:
                first = group.start + size * tile
                return self._hull(group, first, first + size - 1).counts()

            at = [(u - group.start) // size for u in self._bends(group)] if full else []
            keys = piecewise_sum(width, 0, full, period, at) if full else 0
            last = group.start + group.queries - 1
            end = self._hull(group, group.start + full * size, last).counts()
            rows = group.queries - full * size
            of_group = (full + 1, group.queries, keys + end, size * keys + rows * end)
            totals = [total + group.size * n for total, n in zip(totals, of_group, strict=True)]
        return TileTotals(*totals)

    def tiles(self, size: int) -> Iterator[AxisTile]:
        """Every query of the axis once, in tiles of up to `size` queries of one class.

        A tile's columns are the keys of its hull: those of `[0, hull.low)`, then those of
        `[hull.lo, hull.hi)`. Between the two lies a gap without keys of the tile:

            keys       0   hull.low         hull.lo     hull.hi
                       ■■■■■■⬚⬚⬚⬚⬚⬚⬚⬚⬚⬚⬚■■■■■■■■■■■
            columns    0      hull.low                  width

        So a key after the gap is at the column `key - (hull.lo - hull.low)`.
        """
        d = self.spec.dilation
        for group in self.classes():
            spans, columns = self._tile_columns(group, size)
            for residue in range(group.size):
                for start, low, lo, hi in spans:
                    at = start - group.start
                    rows = min(size, group.queries - at)
                    yield AxisTile(
                        (group.origin + residue + d * at, rows),
                        _runs(((0, low), (lo, hi)), group.first + residue, d),
                        low + hi - lo,
                        *(tuple(side[at : at + rows]) for side in columns),
                    )

    def _tile_columns(
        self, group: Classes, size: int
    ) -> tuple[list[tuple[int, ...]], tuple[list[int], ...]]:
        """Of every tile of a class its first query and its hull, and of every query its columns
        low, lo and hi.
        """
        stop = group.start + group.queries
        if group.queries <= min(size, _FEWEST):  # one tile of a few rows: a step of decoding
            hull = self._hull(group, group.start, stop - 1)
            low, lo, hi = zip(*(self.rows(u, group) for u in range(group.start, stop)), strict=True)
            move = [hull.lo - hull.low if side >= hull.lo else 0 for side in lo]
            columns = low, map(sub, lo, move), map(sub, hi, move)
            return [(group.start, *map(int, hull))], tuple([*map(int, side)] for side in columns)
        first = np.arange(group.start, stop, size, dtype=np.int64)
        hull = self._hull(group, first, np.minimum(first + size, stop) - 1)
        low, lo, hi = self.rows(np.arange(group.start, stop, dtype=np.int64), group)
        gap_end, gap = (
            np.repeat(side, size)[: group.queries] for side in (hull.lo, hull.lo - hull.low)
        )
        move = np.where(lo >= gap_end, gap, 0)
        spans = list(zip(first.tolist(), *(side.tolist() for side in hull), strict=True))
        return spans, (low.tolist(), (lo - move).tolist(), (hi - move).tolist())


Axes = tuple[BoundAxis, ...]  # of a bound mask


def bind(
    mask: Mask,
    query_space: Space,
    key_space: Space | None = None,
    held: Sequence[Held | None] = (),
) -> Axes:
    """The mask's axes at their lengths.

    Args:
        query_space: how many queries the tensors hold, one number per axis; an int for one axis.
        key_space: how many keys; default: as the queries.
        held: which part of every axis that is; default: all of it.

    Raises:
        MaskError: another number of axes, or lengths that break a rule, with the axis and both.
    """
    queries = as_space(query_space, "query_space")
    keys = queries if key_space is None else as_space(key_space, "key_space")
    for name, space in (("queries", queries), ("keys", keys)):
        if len(space) != mask.rank:
            raise MaskError(
                f"the mask has {counted(mask.rank, 'axis', 'axes')}, "
                f"the space of the {name} {len(space)}: {space}.",
                repairs.other_space(mask.axes, name, queries, keys),
                repr(mask),
            )
    axes = tuple(map(BoundAxis, mask.axes, queries, keys, held or (None,) * mask.rank))
    lengths = tuple(zip(*(axis.lengths for axis in axes), strict=True))
    for number, axis in enumerate(axes):
        circles.check_lengths(mask, number, axis.spec, *axis.lengths)
        if alignment.is_missing(axis.spec, *axis.lengths):
            raise alignment.missing(mask, number, *lengths)
    return axes


def dense(mask: Mask, query_space: Space, key_space: Space | None = None) -> NDArray[np.bool_]:
    """The mask as a bool matrix `[Nq, Nk]`, row-major over the spaces."""
    axes = bind(mask, query_space, key_space)
    check_dense(*(math.prod(getattr(axis, side) for axis in axes) for side in ("queries", "keys")))
    matrix = np.ones((1, 1), dtype=np.bool_)
    for axis in axes:
        matrix = np.kron(matrix, axis.dense())
    return matrix


def check_dense(queries: int, keys: int) -> None:
    """Refuse a dense mask that would not fit in memory."""
    if queries * keys > _DENSE_LIMIT:
        raise MaskError(
            f"a dense mask of {queries} x {keys} pairs is over the limit of {_DENSE_LIMIT}.",
            f"nbattn.plan(mask, (1, {queries}, 1, 64), (1, {keys}, 1, 64)).verify(), or "
            f'mask.draw({queries}, {keys}); backend="auto" runs it.',
        )


@lru_cache(16)  # every candidate of a request asks
def _classes(axis: BoundAxis) -> tuple[Classes, ...]:
    """The residue classes of an axis."""
    d, o, first, length = axis.spec.dilation, axis.offset, axis.first_key, axis.lengths[1]
    inner = (o, o + axis.queries, length, first, first + axis.keys)
    ends = sorted({0, d, *(position % d for position in inner)}) if d > 1 else [0, 1]
    groups: list[Classes] = []
    for residue, end in pairwise(ends):
        start = _ceil_div(o - residue, d)
        queries = _ceil_div(o + axis.queries - residue, d) - start
        skip = max(0, _ceil_div(first - residue, d))
        keys = max(0, _ceil_div(first + axis.keys - residue, d)) - skip
        if queries > 0:
            groups.append(
                Classes(
                    residue + d * skip - first,
                    end - residue,
                    keys,
                    start,
                    queries,
                    residue + d * start - o,
                    max(0, _ceil_div(length - residue, d)),
                    skip,
                )
            )
    return tuple(groups)


@lru_cache(16)
def _counts(axis: BoundAxis) -> Ints:
    """Keys of every query of a short axis."""
    if axis.queries <= _FEWEST:
        rows = (axis.rows(*axis.place(u + axis.offset)) for u in range(axis.queries))
        return np.array([row.counts() for row in rows], dtype=np.int64)
    return axis.query_rows(0, axis.queries)[1].counts()


@lru_cache(16)  # every candidate of a request asks
def pairs(axes: Axes) -> int:
    """How many (query, key) pairs a bound mask allows."""
    return math.prod(axis.pairs() for axis in axes)


def has_empty_queries(axes: Axes) -> bool:
    """Whether any query of a bound mask has no key."""
    return any(axis.empty_queries() for axis in axes)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _runs(spans: Iterable[tuple[int, int]], origin: int, step: int) -> tuple[Run, ...]:
    """Intervals of class coordinates as runs of positions: no empty ones, touching ones joined."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[1] > span[0]):
        if runs and runs[-1][1] >= start:
            start = runs.pop()[0]
        runs.append((start, stop))
    return tuple((origin + step * start, stop - start) for start, stop in runs)


def _held_rows(rows: Rows, skip: Ints | int, keys: Ints | int) -> Rows:
    """Rows in the `keys` keys from coordinate `skip` on, counted from there."""
    low, lo, hi = (np.clip(side - skip, 0, keys) for side in rows)
    some = hi > lo
    return Rows(low, np.where(some, lo, low), np.where(some, hi, low))

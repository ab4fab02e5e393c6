"""All interval arithmetic of masks, on integers: which keys a query reads, which queries read a
key, and how many.

A mask axis bound to its lengths is a `BoundAxis`. Its queries and keys fall into residue classes of
the dilation; inside a class, query coordinate u reads the key coordinates `[0, low)` and
`[lo, hi)`: one interval, or two where a window wraps or a prefix stands apart. Everything here
follows from `window_of`, the rules of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn import alignment
from nbattn.axis import Axis
from nbattn.errors import MaskError, counted
from nbattn.mask import Mask, Space, as_space
from nbattn.piecewise_sum import piecewise_sum

Ints = NDArray[np.int64]
Run = tuple[int, int]  # start and count; the step is the dilation

_FAR = 1 << 60  # an unlimited side: beyond every length, far from overflow
_DENSE_LIMIT = 1 << 28
_FEW = 64  # queries that are sooner visited than summed in closed form


class Rows(NamedTuple):
    """The keys of query rows in class coordinates: `[0, low)` and `[lo, hi)`; low <= lo <= hi."""

    low: Ints
    lo: Ints
    hi: Ints

    def counts(self) -> Ints:
        """Keys per row."""
        return self.low + self.hi - self.lo


class Classes(NamedTuple):
    """Neighbouring residue classes with as many keys and queries each.

    Of these `size` classes, `first + c` has the keys `first + c + d * t` for t < keys and the
    queries of coordinates `[start, start + queries)`, the earliest of which is `origin + c`.
    """

    first: int
    size: int
    keys: int
    start: int
    queries: int
    origin: int


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
        """Whether every row reads every column."""
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

    >>> line = bind(Mask.sliding_window(1), 4, None)[0]
    >>> line.pairs(), line.key_intervals(3), line.query_intervals(0)
    (7, ((2, 2),), ((0, 2),))
    """

    spec: Axis
    queries: int
    keys: int

    @property
    def offset(self) -> int:
        """Position of query 0 on the key axis."""
        corner = self.keys - self.queries if self.spec.align == "bottom-right" else 0
        return corner + self.spec.offset

    @property
    def is_placed(self) -> bool:
        """Whether the mask says where queries stand; a full axis need not."""
        return self.spec.align is not None or self.queries == self.keys

    def classes(self) -> list[Classes]:
        """The residue classes that have queries, alike ones together: at most four groups."""
        d, o = self.spec.dilation, self.offset
        ends = sorted({0, o % d, (o + self.queries) % d, self.keys % d, d})
        groups: list[Classes] = []
        for first, end in pairwise(ends):
            start = _ceil_div(o - first, d)
            queries = _ceil_div(o + self.queries - first, d) - start
            keys = max(0, _ceil_div(self.keys - first, d))
            if queries > 0:
                groups.append(
                    Classes(first, end - first, keys, start, queries, first + d * start - o)
                )
        return groups

    def rows(self, u: Ints, keys: Ints | int) -> Rows:
        """What the queries at class coordinates `u` read, in classes of `keys` keys."""
        return _normal(self.spec, *window_of(self.spec, u, keys), keys)

    def key_intervals(self, query: int) -> tuple[Run, ...]:
        """The keys a query reads: at most two runs (start, count), the dilation apart, in order."""
        d = self.spec.dilation
        u, r = divmod(query + self.offset, d)
        low, lo, hi = (
            int(side[0]) for side in self.rows(np.array([u]), max(0, _ceil_div(self.keys - r, d)))
        )
        return _runs(((0, low), (lo, hi)), r, d)

    def query_intervals(self, key: int) -> tuple[Run, ...]:
        """The queries that read a key: at most two runs (start, count), in order."""
        d, o = self.spec.dilation, self.offset
        t, r = divmod(key, d)
        start, stop = _ceil_div(o - r, d), _ceil_div(o + self.queries - r, d)
        keys = _ceil_div(self.keys - r, d)
        since, until = (int(side[0]) for side in readers_of(self.spec, np.array([t]), keys))
        laps = (-keys, 0, keys) if self.spec.border == "wrap" else (0,)
        held = [(max(since + lap, start), min(until + lap, stop)) for lap in laps]
        return _runs(held, r - o, d)

    def pairs(self) -> int:
        """How many (query, key) pairs the axis allows, without visiting every row."""
        return int(_counts(self).sum()) if self.queries <= _FEW else self._sum(Rows.counts)

    def empty_queries(self) -> int:
        """How many queries of the axis read no key."""
        if self.queries <= _FEW:
            return self.queries - int(np.count_nonzero(_counts(self)))
        return self._sum(lambda rows: (rows.counts() == 0).astype(np.int64))

    def _sum(self, value: Callable[[Rows], Ints]) -> int:
        """Sum of a value of the rows that is piecewise linear in the row."""
        return sum(
            group.size
            * piecewise_sum(
                lambda u, keys=group.keys: value(self.rows(u, keys)),
                group.start,
                group.start + group.queries,
                self.spec.stride,
                bends(self.spec, (0, group.keys)),
            )
            for group in self.classes()
        )

    def _all_rows(self, first: int, stop: int) -> tuple[Ints, Rows]:
        """Residues and rows of the queries `first` to `stop`."""
        d = self.spec.dilation
        position = np.arange(first, stop, dtype=np.int64) + self.offset
        residue = position % d
        keys = np.maximum(0, -((residue - self.keys) // d))
        return residue, self.rows(position // d, keys)

    def windows(self) -> tuple[Ints, Ints, Ints]:
        """Every query's window `[lo, hi)` in class coordinates before causality and borders act on
        it, and the number of keys in its class.
        """
        u, residue = np.divmod(
            np.arange(self.queries, dtype=np.int64) + self.offset, self.spec.dilation
        )
        keys = np.maximum(0, -((residue - self.keys) // self.spec.dilation))
        return *_window(self.spec, u, keys), keys

    def key_runs(self) -> tuple[Ints, Ints]:
        """Every query's keys at once: starts and counts `[queries, 2]` of runs the dilation apart,
        empty ones first.
        """
        residue, (low, lo, hi) = self._all_rows(0, self.queries)
        starts = np.stack([residue, residue + self.spec.dilation * lo], axis=1)
        return starts, np.stack([low, hi - lo], axis=1)

    def dense(self) -> NDArray[np.bool_]:
        """The axis as a bool matrix `[queries, keys]`."""
        residue, rows = self._all_rows(0, self.queries)
        t, r = np.divmod(np.arange(self.keys, dtype=np.int64), self.spec.dilation)
        low, lo, hi = (side[:, None] for side in rows)
        return (r == residue[:, None]) & ((t < low) | ((t >= lo) & (t < hi)))

    def coverage(self, query_tile: int, key_tile: int) -> Ints:
        """Allowed pairs in each `query_tile` x `key_tile` tile: 0 is empty, its area is full."""
        edges = np.minimum(np.arange(0, self.keys + key_tile, key_tile, dtype=np.int64), self.keys)
        parts: list[Ints] = []
        for first in range(0, self.queries, query_tile):
            residue, rows = self._all_rows(first, min(first + query_tile, self.queries))
            t = -((residue[:, None] - edges) // self.spec.dilation)
            low, lo, hi = (side[:, None] for side in rows)
            before = np.minimum(t, low) + np.clip(t, lo, hi)
            parts.append(np.diff(before, axis=1).sum(axis=0))
        return np.array(parts, dtype=np.int64).reshape(len(parts), max(0, len(edges) - 1))

    def _hull(self, group: Classes, first: Ints, last: Ints) -> Rows:
        """The hull of the keys of the queries from `first` to `last`, class coordinates."""
        lo, _, _ = window_of(self.spec, first, group.keys)
        _, hi, prefix = window_of(self.spec, last, group.keys)
        return _normal(self.spec, lo, hi, prefix, group.keys)

    def tile_totals(self, size: int) -> TileTotals:
        """What tiles of `size` queries add up to on this axis, without visiting every tile."""
        period = self.spec.stride // math.gcd(self.spec.stride, size)
        totals = [0, 0, 0, 0]
        for group in self.classes():
            full = (group.queries - 1) // size  # the last tile is counted by itself

            def width(tile: Ints, group: Classes = group) -> Ints:
                first = group.start + size * tile
                return self._hull(group, first, first + size - 1).counts()

            corners = bends(self.spec, (0, group.keys)) if full else []
            at = [(u - group.start) // size for u in corners]
            keys = piecewise_sum(width, 0, full, period, at) if full else 0
            rest = np.array([group.start + full * size, group.start + group.queries - 1])
            end = int(self._hull(group, rest[:1], rest[1:]).counts()[0])
            rows = group.queries - full * size
            found = (full + 1, group.queries, keys + end, size * keys + rows * end)
            totals = [total + group.size * n for total, n in zip(totals, found, strict=True)]
        return TileTotals(*totals)

    def tiles(self, size: int) -> Iterator[AxisTile]:
        """Every query of the axis once, in tiles of up to `size` queries of one class with their
        key hulls.
        """
        d = self.spec.dilation
        for group in self.classes():
            stop = group.start + group.queries
            first = np.arange(group.start, stop, size, dtype=np.int64)
            hull = self._hull(group, first, np.minimum(first + size, stop) - 1)
            u = np.arange(group.start, stop, dtype=np.int64)
            shift = np.repeat(hull.lo - hull.low, size)[: group.queries]
            seam = np.repeat(hull.lo, size)[: group.queries]
            low, lo, hi = self.rows(u, group.keys)
            column = np.where(lo >= seam, shift, 0)
            lows, los, his = low.tolist(), (lo - column).tolist(), (hi - column).tolist()
            spans = list(zip(first.tolist(), *(side.tolist() for side in hull), strict=True))
            for residue in range(group.size):
                for start, a, b, c in spans:
                    m = start - group.start
                    rows = min(size, group.queries - m)
                    part = slice(m, m + rows)
                    yield AxisTile(
                        (group.origin + residue + d * m, rows),
                        _runs(((0, a), (b, c)), group.first + residue, d),
                        a + c - b,
                        tuple(lows[part]),
                        tuple(los[part]),
                        tuple(his[part]),
                    )


Axes = tuple[BoundAxis, ...]  # of a bound mask


def bind(mask: Mask, query_space: Space, key_space: Space | None = None) -> Axes:
    """The mask's axes at their lengths.

    Args:
        query_space: one length per axis; an int for one axis.
        key_space: default: as the queries.

    Raises:
        MaskError: another number of axes, or a rule that the lengths break, with the axis and both
            numbers.
    """
    queries = as_space(query_space, "query_space")
    keys = queries if key_space is None else as_space(key_space, "key_space")
    for name, space in (("queries", queries), ("keys", keys)):
        if len(space) != mask.rank:
            raise MaskError(
                f"the mask has {counted(mask.rank, 'axis', 'axes')}, "
                f"the space of the {name} {len(space)}: {space}.",
                "one length per axis of the mask"
                + (f", or a mask of {counted(len(space), 'axis', 'axes')}." if space else "."),
                repr(mask),
            )
    for number, (axis, nq, nk) in enumerate(zip(mask.axes, queries, keys, strict=True)):
        _check_lengths(mask, number, axis, nq, nk)
        if alignment.is_missing(axis, nq, nk):
            raise alignment.missing(mask, number, queries, keys)
    return tuple(map(BoundAxis, mask.axes, queries, keys))


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
            'backend="auto" runs it at any size; plan.verify() proves it, '
            "mask.draw() shows it by tiles.",
        )


@lru_cache(16)
def _counts(axis: BoundAxis) -> Ints:
    """Keys of every query of a short axis."""
    return axis._all_rows(0, axis.queries)[1].counts()  # pyright: ignore[reportPrivateUsage]


@lru_cache(16)  # every candidate of a request asks
def pairs(axes: Axes) -> int:
    """How many (query, key) pairs a bound mask allows."""
    return math.prod(axis.pairs() for axis in axes)


def has_empty_queries(axes: Axes) -> bool:
    """Whether any query of a bound mask reads no key."""
    return any(axis.empty_queries() for axis in axes)


def _check_lengths(mask: Mask, number: int, axis: Axis, queries: int, keys: int) -> None:
    """The rules that depend on the shape."""
    if axis.border != "wrap":
        return
    where = f"axis {number} ({queries} queries, {keys} keys)"
    if queries != keys:
        raise MaskError(
            f'{where}: border="wrap" needs as many queries as keys.',
            'border="clip" and an align allow different lengths, '
            f"or give axis {number} one length.",
            repr(mask),
        )
    period = axis.dilation * axis.stride
    if keys % period:
        raise MaskError(
            f'{where}: border="wrap" needs a length that dilation x stride = {period} divides, '
            f"but {keys} leaves {keys % period}.",
            f"pad axis {number} to {keys + period - keys % period}, or dilation=1, stride=1.",
            repr(mask),
        )


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


def _leader(axis: Axis) -> int:
    """Distance from the start of a stride group to its leader."""
    return axis.stride - 1 if axis.causal else axis.stride // 2


def _sides(axis: Axis) -> tuple[int, int]:
    left, right = axis.left, axis.right
    return (_FAR if left is None else left, _FAR if right is None else right)


def _window(axis: Axis, u: Ints, keys: Ints | int) -> tuple[Ints, Ints]:
    """The window `[lo, hi)` around the leader of u's stride group, wherever it lies."""
    left, right = _sides(axis)
    base = u // axis.stride * axis.stride
    leader = base + _leader(axis)
    leader = np.where(base < keys, np.minimum(leader, np.asarray(keys) - 1), leader)
    return leader - left, leader + right + 1


def window_of(axis: Axis, u: Ints, keys: Ints | int) -> tuple[Ints, Ints, Ints]:
    """The rules of one row: `(lo, hi, prefix)`, all of them non-decreasing in u (so that hulls are
    their ends).

    `lo >= hi` is an empty window; a wrapped one may lie past the ends by less than a lap.
    """
    lo, hi = _window(axis, u, keys)
    if axis.border == "clip":
        lo, hi = np.maximum(lo, 0), np.minimum(hi, keys)
    elif axis.border == "shift":
        window = hi - lo
        lo = np.clip(lo, 0, np.maximum(0, keys - window))
        hi = lo + np.minimum(keys, window)
    else:
        whole = hi - lo >= keys
        lo, hi = np.where(whole, 0, lo), np.where(whole, keys, hi)
    prefix = np.minimum(axis.prefix, keys)
    if axis.causal:
        hi = np.minimum(hi, u + 1)
        prefix = np.clip(u + 1, 0, prefix)
    return lo, hi, prefix + np.zeros_like(u)


def _normal(axis: Axis, lo: Ints, hi: Ints, prefix: Ints, keys: Ints | int) -> Rows:
    """Raw rows as the disjoint intervals `[0, low)` and `[lo, hi)`."""
    if axis.border == "wrap":
        start, length = lo % np.maximum(keys, 1), np.minimum(hi - lo, keys)
        low = np.maximum(start + length - keys, 0)
        return Rows(low, start, start + length - low)
    empty = hi <= lo
    apart = ~empty & (lo > prefix)
    return Rows(
        np.where(apart, prefix, 0),
        np.where(apart, lo, 0),
        np.where(empty, prefix, np.maximum(hi, prefix)),
    )


def readers_of(axis: Axis, t: Ints, keys: int) -> tuple[Ints, Ints]:
    """The query coordinates `[since, until)` that read the key coordinates t: the inverse of
    `window_of`, both ends non-decreasing in t but for a prefix.

    `since >= until` is nobody; a wrapped interval may lie past the ends by less than a lap.

    Windows start no earlier for later queries, so those that reach t are all from some query on,
    and those that have not passed it all up to some query. Checked against NATTEN's inverse in
    reference to stride and causal axes.
    """
    left, right = _sides(axis)
    s, c = axis.stride, _leader(axis)
    since = -((t - right - c) // -s) * s
    until = (t + left - c) // s * s + s
    if axis.border == "wrap":
        whole = left + right + 1 >= keys
        return (np.zeros_like(t), np.full_like(t, keys)) if whole else (since, until)
    # the last leaders stand on the last key
    until = np.where(t + left >= keys - 1, np.maximum(until, (keys - 1) // s * s + s), until)
    if axis.border == "shift":
        window = left + right + 1
        since = np.where(t < window, -_FAR, since)
        until = np.where(t >= keys - window, _FAR, until)
    if axis.causal:
        since = np.maximum(since, t)
    since = np.where(t < axis.prefix, t if axis.causal else -_FAR, since)
    return since, np.where(t < axis.prefix, _FAR, until)


def bends(axis: Axis, corners: Iterable[int]) -> list[int]:
    """Class coordinates around which intervals change their dependence on the row, given the ends
    of rows and columns.
    """
    left, right = _sides(axis)
    near = [side for side in (left, right, left + right) if side < _FAR]
    ends = {*corners, axis.prefix}
    return sorted({at + sign * side for at in ends for side in (0, *near) for sign in (1, -1)})

"""Lists, for every tile of rows, the tiles of columns that the project's kernels compute.

Rows are queries and columns keys or, for gradients of keys, the other way round. A tile of rows
lies in one class of the dilation. The tiles of columns are every run of their hull, each cut from
its own start; a wrapped hull is two runs where the axis ends inside it, or one that passes the end
(`uncut`). Of a part of an axis, rows and columns are those that tensors hold.
`cuda/tile_traversal.cuh` and `backends/triton/kernels/tile.py` are the same code on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, BoundAxis, Classes
from nbattn.piecewise_sum import piecewise_sum
from nbattn.rows import Ints, bends, readers_of, sides, window_of

Span = tuple[Ints, Ints]  # [lo, hi), empty where lo >= hi
Sizes = tuple[Sequence[int], Sequence[int]]  # of a tile's rows and columns
_CHUNK = 1 << 13  # rows whose columns are joined at once


class Hull(NamedTuple):
    """Columns of tiles of rows, in class coordinates: `runs` are the columns that some row of the
    tile attends to, `full` those that every row attends to.
    """

    runs: tuple[Span, Span]
    full: tuple[Span, Span]


class ColumnTile(NamedTuple):
    """Columns of one visit: their positions, whether none is masked, and the mask."""

    positions: Ints
    full: bool
    reads: NDArray[np.bool_]


class RowTile(NamedTuple):
    """Rows of one tile by position, and the columns they visit."""

    positions: Ints
    columns: tuple[ColumnTile, ...]


@dataclass(frozen=True, slots=True)
class Traversal:
    """One axis as kernels walk it.

    Args:
        axis: the axis.
        inverse: whether rows are keys.
        uncut: whether the hull on a circle is one run of coordinates before wrapping, from less
            than 0 to more than the keys, which may be over a lap. Such a kernel leaves out columns
            that tensors do not hold one by one.

    >>> from nbattn.geometry import bind
    >>> from nbattn.mask import Mask
    >>> line = bind(Mask.neighborhood(7), 64)[0]
    >>> Traversal(line).tile_pairs(8, 8), Traversal(line, inverse=True).tile_pairs(8, 8)
    (16, 16)
    """

    axis: BoundAxis
    inverse: bool = False
    uncut: bool = False

    @property
    def _passes_the_end(self) -> bool:
        """Whether hulls are not cut where a circle's axis ends."""
        return self.uncut and self.axis.spec.border == "wrap"

    def _keys(self, group: Classes) -> int:
        """The keys by which windows are computed. A window of just all keys of a circle starts at
        its own first key where hulls are not cut: what is added to scores depends on it.
        """
        size = sum(sides(self.axis.spec)) + 1
        return group.length + (self._passes_the_end and size == group.length)

    def _extent(self, group: Classes) -> tuple[int, int]:
        """The first row of a class and how many it has."""
        return (group.skip, group.keys) if self.inverse else (group.start, group.queries)

    def _hull(self, group: Classes, first: Ints, last: Ints) -> Hull:
        """The columns of the rows from `first` to `last`."""
        hull = (self._of_keys if self.inverse else self._of_queries)(group, first, last)
        if self._passes_the_end:
            has_all = self._columns(group) == (0, group.length)
            return hull if has_all else hull._replace(full=(_none(first), _none(first)))
        if self.axis.spec.border == "wrap":
            hull = _wrapped(hull.runs[1], hull.full[0], group.length)
        return hull if self.axis.held is None else _cut(hull, *self._columns(group))

    def _columns(self, group: Classes) -> tuple[int, int]:
        """The first column of a class that tensors hold, and the end of those."""
        start, count = replace(self, inverse=not self.inverse)._extent(group)
        return start, start + count

    def _of_queries(self, group: Classes, first: Ints, last: Ints) -> Hull:
        """The keys of queries: a prefix, and the hull of windows after it."""
        axis, zero, keys = self.axis.spec, np.zeros_like(first), self._keys(group)
        lo, head, some = window_of(axis, first, keys)
        tail, hi, prefix = window_of(axis, last, keys)
        if axis.border != "wrap":
            lo = np.maximum(lo, prefix)
        return Hull(((zero, prefix), (lo, hi)), ((tail, head), (zero, some)))

    def _of_keys(self, group: Classes, first: Ints, last: Ints) -> Hull:
        """The queries that attend to keys; to keys of a prefix all queries from some one on do."""
        axis, stop = self.axis.spec, group.start + group.queries
        (lo, head), (tail, hi) = (readers_of(axis, t, self._keys(group)) for t in (first, last))
        if axis.prefix:
            prefixed = first < axis.prefix
            after = readers_of(axis, np.full_like(first, axis.prefix), group.length)[1]
            head = np.where(prefixed & (last >= axis.prefix), after, head)
            hi = np.where(prefixed, stop, hi)
        if axis.border != "wrap":
            lo, hi = np.maximum(lo, group.start), np.minimum(hi, stop)
        return Hull((_none(first), (lo, hi)), ((tail, head), _none(first)))

    def tile_pairs(self, rows: int, columns: int) -> int:
        """How many tiles of `columns` columns all tiles of `rows` rows visit, in closed form."""
        return sum(
            group.size * self._tile_pairs(group, rows, columns) for group in self.axis.classes()
        )

    def _tile_pairs(self, group: Classes, rows: int, columns: int) -> int:
        """The visits in one class."""
        start, count = self._extent(group)
        if count == 0:
            return 0
        full = (count - 1) // rows  # the last tile is counted by itself

        def tiles(tile: Ints) -> Ints:
            first = start + rows * tile
            runs = self._hull(group, first, np.minimum(first + rows, start + count) - 1).runs
            one, two = (np.maximum(-((lo - hi) // columns), 0) for lo, hi in runs)
            return one + two

        end = int(tiles(np.array([full]))[0])
        if not full:
            return end
        period = math.lcm(self.axis.spec.stride, columns)
        corners = {0, group.length}
        corners |= {group.start, group.start + group.queries} if self.inverse else set()
        if self.axis.held is not None:
            laps = (-group.length, 0, group.length)
            corners |= {end + lap for end in self._columns(group) for lap in laps}
        at = [(u - start) // rows for u in bends(self.axis.spec, corners)]
        return piecewise_sum(tiles, 0, full, period // math.gcd(period, rows), at) + end

    def separate(self, rows: int) -> bool:
        """Whether no tile of `rows` rows shares a column with the next tile but one, or with later
        ones. Not said of wrapped axes and prefixes, whose first and last rows meet.
        """
        if self.axis.spec.border == "wrap" or self.axis.spec.prefix:
            return False
        for group in self.axis.classes():
            start, count = self._extent(group)
            first = np.arange(start, start + count, rows)
            lo, hi = self._hull(group, first, np.minimum(first + rows, start + count) - 1).runs[1]
            if (hi[:-2] > lo[2:]).any():
                return False
        return True

    def tiles(self, rows: int, columns: int) -> Iterator[RowTile]:
        """Every tile of rows with every tile of columns that it visits: small shapes only. With 0
        `columns`, a tile visits every run of its hull at once.
        """
        for group in self.axis.classes():
            start, count = self._extent(group)
            for residue in range(group.size):
                for first in range(start, start + count, rows):
                    x = np.arange(first, min(first + rows, start + count))
                    hull = self._hull(group, x[:1], x[-1:])
                    visited = tuple(self._column_tiles(group, residue, x, hull, columns))
                    yield RowTile(self._places(group, residue, x, self.inverse), visited)

    def _column_tiles(
        self, group: Classes, residue: int, rows: Ints, hull: Hull, columns: int
    ) -> Iterator[ColumnTile]:
        spans = self._own(group, rows)
        for lo, hi in ((int(lo[0]), int(hi[0])) for lo, hi in hull.runs):
            width = columns or max(hi - lo, 1)
            for first in range(lo, hi, width):
                y = np.arange(first, min(first + width, hi))
                whole = any(first >= a[0] and first + width <= b[0] for a, b in hull.full)
                full = len(y) == width and whole
                y = self._present(group, y)
                read = [(y >= a[:, None]) & (y < b[:, None]) for a, b in spans]
                yield ColumnTile(
                    self._places(group, residue, y, not self.inverse), full, read[0] | read[1]
                )

    def _present(self, group: Classes, y: Ints) -> Ints:
        """Without the columns of a visit that tensors do not hold."""
        if not self._passes_the_end:
            return y
        start, stop = self._columns(group)
        return y[(y % group.length >= start) & (y % group.length < stop)]

    def _own(self, group: Classes, rows: Ints) -> tuple[Span, Span]:
        """The columns of each row by itself: the tile's mask."""
        axis, keys = self.axis.spec, self._keys(group)
        if self.inverse:
            (lo, hi), also = readers_of(axis, rows, keys), _none(rows)
        else:
            lo, hi, prefix = window_of(axis, rows, keys)
            also = np.zeros_like(rows), prefix
        is_cut = axis.border == "wrap" and not self.uncut
        return _laps((lo, hi), lo, keys) if is_cut else ((lo, hi), also)

    def _places(self, group: Classes, residue: int, x: Ints, keys: bool) -> Ints:
        """Class coordinates as positions."""
        origin, start = (group.first, group.skip) if keys else (group.origin, group.start)
        x = x % group.length if self._passes_the_end and len(x) else x
        return origin + residue + self.axis.spec.dilation * (x - start)

    def reads(self, rows: int, columns: int) -> tuple[Ints, Ints]:
        """The columns of all rows, tile by tile: starts and counts `[rows, 2]` of runs of positions
        the dilation apart; -1 counts where more than two runs remain.

        Time and memory grow with the rows.
        """
        length = self.axis.keys if self.inverse else self.axis.queries
        starts = np.zeros((length, 2), dtype=np.int64)
        counts = np.zeros((length, 2), dtype=np.int64)
        chunk = max(_CHUNK // rows, 1) * rows
        for group in self.axis.classes():
            start, count = self._extent(group)
            for first in range(start, start + count, chunk):
                x = np.arange(first, min(first + chunk, start + count))
                lo, number = self._runs(group, self._computed(group, x, start, rows, columns))
                for residue in range(group.size):
                    at = self._places(group, residue, x, self.inverse)
                    starts[at] = self._places(group, residue, lo, not self.inverse)
                    counts[at] = number
        return starts, counts

    def _runs(self, group: Classes, spans: Iterable[Span]) -> tuple[Ints, Ints]:
        """The union of every row's spans on the axis, as `_union`; also -1 counts where a row's
        spans are more than a lap, so that a column is computed twice.
        """
        lo, number = _union(spans)
        if not self._passes_the_end:
            return lo, number
        start, stop = self._columns(group)
        laps = [lo + lap * group.length for lap in (-1, 0, 1)]
        held = (_inside((at, at + number), start, stop) for at in laps)
        places, counts = _union((a[:, n], b[:, n]) for a, b in held for n in range(2))
        counts[(number < 0).any(axis=1) | (number.sum(axis=1) > group.length)] = -1
        return places, counts

    def _computed(
        self, group: Classes, x: Ints, start: int, rows: int, columns: int
    ) -> Iterator[Span]:
        """The columns that kernels compute for neighbouring rows `x` of a class: in every run of a
        tile's hull, what the row's own mask allows, and all columns of unmasked tiles.
        """
        begin, count = self._extent(group)
        first = x - (x - start) % rows  # of each row's tile
        hull = self._hull(group, first, np.minimum(first + rows, begin + count) - 1)
        for lo, hi in hull.runs:
            for a, b in self._own(group, x):
                yield np.maximum(a, lo), np.minimum(b, hi)
            for full in hull.full:
                yield _whole_tiles(lo, hi, full, columns)


def row_tiles(
    axes: Axes,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    inverse: bool,
    uncut: bool = False,
) -> Iterator[tuple[RowTile, ...]]:
    """Every tile of rows of all axes, one part per axis, with the tiles of columns of each part."""
    sizes = zip(axes, rows, columns, strict=True)
    return product(*(list(Traversal(axis, inverse, uncut).tiles(r, c)) for axis, r, c in sizes))


def pairs(
    axes: Axes,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    inverse: bool,
    uncut: bool = False,
) -> NDArray[np.bool_]:
    """The pairs that a kernel with such tiles computes, as a bool matrix `[queries, keys]`.

    Raises:
        AssertionError: it computes a pair twice, or a row is in two tiles.
    """
    spaces = [tuple(axis.queries for axis in axes), tuple(axis.keys for axis in axes)]
    of_rows, of_columns = reversed(spaces) if inverse else spaces
    times = np.zeros((math.prod(of_rows), math.prod(of_columns)), dtype=np.int8)
    written = np.zeros(math.prod(of_rows), dtype=np.int8)
    for row in row_tiles(axes, rows, columns, inverse=inverse, uncut=uncut):
        at = _flat([part.positions for part in row], of_rows)
        written[at] += 1
        for visit in product(*(part.columns for part in row)):
            allowed = np.ones((1, 1), dtype=np.bool_)
            for part in visit:
                allowed = np.kron(allowed, part.reads)
            if all(part.full for part in visit):
                allowed[:] = True  # the kernel does not mask full tiles
            to = _flat([part.positions for part in visit], of_columns)
            np.add.at(
                times, (at[:, None], to), allowed
            )  # a visit of a small circle repeats columns
    if times.size and times.max() > 1:
        first, second = np.argwhere(times > 1)[0].tolist()
        raise AssertionError(f"row {first} visits column {second} more than once")
    if written.size and written.max() > 1:
        raise AssertionError(f"row {int(written.argmax())} is in two tiles")
    return (times.T if inverse else times).astype(np.bool_)


def pairs_of_kernels(
    axes: Axes,
    forward: Sizes | None,
    grad_query: Sizes | None,
    grad_key: Sizes | None,
    *,
    uncut: bool = False,
) -> NDArray[np.bool_]:
    """The pairs that all kernels of a call compute, as a bool matrix `[queries, keys]`.

    Args:
        axes: the mask's axes.
        forward, grad_query, grad_key: rows and columns of each kernel's tiles; keys are the rows of
            `grad_key`. None where there is no such kernel.
        uncut: as of `Traversal`.

    Raises:
        AssertionError: as `pairs`, or the gradients' pairs differ from the output's.
    """
    assert forward is not None
    found = pairs(axes, *forward, inverse=False, uncut=uncut)
    for side, sizes in (("queries", grad_query), ("keys", grad_key)):
        if sizes is None:
            continue
        if not np.array_equal(pairs(axes, *sizes, inverse=side == "keys", uncut=uncut), found):
            raise AssertionError(f"the pairs of the {side}' gradients differ from the output's")
    return found


def _flat(positions: list[Ints], space: tuple[int, ...]) -> Ints:
    """Positions on all axes as row-major indices."""
    flat = np.zeros(1, dtype=np.int64)
    for at, length in zip(positions, space, strict=True):
        flat = (flat[:, None] * length + at).reshape(-1)
    return flat


def _laps(span: Span, lo: Ints, keys: int) -> tuple[Span, Span]:
    """A span moved by whole laps: so that `lo` is on the axis, and by one lap less."""
    lap = lo % keys - lo
    return (span[0] + lap, span[1] + lap), (span[0] + lap - keys, span[1] + lap - keys)


def _wrapped(hull: Span, full: Span, keys: int) -> Hull:
    """The hull of a wrapped axis, cut where the axis ends; each column is in it once."""
    lo, hi = hull
    (start, end), (_, past) = _laps((lo, np.minimum(hi, lo + keys)), lo, keys)
    return Hull(((start, np.minimum(end, keys)), (0 * lo, past)), _laps(full, lo, keys))


def _whole_tiles(lo: Ints, hi: Ints, full: Span, columns: int) -> Span:
    """The columns of the tiles of a run `[lo, hi)`, cut from its start, that lie inside `full`."""
    skipped = -((lo - np.maximum(full[0], lo)) // columns)
    past = (np.minimum(full[1], hi) - lo) // columns
    return lo + columns * skipped, lo + columns * past


def _cut(hull: Hull, start: int, stop: int) -> Hull:
    """A hull without columns outside [start, stop)."""
    (one, two), full = hull
    return Hull((_inside(one, start, stop), _inside(two, start, stop)), full)


def _inside(span: Span, start: int, stop: int) -> Span:
    return np.maximum(span[0], start), np.minimum(span[1], stop)


def _none(like: Ints) -> Span:
    """No columns for any row."""
    return np.zeros_like(like), np.zeros_like(like)


def _union(spans: Iterable[Span]) -> tuple[Ints, Ints]:
    """The union of every row's spans as starts and counts `[n, 2]` of at most two runs; counts are
    -1 where there are more.

    The spans of a row are taken by their starts. One that starts inside the last run, or right
    after it, makes that run longer; another one opens the next run:

        spans    ■■■■■■                    run 0 opens
                    ■■■■■■■                run 0 gets longer
                                ■■■■       run 1 opens
    """
    never = np.iinfo(np.int64).max  # the start of an empty span: it comes last
    lo, hi = (np.stack(side) for side in zip(*spans, strict=True))
    lo = np.where(lo < hi, lo, never)
    order = np.argsort(lo, axis=0)
    lo, hi = (np.take_along_axis(side, order, axis=0) for side in (lo, hi))
    starts, ends = np.zeros((2, lo.shape[1], 2), dtype=np.int64)
    opened = np.zeros(lo.shape[1], dtype=np.int64)  # runs of every row so far
    row = np.arange(lo.shape[1])
    for start, end in zip(lo, hi, strict=True):
        last = np.clip(opened - 1, 0, 1)
        longer = (start < never) & (opened > 0) & (start <= ends[row, last])
        ends[row, last] = np.where(longer, np.maximum(ends[row, last], end), ends[row, last])
        opens = (start < never) & ~longer
        opened += opens
        at = np.clip(opened - 1, 0, 1)
        starts[row, at] = np.where(opens, start, starts[row, at])
        ends[row, at] = np.where(opens, end, ends[row, at])
    counts = ends - starts
    counts[opened > 2] = -1
    return starts, counts

"""A part of an axis as an axis of its own: some of the queries, against only the keys that they
attend to, under a mask that kernels take without knowing of the rest.

Which keys a query attends to depends on its position on the axis, not on other queries. So keys
that no query of a part attends to are cut away, and the mask is moved to what is left:

    before and behind   the part's keys begin at the first one; the offset is less by as many keys
    between             a prefix far before the windows, and the windows, are put together
    circles             windows that cross the end continue: the circle is cut open behind them

Stride groups are counted from key 0 of the axis, and shared windows depend on the group's leader:
with a stride, keys are cut away in whole groups. Of these, keys that no query attends to stay
unknown: `runs` leave them out, and what is there must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nbattn.axis import Axis
from nbattn.distributed.chunks import Span
from nbattn.geometry import BoundAxis
from nbattn.rows import Ints, plain_window, sides, window_of

_NONE = Span(0, 0)


class Run(NamedTuple):
    """Keys `[start, stop)` of the axis, which are at `at` and after it among the part's keys."""

    start: int
    stop: int
    at: int

    @property
    def span(self) -> Span:
        """The keys on the axis."""
        return Span(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class LocalAxis:
    """A part of an axis as an axis of its own.

    Args:
        spec: the mask's axis at the part's lengths.
        queries: which queries of the whole axis it has.
        keys: how many keys.
        runs: which keys of the whole axis these are, in the part's order; others are not read.
        reach: the smallest span with all of them; past the ends of a circle where windows are.
    """

    spec: Axis
    queries: Span
    keys: int
    runs: tuple[Run, ...]
    reach: Span

    def bound(self) -> BoundAxis:
        """The axis at its lengths."""
        return BoundAxis(self.spec, self.queries.length, self.keys)

    def laps(self) -> tuple[tuple[Run, ...], ...]:
        """The runs, in groups that ascend on the whole axis: more than one group where a circle is
        cut open.
        """
        groups: list[list[Run]] = []
        for run in self.runs:
            if groups and groups[-1][-1].stop <= run.start:
                groups[-1].append(run)
            else:
                groups.append([run])
        return tuple(map(tuple, groups))


def whole_axis(bound: BoundAxis) -> LocalAxis:
    """An axis that is not cut."""
    everything = Span(0, bound.keys)
    queries = Span(0, bound.queries)
    return LocalAxis(bound.spec, queries, bound.keys, (Run(*everything, 0),), everything)


@lru_cache(4096)
def local_axis(bound: BoundAxis, queries: Span, *, table: bool = False) -> LocalAxis:
    """The queries of a span against the keys that they attend to.

    Args:
        bound: the whole axis.
        queries: the span.
        table: whether the call has a table of relative positions, for which windows stay finite
            and queries are among the keys.

    >>> from nbattn import Mask, geometry
    >>> axis, = geometry.bind(Mask.sliding_window(2, 0), 100)
    >>> local_axis(axis, Span(50, 75)).runs
    (Run(start=48, stop=75, at=0),)
    """
    if not queries.length:
        return _without_keys(bound, queries)
    if bound.spec.border == "wrap":
        return _cut_open(bound, queries, table)
    spec, place = bound.spec, queries.start + bound.offset
    window, prefix = _hull(bound, queries)
    first, stop = window if window.length else Span(prefix, prefix)
    runs: list[Run] = []
    if prefix >= first:  # the prefix touches the windows, or there is nothing else
        shift, stop = 0, max(stop, prefix)
        runs.append(Run(0, stop, 0))
    else:
        cut = min(first, place + 1) - prefix if spec.causal else first - prefix  # all stay before
        cut = min(cut, place) if table else cut
        shift = _group_start(spec, max(0, cut))
        runs += [Run(0, prefix, 0)] * (prefix > 0) + [Run(first, stop, first - shift)]
    reach = Span(runs[0].start, stop)
    last = place + queries.length - 1
    stop = max(stop, _group_stop(spec, last, stop), last + 1 if table else 0)
    if not reach.length and not table:
        return _without_keys(bound, queries)
    moved = replace(spec, align="top-left", offset=place - shift)
    keys = min(bound.keys, stop) - shift
    return LocalAxis(moved, queries, keys, tuple(run for run in runs if run.span.length), reach)


@lru_cache(4096)
def local_keys(bound: BoundAxis, keys: Span) -> LocalAxis:
    """All queries against those keys of a span that some query attends to; for masks that
    `keys_stand_alone` allows.

    >>> from nbattn import Mask, geometry
    >>> axis, = geometry.bind(Mask.sliding_window(30, 0, align="bottom-right"), 1, 100)
    >>> local_keys(axis, Span(50, 75)).runs, local_keys(axis, Span(25, 50)).runs
    ((Run(start=69, stop=75, at=0),), ())
    """
    queries = Span(0, bound.queries)
    window, prefix = _hull(bound, queries) if bound.queries else (_NONE, 0)
    read = [span.of(keys) for span in (window, Span(0, prefix))]
    read = [span for span in read if span.length]
    if not read:
        return _without_keys(bound, queries)
    start, stop = min(span.start for span in read), max(span.stop for span in read)
    prefix = max(0, min(bound.spec.prefix, stop) - start)
    spec = replace(bound.spec, prefix=prefix, align="top-left", offset=bound.offset - start)
    return LocalAxis(spec, queries, stop - start, (Run(start, stop, 0),), Span(start, stop))


def keys_stand_alone(spec: Axis) -> bool:
    """Whether a part of the keys needs no other keys: windows that are cut at the ends."""
    return spec.border == "clip" and spec.stride == 1


def _hull(bound: BoundAxis, queries: Span) -> tuple[Span, int]:
    """The smallest span with the windows of all queries, and how many first keys they attend to."""
    (lo, hi, prefix), u_class, length = _ends(bound, queries)
    some = (np.maximum(lo, 0) < np.minimum(hi, length)) if bound.spec.stride > 1 else length > 0
    last = int(prefix.max())
    starts, stops = _positions(bound.spec, lo, hi, u_class)
    starts, stops = starts[some & (lo < length)], stops[some & (hi > 0)]
    if not starts.size or not stops.size or starts.min() >= stops.max():
        return _NONE, last
    return Span(int(starts.min()), int(stops.max())), last


def _ends(bound: BoundAxis, queries: Span) -> tuple[tuple[Ints, Ints, Ints], Ints, Ints]:
    """Windows, classes and their lengths of the queries among which are the ends of a hull."""
    u, residue, length = _rows(bound, queries)
    return window_of(bound.spec, u, length), residue, length


def _rows(bound: BoundAxis, queries: Span) -> tuple[Ints, Ints, Ints]:
    """Class coordinates, classes, and their lengths of the first and last query of every class.

    Ends of windows never decrease inside a class. With a stride, though, windows can lie apart, so
    that the first one may miss the keys: then all queries are looked at.
    """
    d = bound.spec.dilation
    start, stop = queries
    if bound.spec.stride > 1 or queries.length <= 2 * d:
        row = np.arange(start, stop, dtype=np.int64)
    else:
        row = np.concatenate([np.arange(start, start + d), np.arange(stop - d, stop)])
    u, residue = np.divmod(row + bound.offset, d)
    return u, residue, np.maximum(0, -((residue - bound.keys) // d))


def _positions(spec: Axis, lo: Ints, hi: Ints, residue: Ints) -> tuple[Ints, Ints]:
    """Windows in class coordinates as positions `[start, stop)` of the axis."""
    return residue + spec.dilation * lo, residue + spec.dilation * (hi - 1) + 1


def _cut_open(bound: BoundAxis, queries: Span, table: bool) -> LocalAxis:
    """Queries of a circle: the keys around them on a line, which can be longer than the circle."""
    spec, length = bound.spec, bound.keys
    around = length // spec.dilation  # keys of a class
    width = sum(sides(spec)) + 1
    if width > around or (width == around and not table):
        every = Axis(dilation=spec.dilation, align="top-left", offset=queries.start)
        return LocalAxis(every, queries, length, (Run(0, length, 0),), Span(0, length))
    u, residue, keys = _rows(bound, queries)
    starts, stops = _positions(spec, *plain_window(spec, u, keys), residue)
    first, stop = int(starts.min()), int(stops.max())
    shift = _group_start(spec, first)
    stop_of_groups = _group_stop(spec, queries.stop - 1, stop)
    laps = range(first // length, (stop - 1) // length + 1)
    cuts = [Span(lap * length, (lap + 1) * length).of(Span(first, stop)) for lap in laps]
    runs = tuple(
        Run(a - lap * length, b - lap * length, a - shift)
        for lap, (a, b) in zip(laps, cuts, strict=True)
    )
    opened = replace(spec, border="clip", align="top-left", offset=queries.start - shift)
    keys = max(stop, stop_of_groups) - shift
    return LocalAxis(opened, queries, keys, runs, Span(first, stop))


def _without_keys(bound: BoundAxis, queries: Span) -> LocalAxis:
    """Queries that attend to nothing, against no keys."""
    spec = replace(bound.spec, border="clip", prefix=0, align="top-left", offset=0)
    return LocalAxis(spec, queries, 0, (), _NONE)


def _group_start(spec: Axis, keys: int) -> int:
    """How many of the first keys can be cut away: whole stride groups."""
    return keys if spec.stride == 1 else keys // (group := spec.stride * spec.dilation) * group


def _group_stop(spec: Axis, position: int, stop: int) -> int:
    """Where the stride group of the last query ends: its leader must not move."""
    group = spec.stride * spec.dilation
    return stop if spec.stride == 1 else (position // group + 1) * group

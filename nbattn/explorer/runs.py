"""Computes the keys of many queries at once as runs with signs, and the queries of many keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nbattn.geometry import BoundAxis, Ints
from nbattn.pictures import signs
from nbattn.rows import Rows, plain_window

KINDS = signs.KINDS[: signs.LAST_ATTENDED + 1]  # a run's kind is its place here
_READ, _MOVED, _PREFIX = range(len(KINDS))
_Span = tuple[int, Ints, Ints]  # a kind, and of every query the class coordinates [start, stop)


def of_queries(axis: BoundAxis, queries: range) -> list[list[int]]:
    """The keys of every query as `[kind, start, count, kind, start, count, …]`, by start; keys of a
    run lie the axis' dilation apart.

    Kinds are those of `pictures.signs`: a key is attended, attended because a border moved or
    wrapped the window, or attended because of the prefix alone.

    >>> from nbattn import Axis
    >>> of_queries(BoundAxis(Axis(1, 1, border="wrap"), 5, 5), range(2))
    [[0, 0, 2, 1, 4, 1], [0, 0, 3]]
    """
    first, spans = _spans(axis, queries)
    step = axis.spec.dilation
    columns = [
        side
        for kind, start, stop in spans
        for side in (np.full_like(start, kind), first + step * start, stop - start)
    ]
    rows: list[list[int]] = []
    for row in np.stack(columns, axis=1).tolist():
        runs = zip(row[::3], row[1::3], row[2::3], strict=True)
        runs = sorted((run for run in runs if run[2] > 0), key=lambda run: run[1])
        rows.append([number for run in runs for number in run])
    return rows


def of_keys(axis: BoundAxis, keys: range) -> list[list[int]]:
    """The queries that attend to each key as `[start, count, start, count, …]`, by start; queries
    of a run lie the dilation apart.

    >>> from nbattn import Axis
    >>> of_keys(BoundAxis(Axis(1, 1, border="wrap"), 5, 5), range(2))
    [[0, 2, 4, 1], [0, 3]]
    """
    return [[number for run in axis.query_intervals(key) for number in run] for key in keys]


def first_keys(axis: BoundAxis, queries: range) -> list[int]:
    """The first key on the dilation grid of each query."""
    return _rows(axis, queries)[0].tolist()


def _spans(axis: BoundAxis, queries: range) -> tuple[Ints, list[_Span]]:
    """The first key of each query's class, and the spans of its keys by kind."""
    first, (low, lo, hi) = _rows(axis, queries)
    alone = replace(axis, spec=replace(axis.spec, prefix=0))
    _, (window_low, window_lo, window_hi) = _rows(alone, queries)
    start, stop = _plain(axis, queries)
    zero = np.zeros_like(low)
    spans: list[_Span] = []
    if axis.spec.prefix:  # its window is one interval, [window_lo, window_hi)
        for begin, end in ((zero, low), (lo, hi)):
            spans.append((_PREFIX, begin, np.minimum(end, window_lo)))
            spans.append((_PREFIX, np.maximum(begin, window_hi), end))
    for begin, end in ((zero, window_low), (window_lo, window_hi)):
        spans.append((_MOVED, begin, np.minimum(end, start)))
        spans.append((_READ, np.maximum(begin, start), np.minimum(end, stop)))
        spans.append((_MOVED, np.maximum(begin, stop), end))
    return first, spans


def _rows(axis: BoundAxis, queries: range) -> tuple[Ints, Rows]:
    return axis.query_rows(queries.start, queries.stop, queries.step)


def _plain(axis: BoundAxis, queries: range) -> tuple[Any, Any]:
    """Every query's window before borders and causality, counted from its class' first key held."""
    d = axis.spec.dilation
    places = np.arange(queries.start, queries.stop, queries.step, dtype=np.int64) + axis.offset
    u, residue = np.divmod(places, d)
    length = np.maximum(0, -((residue - axis.lengths[1]) // d))
    skip = np.maximum(0, -((residue - axis.first_key) // d))
    start, stop = plain_window(axis.spec, u, length)
    return start - skip, stop - skip

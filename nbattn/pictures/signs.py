"""Computes what pictures show of an axis: one sign per pair with its meaning, cut windows, keys
per query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nbattn.errors import MaskError, counted
from nbattn.geometry import BoundAxis, Ints

LONGEST = 2**21
SIGNS = {
    "■": "attended",
    "◆": "attended, own position",
    "◇": "own position, not attended",
    "▣": "attended, moved or wrapped",
    "▤": "attended, prefix",
    "◧": "some of the cell's pairs",
    "⬚": "not attended",
    "·": "not on this query's dilation grid",
    "‹ ›": "window cut",
    "p=": "own position, off axis",
}
READ, OWN, OWN_UNREAD, MOVED, PREFIX, PART, NONE, OTHER, *_ = SIGNS
BEYOND, OUTSIDE = "window beyond the axis", ""  # of cells that are no keys
# What a cell is, apart from own positions. Of a key's kinds on several axes the last one counts.
KINDS = (READ, MOVED, PREFIX, NONE, OTHER, BEYOND, OUTSIDE)
LAST_ATTENDED = KINDS.index(PREFIX)
_REACHED = (KINDS.index(READ), KINDS.index(BEYOND))


def check_lengths(axes: Sequence[BoundAxis]) -> None:
    """Raises a MaskError for axes whose pictures and key counts would cost too much."""
    for number, axis in enumerate(axes):
        if max(axis.queries, axis.keys) > LONGEST:
            raise MaskError(
                f"axis {number} has {axis.queries} queries and {axis.keys} keys; "
                f"pictures go up to {LONGEST}.",
                f"mask.draw({_shorter(a.queries for a in axes)}, "
                f"{_shorter(a.keys for a in axes)}), which shows the same rules.",
            )


def _shorter(lengths: Iterable[int]) -> tuple[int, ...]:
    """Lengths that pictures can show."""
    return tuple(min(length, 1024) for length in lengths)


def keys_read(axes: Sequence[BoundAxis]) -> str:
    """The number of keys per query of a bound mask in words, and the number of queries without."""
    low, high, empty = key_counts(axes)
    text = f"{low if low == high else f'{low}–{high}'} keys per query"
    none = f"; {counted(empty, 'query has', 'queries have')} no keys"
    return text + none * (empty > 0)


def key_counts(axes: Sequence[BoundAxis]) -> tuple[int, int, int]:
    """The fewest and the most keys per query of a bound mask, and the number of queries without."""
    counts = [axis.key_runs()[1].sum(axis=1) for axis in axes]
    ends = [
        math.prod(int(end(count)) if len(count) else 0 for count in counts)
        for end in (np.min, np.max)
    ]
    with_keys = math.prod(axis.queries - axis.empty_queries() for axis in axes)
    return ends[0], ends[1], math.prod(axis.queries for axis in axes) - with_keys


def signs(axis: BoundAxis) -> NDArray[np.str_]:
    """One sign per pair `[queries, keys]` of a short axis: attended or not, and the reason."""
    queries, keys = np.arange(axis.queries), np.arange(axis.keys)
    cells, at_own = kinds(axis, queries, keys), own_positions(axis, queries, keys)
    plain = np.array(KINDS)[cells]
    return np.where(at_own, np.where(cells <= LAST_ATTENDED, OWN, OWN_UNREAD), plain)


def kinds(axis: BoundAxis, queries: Ints, keys: Ints) -> NDArray[np.int8]:
    """Index into `KINDS` per pair of some queries and keys `[queries, keys]`. Keys may lie outside
    the axis: a cell there is `BEYOND` where the query's window reaches it, else `OUTSIDE`.
    """
    spec, inside = axis.spec, (keys >= 0) & (keys < axis.keys)
    own = (queries + axis.offset)[:, None]
    t, residue = np.divmod(keys, spec.dilation)
    lo, hi, _ = (side[:, None] for side in axis.windows(queries))
    on_grid, in_window = residue == own % spec.dilation, (t >= lo) & (t < hi)
    read = attended(axis, queries, keys)
    window = attended(replace(axis, spec=replace(spec, prefix=0)), queries, keys)
    reached = on_grid & in_window & (keys <= own if spec.causal else True)
    reached &= (keys >= 0 if spec.left is None else True) & (
        keys < axis.keys if spec.right is None else True
    )
    rules = [
        (~inside & reached, BEYOND),
        (~inside, OUTSIDE),
        (read & ~window, PREFIX),
        (read & ~in_window, MOVED),
        (read, READ),
        (~on_grid, OTHER),
    ]
    conditions, results = zip(*rules, strict=True)
    shape = len(queries), len(keys)
    return np.select(
        [np.broadcast_to(condition, shape) for condition in conditions],
        [np.int8(KINDS.index(kind)) for kind in results],
        np.int8(KINDS.index(NONE)),
    )


def own_positions(axis: BoundAxis, queries: Ints, keys: Ints) -> NDArray[np.bool_]:
    """Whether each key is at the position of the query `[queries, keys]`."""
    return ((queries + axis.offset)[:, None] == keys) & axis.is_placed


def all_of(parts: Sequence[NDArray[np.int8]]) -> NDArray[np.int8]:
    """Indices into `KINDS` of keys on several axes, from those on each one: arrays that broadcast.

    A key is attended if it is on every axis, moved or in the prefix if it is on one.
    """
    beyond, outside = KINDS.index(BEYOND), KINDS.index(OUTSIDE)
    found = parts[0]
    for part in parts[1:]:
        last = np.maximum(found, part)
        reached = np.isin(found, _REACHED) & np.isin(part, _REACHED)
        found = np.where(last < beyond, last, np.where(reached, beyond, outside))
    return found.astype(np.int8)


def attended(axis: BoundAxis, queries: Ints, keys: Ints) -> NDArray[np.bool_]:
    """The mask of some queries and keys, from the intervals of each query."""
    first, (low, lo, hi) = (np.zeros(0, np.int64), (np.zeros(0, np.int64),) * 3)
    runs = [axis.query_rows(part.start, part.stop) for part in ranges(queries)]
    if runs:
        first = np.concatenate([run[0] for run in runs])
        low, lo, hi = (np.concatenate([run[1][side] for run in runs]) for side in range(3))
    t, rest = np.divmod(keys - first[:, None], axis.spec.dilation)
    low, lo, hi = (side[:, None] for side in (low, lo, hi))
    inside = (keys >= 0) & (keys < axis.keys) & (rest == 0)
    return inside & (((t >= 0) & (t < low)) | ((t >= lo) & (t < hi)))


def ranges(indices: Ints) -> list[range]:
    """Ascending indices as ranges of neighbours."""
    parts = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return [range(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]


def clipped_windows(axis: BoundAxis) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a "clip" border cuts each query's window, at its start and at its end."""
    spec, (lo, hi, keys) = axis.spec, axis.windows()
    clipped = (keys > 0) & (spec.border == "clip")
    start = clipped & (spec.left is not None) & (lo < 0) & (hi > 0)
    end = clipped & (spec.right is not None) & (hi > keys) & (lo < keys)
    return start, end

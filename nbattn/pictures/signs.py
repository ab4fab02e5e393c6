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
from nbattn.geometry import BoundAxis

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
    own = (np.arange(axis.queries) + axis.offset)[:, None]
    t, residue = np.divmod(np.arange(axis.keys), axis.spec.dilation)
    lo, hi, _ = (side[:, None] for side in axis.windows())
    attended, window = axis.dense(), replace(axis, spec=replace(axis.spec, prefix=0)).dense()
    at_own, moved = (own == np.arange(axis.keys)) & axis.is_placed, (t < lo) | (t >= hi)
    off_grid = residue != own % axis.spec.dilation
    rules = [at_own & attended, at_own, attended & ~window, attended & moved, attended, off_grid]
    return np.select(rules, [OWN, OWN_UNREAD, PREFIX, MOVED, READ, OTHER], NONE)


def clipped_windows(axis: BoundAxis) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a "clip" border cuts each query's window, at its start and at its end."""
    spec, (lo, hi, keys) = axis.spec, axis.windows()
    clipped = (keys > 0) & (spec.border == "clip")
    start = clipped & (spec.left is not None) & (lo < 0) & (hi > 0)
    end = clipped & (spec.right is not None) & (hi > keys) & (lo < keys)
    return start, end

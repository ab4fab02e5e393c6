"""What pictures tell about an axis: one sign per pair with its meaning, cut windows, keys per
query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nbattn.errors import MaskError, counted
from nbattn.geometry import BoundAxis

LONGEST = 2**21
SIGNS = {
    "■": "read",
    "◆": "read, own position",
    "◇": "own position, not read",
    "▣": "read, moved or wrapped",
    "▤": "read, prefix",
    "◧": "some of the cell's pairs",
    "⬚": "not read",
    "·": "other class",
    "‹ ›": "window cut",
    "p=": "own position, off axis",
}
READ, OWN, OWN_UNREAD, MOVED, PREFIX, PART, NONE, OTHER, *_ = SIGNS


def check_lengths(axes: Sequence[BoundAxis]) -> None:
    """Refuse axes whose pictures, and counts of keys per query, would cost too much."""
    for number, axis in enumerate(axes):
        if max(axis.queries, axis.keys) > LONGEST:
            raise MaskError(
                f"axis {number} has {axis.queries} queries and {axis.keys} keys; "
                f"pictures go up to {LONGEST}.",
                "a shorter axis shows the same rules.",
            )


def keys_read(axes: Sequence[BoundAxis]) -> str:
    """How many keys a query of a bound mask reads, in words; queries without keys called out."""
    low, high, empty = key_counts(axes)
    text = f"{low if low == high else f'{low}–{high}'} keys a query"
    none = f"; {counted(empty, 'query reads', 'queries read')} no key"
    return text + none * (empty > 0)


def key_counts(axes: Sequence[BoundAxis]) -> tuple[int, int, int]:
    """The fewest and the most keys that a query of a bound mask reads, and the queries without."""
    counts = [axis.key_runs()[1].sum(axis=1) for axis in axes]
    ends = [math.prod(int(end(of)) if len(of) else 0 for of in counts) for end in (np.min, np.max)]
    some = math.prod(axis.queries - axis.empty_queries() for axis in axes)
    return ends[0], ends[1], math.prod(axis.queries for axis in axes) - some


def signs(axis: BoundAxis) -> NDArray[np.str_]:
    """One sign per pair `[queries, keys]` of a short axis: read or not, and because of what."""
    own = (np.arange(axis.queries) + axis.offset)[:, None]
    t, residue = np.divmod(np.arange(axis.keys), axis.spec.dilation)
    lo, hi, _ = (side[:, None] for side in axis.windows())
    read, window = axis.dense(), replace(axis, spec=replace(axis.spec, prefix=0)).dense()
    here, moved = (own == np.arange(axis.keys)) & axis.is_placed, (t < lo) | (t >= hi)
    other = residue != own % axis.spec.dilation
    rules = [here & read, here, read & ~window, read & moved, read, other]
    return np.select(rules, [OWN, OWN_UNREAD, PREFIX, MOVED, READ, OTHER], NONE)


def clipped_windows(axis: BoundAxis) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which queries have a window that a clipped border cuts, at its start and at its end."""
    spec, (lo, hi, keys) = axis.spec, axis.windows()
    some = (keys > 0) & (spec.border == "clip")
    start = some & (spec.left is not None) & (lo < 0) & (hi > 0)
    end = some & (spec.right is not None) & (hi > keys) & (lo < keys)
    return start, end

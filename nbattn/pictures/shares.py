"""Counts in closed form how many pairs of a tile the mask allows."""

from __future__ import annotations

import numpy as np

from nbattn.geometry import BoundAxis, Ints


def allowed_pairs(axis: BoundAxis, queries: range, keys: range) -> int:
    """How many pairs of these queries and keys the axis allows; the ranges may have any step.

    >>> from nbattn import Axis
    >>> allowed_pairs(BoundAxis(Axis(1, 1, dilation=2), 9, 9), range(0, 9, 2), range(0, 9, 4))
    7
    """
    if not queries or not keys:
        return 0
    step = axis.spec.dilation
    first, (low, lo, hi) = axis.query_rows(queries.start, queries.stop, queries.step)
    spans = ((first, low), (first + step * lo, hi - lo))
    return sum(int(_common(*span, step, keys).sum()) for span in spans)


def _common(start: Ints, count: Ints, step: int, keys: range) -> Ints:
    """How many of the positions `start + step * n`, n < count, are in a range of keys."""
    gcd = int(np.gcd(step, keys.step))
    apart, other = step // gcd, keys.step // gcd
    laps = (keys.start - start) // gcd * pow(apart, -1, other) % other
    meeting = start + step * laps  # the first one from `start` on, whole periods moved
    period = step * other
    since = np.maximum(start, keys.start)
    until = np.minimum(start + step * (count - 1), keys[-1])
    found = (until - meeting) // period - (since - 1 - meeting) // period
    return np.where((keys.start - start) % gcd == 0, np.maximum(found, 0), 0)

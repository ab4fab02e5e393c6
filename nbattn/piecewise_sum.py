"""Closed-form sums of functions that are periodic plus piecewise linear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def piecewise_sum(
    value: Callable[[Ints], Ints], start: int, stop: int, period: int, bends: Iterable[int]
) -> int:
    """Return the sum of `value(u)` over [start, stop). Between two bends, the sum over one period
    must be a linear function of the period's number.

    Periods near a bend are summed one by one; between bends the sums form an arithmetic series,
    which its first and last period determine.

    >>> piecewise_sum(lambda u: np.minimum(u // 2, 100), 0, 10**9, 2, [200])
    99999989900
    """
    first, last = -(-start // period), stop // period
    near = np.array([*bends], dtype=np.int64)[:, None] // period + np.arange(-2, 4)
    pieces = sorted({first, last, *near[(first < near) & (near < last)].tolist()})
    if (last - first) * period <= 2 * len(pieces) * period + 64:
        return int(value(np.arange(start, stop, dtype=np.int64)).sum())
    head, tail = range(start, first * period), range(last * period, stop)
    ends = np.array([k for a, b in pairwise(pieces) for k in (a, b - 1)], dtype=np.int64)
    u = ends[:, None] * period + np.arange(period)
    sums: list[int] = value(u.reshape(-1)).reshape(u.shape).sum(axis=1).tolist()
    series = sum(
        (sums[2 * n] + sums[2 * n + 1]) * (b - a) // 2 for n, (a, b) in enumerate(pairwise(pieces))
    )
    return series + sum(int(value(np.array(edge, dtype=np.int64)).sum()) for edge in (head, tail))

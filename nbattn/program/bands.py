"""Bands of one axis, query i reading keys i - left … i + right: their rows, equality, trimming and
cuts, in closed form.

Everything is top-left: query 0 stands on key 0. `None` is unlimited and negative sides are genuine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nbattn.geometry import Ints


@dataclass(frozen=True, slots=True)
class Band:
    """Query i reads the keys i - left … i + right of an axis.

    >>> lo, hi = Band(1, 0).rows(np.arange(3), 3)
    >>> lo.tolist(), hi.tolist()
    ([0, 0, 1], [1, 2, 3])
    """

    left: int | None = None
    right: int | None = None

    def rows(self, query: Ints, keys: int) -> tuple[Ints, Ints]:
        """The keys `[lo, hi)` of every query; both 0 where there are none."""
        lo = np.zeros_like(query) if self.left is None else np.maximum(query - self.left, 0)
        hi = np.full_like(query, keys)
        if self.right is not None:
            hi = np.minimum(query + self.right + 1, keys)
        some = hi > lo
        return np.where(some, lo, 0), np.where(some, hi, 0)

    def moved(self, query: int, key: int) -> Band:
        """The same keys in coordinates that start at this query and this key."""
        shift = query - key
        return Band(
            None if self.left is None else self.left - shift,
            None if self.right is None else self.right + shift,
        )

    def limits(self, queries: int, keys: int) -> Band:
        """The band without the sides that exclude nothing.

        >>> Band(2, 0).limits(3, 3)
        Band(left=None, right=0)
        """
        left = None if self.left is None or self.left >= queries - 1 else self.left
        right = None if self.right is None or self.right >= keys - 1 else self.right
        return Band(left, right)

    def bends(self, keys: int) -> list[int]:
        """Queries around which a row's ends change their dependence on the query."""
        left, right = self.left, self.right
        found = [] if left is None else [left, left + keys]
        return found + ([] if right is None else [-1 - right, keys - 1 - right])


FULL, CAUSAL = Band(), Band(None, 0)


class Slice(NamedTuple):
    """Queries `[row, row_stop)`, keys `[key, key_stop)` that a band needs, and the band there."""

    row: int
    row_stop: int
    key: int
    key_stop: int
    band: Band

    @property
    def rows(self) -> int:
        """How many queries."""
        return self.row_stop - self.row

    @property
    def keys(self) -> int:
        """How many keys."""
        return self.key_stop - self.key


def first_difference(one: Band, other: Band, queries: int, keys: int) -> int | None:
    """The first query that reads other keys under one band than under the other, or None.

    The ends of a row are linear in the query between the bends of both bands, so that comparing at
    the bends and beside them compares everywhere.

    >>> first_difference(Band(None, 0), Band(None, 1), 4, 2)
    0
    >>> first_difference(Band(None, 3), Band(), 4, 2) is None
    True
    """
    if one.limits(queries, keys) == other.limits(queries, keys):
        return None
    at = [0, queries - 1, *one.bends(keys), *other.bends(keys)]
    near = {query + step for query in at for step in (-1, 0, 1)}
    query = np.array(sorted(q for q in near if 0 <= q < queries), dtype=np.int64)
    (lo, hi), (other_lo, other_hi) = one.rows(query, keys), other.rows(query, keys)
    wrong = (lo != other_lo) | (hi != other_hi)
    return int(query[wrong.argmax()]) if wrong.any() else None


def trim(band: Band, queries: int, keys: int) -> Slice | None:
    """The rows that read something and the keys that they reach; None where nothing is read.

    Of such a slice both bottom-right sides are 0 or more: what every Flash can be told.

    >>> trim(Band(1, -3), 8, 4) is None
    True
    >>> trim(Band(None, 0), 2, 5)
    Slice(row=0, row_stop=2, key=0, key_stop=2, band=Band(left=None, right=0))
    """
    left, right = band.left, band.right
    row = 0 if right is None else max(0, -right)
    row_stop = queries if left is None else min(queries, keys + left)
    key = 0 if left is None else max(0, row - left)
    key_stop = keys if right is None else min(keys, row_stop + right)
    if (
        row_stop <= row
        or key_stop <= key
        or (left is not None and right is not None and left + right < 0)
    ):
        return None
    return Slice(row, row_stop, key, key_stop, band.moved(row, key))


def split_points(band: Band, keys: int) -> list[tuple[int, ...]]:
    """Where the rows of a trimmed band may be cut so that each part needs less: fewest cuts first.

    From row `keys - right` on the right side excludes nothing, up to row `left` the left side.
    """
    rise = [] if band.right is None else [keys - band.right]
    fall = [] if band.left is None else [band.left]
    both = tuple(sorted({*rise, *fall}))
    return [*((at,) for at in (*rise, *fall)), both] if len(both) > 1 else [(at,) for at in both]


def sliced(band: Band, rows: int, keys: int, at: tuple[int, ...]) -> list[Slice]:
    """The band as trimmed slices of neighbouring rows, with the sides that exclude something."""
    inside = sorted({0, rows, *(a for a in at if 0 < a < rows)})
    parts: list[Slice] = []
    for start, stop in pairwise(inside):
        found = trim(band.moved(start, 0).limits(stop - start, keys), stop - start, keys)
        if found is not None:
            limits = found.band.limits(found.rows, found.keys)
            parts.append(Slice(start + found.row, start + found.row_stop, *found[2:4], limits))
    return parts

"""Bands of one axis, where query i attends to keys i - left … i + right: their rows, comparison,
trimming and cuts, in closed form.

Bands are aligned top-left: query 0 is at key position 0. A side of None is unlimited, and a
negative side excludes key i.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nbattn.geometry import Ints


@dataclass(frozen=True, slots=True)
class Band:
    """Query i attends to the keys i - left … i + right of an axis.

    >>> lo, hi = Band(1, 0).rows(np.arange(3), 3)
    >>> lo.tolist(), hi.tolist()
    ([0, 0, 1], [1, 2, 3])
    """

    left: int | None = None
    right: int | None = None

    def rows(self, query: Ints, keys: int) -> tuple[Ints, Ints]:
        """Returns the keys `[lo, hi)` of every query; both are 0 for a query without keys."""
        lo = np.zeros_like(query) if self.left is None else np.maximum(query - self.left, 0)
        hi = np.full_like(query, keys)
        if self.right is not None:
            hi = np.minimum(query + self.right + 1, keys)
        has_keys = hi > lo
        return np.where(has_keys, lo, 0), np.where(has_keys, hi, 0)

    def moved(self, query: int, key: int) -> Band:
        """Returns the same band in coordinates that start at this query and this key."""
        shift = query - key
        return Band(
            None if self.left is None else self.left - shift,
            None if self.right is None else self.right + shift,
        )

    def limits(self, queries: int, keys: int) -> Band:
        """Returns the band with None for every side that excludes nothing.

        >>> Band(2, 0).limits(3, 3)
        Band(left=None, right=0)
        """
        left = None if self.left is None or self.left >= queries - 1 else self.left
        right = None if self.right is None or self.right >= keys - 1 else self.right
        return Band(left, right)

    def bends(self, keys: int) -> list[int]:
        """Returns the queries around which the ends of a row, as functions of the query, bend."""
        left, right = self.left, self.right
        of_left = [] if left is None else [left, left + keys]
        return of_left + ([] if right is None else [-1 - right, keys - 1 - right])


FULL, CAUSAL = Band(), Band(None, 0)


class Slice(NamedTuple):
    """Queries `[row, row_stop)`, the keys `[key, key_stop)` that they need, and the band in the
    coordinates of the slice.
    """

    row: int
    row_stop: int
    key: int
    key_stop: int
    band: Band

    @property
    def rows(self) -> int:
        """The number of queries."""
        return self.row_stop - self.row

    @property
    def keys(self) -> int:
        """The number of keys."""
        return self.key_stop - self.key


def first_difference(one: Band, other: Band, queries: int, keys: int) -> int | None:
    """Returns the first query whose keys differ between the two bands, or None.

    Between the bends of both bands the ends of a row are linear in the query, so it is enough to
    compare at the bends and next to them.

    >>> first_difference(Band(None, 0), Band(None, 1), 4, 2)
    0
    >>> first_difference(Band(None, 3), Band(), 4, 2) is None
    True
    """
    if one.limits(queries, keys) == other.limits(queries, keys):
        return None
    bends = [0, queries - 1, *one.bends(keys), *other.bends(keys)]
    near = {query + step for query in bends for step in (-1, 0, 1)}
    query = np.array(sorted(q for q in near if 0 <= q < queries), dtype=np.int64)
    (lo, hi), (other_lo, other_hi) = one.rows(query, keys), other.rows(query, keys)
    differs = (lo != other_lo) | (hi != other_hi)
    return int(query[differs.argmax()]) if differs.any() else None


def trim(band: Band, queries: int, keys: int) -> Slice | None:
    """Returns the queries that have keys and the keys that they attend to; None without any pair.

    Both bottom-right sides of such a slice are 0 or more, which every Flash version supports.

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
    """Returns the rows at which a trimmed band may be cut so that each part needs fewer sides:
    the fewest cuts first.

    The right side excludes nothing from row `keys - right` on, the left side up to row `left`.
    """
    of_right = [] if band.right is None else [keys - band.right]
    of_left = [] if band.left is None else [band.left]
    both = tuple(sorted({*of_right, *of_left}))
    return (
        [*((row,) for row in (*of_right, *of_left)), both]
        if len(both) > 1
        else [(row,) for row in both]
    )


def sliced(band: Band, rows: int, keys: int, at: tuple[int, ...]) -> list[Slice]:
    """Cuts the band before the rows `at` into trimmed slices; each has only the sides that
    exclude something.
    """
    edges = sorted({0, rows, *(row for row in at if 0 < row < rows)})
    parts: list[Slice] = []
    for start, stop in pairwise(edges):
        part = trim(band.moved(start, 0).limits(stop - start, keys), stop - start, keys)
        if part is not None:
            limits = part.band.limits(part.rows, part.keys)
            parts.append(Slice(start + part.row, start + part.row_stop, *part[2:4], limits))
    return parts

"""Which query a picture is about: the one that the caller names, or one in the middle."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from nbattn.errors import InputError, counted
from nbattn.geometry import Axes

Query = tuple[int, ...]


def middle(axes: Axes) -> Query | None:
    """The query in the middle of every axis; None where an axis has no queries."""
    if not all(axis.queries for axis in axes):
        return None
    return tuple(axis.queries // 2 for axis in axes)


def given(query: Any, axes: Axes) -> Query | None:
    """The caller's query as a tuple, negative numbers from the end; that in the middle for None.

    Raises:
        InputError: it has another number of axes, is no integer, or is not on the grid; the fix is
            the nearest query, or that in the middle.
    """
    if query is None:
        return middle(axes)
    place = as_numbers(query)
    space = tuple(axis.queries for axis in axes)
    other = middle(axes)
    fix = f"query={_written(other)}" if other is not None else "query=None"
    if place is None:
        raise InputError(f"query={query!r} is not one integer per axis.", fix)
    if len(place) != len(axes):
        raise InputError(
            f"query={_written(place)} has {counted(len(place), 'number')}, "
            f"the mask {counted(len(axes), 'axis', 'axes')}.",
            fix,
        )
    if not all(-n <= i < n for i, n in zip(place, space, strict=True)):
        near = [max(-n, min(i, n - 1)) for i, n in zip(place, space, strict=True)]
        raise InputError(
            f"query={_written(place)} is not on the grid of queries, whose lengths are {space}.",
            f"query={_written(tuple(near))}" if other is not None else fix,
        )
    return tuple(i % n for i, n in zip(place, space, strict=True))


def as_numbers(query: Any) -> Query | None:
    """A query as a tuple of ints, or None if it is none."""
    plain: Any = query.tolist() if hasattr(query, "tolist") else query
    several: Iterable[Any] = plain if isinstance(plain, Iterable) else (plain,)
    try:
        return tuple(operator.index(number) for number in several)
    except TypeError:
        return None


def _written(query: Query) -> str:
    return str(query[0]) if len(query) == 1 else str(query)


def position(axes: Axes, query: Query) -> Query | None:
    """The position of a query on the key axes; None if it has none."""
    if not all(axis.is_placed for axis in axes):
        return None
    return tuple(i + axis.offset for i, axis in zip(query, axes, strict=True))

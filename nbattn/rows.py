"""The rule of one row: which keys a query attends to, and which queries attend to a key.

Everything is in the coordinates of one residue class of the dilation: query u, key t, and the
number of keys in the class. The functions take single coordinates as ints, or many as arrays. All
other modules derive what they need from them; `cuda/window.cuh` is the same rule on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nbattn.axis import Axis

Ints = NDArray[np.int64]
Coordinates = TypeVar("Coordinates", int, Ints)
FAR = 1 << 60  # an unlimited side: beyond every length, far from overflow


class Rows(NamedTuple):
    """The keys of query rows in class coordinates: `[0, low)` and `[lo, hi)`; low <= lo <= hi."""

    low: Any
    lo: Any
    hi: Any

    def counts(self) -> Any:
        """Keys per row."""
        return self.low + self.hi - self.lo


class Operations(NamedTuple):
    """What the rules compute with: numpy's functions, or the same for single numbers or tensors."""

    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]


_NUMBERS = Operations(min, max, lambda condition, first, second: first if condition else second)
_ARRAYS = Operations(np.minimum, np.maximum, np.where)


def operations(numbers: object) -> Operations:
    """Minimum, maximum and choice for a number, for arrays, or for the tensors of a graph."""
    return _BY_TYPE.get(type(numbers)) or _of_other(numbers)


_BY_TYPE: dict[type, Operations] = {int: _NUMBERS, float: _NUMBERS, np.ndarray: _ARRAYS}


def _of_other(numbers: object) -> Operations:
    if isinstance(numbers, int | float):
        return _NUMBERS
    return _ARRAYS if isinstance(numbers, np.generic) else _of_tensors()


@cache
def _of_tensors() -> Operations:
    """The operations for tensors, one of which may be a number."""
    from torch import Tensor, where

    def minimum(first: Any, second: Any) -> Tensor:
        return first.clamp(max=second) if isinstance(first, Tensor) else second.clamp(max=first)

    def maximum(first: Any, second: Any) -> Tensor:
        return first.clamp(min=second) if isinstance(first, Tensor) else second.clamp(min=first)

    return Operations(minimum, maximum, where)


def leader_distance(axis: Axis) -> int:
    """Distance from the start of a stride group to its leader, whose window the group shares."""
    return axis.stride - 1 if axis.causal else axis.stride // 2


def sides(axis: Axis) -> tuple[int, int]:
    """Left and right, unlimited sides as `FAR`."""
    left, right = axis.left, axis.right
    return (FAR if left is None else left, FAR if right is None else right)


def plain_window(axis: Axis, u: Coordinates, keys: Any) -> tuple[Coordinates, Coordinates]:
    """The window `[lo, hi)` around the leader of u's stride group, before borders and causality."""
    ops = operations(u)
    left, right = sides(axis)
    base = u // axis.stride * axis.stride
    leader = base + leader_distance(axis)
    leader = ops.where(base < keys, ops.minimum(leader, keys - 1), leader)
    return leader - left, leader + right + 1


def window_of(
    axis: Axis, u: Coordinates, keys: Any
) -> tuple[Coordinates, Coordinates, Coordinates]:
    """The keys `[lo, hi)` and `[0, prefix)` of query u, all ends non-decreasing in u.

    So the keys of neighbouring queries together lie between the ends of the first and the last.
    `lo >= hi` is an empty window; a wrapped one may lie past the ends by less than a lap.
    """
    ops = operations(u)
    lo, hi = plain_window(axis, u, keys)
    if axis.border == "clip":
        lo, hi = ops.maximum(lo, 0), ops.minimum(hi, keys)
    elif axis.border == "shift":
        window = hi - lo
        last = ops.maximum(0, keys - window)
        lo = ops.minimum(ops.maximum(lo, 0), last)
        hi = lo + ops.minimum(keys, window)
    else:
        whole = hi - lo >= keys
        lo, hi = ops.where(whole, 0, lo), ops.where(whole, keys, hi)
    prefix = ops.minimum(axis.prefix, keys)
    if axis.causal:
        hi = ops.minimum(hi, u + 1)
        prefix = ops.minimum(ops.maximum(u + 1, 0), prefix)
    return lo, hi, prefix + 0 * u


def rows_of(axis: Axis, lo: Any, hi: Any, prefix: Any, keys: Any) -> Rows:
    """Windows and prefixes as the disjoint intervals `[0, low)` and `[lo, hi)`."""
    ops = operations(lo)
    if axis.border == "wrap":
        start, length = lo % ops.maximum(keys, 1), ops.minimum(hi - lo, keys)
        low = ops.maximum(start + length - keys, 0)
        return Rows(low, start, start + length - low)
    empty = hi <= lo
    apart = (lo > prefix) & (hi > lo)
    return Rows(
        ops.where(apart, prefix, 0),
        ops.where(apart, lo, 0),
        ops.where(empty, prefix, ops.maximum(hi, prefix)),
    )


def readers_of(axis: Axis, t: Coordinates, keys: int) -> tuple[Coordinates, Coordinates]:
    """The queries `[since, until)` that attend to key t: the inverse of `window_of`, both ends
    non-decreasing in t but for a prefix.

    `since >= until` means none; a wrapped interval may lie past the ends by less than a lap.

    Windows start no earlier for later queries. So the windows that reach t are those from some
    query on, and those that do not start after t are those up to some query. Checked against
    NATTEN's inverse in reference to stride and causal axes.
    """
    ops = operations(t)
    left, right = sides(axis)
    s, c = axis.stride, leader_distance(axis)
    since = -((t - right - c) // -s) * s
    until = (t + left - c) // s * s + s
    if axis.border == "wrap":
        return (0 * t, 0 * t + keys) if left + right + 1 >= keys else (since, until)
    # the leaders of the last groups are at the last key
    until = ops.where(t + left >= keys - 1, ops.maximum(until, (keys - 1) // s * s + s), until)
    if axis.border == "shift":
        window = left + right + 1
        since = ops.where(t < window, -FAR, since)
        until = ops.where(t >= keys - window, FAR, until)
    if axis.causal:
        since = ops.maximum(since, t)
    since = ops.where(t < axis.prefix, t if axis.causal else -FAR, since)
    return since, ops.where(t < axis.prefix, FAR, until)


def bends(axis: Axis, corners: Iterable[int]) -> list[int]:
    """Class coordinates around which intervals change their dependence on the row, given the ends
    of rows and columns.
    """
    left, right = sides(axis)
    near = [side for side in (left, right, left + right) if side < FAR]
    ends = {*corners, axis.prefix}
    return sorted({at + sign * side for at in ends for side in (0, *near) for sign in (1, -1)})

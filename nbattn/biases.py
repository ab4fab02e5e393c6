"""What is added to scores by position: a table of relative positions, and ALiBi's slopes. Which
masks have them, the table's shape, and the entry that each pair reads.

With K = left + right + 1 keys in a window, the step from a query to a key, both in coordinates of
their class, is between 1 - K and K - 1: the table has 2 K - 1 entries per axis, NATTEN's `rpb`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from nbattn.axis import Axis, written
from nbattn.errors import MaskError
from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.mask import Mask
from nbattn.rows import plain_window


def table_sizes(axes: Sequence[Axis]) -> tuple[int, ...]:
    """Returns the entries of a table per axis, 2 K - 1, for axes with finite sides.

    >>> table_sizes(Mask.neighborhood((7, 5)).axes)
    (13, 9)
    """
    return tuple(2 * _keys(axis) - 1 for axis in axes)


def check(mask: Mask, axes: Axes, *, table: bool, slopes: bool) -> None:
    """Checks that a mask has what a call adds to its scores.

    Raises:
        MaskError: it has no table, or no distances for ALiBi.
    """
    if table:
        check_table(mask, axes)
    if slopes:
        check_slopes(mask, axes)


def check_table(mask: Mask, axes: Axes) -> None:
    """Checks that a mask has a table: every step from a query to a key of it has one entry.

    Raises:
        MaskError: an axis has an unlimited side, a prefix, stride groups wider than the window, a
            circle shorter than the window, or `shift` with queries beside the keys.
    """
    for number, axis in enumerate(axes):
        for broken, why, fix in _RULES:
            if broken(axis):
                raise MaskError(
                    f"relative_bias: axis {number} {why.format(axis=axis, spec=axis.spec)}.",
                    f"{written(_with_axis(mask, number, fix(axis)))}.",
                    repr(mask),
                )


def check_slopes(mask: Mask, axes: Axes) -> None:
    """Checks that a mask has distances for ALiBi.

    Raises:
        MaskError: it has several axes, or a circular one.
    """
    if len(axes) > 1:
        raise MaskError(
            f"alibi_slopes: the mask has {len(axes)} axes, and ALiBi is a distance on one.",
            _as_table(mask, axes),
            repr(mask),
        )
    if any(axis.spec.border == "wrap" for axis in axes):
        raise MaskError(
            'alibi_slopes: border="wrap" has no distance along a line.',
            _as_table(mask, axes),
            repr(mask),
        )


def steps(axis: BoundAxis) -> Ints:
    """Returns the step t - u from every query to every key of its class, `[queries, keys]`; on a
    circle the one inside the window. Other pairs have any number.
    """
    return steps_between(axis, np.arange(axis.queries), np.arange(axis.keys))


def steps_between(axis: BoundAxis, queries: Ints, keys: Ints) -> Ints:
    """Returns the steps from some of the held queries to some of the held keys, by number."""
    d = axis.spec.dilation
    u, residue = np.divmod(queries + axis.offset, d)
    t = (keys + axis.first_key - residue[:, None]) // d
    if axis.spec.border == "wrap":
        length = np.maximum(1, -((residue - axis.lengths[1]) // d))
        lo, _ = plain_window(axis.spec, u, length)
        t = lo[:, None] + (t - lo[:, None]) % length[:, None]
    return t - u[:, None]


@lru_cache(16)
def entries(axes: Axes) -> Ints:
    """Returns the entry of the table, flat, of every pair `[Nq, Nk]`: 0 for pairs outside of the
    mask's reach.
    """
    return entries_of([axis.spec for axis in axes], [steps(axis) for axis in axes])


def entries_of(axes: Sequence[Axis], steps: Sequence[Ints]) -> Ints:
    """Returns the flat entries of all pairs, from the steps `[queries, keys]` on every axis."""
    flat = np.zeros((1, 1), dtype=np.int64)
    for step, size in zip(steps, table_sizes(axes), strict=True):
        on_axis = np.clip(step + size // 2, 0, size - 1)
        joined = flat[:, None, :, None] * size + on_axis[None, :, None, :]
        flat = joined.reshape(flat.shape[0] * step.shape[0], flat.shape[1] * step.shape[1])
    return flat


def _keys(axis: Axis) -> int:
    assert axis.left is not None
    assert axis.right is not None
    return axis.left + axis.right + 1


def _with_axis(mask: Mask, number: int, axis: Axis) -> tuple[Axis, ...]:
    return (*mask.axes[:number], axis, *mask.axes[number + 1 :])


def _is_unlimited(axis: BoundAxis) -> bool:
    return axis.spec.left is None or axis.spec.right is None


def _limited(axis: BoundAxis) -> Axis:
    """The same axis with finite sides, which reach every key."""
    spec, (queries, keys) = axis.spec, axis.lengths
    far = max(1, queries + abs(axis.offset), keys + abs(axis.offset)) - 1
    return replace(
        spec,
        left=far if spec.left is None else spec.left,
        right=far if spec.right is None else spec.right,
    )


def _leaves_window(axis: BoundAxis) -> bool:
    """Whether a query of a stride group may lie outside of its leader's window."""
    spec = axis.spec
    if spec.stride == 1 or spec.causal or spec.left is None or spec.right is None:
        return False
    return spec.stride // 2 > spec.left or (spec.stride - 1) // 2 > spec.right


def _narrower(axis: BoundAxis) -> Axis:
    assert axis.spec.left is not None
    assert axis.spec.right is not None
    most = min(2 * axis.spec.left + 1, 2 * axis.spec.right + 2)
    return replace(axis.spec, stride=most)


def _is_beside_keys(axis: BoundAxis) -> bool:
    moved = axis.spec.border == "shift" or axis.spec.stride > 1
    first, length = axis.offset, axis.lengths[1]
    return moved and axis.queries > 0 and not 0 <= first <= first + axis.queries <= length


def _is_short_circle(axis: BoundAxis) -> bool:
    length = axis.lengths[1] // axis.spec.dilation
    return axis.spec.border == "wrap" and 0 < length < _keys(axis.spec)


def _whole_circle(axis: BoundAxis) -> Axis:
    """The same axis, with each key of the circle once in the window."""
    length = axis.lengths[1] // axis.spec.dilation
    left = min(axis.spec.left or 0, length - 1)
    return replace(axis.spec, left=left, right=length - 1 - left)


# What an axis must not have: whether it has it, in words, and the axis without it.
_RULES = (
    (
        _is_unlimited,
        "has an unlimited side, for which a table has no size: {spec!r}",
        _limited,
    ),
    (
        lambda axis: axis.spec.prefix > 0,
        "has prefix={spec.prefix}, keys at any distance",
        lambda axis: replace(axis.spec, prefix=0),
    ),
    (
        _leaves_window,
        "has stride={spec.stride}: queries of a group would lie outside of the window",
        _narrower,
    ),
    (
        _is_short_circle,
        "has a circle of {axis.keys} keys, fewer than its window: a key would have two entries",
        _whole_circle,
    ),
    (
        _is_beside_keys,
        "moves windows, and has queries at {axis.offset} and later that are not among its "
        "{axis.lengths[1]} keys",
        lambda axis: replace(axis.spec, border="clip", stride=1),
    ),
)


def _as_table(mask: Mask, axes: Axes) -> str:
    """The code of a table of the sum of the distances on all axes, where the mask has one."""
    if any(broken(axis) for axis in axes for broken, *_ in _RULES):
        return "alibi_slopes=None."
    sizes = table_sizes(mask.axes)
    rank = len(sizes)
    parts = " + ".join(
        f"torch.arange({1 - (size + 1) // 2}, {(size + 1) // 2}).abs()"
        f".reshape({', '.join(str(size if n == m else 1) for m in range(rank))})"
        for n, size in enumerate(sizes)
    )
    slopes = f"alibi_slopes.reshape(-1{', 1' * rank})"
    return f"relative_bias=-{slopes} * ({parts}), the sum of the distances on all axes."

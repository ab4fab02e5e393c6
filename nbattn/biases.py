"""What is added to scores by position: a table of relative positions, and ALiBi's slopes. Which
masks have them, the table's shape, and the entry that each pair reads.

With K = left + right + 1 keys in a window, the step from a query to a key, both in coordinates of
their class, is between 1 - K and K - 1: the table has 2 K - 1 entries per axis, NATTEN's `rpb`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nbattn.axis import ALIGNMENTS, Align, Axis, instead_of_prefix, written
from nbattn.errors import MaskError, counted
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
            circle shorter than the window, `shift` with queries beside the keys, or no alignment
            and not as many queries as keys.
    """
    _check_placed("relative_bias", mask, axes, lambda aligned: _repaired(aligned)[0])
    for number, axis in enumerate(axes):
        for rule in _RULES:
            if rule.breaks(axis):
                raise MaskError(
                    f"relative_bias: axis {number} {rule.why(axis)}.",
                    _instead(axes),
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
            _as_table(axes),
            repr(mask),
        )
    _check_placed("alibi_slopes", mask, axes, lambda aligned: [axis.spec for axis in aligned])
    if any(axis.spec.border == "wrap" for axis in axes):
        raise MaskError(
            'alibi_slopes: border="wrap" has no distance along a line.',
            _as_table(axes),
            repr(mask),
        )


def _check_placed(
    name: str, mask: Mask, axes: Axes, specs: Callable[[Axes], Sequence[Axis]]
) -> None:
    """Checks that queries have positions: a full axis takes any lengths without an alignment."""
    for number, axis in enumerate(axes):
        if not axis.is_placed:
            aligned = [
                written(specs(tuple(_aligned(one, align) for one in axes))) for align in ALIGNMENTS
            ]
            sizes = f"{counted(axis.queries, 'query', 'queries')}, {counted(axis.keys, 'key')}"
            raise MaskError(
                f"{name}: axis {number} ({sizes}) has no alignment, so its queries have no "
                "positions.",
                f"{aligned[0]} puts query 0 on key 0; or {aligned[1]} puts the last query on the "
                "last key.",
                repr(mask),
            )


def _aligned(axis: BoundAxis, align: Align) -> BoundAxis:
    return axis if axis.is_placed else replace(axis, spec=replace(axis.spec, align=align))


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


def _is_unlimited(axis: BoundAxis) -> bool:
    return axis.spec.left is None or axis.spec.right is None


def _limited(axis: BoundAxis) -> Axis:
    """The same axis with finite sides, which reach every key."""
    spec, (queries, keys) = axis.spec, axis.lengths
    far = max(1, queries + abs(axis.offset), keys + abs(axis.offset)) - 1
    left, right = (far if side is None else side for side in (spec.left, spec.right))
    return replace(spec, left=left, right=right)


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
    while axis.spec.border == "wrap" and _circle(axis) % most:
        most -= 1
    return replace(axis.spec, stride=most)


def _is_beside_keys(axis: BoundAxis) -> bool:
    moved = axis.spec.border == "shift" or axis.spec.stride > 1
    first, length = axis.offset, axis.lengths[1]
    return moved and axis.queries > 0 and not 0 <= first <= first + axis.queries <= length


def _circle(axis: BoundAxis) -> int:
    """The keys of a class."""
    return axis.lengths[1] // axis.spec.dilation


def _is_short_circle(axis: BoundAxis) -> bool:
    return axis.spec.border == "wrap" and 0 < _circle(axis) < _keys(axis.spec)


def _whole_circle(axis: BoundAxis) -> Axis:
    """The same axis, with each key of the circle once in the window."""
    left = min(axis.spec.left or 0, _circle(axis) - 1)
    return replace(axis.spec, left=left, right=_circle(axis) - 1 - left)


class _Rule(NamedTuple):
    """What an axis with a table must not have.

    Args:
        breaks: whether it has it.
        why: what is wrong, in words.
        without: the axis without it.
        other: how the mask without it differs; empty if it is the same mask.
    """

    breaks: Callable[[BoundAxis], bool]
    why: Callable[[BoundAxis], str]
    without: Callable[[BoundAxis], Axis]
    other: str = ""


_RULES = (
    _Rule(
        _is_unlimited,
        lambda axis: f"has an unlimited side, for which a table has no size: {axis.spec!r}",
        _limited,
    ),
    _Rule(
        lambda axis: axis.spec.prefix > 0,
        lambda axis: f"has prefix={axis.spec.prefix}, keys at any distance",
        lambda axis: replace(axis.spec, prefix=0),
        "without the prefix",
    ),
    _Rule(
        _is_short_circle,
        lambda axis: (
            f"has a circle of {counted(_circle(axis), 'key')}, fewer than its window: a key would "
            "have two entries"
        ),
        _whole_circle,
    ),
    _Rule(
        _leaves_window,
        lambda axis: (
            f"has stride={axis.spec.stride}: queries of a group would lie outside of the window"
        ),
        _narrower,
        "with the widest groups that lie inside of their window",
    ),
    _Rule(
        _is_beside_keys,
        lambda axis: (
            f"moves windows, and its queries, from position {axis.offset} on, are not all among "
            f"its {counted(axis.lengths[1], 'key')}"
        ),
        lambda axis: replace(axis.spec, border="clip", stride=1),
        "whose windows are not moved",
    ),
)


def _repaired(axes: Axes) -> tuple[list[Axis], list[str]]:
    """The axes with a table, and how they differ from the given ones."""
    specs, others = list[Axis](), dict[str, None]()
    for bound in axes:
        axis = bound
        for rule in _RULES:
            if rule.breaks(axis):
                axis = replace(axis, spec=rule.without(axis))
                others |= {rule.other: None} if rule.other else {}
        specs.append(axis.spec)
    return specs, list(others)


def _instead(axes: Axes) -> str:
    """The code for a mask without a table: the same mask as one with a table if there is one; a
    prefix as extra keys; or else what comes next.
    """
    specs, others = _repaired(axes)
    if len(axes) == 1 and axes[0].spec.prefix and others == ["without the prefix"]:
        spec = replace(specs[0], prefix=axes[0].spec.prefix)
        return instead_of_prefix(spec, "relative_bias=relative_bias, ")
    how = f"a mask {' and '.join(others)}" if others else "the same mask"
    return f"{written(specs)}{_cut(axes, specs)}, {how}."


def _cut(axes: Axes, specs: Sequence[Axis]) -> str:
    """The code of the table for smaller windows; empty where they are as large as before."""
    if any(map(_is_unlimited, axes)):
        return ""
    sizes = zip(table_sizes([axis.spec for axis in axes]), table_sizes(specs), strict=True)
    ends = [((old - new) // 2, (old + new) // 2) for old, new in sizes]
    if not any(start for start, _ in ends):
        return ""
    return f", relative_bias=relative_bias[:, {', '.join(f'{a}:{b}' for a, b in ends)}]"


def _as_table(axes: Axes) -> str:
    """The code of a table of the sum of the distances on all axes, with a mask that has one."""
    specs, others = _repaired(axes)
    if others:
        return f"alibi_slopes=None; a table needs a mask {' and '.join(others)}."
    sizes, ones = table_sizes(specs), ", 1" * len(specs)
    parts = " + ".join(
        f"torch.arange({-(size // 2)}, {size // 2 + 1}).abs()"
        f"{f'.mul({spec.dilation})' if spec.dilation > 1 else ''}"
        f".reshape({', '.join('-1' if n == m else '1' for m in range(len(specs)))})"
        for n, (spec, size) in enumerate(zip(specs, sizes, strict=True))
    )
    table = f"relative_bias=-alibi_slopes.reshape(-1{ones}) * ({parts})"
    return (
        f"nbattn.attention(query, key, value, {written(specs)}, {table}), for slopes [H]: the sum "
        "of the distances on all axes."
    )

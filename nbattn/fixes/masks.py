"""Code that repairs calls of `Mask` and its constructors, for the fixes of their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from nbattn.axis import MAX_RANK, Axis, written
from nbattn.errors import MaskError


def fewer_axes(rank: int, axes: Sequence[Axis]) -> str:
    """The code of the same mask with fewer axes: without one that sees only itself, which belongs
    to the batch; or with two unlimited ones as one.
    """
    if rank < 1 or not axes:
        return f"Mask.full(rank={min(max(rank, 1), MAX_RANK)})."
    for number, axis in enumerate(axes):
        if (axis.left, axis.right, axis.offset, axis.stride) == (0, 0, 0, 1):
            rest = written([*axes[:number], *axes[number + 1 :]])
            moved = "" if number == 0 else f".movedim({number + 1}, 1)"
            return f"mask={rest}, with query{moved}.flatten(0, 1), key and value likewise."
    for number, (axis, following) in enumerate(pairwise(axes)):
        if axis.is_full and following.is_full:
            rest = written([*axes[:number], *axes[number + 1 :]])
            joined = f"flatten({number + 1}, {number + 2})"
            return f"mask={rest}, with query.{joined}, key and value likewise."
    return ""


def instead_of_axes(given: Sequence[Any]) -> str:
    """The code of the mask that was probably meant by what is no Axis."""
    if len(given) == 1 and hasattr(given[0], "axes"):  # a mask
        return f"{written(given[0].axes)}."
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = given[0]
    pairs = [axis if isinstance(axis, (list, tuple)) else (axis, axis) for axis in given]
    sides = [
        axis if isinstance(axis, Axis) else pair for axis, pair in zip(given, pairs, strict=True)
    ]
    try:
        axes = [side if isinstance(side, Axis) else Axis(*side) for side in sides]
        return f"{written(axes)}." if 1 <= len(axes) <= MAX_RANK else ""
    except (MaskError, TypeError):
        return "Mask.neighborhood(7)."


def of_one_length(arguments: Mapping[str, Any], lengths: Mapping[str, int]) -> str:
    """The code of per-axis arguments with as many values as the first of them."""
    count = next(iter(lengths.values()))
    fixed = {
        name: (*arguments[name], *[arguments[name][-1]] * count)[:count]
        for name, length in lengths.items()
        if length not in (count, 0)
    }
    return f"{', '.join(f'{name}={values!r}' for name, values in fixed.items())}." if fixed else ""


def pair(window_size: Any) -> str:
    """The code of Flash's window that was probably meant."""
    sides = window_size if isinstance(window_size, (tuple, list)) else (window_size,)
    if len(sides) and all(isinstance(side, (int, type(None))) for side in sides):
        return f"window_size={tuple((*sides, sides[-1])[:2])!r}."
    return "window_size=(-1, -1)."


def other_space(
    axes: Sequence[Axis], name: str, queries: Sequence[int], keys: Sequence[int]
) -> str:
    """The code of a mask of as many axes as both spaces, if all its axes are one; else of a space
    of as many lengths as the mask has axes.
    """
    if 0 < len(queries) == len(keys) <= MAX_RANK and len(set(axes)) == 1:
        return f"{written((axes[0],) * len(queries))}."
    other = queries if name == "keys" else keys
    lengths = (
        other if len(other) == len(axes) else tuple(queries[:1]) * len(axes) or (8,) * len(axes)
    )
    return f"{'query' if name == 'queries' else 'key'}_space={tuple(lengths)}."

"""Code that repairs calls of `Mask` and its constructors, for the fixes of their errors."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from nbattn.axis import MAX_RANK, Align, Axis, written
from nbattn.errors import MaskError


def fewer_axes(rank: int, axes: Sequence[Axis]) -> str:
    """The code of the same mask with fewer axes: without one that sees only itself, which belongs
    to the batch; or with two unlimited ones as one.
    """
    if rank < 1 or not axes:
        return f"Mask.full(rank={min(max(rank, 1), MAX_RANK)})."
    for number, axis in enumerate(axes):
        if (axis.left, axis.right, axis.offset, axis.stride, axis.prefix) == (0, 0, 0, 1, 0):
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
    if len(given) == 1 and isinstance(given[0], str):
        if code := from_text(given[0]):
            return f"{code}."
        return "Mask.causal()." if "causal" in given[0].lower() else ""
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = given[0]
    if any(hasattr(axis, "axes") for axis in given):  # masks, whose axes are meant
        given = [one for axis in given for one in getattr(axis, "axes", (axis,))]
    pairs = [axis if isinstance(axis, (list, tuple)) else (axis, axis) for axis in given]
    sides = [
        axis if isinstance(axis, Axis) else pair for axis, pair in zip(given, pairs, strict=True)
    ]
    try:
        axes = [side if isinstance(side, Axis) else Axis(*side) for side in sides]
        return f"{written(axes)}." if 1 <= len(axes) <= MAX_RANK else ""
    except (MaskError, TypeError):
        return ""


def from_text(text: str) -> str:
    """The code of a mask in the notation of files; empty where it is none.

    >>> from_text("neighborhood(3)"), from_text("window")
    ("Mask(Axis(1, 1, border='shift'))", '')
    """
    from nbattn.mask import Mask

    try:
        call: Any = ast.parse(text.removeprefix("nbattn.").removeprefix("Mask."), mode="eval").body
        given = map(ast.literal_eval, call.args)
        named = {part.arg: ast.literal_eval(part.value) for part in call.keywords}
        return written(getattr(Mask, call.func.id)(*given, **named).axes)
    except (SyntaxError, ValueError, TypeError, AttributeError, MaskError):
        return ""


def causal_axes(axes: Sequence[Axis], said: Sequence[bool] = ()) -> list[Axis]:
    """The axes without later keys; a window that moves inward keeps its size, as in NATTEN.

    Args:
        axes: of a mask.
        said: whether each becomes causal; by default all do.

    Raises:
        MaskError: an axis is circular.
    """
    changed: list[Axis] = []
    for axis, is_causal in zip(axes, said or [True] * len(axes), strict=True):
        if not is_causal:
            changed.append(axis)
            continue
        if axis.border == "shift" and axis.left is not None and axis.right is not None:
            axis = replace(axis, left=axis.left + axis.right, border="clip", right=0)
        changed.append(replace(axis, right=0, causal=True))
    return changed


def with_fields(axes: Sequence[Axis], fields: Mapping[str, Any]) -> list[Axis]:
    """The axes with other values of some fields; with causal, without later keys.

    Raises:
        MaskError: an axis is not legal with them.
    """
    others = {name: value for name, value in fields.items() if name != "causal"}
    each = causal_axes(axes) if fields.get("causal") else axes
    return [replace(axis, **others) for axis in each]


_IN_ROWS = (
    "nbattn.attention(query.flatten(1, -3), key.flatten(1, -3), value.flatten(1, -3), Mask.causal("
    '"{}")).unflatten(1, query.shape[1:-2])'
)


def causal(rank: int, align: Align = "top-left") -> str:
    """The code of the causal mask of a space: of one axis, or of each; or in row-major order."""
    if rank == 1:
        return f'mask=Mask.causal("{align}").'
    mask = written((Axis(causal=True, align=align),) * rank)
    return f"mask={mask}, with every axis causal; or {_IN_ROWS.format(align)}, in row-major order."


def sized(size: Any, rank: int) -> Any:
    """A size for every axis of a space, from one for all of them."""
    size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    size = size * rank if len(size) == 1 else size
    return size if len(size) > 1 else size[0]


def flash(window: tuple[Any, Any], rank: int, *, is_causal: bool = False) -> str:
    """The code of Flash's window, on every axis of a space."""
    if rank == 1:
        return f"Mask.from_flash({window!r}{', causal=True' * is_causal})"
    sides = [None if side is None or side < 0 else side for side in window]
    axis = Axis(sides[0], 0 if is_causal else sides[1], causal=is_causal, align="bottom-right")
    return written((axis,) * rank)


def windows(sizes: Sequence[Any], rank: int) -> str:
    """The code for numbers in the place of a mask: Flash's pair of sides on one axis; on more, as
    many sizes as axes; empty where they mean neither.
    """
    on_each = " on every axis" * (rank > 1)
    are_sizes = all(type(size) is int and size > 0 for size in sizes)
    given: list[str] = []
    if are_sizes and len(sizes) in {1, rank}:
        given.append(f"mask=Mask.neighborhood({sized(sizes, rank)!r}), with NATTEN's meaning")
    if len(sizes) == 2 and all(type(size) in (int, type(None)) for size in sizes):
        given.append(f"mask={flash((sizes[0], sizes[1]), rank)}, with Flash's meaning{on_each}")
    return f"{'; or '.join(given)}." if given else ""


def of_one_length(arguments: Mapping[str, Any], lengths: Mapping[str, int]) -> str:
    """The code of per-axis arguments with as many values as the first of them."""
    count = next(iter(lengths.values()))
    fixed = {
        name: (*arguments[name], *[arguments[name][-1]] * count)[:count]
        for name, length in lengths.items()
        if length not in (count, 0)
    }
    return f"{', '.join(f'{name}={values!r}' for name, values in fixed.items())}." if fixed else ""


def of_one_rank(arguments: Mapping[str, Any], lengths: Mapping[str, int], rank: int) -> str:
    """The code for per-axis values of another length than the rank: a rank of their length, or as
    many values as the rank.
    """
    count = next(iter(lengths.values()))
    values = of_one_length({"": (0,) * rank, **arguments}, {"": rank, **lengths})
    ranked = f"rank={count}" if 1 <= count <= MAX_RANK else ""
    codes = filter(None, [ranked, values.rstrip(".")])
    return "".join(f"{code}." for code in [", or ".join(codes)] if code)


def pair(window_size: Any, following: Any) -> str:
    """The code of Flash's window that was probably meant, whose right side may be the argument
    that follows.
    """
    if isinstance(window_size, int) and type(following) is int:
        return f"Mask.from_flash({(window_size, following)!r})."
    sides = window_size if isinstance(window_size, (tuple, list)) else (window_size,)
    if len(sides) and all(isinstance(side, (int, type(None))) for side in sides):
        return f"window_size={tuple((*sides, sides[-1])[:2])!r}."
    is_causal = isinstance(window_size, str) and "causal" in window_size.lower()
    return f"window_size=(-1, -1){', causal=True' * is_causal}."


def other_space(
    axes: Sequence[Axis], name: str, queries: Sequence[int], keys: Sequence[int]
) -> str:
    """The code of a mask of as many axes as both spaces, if all its axes are one; else of a space
    of as many lengths as the mask has axes.
    """
    if 0 < len(queries) == len(keys) <= MAX_RANK and len(set(axes)) == 1:
        return f"{written((axes[0],) * len(queries))}."
    if len(queries) == len(axes) + 3:  # [B, *space, H, D]
        return f"{'query' if name == 'queries' else 'key'}_space={tuple(queries[1:-2])}."
    other = queries if name == "keys" else keys
    lengths = (
        other if len(other) == len(axes) else tuple(queries[:1]) * len(axes) or (8,) * len(axes)
    )
    return f"{'query' if name == 'queries' else 'key'}_space={tuple(lengths)}."

"""Checks the lengths of circular axes, and makes their errors."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from nbattn.axis import Axis, written
from nbattn.errors import MaskError
from nbattn.mask import Mask


def check_lengths(mask: Mask, number: int, axis: Axis, queries: int, keys: int) -> None:
    """The rules that depend on the shape."""
    if axis.border != "wrap":
        return
    where = f"axis {number} ({queries} queries, {keys} keys)"
    if queries != keys:
        raise MaskError(
            f'{where}: border="wrap" needs as many queries as keys.',
            _unrolled(mask, number, queries, keys),
            repr(mask),
        )
    period = axis.dilation * axis.stride
    if keys % period:
        raise MaskError(
            f'{where}: border="wrap" needs a length that dilation x stride = {period} divides, '
            f"but {keys} leaves {keys % period}.",
            f"{written(_on_circle(mask, number, keys))}.",
            repr(mask),
        )


def _unrolled(mask: Mask, number: int, queries: int, keys: int) -> str:
    """The code for the first rows of a circle: its keys, continued at both ends, on a line."""
    axis = mask.axes[number]
    left, right = axis.left, axis.right
    plain = (axis.dilation, axis.stride, axis.prefix) == (1, 1, 0)
    if left is None or right is None or not plain or not max(queries, left + right + 1) <= keys:
        return ""
    rows = ":, " * (number + 1)
    first, last = f"{rows}:{right}", f"{rows}{keys - left}:"
    ends = ", ".join(
        f"torch.cat([{name}[{last}], {name}, {name}[{first}]], {number + 1})"
        for name in ("key", "value")
    )
    axes = [*mask.axes]
    axes[number] = replace(axis, border="clip", align=left)
    return f"nbattn.attention(query, {ends}, {written(axes)}), with query 0 on key 0."


def _on_circle(mask: Mask, number: int, keys: int) -> list[Axis]:
    """The axes with the dilation and stride that fit a circle, nearest to the given ones."""
    axis = mask.axes[number]
    stride = max(n for n in _divisors(keys) if n <= axis.stride)
    around = _divisors(keys // stride)
    width = (axis.left or 0) + (axis.right or 0) + 1
    wide = [n for n in around if keys // stride >= n * width] or around
    dilation = min(wide, key=lambda n: (max(n, axis.dilation) / min(n, axis.dilation), n))
    axes = [*mask.axes]
    axes[number] = replace(axis, dilation=dilation, stride=stride)
    return axes


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]

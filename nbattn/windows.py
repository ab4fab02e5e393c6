"""Windows as NATTEN and Flash count them, for axes of masks; and which masks have one.

Everything here is about axes: `mask` makes its constructors and converters of it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nbattn.axis import MAX_RANK, Axis, truth, whole, written
from nbattn.errors import MaskError
from nbattn.fixes import masks as repairs
from nbattn.symbolic import holds, is_symbolic


def checked_rank(rank: Any) -> int:
    """Returns a number of axes that a mask can have.

    Raises:
        MaskError: it is no whole number, or there are too many axes.
    """
    number = whole("rank", rank, 1)
    if number > MAX_RANK:
        raise MaskError(f"a mask has 1 to {MAX_RANK} axes, not {number}.", f"rank={MAX_RANK}.")
    return number


def natten_axes(arguments: Mapping[str, Any], rank: int | None) -> list[Axis]:
    """Returns the axes of NATTEN's arguments, each one value or one per axis.

    Args:
        arguments: `kernel_size`, `dilation`, `stride`, `is_causal`, in this order.
        rank: the number of axes; None is what the arguments have, else one.

    Raises:
        MaskError: arguments of different lengths, or of another length than the rank, or a value
            that is not legal.
    """
    rank = None if rank is None else checked_rank(rank)
    arguments = {name: _per_axis(value) for name, value in arguments.items()}
    lengths = {n: len(v) for n, v in arguments.items() if isinstance(v, (tuple, list))}
    if len({*lengths.values()}) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problem = f"per-axis arguments have different lengths: {shown}."
        raise MaskError(problem, repairs.of_one_length(arguments, lengths))
    axes = (*lengths.values(), rank or 1)[0]  # next() has no default in the compiler of torch 2.8
    if rank is not None and axes != rank:
        name = next(iter(lengths))
        problem = f"{name}={arguments[name]!r} is {axes} per-axis values, but rank={rank}."
        raise MaskError(problem, repairs.of_one_rank(arguments, lengths, rank))
    per_axis = [v if isinstance(v, (tuple, list)) else (v,) * axes for v in arguments.values()]
    return [_natten_axis(*values) for values in zip(*per_axis, strict=True)]


def _per_axis(value: Any) -> Any:
    """Returns an array of one axis as a tuple; other values unchanged."""
    if isinstance(value, (int, tuple, list)) or is_symbolic(value):
        return value
    return tuple(value.tolist()) if getattr(value, "ndim", 0) == 1 else value


def _natten_axis(kernel_size: int, dilation: int, stride: int, is_causal: bool) -> Axis:
    kernel = whole("kernel_size", kernel_size, 1)
    if not holds(whole("stride", stride, 1) <= kernel):
        raise MaskError(
            f"stride={operator.index(stride)} is larger than kernel_size={operator.index(kernel)}.",
            f"stride={operator.index(kernel)}, or less.",
        )
    if truth("is_causal", is_causal):
        return Axis(kernel - 1, dilation=dilation, stride=stride, causal=is_causal)
    return Axis(
        kernel // 2,
        (kernel - 1) // 2,
        dilation=dilation,
        stride=stride,
        causal=is_causal,
        border="shift",
    )


def flash_side(name: str, side: int | None) -> int | None:
    """Returns one side of Flash's window as a side of an axis: negative is unlimited."""
    if side is None:
        return None
    number = whole(name, side, None, f"{name}=None for all")
    return None if number < 0 else number


def instead_of_flash(axes: Sequence[Axis]) -> str:
    """The fix: this mask aligned bottom-right, if that makes it a Flash window; else nbattn."""
    exact, axis = "nbattn.attention(query, key, value, mask) runs it exactly.", axes[0]
    if len(axes) > 1 or axis.align is not None or axis.border != "clip":
        return exact
    aligned = [replace(axis, align="bottom-right")]
    return exact if why_not_flash(aligned) else f"{written(aligned)}.to_flash(), or {exact}"


def why_not_flash(axes: Sequence[Axis]) -> str | None:
    """Returns why Flash has no window for a mask, or None if it has."""
    axis = axes[0]
    if len(axes) > 1:
        return f"it has {len(axes)} axes, Flash supports one."
    if axis.is_full:
        return None
    for name, plain in (("dilation", 1), ("stride", 1), ("border", "clip"), ("prefix", 0)):
        if getattr(axis, name) != plain:
            return f"{name}={getattr(axis, name)!r}; Flash supports {name}={plain!r} only."
    if axis.align != "bottom-right":
        return f"align={axis.align!r}; Flash aligns bottom-right, which differs if lengths differ."
    for name, side, sign in (("left", axis.left, -1), ("right", axis.right, 1)):
        if side is not None and (shifted := side + sign * axis.offset) < 0:
            return (
                f"{name}={side} with offset={axis.offset} is the window {shifted}; "
                "Flash takes a negative number as unlimited."
            )
    return None


def why_not_decoded(axis: Axis) -> str | None:
    """Returns why decoding along an axis differs from one pass, or None if both are equal."""
    if axis.right != 0:
        return f"right={axis.right} attends to keys that come later; right=0 does not"
    if axis.stride != 1:
        return f"stride={axis.stride} makes windows depend on later queries; stride=1 does not"
    if axis.border != "clip" and not axis.causal:
        return f'border="{axis.border}" moves windows as keys grow; border="clip" does not'
    if axis.prefix and not axis.causal:
        return f"prefix={axis.prefix} attends to keys that come later; causal=True does not"
    if axis.align is None:
        return 'align=None gives a decoded query no key position; "bottom-right" does'
    if axis.align == "top-left":
        return 'align="top-left" puts a decoded query on key 0; "bottom-right" does not'
    if axis.offset > 0:
        return f"offset={axis.offset} attends to keys that come later; offset=0 does not"
    return None

"""Packs the kernels' one argument as `cuda/params.h` declares it: pointers, then numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbattn.geometry import BoundAxis

# In the order of the struct.
POINTERS = (
    "query",
    "key",
    "value",
    "extra_key",
    "extra_value",
    "sink",
    "key_range",
    "out",
    "lse",
    "grad_out",
    "grad_lse",
    "delta",
    "grad_query",
    "grad_key",
    "grad_value",
    "grad_extra_key",
    "grad_extra_value",
    "extra_range",
    "relative_bias",
    "alibi_slopes",
    "grids",
    "grad_relative_bias",
)
STRIDES = ("query", "key", "value", "grad_out")  # 6 each: batch, three axes, head, channel
AXIS = (
    "keys",
    "left",
    "right",
    "dilation",
    "stride",
    "offset",
    "prefix",
    "border",
    "causal",
)
HELD = ("queries", "first_key", "keys")  # what the tensors hold of an axis
COUNTS = ("batch", "heads", "group", "extra", "rank", "packed", "slope_step", "grid_count")
NUMBERS = struct.Struct(f"<{6 * len(STRIDES)}q2d{3 * len(AXIS)}i{3 * len(HELD)}i{len(COUNTS)}i")
SIZE = 8 * len(POINTERS) + NUMBERS.size
# The tensors with `Boxes`, in the order of `Mapped` (cuda/boxes.cuh), and the argument with them:
# `Params`, the boxes, padding, then tensor maps.
MAPPED = (
    "query",
    "grad_out",
    "key",
    "value",
    "extra_key",
    "extra_value",
    "any_query",
    "any_grad_out",
)
BOXES = struct.Struct("<12i")
MAPS, MAP_BYTES = 24, 128
FIRST_MAP = -(-(SIZE + len(MAPPED) * BOXES.size) // 64) * 64
MAPPED_SIZE = FIRST_MAP + MAPS * MAP_BYTES
FAR = 1 << 29  # an unlimited side: longer than every axis
_RANK = 3  # axes of the kernels
BORDERS: Mapping[str, int] = {"clip": 0, "shift": 1, "wrap": 2}
# The pointers that each kernel writes through; it only reads the others.
WRITES: Mapping[str, tuple[str, ...]] = {
    "nb_fwd_mma": ("out", "lse"),
    "nb_fwd_simt": ("out", "lse"),
    "nb_delta": ("delta",),
    "nb_fwd_wgmma": ("out", "lse"),
    "nb_dq_mma": ("grad_query",),
    "nb_dq_simt": ("grad_query",),
    "nb_dq_wgmma": ("grad_query",),
    "nb_dbias_simt": ("grad_relative_bias",),
    "nb_dkdv_mma": ("grad_key", "grad_value", "grad_extra_key", "grad_extra_value"),
    "nb_dkdv_simt": ("grad_key", "grad_value", "grad_extra_key", "grad_extra_value"),
    "nb_dkdv_wgmma": ("grad_key", "grad_value", "grad_extra_key", "grad_extra_value"),
}


def pack_numbers(
    strides: Iterable[int],
    scale: float,
    softcap: float,
    axes: Iterable[int],
    held: Iterable[int],
    counts: Iterable[int],
) -> bytes:
    """The bytes of the argument after the pointers.

    Args:
        strides: 6 strides of each tensor in `STRIDES`, in elements.
        scale: the scale of the scores.
        softcap: 0.0 means none.
        axes: the fields of `AXIS`, for three axes.
        held: the fields of `HELD`, for three axes.
        counts: the fields of `COUNTS`.
    """
    return NUMBERS.pack(*strides, scale, softcap, *axes, *held, *counts)


def pack_boxes(boxes: Mapping[str, Sequence[int]]) -> bytes:
    """The bytes of the argument between the numbers and the tensor maps.

    Args:
        boxes: the fields of `Boxes`, by names of `MAPPED`; those of absent tensors are 0.
    """
    none = (0,) * 12
    packed = b"".join(BOXES.pack(*boxes.get(name, none)) for name in MAPPED)
    return packed.ljust(FIRST_MAP - SIZE, b"\0")


def axis_numbers(axis: BoundAxis) -> tuple[int, ...]:
    """The numbers of one axis in the order of `AXIS`; an unlimited side is `FAR`."""
    spec = axis.spec
    left, right = (FAR if side is None else min(side, FAR) for side in (spec.left, spec.right))
    return (
        axis.lengths[1],
        left,
        right,
        spec.dilation,
        spec.stride,
        axis.offset,
        min(spec.prefix, axis.lengths[1]),
        BORDERS[spec.border],
        int(spec.causal),
    )


def held_numbers(axis: BoundAxis) -> tuple[int, ...]:
    """What the tensors hold of one axis, in the order of `HELD`."""
    return axis.queries, axis.first_key, axis.keys


def held_tokens(queries: int, keys: int) -> tuple[int, ...]:
    """The same of three axes for packed grids: all tokens are on the last one."""
    return (*(1, 0, 1) * (_RANK - 1), queries, 0, keys)


def on_three_axes(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of `[B, *space, H, D]` with 0 for leading axes that the space lacks, and for axes
    of one position: a tile may be longer, and the addresses of what it lacks must be aligned, too.
    """
    batch, *axes, head, channel = strides
    steps = (step if n > 1 else 0 for n, step in zip(shape[1:-2], axes, strict=True))
    return (batch, *(0,) * (_RANK - len(axes)), *steps, head, channel)

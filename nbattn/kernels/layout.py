"""Packs the kernels' one argument as `cuda/params.h` declares it: pointers, then numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

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
COUNTS = ("batch", "heads", "group", "extra", "rank", "packed")
NUMBERS = struct.Struct(f"<{6 * len(STRIDES)}q2d{3 * len(AXIS)}i{3 * len(HELD)}i{len(COUNTS)}i")
SIZE = 8 * len(POINTERS) + NUMBERS.size
BORDERS: Mapping[str, int] = {"clip": 0, "shift": 1, "wrap": 2}
# The pointers that each kernel writes through; it only reads the others.
WRITES: Mapping[str, tuple[str, ...]] = {
    "nb_fwd_mma": ("out", "lse"),
    "nb_fwd_simt": ("out", "lse"),
    "nb_delta": ("delta",),
    "nb_dq_mma": ("grad_query",),
    "nb_dq_simt": ("grad_query",),
    "nb_dkdv_mma": ("grad_key", "grad_value", "grad_extra_key", "grad_extra_value"),
    "nb_dkdv_simt": ("grad_key", "grad_value", "grad_extra_key", "grad_extra_value"),
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

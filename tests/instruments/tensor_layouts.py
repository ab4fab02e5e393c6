"""Tensors in many layouts whose elements are their own addresses, and dilations of boxes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nbattn.kernels.tensor_maps import View

Addresses = NDArray[np.int64]

# `[B, *space, H, D]`. Addresses are those in the memory that a view is of.


def contiguous(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    shape = (batch, *space, heads, channels)
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


def packed(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    return contiguous(batch, space, 3 * heads, channels)[..., heads : 2 * heads, :]


def packed_by_head(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    return contiguous(batch, space, heads, 3 * channels)[..., channels : 2 * channels]


def heads_first(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    return np.moveaxis(
        contiguous(batch * heads, space, 1, channels)[..., 0, :].reshape(
            batch, heads, *space, channels
        ),
        1,
        -2,
    )


def heads_outermost(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    whole = contiguous(heads, (batch, *space), 1, channels)[..., 0, :]
    return np.moveaxis(whole, 0, -2)


def every_other_head(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    return contiguous(batch, space, 2 * heads + 1, channels)[..., 1::2, :]


def cropped(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    larger = contiguous(batch + 1, tuple(n + 2 for n in space), heads, channels)
    return larger[(slice(1, None), *(slice(1, -1),) * len(space))]


def thinned(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    larger = contiguous(batch, tuple(2 * n for n in space), heads, channels)
    return larger[(slice(None), *(slice(None, None, 2),) * len(space))]


def axes_turned(batch: int, space: tuple[int, ...], heads: int, channels: int) -> Addresses:
    axes = range(1, 1 + len(space))
    return contiguous(batch, space[::-1], heads, channels).transpose(
        0, *reversed(axes), len(space) + 1, len(space) + 2
    )


LAYOUTS: tuple[Callable[..., Addresses], ...] = (
    contiguous,
    packed,
    packed_by_head,
    heads_first,
    heads_outermost,
    every_other_head,
    cropped,
    thinned,
    axes_turned,
)


def view_of(tensor: Addresses) -> View:
    """Its shape, and strides in elements."""
    return View(tensor.shape, tuple(stride // tensor.itemsize for stride in tensor.strides))


# space, dilations, tile: the ways of the axes 0, 1, 2 and the maps, with heads inside a token.
DILATED = {
    "folded": ((12,), (1, 1, 3), (1, 1, 4), "--f", 1),
    "folded to one position": ((5, 12), (1, 1, 12), (1, 4, 2), "--f", 1),
    "folded by a large one": ((4, 40), (1, 1, 20), (1, 2, 16), "--f", 1),
    "stepped": ((13,), (1, 1, 3), (1, 1, 4), "--s", 1),
    "stepped by the largest": ((3, 27), (1, 1, 8), (1, 1, 32), "--s", 1),
    "stepped on the first axis": ((9, 8), (1, 2, 1), (1, 4, 8), "-s-", 1),
    "by class": ((23,), (1, 1, 9), (1, 1, 8), "--c", 9),
    "by class, as 33 * 8 > 256": ((27,), (1, 1, 8), (1, 1, 33), "--c", 8),
    "by class, fewer positions than classes": ((2, 5), (1, 4, 90), (1, 2, 4), "-sc", 5),
    "all ways": ((12, 7, 6), (9, 5, 3), (2, 2, 4), "csf", 9),
    "all stepped": ((5, 7, 9), (2, 3, 4), (2, 2, 2), "sss", 1),
    "two axes by class": ((3, 5, 4), (9, 9, 1), (2, 2, 2), "cc-", 15),
    "one position": ((1, 6), (1, 7, 2), (1, 2, 4), "-sf", 1),
    "one position by class": ((1, 6), (1, 9, 2), (1, 2, 4), "-cf", 1),
}

"""What tests of `hopper_primitives.cu` give it and expect: boxes, images of shared memory and
registers, computed with numpy and shared by the tests of the emulator and of a device.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emulator.primitives import numbers
from nbattn.kernels import layout
from nbattn.kernels.tensor_maps import TensorMap

SWIZZLES = (128, 64, 32)
# Columns of products with a in registers, and swizzles of which they are whole boxes.
VALUES = [
    (columns, swizzle)
    for columns in (64, 80, 96, 128, 192, 256)
    for swizzle in SWIZZLES
    if columns % (swizzle // 2) == 0
]
Words = np.ndarray  # of 16 bits


def mapped_numbers(*values: int) -> bytes:
    """The argument of kernels with maps, after the pointers: `number` of the struct Mapped."""
    room = (layout.FIRST_MAP - layout.SIZE) // 4
    return numbers() + struct.pack(f"<{room}i", *values, *[0] * (room - len(values)))


def swizzled(rows: Words) -> Words:
    """Rows of 128, 64 or 32 bytes as a map writes them: chunks of 16 bytes change their places."""
    count, width = rows.shape
    chunks = width // 8
    image = np.empty((count, chunks, 8), rows.dtype)
    for row, chunk in itertools.product(range(count), range(chunks)):
        moved = chunk ^ row // (8 // chunks) % chunks
        image[row, moved] = rows[row, 8 * chunk : 8 * chunk + 8]
    return image.reshape(count, width)


def box(tensor: Words, tensor_map: TensorMap, at: Sequence[int]) -> Words:
    """The box of a contiguous tensor's elements at these coordinates, with zeros outside."""
    flat, start = tensor.reshape(-1), tensor_map.offset // 2
    places = [
        [c + i * step for i in range(-(-extent // step))]
        for c, extent, step in zip(at, tensor_map.box, tensor_map.steps, strict=True)
    ]
    steps = (1, *(stride // 2 for stride in tensor_map.strides))
    elements: list[int] = []
    for outer in itertools.product(*reversed(places)):
        place = tuple(reversed(outer))
        inside = all(0 <= x < n for x, n in zip(place, tensor_map.sizes, strict=True))
        index = start + sum(x * step for x, step in zip(place, steps, strict=True))
        elements.append(flat[index] if inside else 0)
    return np.array(elements, tensor.dtype).reshape(-1, len(places[0]))


def tile_image(vectors: Words, swizzle: int) -> Words:
    """Vectors [count, channels] as boxes of `swizzle` bytes of channels, one after another."""
    width = swizzle // 2
    groups = range(0, vectors.shape[1], width)
    return np.stack([swizzled(vectors[:, c : c + width]) for c in groups])


def descriptor(address: int, swizzle: int, next_columns: int = 0) -> tuple[int, int]:
    """The low and the high word of a descriptor of such a tile; sizes are in bytes."""
    kind = {128: 1, 64: 2, 32: 3}[swizzle]
    return address // 16 | next_columns // 16 << 16, 8 * swizzle // 16 | kind << 30


def k_major(count: int, k: int, swizzle: int) -> tuple[int, int]:
    """The channels 16 k to 16 k + 15 of a tile with `count` vectors; they are summed."""
    group, within = divmod(32 * k, swizzle)
    return descriptor(group * count * swizzle + within, swizzle)


def mn_major(count: int, k: int, swizzle: int) -> tuple[int, int]:
    """The vectors 16 k to 16 k + 15 of such a tile; they are summed."""
    return descriptor(16 * k * swizzle, swizzle, count * swizzle)


def words(*values: int) -> Tensor:
    """Words of 32 bits, as an argument."""
    return torch.from_numpy(np.array(values, np.uint32).view(np.int32))


def accumulators(matrix: np.ndarray) -> np.ndarray:
    """The registers [128, columns / 2] that hold a matrix [64, columns]."""
    thread, i = np.ogrid[:128, : matrix.shape[1] // 2]
    lane = thread % 32
    row = thread // 32 * 16 + lane // 4 + i // 2 % 2 * 8
    return matrix[row, i // 4 * 8 + lane % 4 * 2 + i % 2]


def operands(matrix: Words) -> Words:
    """The registers [128, products, 8] that hold a matrix [64, 16 products] of 16-bit elements."""
    thread, k, i = np.ogrid[:128, : matrix.shape[1] // 16, :8]
    lane = thread % 32
    row = thread // 32 * 16 + lane // 4 + i // 2 % 2 * 8
    return matrix[row, 16 * k + lane % 4 * 2 + i % 2 + i // 4 * 8]


def small_integers(rng: np.random.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers with which every order of the sums gives the same bits."""
    return torch.from_numpy(rng.integers(-8, 9, shape).astype(np.float32)).to(dtype)


def bits(tensor: Tensor) -> Words:
    """The elements of a 16-bit tensor."""
    return tensor.view(torch.int16).numpy()

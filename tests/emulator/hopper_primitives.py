"""The launches of `hopper_primitives.cu`, and their outputs by numpy: for tests of the emulator and
of a device.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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


DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}
# Positions of a box on the last three axes, its steps, and where it begins on the outer four
# dimensions of a tensor [2, 3, 5, 7, 3 boxes of channels].
BOXES = {
    "inside": ((4, 2, 1), (1, 1, 1), (1, 2, 1, 1)),
    "before the start": ((4, 4, 2), (1, 1, 1), (-2, -1, -1, 0)),
    "past the end": ((4, 4, 2), (1, 1, 1), (5, 3, 2, 1)),
    "outside": ((8, 1, 1), (1, 1, 1), (7, 0, 0, 0)),
    "far outside": ((8, 1, 1), (1, 1, 1), (0, -100, 0, 1)),
    "past the last sample": ((8, 1, 1), (1, 1, 1), (0, 0, 0, 2)),
    "steps": ((4, 2, 2), (2, 3, 2), (-1, 1, -1, 1)),
    "steps of the last axis": ((8, 2, 1), (8, 1, 1), (-9, 4, 2, 0)),
}


class Launched(NamedTuple):
    """One launch."""

    entry: str
    tensors: dict[str, Tensor]
    numbers: bytes = numbers()
    maps: tuple[TensorMap, ...] = ()
    threads: int = 128
    shared: int = 32768


class Case(NamedTuple):
    """A launch and one of its outputs."""

    launched: Launched
    output: str
    expected: np.ndarray


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


def boxes(case: str, swizzle: int) -> Iterator[Case]:
    """The same box twice, at channels inside of the tensor and over its edges."""
    extents, steps, at = BOXES[case]
    width = 3 * swizzle // 2
    positions = tuple(n * step for n, step in zip(extents, steps, strict=True))
    one = TensorMap(
        tensor="query",
        offset=0,
        sizes=(width, 7, 5, 3, 2),
        strides=tuple(2 * width * n for n in (1, 7, 35, 105)),
        box=(swizzle // 2, *positions, 1),
        steps=(1, *steps, 1),
        swizzle=swizzle,
    )
    query = torch.arange(1, 1 + 210 * width, dtype=torch.int16)
    for inner in (swizzle // 2, width - swizzle // 4, -swizzle // 4):
        expected = swizzled(box(query.numpy(), one, (inner, *at)))
        tensors = {"query": query, "out": torch.zeros(2, expected.size, dtype=torch.int16)}
        given = mapped_numbers(inner, *at, 2 * expected.size, 2)
        yield Case(
            Launched("boxes", tensors, given, (one, one)),
            "out",
            np.stack([expected.reshape(-1)] * 2),
        )


def rounds(count: int) -> Case:
    query = torch.arange(64 * 50, dtype=torch.int16)
    one = rows_map(50, 8)
    lse = torch.zeros(count, 8, 64, dtype=torch.int16)
    tensors = {"query": query, "lse": lse, "out": torch.zeros(1)}
    expected = [swizzled(box(query.numpy(), one, (0, 8 * n, 0, 0, 0))) for n in range(count)]
    launched = Launched("rounds", tensors, mapped_numbers(count, 1024), (one,), 64)
    return Case(launched, "lse", np.stack(expected))


def rows_map(count: int, rows: int) -> TensorMap:
    """A map of a tensor [count, 64] and boxes of whole rows."""
    strides = (128, 128 * count, 128 * count, 128 * count)
    return TensorMap("query", 0, (64, count, 1, 1, 1), strides, (64, rows, 1, 1, 1), (1,) * 5, 128)


def copies_arrive(count: int) -> Case:
    query = torch.arange(count * 128.0).reshape(count, 32, 4)
    tensors = {"query": query, "key_range": words(count), "out": torch.zeros(32, 4)}
    return Case(Launched("copies_arrive", tensors, threads=64), "out", query.sum(0).flip(0).numpy())


def shared_products(dtype: str, columns: int, swizzle: int) -> Case:
    rng = np.random.default_rng(0)
    a, b = (small_integers(rng, DTYPES[dtype], n, 64) for n in (64, columns))
    steps = [(*k_major(64, k, swizzle), *k_major(columns, k, swizzle)) for k in range(4)]
    tensors = {
        "query": torch.from_numpy(tile_image(bits(a), swizzle)),
        "key": torch.from_numpy(tile_image(bits(b), swizzle)),
        "key_range": words(8192, 128 * columns, 4, *(word for step in steps for word in step)),
        "out": torch.zeros(128, columns // 2),
    }
    expected = accumulators((a.float() @ b.float().T).numpy())
    return Case(Launched(f"shared_{dtype}_{columns}", tensors), "out", expected)


def register_products(dtype: str, columns: int, swizzle: int) -> Case:
    rng = np.random.default_rng(0)
    shapes = ((64, 32), (32, columns), (64, columns))
    a, b, c = (small_integers(rng, DTYPES[dtype], *shape) for shape in shapes)
    steps = [(0, 0, *mn_major(32, k, swizzle)) for k in range(2)]
    tensors = {
        "query": torch.from_numpy(operands(bits(a))),
        "key": torch.from_numpy(tile_image(bits(b), swizzle)),
        "value": torch.from_numpy(accumulators(c.float().numpy())),
        "key_range": words(0, 64 * columns, 2, *(word for step in steps for word in step)),
        "out": torch.zeros(128, columns // 2),
    }
    expected = accumulators((c.float() + a.float() @ b.float()).numpy())
    return Case(Launched(f"registers_{dtype}_{columns}", tensors), "out", expected)


def stmatrix() -> Case:
    query = torch.arange(128, dtype=torch.int32).reshape(32, 4) * 65537 + 65536
    place = np.random.default_rng(0).permutation(32).astype(np.int32)
    # Lane 4 r + c has the elements 2 c and 2 c + 1 of row r of each matrix.
    lanes = query.numpy().view(np.int16).reshape(8, 4, 4, 2)
    expected = np.empty((32, 8), np.int16)
    expected[place] = lanes.transpose(2, 0, 1, 3).reshape(32, 8)
    out = torch.zeros(32, 8, dtype=torch.int16)
    tensors = {"query": query, "key": torch.from_numpy(place), "out": out}
    return Case(Launched("stmatrix", tensors, threads=32), "out", expected)


def turns(count: int) -> Case:
    out = torch.zeros(3 * count, 128, dtype=torch.int32)
    expected = np.repeat(np.arange(3 * count) % 3, 128).reshape(-1, 128)
    tensors = {"key_range": words(count), "out": out}
    return Case(Launched("turns", tensors, threads=384), "out", expected)


def registers() -> Case:
    query = torch.arange(384.0)
    expected = torch.where(query < 256, 2 * query, query).numpy()
    tensors = {"query": query, "out": torch.zeros(384)}
    return Case(Launched("registers", tensors, threads=384), "out", expected)

"""Tests of tensor maps: boxes read through them, against the tensor that they are boxes of."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nbattn.kernels import layout, tensor_maps
from nbattn.kernels.tensor_maps import LaunchMaps, TensorBoxes, TensorMap, View

Addresses = NDArray[np.int64]
OUTSIDE = -1
PLAIN = (1, 1, 1)


# Tensors [B, *space, H, D] whose elements are their own addresses, from that of the first on.


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
    return View(tensor.shape, tuple(stride // tensor.itemsize for stride in tensor.strides))


def made(tensor: Addresses, tile: tuple[int, ...], dilations: tuple[int, ...] = PLAIN):
    return tensor_maps.boxes_of("key", view_of(tensor), tile, dilations)  # pyright: ignore


# What a kernel does with them.


def copied(tensor_map: TensorMap, at: tuple[int, ...]) -> Addresses:
    """The addresses that one copy reads, in the order of the box, outermost dimension first."""
    grids: list[Addresses] = []
    for start, size, box, step in zip(
        at, tensor_map.sizes, tensor_map.box, tensor_map.steps, strict=True
    ):
        here = start + np.arange(0, box, step)
        grids.append(np.where((here >= 0) & (here < size), here, OUTSIDE))
    inside = np.array(True)
    address = np.array(tensor_map.offset // 2)
    strides = (2, *tensor_map.strides)
    for number, (grid, stride) in enumerate(zip(grids, strides, strict=True)):
        shaped = grid.reshape((-1,) + (1,) * number)
        inside = inside & (shaped != OUTSIDE)
        address = address + shaped * (stride // 2)
    return np.where(inside, address, OUTSIDE)


def loaded(
    boxes: TensorBoxes,
    origin: tuple[int, ...],
    step: tuple[int, ...],
    start: tuple[int, ...],
    sample: int,
    head: int,
    box: int,
) -> Addresses:
    """What `BoxOrigin(...).load` of cuda/boxes.cuh reads: [positions of the tile, channels]."""
    divide, fold, map_step = boxes.numbers[:3], boxes.numbers[3], boxes.numbers[4:7]
    number, head_inner, head_outer, sample_outer, _ = boxes.numbers[7:]
    inner, outer = head * head_inner, head * head_outer + sample * sample_outer
    at: list[int] = []
    for axis in range(3):
        base, pace = origin[axis], step[axis]
        if divide[axis]:
            base, residue = divmod(base, pace)
            pace = 1
            number += residue * map_step[axis]
            inner += residue * fold * (axis == 2)
        at.append(base + pace * start[axis])
    chosen = boxes.maps[number]
    found = copied(chosen, (inner + box * chosen.box[0], *reversed(at), outer))
    return found.reshape(-1, chosen.box[0])


def meant(
    tensor: Addresses,
    tile: tuple[int, ...],
    origin: tuple[int, ...],
    step: tuple[int, ...],
    start: tuple[int, ...],
    sample: int,
    head: int,
    channels: slice,
) -> Addresses:
    """The addresses of the same positions by indices of the tensor, with three axes."""
    shape = tensor.shape
    on_three = tensor.reshape(shape[0], *(1,) * (6 - tensor.ndim), *shape[1:])
    positions = [
        o + d * (s + np.arange(n)) for o, d, s, n in zip(origin, step, start, tile, strict=True)
    ]
    inside = [(p >= 0) & (p < n) for p, n in zip(positions, on_three.shape[1:4], strict=True)]
    rows = on_three[sample, :, :, :, head, channels]
    rows = rows[np.ix_(*(np.where(i, p, 0) for i, p in zip(inside, positions, strict=True)))]
    there = np.logical_and.reduce(np.meshgrid(*inside, indexing="ij"))[..., None]
    return np.where(there, rows - tensor.flat[0], OUTSIDE).reshape(-1, rows.shape[-1])


def classes(tensor: Addresses, dilations: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Origins of all classes of all axes: from before the tensor's first position to after it."""
    lengths = (*(1,) * (6 - tensor.ndim), *tensor.shape[1:-2])
    yield from itertools.product(
        *([o for o in range(-d, d) if o % d < n] for d, n in zip(dilations, lengths, strict=True))
    )


def check(tensor: Addresses, tile: tuple[int, ...], dilations: tuple[int, ...] = PLAIN) -> int:
    """Compares boxes of all classes, around all corners of the tensor; returns how many."""
    boxes = made(tensor, tile, dilations)
    assert isinstance(boxes, TensorBoxes), boxes
    lengths = (*(1,) * (6 - tensor.ndim), *tensor.shape[1:-2])
    count = 0
    atom = boxes.maps[0].box[0]
    for origin in classes(tensor, dilations):
        starts = (
            sorted({0, 1, n // d - 1, max(0, n // d + 1 - extent)})
            for n, d, extent in zip(lengths, dilations, tile, strict=True)
        )
        for start in itertools.product(*starts):
            sample, head = count % tensor.shape[0], count % tensor.shape[-2]
            box = count % (tensor.shape[-1] // atom)
            where = (origin, dilations, start, sample, head)
            found = loaded(boxes, *where, box)
            channels = slice(box * atom, (box + 1) * atom)
            assert np.array_equal(found, meant(tensor, tile, *where, channels)), (where, box)
            count += 1
    return count


SPACES = {(19,): (1, 1, 8), (5, 11): (1, 2, 4), (4, 6, 9): (2, 4, 4), (3, 1, 8): (1, 2, 4)}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("make", LAYOUTS)
def test_boxes_have_the_positions_of_the_tensor(make: Any, space: tuple[int, ...], cases):
    tile = SPACES[space]
    cases("boxes", sum(check(make(2, space, heads, 32), tile) for heads in (1, 3)))
    cases("boxes", check(make(1, space, 2, 128), tile))


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
    "by class on two axes": ((11, 2, 10), (9, 1, 9), (2, 1, 2), "c-c", 81),
    "all ways": ((12, 7, 6), (9, 5, 3), (2, 2, 4), "csf", 9),
    "all stepped": ((5, 7, 9), (2, 3, 4), (2, 2, 2), "sss", 1),
    "two axes by class": ((3, 5, 4), (9, 9, 1), (2, 2, 2), "cc-", 15),
    "one position": ((1, 6), (1, 7, 2), (1, 2, 4), "-sf", 1),
    "one position by class": ((1, 6), (1, 9, 2), (1, 2, 4), "-cf", 1),
}
CLASS_LIMIT = "by class on two axes"


def ways(boxes: TensorBoxes) -> str:
    """The way of each axis: residues folded, steps, classes, or none."""
    *divide, fold = boxes.numbers[:4]
    steps = boxes.maps[0].steps[3:0:-1]
    found = ""
    for axis in range(3):
        way = (
            "f" if axis == 2 and fold else "c" if divide[axis] else "s" if steps[axis] > 1 else "-"
        )
        found += way
    return found


@pytest.mark.parametrize("name", [name for name in DILATED if name != CLASS_LIMIT])
@pytest.mark.parametrize("make", LAYOUTS)
def test_boxes_of_one_residue_class_have_its_positions(make: Any, name: str, cases):
    space, dilations, tile, way, count = DILATED[name]
    tensor = make(2, space, 2, 64)
    found = made(tensor, tile, dilations)
    assert isinstance(found, TensorBoxes), found
    if make is not axes_turned:  # turned: residues are not inside a token
        assert (ways(found), len(found.maps)) == (way, count)
    cases("boxes", check(tensor, tile, dilations))

"""Tests of tensor maps: boxes read through them, against the tensor that they are boxes of."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tensor_layouts import DILATED, LAYOUTS, Addresses, axes_turned, contiguous, view_of

from nbattn.errors import BackendError
from nbattn.kernels import tensor_maps
from nbattn.kernels.tensor_maps import LaunchMaps, TensorBoxes, TensorMap, View

OUTSIDE = -1
PLAIN = (1, 1, 1)
LONG = ((1, 1, 64), (1, 1, 9))  # a tile and dilations


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
    """Origins of all classes of all axes; those of every other one before the first position."""
    lengths = (*(1,) * (6 - tensor.ndim), *tensor.shape[1:-2])
    yield from itertools.product(
        *(
            [o - d * (o % 2) for o in range(min(d, n))]
            for d, n in zip(dilations, lengths, strict=True)
        )
    )


def check_legal(tensor_map: TensorMap) -> None:
    """The rules of cuTensorMapEncodeTiled, and that no row overlaps the next."""
    assert len(tensor_map.sizes) == len(tensor_map.box) == len(tensor_map.steps) == 5
    assert len(tensor_map.strides) == 4
    assert all(0 < size < 1 << 32 for size in tensor_map.sizes)
    assert all(0 < stride < 1 << 40 and stride % 16 == 0 for stride in tensor_map.strides)
    assert all(2 * tensor_map.sizes[0] <= stride for stride in tensor_map.strides)
    assert all(0 < box <= 256 for box in tensor_map.box)
    assert all(0 < step <= 8 for step in tensor_map.steps)
    assert tensor_map.steps[0] == 1
    assert tensor_map.box[0] * 2 == tensor_map.swizzle
    assert tensor_map.swizzle in (32, 64, 128)
    assert tensor_map.offset % 16 == 0


def check(tensor: Addresses, tile: tuple[int, ...], dilations: tuple[int, ...] = PLAIN) -> int:
    """Compares boxes of all classes, around all corners of the tensor; returns how many."""
    boxes = made(tensor, tile, dilations)
    assert isinstance(boxes, TensorBoxes), boxes
    lengths = (*(1,) * (6 - tensor.ndim), *tensor.shape[1:-2])
    for tensor_map in boxes.maps:
        check_legal(tensor_map)
    count, atom = 0, boxes.maps[0].box[0]
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


@pytest.mark.parametrize("name", DILATED)
@pytest.mark.parametrize("make", LAYOUTS)
def test_boxes_of_one_residue_class_have_its_positions(make: Any, name: str, cases):
    space, dilations, tile, way, count = DILATED[name]
    tensor = make(2, space, 2, 64)
    found = made(tensor, tile, dilations)
    assert isinstance(found, TensorBoxes), found
    if make is not axes_turned:  # turned: residues are not inside a token
        assert (ways(found), len(found.maps)) == (way, count)
    cases("boxes", check(tensor, tile, dilations))


def test_boxes_of_random_tensors(cases):
    """What is refused needs too many maps."""
    draw, taken = random.Random(0), 0
    for _ in range(80):
        rank = draw.randint(1, 3)
        space = tuple(draw.randint(1, 14 if rank > 1 else 40) for _ in range(rank))
        absent = (1,) * (3 - rank)
        tile = (*absent, *(draw.choice((1, 2, 4, 8, 16)) for _ in range(rank)))
        dilations = (*absent, *(draw.choice((1, 1, 2, 3, 5, 8, 9, 20)) for _ in range(rank)))
        make, heads, channels = draw.choice(LAYOUTS), draw.randint(1, 3), draw.choice((16, 64, 80))
        tensor = make(draw.randint(1, 3), space, heads, channels)
        found = made(tensor, tile, dilations)
        if isinstance(found, str):
            assert "and there are 24" in found
            assert math.prod(dilations) > 24
        else:
            taken += 1
            cases("boxes", check(tensor, tile, dilations))
    assert taken > 60


def test_boxes_of_narrow_channels_have_the_largest_swizzle(cases):
    sizes = {16: 16, 32: 32, 48: 16, 64: 64, 80: 16, 96: 32, 128: 64, 192: 64, 256: 64}
    for channels, box in sizes.items():
        boxes = made(contiguous(2, (3, 5), 2, channels), (1, 2, 4))
        assert isinstance(boxes, TensorBoxes)
        assert (boxes.maps[0].box[0], boxes.maps[0].swizzle) == (box, 2 * box)
        cases("boxes", check(contiguous(2, (3, 5), 2, channels), (1, 2, 4)))


def test_a_tensor_without_positions_has_legal_maps():
    for shape in ((1, 0, 4, 1, 64), (1, 0, 3, 64), (0, 4, 3, 64)):
        for dilation in (1, 3, 9):
            boxes = tensor_maps.boxes_of("key", View.contiguous(shape), (1, 1, 8), (1, 1, dilation))
            assert isinstance(boxes, TensorBoxes)
            for tensor_map in boxes.maps:
                assert all(size > 0 for size in tensor_map.sizes)


def test_the_view_of_a_contiguous_tensor():
    for shape in ((2, 3, 4, 5, 6), (1, 7, 1, 8), (2, 0, 1, 4), (0, 3, 4)):
        assert View.contiguous(shape) == View(shape, torch.empty(shape).stride())
    assert View.contiguous((2, 3, 4)) == View((2, 3, 4), (12, 4, 1))


# What a map cannot say


def refusal(shape: tuple[int, ...], strides: tuple[int, ...], *sizes: Any) -> str:
    found = tensor_maps.boxes_of("value", View(shape, strides), *(sizes or ((1, 8, 8),)))
    assert isinstance(found, str), found
    return found


@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((2, 4, 5, 3, 72), (4320, 1080, 216, 72, 1), "a box takes channels in steps of 16, not 72"),
        ((2, 4, 5, 3, 64), (7680, 1920, 384, 128, 2), "its channels are 2 elements apart"),
        ((2, 4, 5, 3, 64), (0, 960, 192, 64, 1), "its stride of 0 on the batch is not positive"),
        ((2, 4, 5, 3, 64), (960, 0, 192, 64, 1), "its stride of 0 on the axis 0 is not positive"),
        ((2, 4, 5, 3, 64), (1280, 320, 64, 0, 1), "its stride of 0 on the head is not positive"),
        ((2, 4, 5, 3, 64), (4000, 1000, 196, 64, 1), "its axis 1 stride is 196 elements"),
        ((2, 4, 5, 3, 64), (4000, 1000, 200, 66, 1), "its head stride is 66 elements"),
        ((2, 4, 5, 3, 64), (4004, 1000, 200, 64, 1), "its batch stride is 4004 elements"),
        (
            (2, 4, 5, 3, 64),
            (1 << 39, 1000, 200, 64, 1),
            f"its batch stride is {1 << 40} bytes, a map takes less than {1 << 40}",
        ),
        (
            (2, 4, 5, 3, 64),
            (8000, 320, 64, 1280, 1),
            "3 heads with a stride of 1280 elements are neither inside a token, which has a stride "
            "of 64, nor one dimension with the samples, which have a stride of 8000",
        ),
        (
            (1, 2, 1, 2, 64),
            (1 << 33, 1 << 32, 64, 1 << 31, 1),
            f"{(1 << 31) + 64} coordinates on a dimension, not below {1 << 31}",
        ),
    ],
)
def test_refused_layouts(shape: tuple[int, ...], strides: tuple[int, ...], words: str):
    found = refusal(shape, strides)
    assert found.startswith("value: ")
    assert words in found


def test_strides_of_dimensions_of_one_position_are_free():
    view = View((1, 1, 5, 1, 64), (3, 0, 64, 7, 1))
    boxes = tensor_maps.boxes_of("value", view, (1, 1, 8))
    assert isinstance(boxes, TensorBoxes)
    check_legal(boxes.maps[0])
    assert boxes.numbers == (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)


def test_coordinates_below_the_limit_where_residues_would_pass_it():
    """Residues of far positions are not folded into the channels."""
    for stride in (1 << 27, 1 << 28):
        boxes = tensor_maps.boxes_of("key", View((2, 9, 1, 64), (1 << 36, stride, 64, 1)), *LONG)
        assert isinstance(boxes, TensorBoxes)
        folded = 8 * stride + 64 < 1 << 31
        assert len(boxes.maps) == (1 if folded else 9)


def test_classes_of_one_position_may_be_any_distance_apart():
    view = View((1, 3, 5, 1, 64), (0, 1 << 22, 64, 64, 1))
    boxes = tensor_maps.boxes_of("key", view, (1, 2, 8), (1, 1 << 20, 1))
    assert isinstance(boxes, TensorBoxes)
    assert len(boxes.maps) == 3
    for tensor_map in boxes.maps:
        check_legal(tensor_map)


def test_refused_tiles_and_dilations():
    shape = (1, 40, 41, 2, 64)
    plain = View.contiguous(shape)
    assert refusal(*plain, (1, 1, 257)) == ("value, axis 1: a box has up to 256 positions, not 257")
    assert refusal(*plain, (1, 4, 33), (1, 1, 25)) == (
        "value, axis 1: the dilation 25 needs 25 maps, one for each residue class, and there are "
        "24; boxes of 33 positions step over up to 7"
    )
    assert refusal(*plain, (1, 4, 8), (1, 9, 9)) == (
        "value: 1x9x9 residue classes need a map each, and there are 24"
    )
    apart = (1 << 39, 1 << 38, 128, 64, 1)
    assert refusal((1, 40, 10, 2, 64), apart, (1, 4, 8), (1, 9, 1)) == (
        f"value, axis 0: a class has a stride of {9 << 39} bytes, not below {1 << 40}"
    )


# All tensors of one launch

Q, K = (2, 6, 10, 4, 64), (2, 6, 12, 2, 64)
FIELDS = ("query", "grad_out", "key", "value", "extra_key", "extra_value")


def launched(kernel: str, dilations: Any = PLAIN, **given: Any) -> LaunchMaps | str:
    tensors = {"query": Q, "key": K, "value": (*K[:-1], 128)}
    if kernel != "fwd":
        tensors["grad_out"] = (*Q[:-1], 128)
    views = {name: View.contiguous(shape) for name, shape in (tensors | given).items()}
    return tensor_maps.maps_of(kernel, views, (1, 8, 16), (1, 4, 8), dilations)


def unpacked(boxes: bytes) -> dict[str, tuple[int, ...]]:
    assert len(boxes) == 400
    assert not any(boxes[384:])
    names = (*FIELDS, "any_query", "any_grad_out")
    numbers = struct.unpack("<96i", boxes[:384])
    return {name: numbers[12 * n : 12 * n + 12] for n, name in enumerate(names)}


EXTRA = {"extra_key": (2, 5, 2, 64), "extra_value": (2, 5, 2, 128)}


@pytest.mark.parametrize("kernel", ["fwd", "dq", "dkdv"])
def test_maps_of_a_launch(kernel: str):
    found = launched(kernel, **EXTRA)
    assert isinstance(found, LaunchMaps)
    rows, columns = (64, 16, 8, 1, 1), (64, 8, 4, 1, 1)
    queries, keys = (columns, rows) if kernel == "dkdv" else (rows, columns)
    extra = (64, 128 if kernel == "dkdv" else 32, 1, 1, 1)
    expected = {"query": queries, "key": keys, "value": keys, "grad_out": queries}
    expected |= {"extra_key": extra, "extra_value": extra}
    names = [name for name in FIELDS if kernel != "fwd" or name != "grad_out"]
    assert sorted(each.tensor for each in found.maps) == sorted(names)
    numbers = unpacked(found.boxes)
    for name in names:
        each = found.maps[numbers[name][7]]
        assert (each.tensor, each.box) == (name, expected[name])
        assert numbers[name][8] == 128 if "value" in name or "grad" in name else 64
    assert ("grad_out" in names) == any(numbers["grad_out"])
    for name in ("query", "grad_out"):
        assert numbers[f"any_{name}"] == (numbers[name] if kernel == "dkdv" else (0,) * 12)


def test_maps_of_a_launch_without_extra_keys_have_boxes_of_zeros():
    for kernel in ("fwd", "dkdv"):
        found = launched(kernel, (1, 1, 2))
        assert isinstance(found, LaunchMaps)
        numbers = unpacked(found.boxes)
        for name in ("extra_key", "extra_value", "any_query", "any_grad_out"):
            assert numbers[name] == (0,) * 12
        assert len(found.maps) == (3 if kernel == "fwd" else 4)


def test_extra_keys_as_rows_read_queries_of_every_class_by_position():
    found = launched("dkdv", (1, 5, 3), **EXTRA)
    assert isinstance(found, LaunchMaps)
    numbers = unpacked(found.boxes)
    for name in ("query", "grad_out"):
        dilated, plain = (found.maps[numbers[f"{any_}{name}"][7]] for any_ in ("", "any_"))
        assert (dilated.tensor, plain.tensor) == (name, name)
        assert (dilated.steps, plain.steps) == ((1, 3, 5, 1, 1), (1, 1, 1, 1, 1))
        assert (dilated.box, plain.box) == ((64, 24, 20, 1, 1), (64, 8, 4, 1, 1))
        assert numbers[f"any_{name}"][:7] == (0,) * 7
    assert len(found.maps) == 8


def test_first_maps_count_the_maps_before():
    found = launched("fwd", (1, 9, 1))
    assert isinstance(found, LaunchMaps)
    numbers = unpacked(found.boxes)
    assert [numbers[name][7] for name in ("query", "key", "value")] == [0, 6, 12]
    assert [numbers[name][4:7] for name in ("query", "key", "value")] == [(0, 1, 0)] * 3
    tensors = [each.tensor for each in found.maps]
    assert tensors == ["query"] * 6 + ["key"] * 6 + ["value"] * 6


def test_more_maps_than_there_are():
    assert launched("dq", (1, 9, 1), grad_out=(2, 7, 10, 4, 128)) == (
        "at a dilation of 9 the tensors need 25 maps, and there are 24"
    )
    found = launched("dq", (1, 9, 1))
    assert isinstance(found, LaunchMaps)
    assert len(found.maps) == 24
    reason = launched("fwd", (1, 25, 1), key=(1, 26, 4, 2, 64))
    assert isinstance(reason, str)
    assert reason.startswith("key, axis 0: the dilation 25 needs 25 maps")
    reason = launched("fwd", extra_key=(2, 5, 2, 60))
    assert reason == "extra_key: a box takes channels in steps of 16, not 60 of them"


# The driver


def test_no_driver_has_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch):
    def none(name: str) -> Any:
        raise OSError(f"{name}: cannot open")

    monkeypatch.setattr(tensor_maps.ctypes, "PyDLL", none)
    tensor_maps._encoder.cache_clear()  # nothing is kept of an error
    boxes = made(contiguous(1, (4,), 1, 64), (1, 1, 8))
    assert isinstance(boxes, TensorBoxes)
    with pytest.raises(BackendError) as caught:
        tensor_maps.encode(boxes.maps[0], 16, "float16")
    assert str(caught.value) == (
        "no cuTensorMapEncodeTiled in the driver: libcuda.so.1: cannot open\n"
        '  fix:   forbid=("wgmma",)'
    )


def test_the_cache_of_encoded_maps_is_bounded():
    assert tensor_maps.encode.cache_info().maxsize == 4096
    boxes = made(contiguous(1, (4,), 1, 64), (1, 1, 8))
    assert isinstance(boxes, TensorBoxes)
    assert tensor_maps.encode(boxes.maps[0], 0, "float16") == bytes(128)

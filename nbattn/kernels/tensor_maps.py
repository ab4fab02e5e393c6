"""Tensor maps, by which kernels for sm_90a copy boxes of a tensor, and where each head's boxes are.

A map has five dimensions, innermost first: the channels of all heads that lie inside a token, the
axes 2, 1 and 0, and the samples (with the heads, where those are not inside a token). A box is what
one copy moves. On an axis with a dilation the rows of a box are positions of one residue class; of
three ways to say so the first that fits is taken: the residue is folded into the channels, the copy
steps over positions, or each class has a map of its own. Nothing here loads torch or a driver until
a map is encoded.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, product
from typing import Any, NamedTuple

from nbattn.errors import BackendError
from nbattn.kernels import layout

_ITEM = 2  # bytes of an element
_ALIGNED = 16 // _ITEM  # elements between addresses that copies may start at
_BOX, _STEP = 256, 8  # the largest extent of a box, the largest step of a copy
_STRIDE, _SIZE = 1 << 40, 1 << 31  # bytes; coordinates are 32-bit integers
_AXES = 3
_CODES = {"float16": 6, "bfloat16": 9}  # CUtensorMapDataType
_SWIZZLES = {32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle
_NOT_INTERLEAVED, _PROMOTE_256_BYTES, _FILL_ZEROS = 0, 3, 0
_ALIGNMENT = 64  # of an encoded map
Extents = tuple[int, int, int]
_PLAIN = (1, 1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class TensorMap:
    """A map, innermost dimension first. Maps are compared by identity: they are keys of a cache.

    Args:
        tensor: the tensor argument, one of `layout.POINTERS`.
        offset: bytes from its first element to the map's.
        sizes: elements of each dimension.
        strides: bytes between elements of each dimension but the innermost.
        box: positions that a box spans on each dimension.
        steps: positions from one element of a box to the next.
        swizzle: bytes of the pattern in which the box is permuted: those of its channels.
    """

    tensor: str
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int


class View(NamedTuple):
    """The shape and strides, in elements, of a tensor `[B, *space, H, D]`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def contiguous(cls, shape: tuple[int, ...]) -> View:
        """The view of a contiguous tensor."""
        inner_first = (max(size, 1) for size in shape[:0:-1])
        return cls(shape, tuple(accumulate(inner_first, int.__mul__, initial=1))[::-1])


class TensorBoxes(NamedTuple):
    """The maps of one tensor, and the fields of `Boxes` in cuda/boxes.cuh with first_map = 0."""

    maps: tuple[TensorMap, ...]
    numbers: tuple[int, ...]


class LaunchMaps(NamedTuple):
    """The maps of one launch, and its packed `Boxes`."""

    maps: tuple[TensorMap, ...]
    boxes: bytes


class _Heads(NamedTuple):
    """Where heads and samples are: steps of the boxes' coordinates, and the outermost dimension."""

    width: int  # channels of all heads inside a token, with what is between them
    inner: int
    outer: int
    sample: int
    size: int
    stride: int


class _Axis(NamedTuple):
    """One axis of a tensor's maps: the length and the step of each class that has its own map."""

    lengths: tuple[int, ...]
    stride: int  # elements
    box: int
    step: int = 1
    divide: int = 0
    fold: int = 0


def channels_per_box(channels: int) -> int:
    """Channels of one box of a tensor with that many, as in cuda/swizzled_tile.cuh."""
    return next(size for size in (64, 32, 16) if channels % size == 0 or size == 16)


def boxes_of(
    tensor: str,
    view: View,
    tile: Extents = _PLAIN,
    dilations: Extents = _PLAIN,
    *,
    folds: bool = True,
) -> TensorBoxes | str:
    """The maps and boxes of one tensor, or the reason why a map cannot say its layout.

    Args:
        tensor: its name in `layout.POINTERS`.
        view: its layout, with up to three axes.
        tile: positions of a box on three axes.
        dilations: those of the axes; the positions of a box belong to one residue class.
        folds: whether residues may be folded into the channels, which not all strides allow.
    """
    batch, *space, heads, channels = view.shape
    strides = layout.on_three_axes(view.shape, view.strides)
    first = len(space) - _AXES  # as numbers of the tensor's axes; those below 0 are not there
    lengths = (*(1,) * -first, *space)
    names = ("batch", *(f"axis {number}" for number in range(first, len(space))), "head")
    dimensions = zip(names, (batch, *lengths, heads), strides[:-1], strict=True)
    long = {name: stride for name, size, stride in dimensions if size > 1}
    reason = _wrong_channels(channels, strides[-1]) or _wrong_strides(long)
    placed = reason or _heads(batch, heads, channels, long)
    if isinstance(placed, str):
        return f"{tensor}: {placed}"
    within = names[-2:] if placed.inner else names[-2:-1]
    room = min((stride for name, stride in long.items() if name not in within), default=_SIZE)
    # Only residues of the last axis can be among the channels.
    rooms = (0, 0, min(room, _SIZE - 1) * folds)
    axes: list[_Axis] = []
    every = zip(lengths, strides[1:4], tile, dilations, rooms, strict=True)
    for number, given in enumerate(every, first):
        axis = _axis(placed.width, *given)
        if isinstance(axis, str):
            return f"{tensor}, axis {number}: {axis}"
        axes.append(axis)
    return _combined(tensor, channels, placed, axes, strides[1:4])


@lru_cache(4096)
def has_boxes(view: View) -> bool:
    """Whether maps can say the layout of a tensor, whatever its boxes."""
    return len(view.shape) > 3 and not isinstance(boxes_of("", view), str)


def _wrong_channels(channels: int, stride: int) -> str:
    if channels % 16:
        return f"a box takes channels in steps of 16, not {channels} of them"
    return "" if stride == 1 else f"its channels are {stride} elements apart, a map takes 1"


def _wrong_strides(long: Mapping[str, int]) -> str:
    """What is wrong with the strides of dimensions that are longer than 1."""
    for name, stride in long.items():
        if stride <= 0:
            return f"its stride of {stride} on the {name} is not positive: it is expanded"
        if stride % _ALIGNED:
            return f"its {name} stride is {stride} elements, a map takes multiples of {_ALIGNED}"
        if stride * _ITEM >= _STRIDE:
            return f"its {name} stride is {stride * _ITEM} bytes, a map takes less than {_STRIDE}"
    return ""


def _heads(batch: int, heads: int, channels: int, long: Mapping[str, int]) -> _Heads | str:
    """Where heads and samples are: heads inside a token, or merged with the samples."""
    head, sample = long.get("head", 0), long.get("batch", 0)
    token = min((stride for name, stride in long.items() if name != "head"), default=_SIZE)
    width = (heads - 1) * head + channels
    if width <= token:
        return _Heads(width, head, 0, 1, batch, sample)
    if not sample or sample == heads * head:
        return _Heads(channels, 0, 1, heads, batch * heads, head)
    if head == batch * sample:
        return _Heads(channels, 0, batch, 1, batch * heads, sample)
    return (
        f"{heads} heads with a stride of {head} elements are neither inside a token, which has a "
        f"stride of {token}, nor one dimension with the samples, which have a stride of {sample}"
    )


def _axis(
    width: int, length: int, stride: int, extent: int, dilation: int, room: int
) -> _Axis | str:
    """How the boxes of one axis are said.

    Args:
        width: the innermost dimension of one residue.
        room: what it may be with all residues, by the strides of other dimensions; 0: no residues.
    """
    if extent > _BOX:
        return f"a box has up to {_BOX} positions, not {extent}"
    if dilation == 1:
        return _Axis((length,), stride, extent)
    whole = length > 0 and length % dilation == 0
    if whole and width <= stride and (dilation - 1) * stride + width <= room:
        return _Axis((length // dilation,), dilation * stride, extent, 1, 1, stride)
    if dilation <= _STEP and extent * dilation <= _BOX:
        return _Axis((length,), stride, extent * dilation, dilation)
    classes = max(1, min(dilation, length))
    if classes > layout.MAPS:
        return (
            f"the dilation {dilation} needs {classes} maps, one for each residue class, and there "
            f"are {layout.MAPS}; boxes of {extent} positions step over up to "
            f"{min(_STEP, _BOX // extent)}"
        )
    lengths = tuple(-(-(length - residue) // dilation) for residue in range(classes))
    apart = dilation * stride * (length > dilation)
    if apart * _ITEM >= _STRIDE:
        return f"a class has a stride of {apart * _ITEM} bytes, not below {_STRIDE}"
    return _Axis(lengths, apart, extent, 1, 1)


def _combined(
    tensor: str, channels: int, heads: _Heads, axes: Sequence[_Axis], strides: Sequence[int]
) -> TensorBoxes | str:
    """The maps of all classes, of the last axis fastest; `strides` are those of the positions."""
    counts = [len(axis.lengths) for axis in axes]
    if math.prod(counts) > layout.MAPS:
        text = "x".join(map(str, counts))
        return f"{tensor}: {text} residue classes need a map each, and there are {layout.MAPS}"
    fold = axes[-1].fold
    width = heads.width + (axes[-1].stride - fold if fold else 0)
    if max(width, heads.size) >= _SIZE:
        return f"{tensor}: {max(width, heads.size)} coordinates on a dimension, not below {_SIZE}"
    inner_first = list(reversed(axes))
    bytes_apart = [axis.stride * _ITEM for axis in inner_first] + [heads.stride * _ITEM]
    row = -(-width // _ALIGNED) * _ALIGNED * _ITEM
    # Dimensions of one position have no stride: that of the one before is legal.
    legal = tuple(accumulate(bytes_apart, lambda before, own: own or before, initial=row))[1:]
    channels = channels_per_box(channels)
    maps = tuple(
        TensorMap(
            tensor,
            _ITEM * sum(map(int.__mul__, residues, strides)),
            (
                width,
                *(max(1, a.lengths[r]) for a, r in zip(inner_first, residues[::-1], strict=True)),
                max(1, heads.size),
            ),
            legal,
            (channels, *(axis.box for axis in inner_first), 1),
            (1, *(axis.step for axis in inner_first), 1),
            _ITEM * channels,
        )
        for residues in product(*map(range, counts))
    )
    steps = (math.prod(counts[number + 1 :]) for number in range(_AXES))
    map_steps = (step if n > 1 else 0 for step, n in zip(steps, counts, strict=True))
    divide = (axis.divide for axis in axes)
    return TensorBoxes(
        maps, (*divide, fold, *map_steps, 0, heads.inner, heads.outer, heads.sample, 0)
    )


def maps_of(
    kernel: str,
    views: Mapping[str, View],
    rows: Extents,
    columns: Extents,
    dilations: Extents,
    *,
    folds: bool = True,
) -> LaunchMaps | str:
    """The maps and boxes of one launch, or the reason why maps cannot say a tensor's layout.

    Args:
        kernel: "fwd", "dq" or "dkdv".
        views: the tensors that the kernel reads by maps, those of `layout.MAPPED` that there are.
        rows, columns: extents of the kernel's tiles; in "dkdv", rows are keys.
        dilations: of the three axes.
        folds: as in `boxes_of`.
    """
    queries, keys = (columns, rows) if kernel == "dkdv" else (rows, columns)
    extra = (1, 1, math.prod(keys))
    tiles = {"query": queries, "grad_out": queries, "key": keys, "value": keys}
    maps: list[TensorMap] = []
    numbers: dict[str, tuple[int, ...]] = {}

    def add(name: str, tensor: str, found: TensorBoxes | str) -> str:
        if isinstance(found, str):
            return found
        numbers[name] = (*found.numbers[:7], len(maps), *found.numbers[8:])
        maps.extend(found.maps)
        return ""

    for tensor, view in views.items():
        sizes = (tiles[tensor], dilations) if tensor in tiles else (extra, _PLAIN)
        if reason := add(tensor, tensor, boxes_of(tensor, view, *sizes, folds=folds)):
            return reason
    # Extra keys as rows visit all queries, by position.
    for tensor in ("query", "grad_out") if kernel == "dkdv" and "extra_key" in views else ():
        if dilations == _PLAIN:
            numbers[f"any_{tensor}"] = numbers[tensor]
        elif reason := add(f"any_{tensor}", tensor, boxes_of(tensor, views[tensor], queries)):
            return reason
    if len(maps) > layout.MAPS:
        text = " and ".join(str(dilation) for dilation in dilations if dilation > 1)
        many = f"the tensors need {len(maps)} maps, and there are {layout.MAPS}"
        return f"at a dilation of {text} {many}"
    return LaunchMaps(tuple(maps), layout.pack_boxes(numbers))


@lru_cache(4096)
def encode(tensor_map: TensorMap, pointer: int, dtype: str) -> bytes:
    """The 128 bytes of a map, as the driver encodes it; zeros for a tensor without elements, which
    is never read.

    Args:
        tensor_map: the map.
        pointer: address of the tensor's first element.
        dtype: "float16" or "bfloat16".

    Raises:
        BackendError: the driver cannot encode it, or is too old.
    """
    if not pointer:
        return bytes(layout.MAP_BYTES)
    memory = ctypes.create_string_buffer(layout.MAP_BYTES + _ALIGNMENT)
    start = -ctypes.addressof(memory) % _ALIGNMENT
    code = _encoder()(
        ctypes.addressof(memory) + start,
        _CODES[dtype],
        len(tensor_map.sizes),
        pointer + tensor_map.offset,
        *_arrays(tensor_map),
        _NOT_INTERLEAVED,
        _SWIZZLES[tensor_map.swizzle],
        _PROMOTE_256_BYTES,
        _FILL_ZEROS,
    )
    if code:
        raise BackendError(
            f"cuTensorMapEncodeTiled refuses, with error {code}, {tensor_map} of {dtype} at "
            f"{pointer:#x}",
            'forbid=("wgmma",)',
        )
    return memory.raw[start : start + layout.MAP_BYTES]


@lru_cache(4096)
def _arrays(tensor_map: TensorMap) -> tuple[Any, ...]:
    """The arrays of a map for the driver."""
    wide, narrow = ctypes.c_uint64, ctypes.c_uint32
    fields = (tensor_map.sizes, tensor_map.strides, tensor_map.box, tensor_map.steps)
    types = (wide, wide, narrow, narrow)
    return tuple((kind * len(field))(*field) for kind, field in zip(types, fields, strict=True))


@cache
def _encoder() -> Any:
    """The driver's function."""
    try:
        function = ctypes.PyDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"no cuTensorMapEncodeTiled in the driver: {error}", 'forbid=("wgmma",)'
        ) from None
    number, pointer = ctypes.c_uint32, ctypes.c_void_p
    function.argtypes = [pointer, number, number, *(pointer,) * 5, *(number,) * 4]
    function.restype = ctypes.c_int
    return function

"""Runs the project's CUDA kernels on torch tensors: the launches of forward and backward.

Kernels take tensors with any strides, without copies. All that a launch needs besides pointers is
cached per shape and strides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nbattn import biases
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.choice import packed_grid
from nbattn.backends.cuda.meaning import FIELDS, CudaArguments
from nbattn.backends.cuda.tiles import Tiles
from nbattn.backends.inputs import Gradients, Inputs, kernel_tensors, new_lse, new_output
from nbattn.backends.logsumexp import sink_gradient
from nbattn.errors import BackendError
from nbattn.geometry import Ints
from nbattn.kernels import grid_table, launch, layout, tensor_maps
from nbattn.kernels.launch import Launcher
from nbattn.kernels.tensor_maps import LaunchMaps, TensorMap, View
from nbattn.kernels.variant import Variant
from nbattn.program.parts import PackedCall
from nbattn.program.program import ByIdentity, Program
from nbattn.program.tile_counts import RANK, row_tiles, row_tiles_of

_COPY = 16  # bytes that tensor-core kernels copy at once
_EXTRA = ("extra_key", "extra_value")
# The kernel of the table's gradient: blocks that fill a device, and elements of all their tables.
_TABLE_BLOCKS, _TABLE_ELEMENTS = 1024, 1 << 24
_DKDV = 2  # in the order fwd, dq, dkdv
# The gradients that a kernel writes, by NB_GRADS; 0 is the kernel of the queries' gradients.
_VALUES, _KEYS = ("grad_value", "grad_extra_value"), ("grad_key", "grad_extra_key")
_WRITES = {0: ("grad_query",), 1: _VALUES, 2: _KEYS, 3: (*_VALUES, *_KEYS)}
Tensors = dict[str, Tensor]
Strides = tuple[int, ...]
_Packed = PackedCall[CudaArguments]


class Launch(NamedTuple):
    """One launch of a kernel without its pointers; `grads` names the gradients that it writes, and
    `maps` are of the tensors that it reads as boxes.
    """

    variant: Variant
    blocks: int
    numbers: bytes
    grads: tuple[str, ...] = ()
    maps: tuple[TensorMap, ...] = ()


def warmup(program: Program, launcher: Launcher | None = None) -> None:
    """Compile and load the kernels of a program, for training those of the backward, too."""
    (window, _), launcher = _window(program), launcher or launch.launcher()
    for kernel, field in FIELDS.items():
        tiles: Tiles | None = getattr(window, field)
        if tiles is None:
            continue
        for grads in cuda_tiles.grads_of(kernel, window.build):
            launcher.load(cuda_tiles.variant(kernel, tiles, window.build, grads=grads, vector=True))
    if window.grad_key is not None:
        launcher.load(_delta(window, vector=True))


def forward(
    program: Program, inputs: Inputs, *, return_lse: bool, launcher: Launcher | None = None
) -> tuple[Tensor, Tensor | None]:
    """Computes the output, and the logsumexp if it is requested or a backward may follow."""
    window, packed = _window(program)
    tensors = _readable(window, kernel_tensors(inputs))
    (forward_launch,) = _launches(*_launch_key(packed or window, inputs, tensors))
    tensors |= _table_of(packed, tensors)
    tensors["out"] = out = new_output(inputs.query, inputs.value)
    lse = None
    if return_lse or window.grad_key is not None:
        tensors["lse"] = lse = new_lse(inputs.query)
    _run(launcher, forward_launch, tensors)
    return out, lse


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    launcher: Launcher | None = None,
) -> Gradients:
    """Computes the gradients from the final output and logsumexp."""
    window, packed = _window(program)
    out, lse = out.contiguous(), lse.contiguous()
    if window.forward.row_blocks and not _in_chunks(grad_out.shape, grad_out.stride()):
        grad_out = grad_out.contiguous()
    if window.forward.warpgroups and not grad_out.is_contiguous():
        boxes = _in_boxes(ByIdentity(window), grad_out.shape, grad_out.stride())
        grad_out = grad_out if boxes else grad_out.contiguous()
    tensors = _readable(window, kernel_tensors(inputs) | {"grad_out": grad_out})
    tensors |= {"out": out, "lse": lse}
    tensors |= {} if grad_lse is None else {"grad_lse": grad_lse.contiguous()}
    tensors["delta"] = lse.new_empty((*lse.shape, 2))
    launches = _launches(*_launch_key(packed or window, inputs, tensors))
    tensors |= _table_of(packed, tensors)
    named = {name: tensors.get(name) for name in ("query", "key", "value", *_EXTRA)}
    grads = {f"grad_{n}": t.new_empty(t.shape) for n, t in named.items() if t is not None}
    for step in launches[: -1 if window.grad_table else None]:
        _run(launcher, step, tensors | {name: grads[name] for name in step.grads if name in grads})
    table = None
    if window.grad_table is not None:
        assert inputs.relative_bias is not None
        table = _table_gradient(launcher, launches[-1], tensors, inputs.relative_bias)
    sink = sink_gradient(inputs.sink, out, lse, grad_out, grad_lse)
    extra_key, extra_value = (
        grads.get(f"grad_{name}", None if tensor is None else torch.zeros_like(tensor))
        for name, tensor in zip(_EXTRA, (inputs.extra_key, inputs.extra_value), strict=True)
    )
    query, key, value = (grads[f"grad_{name}"] for name in ("query", "key", "value"))
    return Gradients(query, key, value, sink, extra_key, extra_value, table)


def _table_gradient(
    launcher: Launcher | None, step: Launch, tensors: Tensors, table: Tensor
) -> Tensor:
    """The gradient of the table: the sum of the tables of all warps, always in one order."""
    given = tensors["relative_bias"]
    parts = step.blocks // max(given.shape[0], 1) * cuda_tiles.TABLE_WARPS
    grads = given.new_empty((parts, *given.shape))
    _run(launcher, step, tensors | {"grad_relative_bias": grads})
    return grads.sum(0).to(table.dtype)


def _window(program: Program) -> tuple[CudaArguments, _Packed | None]:
    """The arguments of the kernels, and the call on packed grids that they belong to, if any."""
    (call,) = program.calls
    return _unpacked(call.arguments)


def _unpacked(arguments: object) -> tuple[CudaArguments, _Packed | None]:
    packed: _Packed | None = None
    if isinstance(arguments, PackedCall):
        packed, arguments = arguments, arguments.kernels  # pyright: ignore[reportUnknownMemberType]
    assert isinstance(arguments, CudaArguments)
    return arguments, packed


def _table_of(packed: _Packed | None, tensors: Tensors) -> Tensors:
    """The table of packed grids, on the device of the tensors."""
    if packed is None:
        return {}
    return {"grids": _table(ByIdentity(packed), _extra_of(tensors), tensors["query"].device)}


@lru_cache(64)
def _table(identity: ByIdentity[_Packed], extra: int, device: torch.device) -> Tensor:
    """Copied to the device once."""
    packed = identity.value
    rows = grid_table.table(packed.grids, packed.offsets, _row_tiles(ByIdentity(packed), extra))
    return torch.from_numpy(rows.view("<i8")).to(device)


def _extra_of(tensors: Tensors) -> int:
    return tensors["extra_key"].shape[1] if "extra_key" in tensors else 0


def _run(launcher: Launcher | None, step: Launch, tensors: Mapping[str, Tensor]) -> None:
    if step.blocks:
        variant, blocks, numbers, _, maps = step
        (launcher or launch.launcher()).launch(variant, blocks, tensors, numbers, maps)


_LaunchKey = tuple[
    ByIdentity[CudaArguments | _Packed],
    torch.Size,
    torch.Size,
    tuple[Strides, ...],
    int,
    int,
    bool,
    float,
    float,
]


def _launch_key(window: CudaArguments | _Packed, inputs: Inputs, tensors: Tensors) -> _LaunchKey:
    """The arguments of `_launches`: all that launches depend on, except pointers."""
    query, key, value = tensors["query"], tensors["key"], tensors["value"]
    strides, grad_out = (query.stride(), key.stride(), value.stride()), tensors.get("grad_out")
    others, slopes = (*_EXTRA, "out", "grad_out"), inputs.alibi_slopes
    copied = [query, key, value, *(tensors[name] for name in others if name in tensors)]
    return (
        ByIdentity(window),
        query.shape,
        key.shape,
        strides if grad_out is None else (*strides, grad_out.stride()),
        _extra_of(tensors),
        query.shape[-2] if slopes is not None and slopes.dim() == 2 else 0,
        not any(tensor.data_ptr() % _COPY for tensor in copied),
        inputs.scale,
        inputs.softcap or 0.0,
    )


@lru_cache(1024)
def _launches(
    identity: ByIdentity[CudaArguments | _Packed],
    query: torch.Size,
    key: torch.Size,
    strides: tuple[Strides, ...],
    extra: int,
    slope_step: int,
    aligned: bool,
    scale: float,
    softcap: float,
) -> tuple[Launch, ...]:
    """The launches of a forward (strides of q, k, v) or a backward (and those of grad_out)."""
    window, many = _unpacked(identity.value)
    assert window.build.extra or not extra, "kernels without extra keys"
    if many is not None:
        query, key = torch.Size((1, *query)), torch.Size((1, *key))
        strides = tuple((0, *each) for each in strides)
    batch, heads, kv_heads = query[0], query[-2], max(key[-2], 1)
    vector = aligned and all(map(_in_chunks, (query, key, key, query), strides))
    packed = window.packed if len(strides) == 3 else 1
    grid = packed_grid(window.axes, packed)
    counts = (batch, heads // packed, heads // packed // kv_heads, extra, len(window.axes), packed)
    held = [number for axis in grid for number in layout.held_numbers(axis)]
    numbers = layout.pack_numbers(
        _all_strides((query, key, key, query), strides, packed),
        scale,
        softcap,
        [number for axis in grid for number in layout.axis_numbers(axis)],
        held if many is None else layout.held_tokens(query[1], key[1]),
        (*counts, slope_step, 0 if many is None else len(many.grids)),
    )
    launches_of = partial(
        _launches_of,
        window=window,
        numbers=numbers,
        vector=vector,
        views=_views(window, query, key, strides, extra),
    )
    tiles = [int(counts.sum()) for counts in _row_tiles(identity, extra)]
    if len(strides) == 3:
        return tuple(launches_of("fwd", window.forward, tiles[0] * batch * (heads // packed)))
    assert window.grad_query is not None
    assert window.grad_key is not None
    return (
        _delta_launch(math.prod(query[:-1]), window, numbers, vector=vector),
        *launches_of("dq", window.grad_query, tiles[1] * batch * heads),
        *launches_of("dkdv", window.grad_key, tiles[2] * batch * kv_heads),
        *_table_launches(identity, batch, heads, numbers),
    )


def _table_launches(
    identity: ByIdentity[CudaArguments | _Packed], batch: int, heads: int, numbers: bytes
) -> Iterator[Launch]:
    """The launch of the table's gradient, if there is one: the blocks of a head share its tiles."""
    window, many = _unpacked(identity.value)
    if window.grad_table is None:
        return
    entries = math.prod(biases.table_sizes([axis.spec for axis in window.axes]))
    tiles = int(_counts(window, many, window.grad_table).sum()) * batch
    most = _TABLE_ELEMENTS // max(1, cuda_tiles.TABLE_WARPS * heads * entries)
    parts = max(1, min(-(-_TABLE_BLOCKS // max(1, heads)), most, tiles))
    yield from _launches_of(
        cuda_tiles.TABLE,
        window.grad_table,
        parts * heads,
        window=window,
        numbers=numbers,
        vector=False,
    )


def _launches_of(
    kernel: str,
    tiles: Tiles,
    blocks: int,
    *,
    window: CudaArguments,
    numbers: bytes,
    vector: bool,
    views: Mapping[str, View] | None = None,
) -> Iterator[Launch]:
    """The launches of one kernel: one, or one each for the gradients of values and of keys."""
    maps: tuple[TensorMap, ...] = ()
    if tiles.warpgroups:
        assert views is not None
        maps, boxes = _maps_of(kernel, tiles, window, views)
        numbers += boxes
    for grads in cuda_tiles.grads_of(kernel, window.build):
        variant = cuda_tiles.variant(kernel, tiles, window.build, grads=grads, vector=vector)
        yield Launch(variant, blocks, numbers, _WRITES[grads], maps)


def _views(
    window: CudaArguments,
    query: torch.Size,
    key: torch.Size,
    strides: tuple[Strides, ...],
    extra: int,
) -> dict[str, View]:
    """The layouts of the tensors that kernels may read as boxes."""
    value_dim = (window.build.value_dim,)
    shapes = (query, key, (*key[:-1], *value_dim), (*query[:-1], *value_dim))
    views = {  # those of tensors without elements may be anything
        name: View(tuple(shape), given) if math.prod(shape) else View.contiguous(tuple(shape))
        for name, shape, given in zip(layout.STRIDES, shapes, strides, strict=False)
    }
    if extra:
        for name, of in zip(_EXTRA, ("key", "value"), strict=True):
            views[name] = View.contiguous((key[0], extra, *views[of].shape[-2:]))
    return views


def _maps_of(
    kernel: str, tiles: Tiles, window: CudaArguments, views: Mapping[str, View]
) -> LaunchMaps:
    """The tensor maps of one launch. Raises BackendError where a tensor's layout has none."""
    if kernel == "fwd":
        views = {name: view for name, view in views.items() if name != "grad_out"}
    size = (tiles.rows, tiles.columns, _dilations(window))
    found = tensor_maps.maps_of(kernel, views, *size)
    if not isinstance(found, str):
        return found
    plain = {name: View.contiguous(view.shape) for name, view in views.items()}
    fix = 'forbid=("wgmma",)'
    if not isinstance(tensor_maps.maps_of(kernel, plain, *size), str):
        uneven = [f"{name}.contiguous()" for name in views if views[name] != plain[name]]
        fix = f"{', '.join(uneven)}; or {fix}"
    raise BackendError(f"{kernel}_wgmma copies boxes by tensor maps. {found}.", fix)


def _dilations(window: CudaArguments) -> tuple[int, int, int]:
    """Those of three axes."""
    last = tuple(axis.spec.dilation for axis in window.axes)
    first, second, third = (*(1,) * (RANK - len(last)), *last)
    return first, second, third


def _delta(window: CudaArguments, *, vector: bool) -> Variant:
    build, vector = window.build, vector and window.forward.row_blocks > 0
    return cuda_tiles.delta(build.dtype, build.value_dim, vector=vector)


def _delta_launch(rows: int, window: CudaArguments, numbers: bytes, *, vector: bool) -> Launch:
    """The launch that prepares the backward for all rows of all heads."""
    variant = _delta(window, vector=vector)
    per_block = cuda_tiles.delta_rows(window.build.dtype, window.build.value_dim)
    return Launch(variant, -(-rows // per_block), numbers)


def _row_tiles(identity: ByIdentity[CudaArguments | _Packed], extra: int) -> list[Ints]:
    """The tiles of rows of one head of every grid, of the kernels fwd, dq and dkdv if they run; of
    the only grid where none are packed.
    """
    window, many = _unpacked(identity.value)
    found: list[Ints] = []
    for number, tiles in enumerate((window.forward, window.grad_query, window.grad_key)):
        if tiles is None:
            continue
        inverse = number == _DKDV
        packed = 1 if number else window.packed
        counts = _counts(window, many, tiles, inverse=inverse, packed=packed)
        found.append(counts + (-(-extra // tiles.row_count) if inverse else 0))
    return found


def _counts(
    window: CudaArguments,
    many: _Packed | None,
    tiles: Tiles,
    *,
    inverse: bool = False,
    packed: int = 1,
) -> Ints:
    """The tiles of rows of one head of every grid: of its queries or, inverse, of its keys."""
    if many is not None:
        return row_tiles_of(many.mask, many.grids, tiles.rows, inverse=inverse)
    extents = zip(packed_grid(window.axes, packed), tiles.rows, strict=True)
    of_axes = (row_tiles(axis, n, inverse=inverse) for axis, n in extents)
    return np.array([math.prod(of_axes)], dtype=np.int64)


def _all_strides(
    shapes: Iterable[torch.Size], strides: tuple[Strides, ...], packed: int
) -> list[int]:
    """The strides of q, k, v and grad_out, one after the other; those of no grad_out are 0. Packed
    heads of queries are axis 0.
    """
    given = (*strides, (0,) * len(strides[0]))[:4]
    query, *others = map(layout.on_three_axes, shapes, given)
    if packed > 1:
        batch, _, *space, head, channel = query
        query = (batch, head, *space, packed * head, channel)
    return [number for tensor_strides in (query, *others) for number in tensor_strides]


def _in_chunks(shape: torch.Size, strides: Strides) -> bool:
    """Whether the channels of every position start at a multiple of 16 bytes (of 2-byte elements)
    if those of the first position do.
    """
    step = _COPY // 2
    dims = zip(shape[:-1], strides[:-1], strict=True)
    return strides[-1] == 1 and not any(n > 1 and stride % step for n, stride in dims)


@lru_cache(1024)
def _in_boxes(identity: ByIdentity[CudaArguments], shape: torch.Size, strides: Strides) -> bool:
    """Whether a gradient of the output needs no more tensor maps than a contiguous one."""
    window, given = identity.value, View(tuple(shape), strides)
    assert window.grad_query is not None
    assert window.grad_key is not None

    def count(view: View, tile: tuple[int, int, int]) -> float:
        found = tensor_maps.boxes_of("grad_out", view, tile, _dilations(window))
        return math.inf if isinstance(found, str) else len(found.maps)

    tiles = (window.grad_query.rows, window.grad_key.columns)
    return all(count(given, tile) <= count(View.contiguous(given.shape), tile) for tile in tiles)


def _readable(window: CudaArguments, tensors: Tensors) -> Tensors:
    """The tensors, copied where they begin at an address that no tensor map takes."""
    if not window.forward.warpgroups:
        return tensors
    return {
        name: tensor.clone() if name in layout.MAPPED and tensor.data_ptr() % _COPY else tensor
        for name, tensor in tensors.items()
    }

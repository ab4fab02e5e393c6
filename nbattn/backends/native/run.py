"""Runs the native kernels (`cpu/`) on torch tensors: one call forward, two calls backward.

Kernels take tensors with any strides, without copies. All that a call needs besides pointers is
cached per shape and strides.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import torch
from torch import Tensor

from nbattn.axis import Axis
from nbattn.backends.inputs import Gradients, Inputs, kernel_tensors, new_lse, new_output
from nbattn.backends.logsumexp import sink_gradient
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import RANK
from nbattn.geometry import BoundAxis
from nbattn.kernels import grid_table, host, layout
from nbattn.program.parts import PackedCall, Part
from nbattn.program.program import ByIdentity, Program

_POINTERS = struct.Struct(f"<{len(layout.POINTERS)}Q")
_JOB = struct.Struct("<16i")  # what follows the parameters in `Job` of `cpu/job.h`
_FORWARD, _GRAD_QUERY, _GRAD_KEY, _GRAD_ALL = range(4)
_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_SHARE = 1e5  # products of a vector that are worth waking a thread: about 40 us
_TRIVIAL = BoundAxis(Axis(), 1, 1)
_PLACES = {name: place for place, name in enumerate(layout.POINTERS)}
_CACHE_SIZE = 1024
_Packed = PackedCall[NativeArguments]
# Key → the window, whose identity no other object gets while it lives, and the bytes of a pass.
_numbers: dict[tuple[object, ...], tuple[NativeArguments, bytes]] = {}


def warmup(program: Program) -> None:
    """Compiles the kernels, once per machine, and loads them."""
    host.library()


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Computes the output, and the logsumexp if it is requested or a backward may follow."""
    window, packed = _window(program)
    tensors = _tensors(inputs, packed)
    tensors["out"] = out = new_output(inputs.query, inputs.value)
    lse = None
    if return_lse or window.grad_key or window.grad_all:
        tensors["lse"] = lse = new_lse(inputs.query)
    _run(_pass(window, _FORWARD, inputs, None, packed), tensors)
    return out, lse


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients from the final output and logsumexp."""
    window, packed = _window(program)
    out, lse = out.contiguous(), lse.contiguous()
    tensors = _tensors(inputs, packed) | {"out": out, "lse": lse, "grad_out": grad_out}
    if grad_lse is not None:
        tensors["grad_lse"] = grad_lse.contiguous()
    passes: tuple[int, ...] = (_GRAD_ALL,)
    if window.grad_all is None:
        passes = _GRAD_QUERY, _GRAD_KEY
        tensors["delta"] = lse.new_empty((*lse.shape, 2))
    grads = {
        name: tensor.new_empty(tensor.shape)
        for name in ("query", "key", "value", "extra_key", "extra_value")
        if (tensor := tensors.get(name)) is not None
    }
    bias = inputs.relative_bias
    if bias is not None:
        grads["relative_bias"] = lse.new_empty(bias.shape)
    tensors |= {f"grad_{name}": tensor for name, tensor in grads.items()}
    for number in passes:
        _run(_pass(window, number, inputs, grad_out, packed), tensors)
    sink = sink_gradient(inputs.sink, out, lse, grad_out, grad_lse)
    extra_key, extra_value = (
        grads.get(name, None if tensor is None else torch.zeros_like(tensor))
        for name, tensor in (
            ("extra_key", inputs.extra_key),
            ("extra_value", inputs.extra_value),
        )
    )
    grad_bias = None if bias is None else grads["relative_bias"].to(bias.dtype)
    return Gradients(
        grads["query"], grads["key"], grads["value"], sink, extra_key, extra_value, grad_bias
    )


def _window(program: Program) -> tuple[NativeArguments, _Packed | None]:
    """The arguments of the kernels, and the call on packed grids that they belong to, if any."""
    (call,) = program.calls
    packed: _Packed | None = None
    arguments = call.arguments
    if isinstance(arguments, PackedCall):
        packed, arguments = arguments, arguments.kernels  # pyright: ignore[reportUnknownMemberType]
    assert isinstance(arguments, NativeArguments)
    return arguments, packed


def _tensors(inputs: Inputs, packed: _Packed | None) -> dict[str, Tensor]:
    """What the kernels read."""
    tensors = kernel_tensors(inputs)
    if packed is not None:
        tensors["grids"] = _table(ByIdentity(packed))
    return tensors


@lru_cache(64)
def _table(identity: ByIdentity[_Packed]) -> Tensor:
    rows = grid_table.table(identity.value.grids, identity.value.offsets)
    return torch.from_numpy(rows.view("<i8"))


def _run(numbers: bytes, tensors: dict[str, Tensor]) -> None:
    pointers = [0] * len(_PLACES)
    for name, tensor in tensors.items():
        pointers[_PLACES[name]] = tensor.data_ptr()
    host.library().nb_native_run(_POINTERS.pack(*pointers) + numbers)


def _pass(
    window: NativeArguments,
    number: int,
    inputs: Inputs,
    grad_out: Tensor | None,
    packed: _Packed | None = None,
) -> bytes:
    """All of a pass that does not depend on pointers."""
    query, key, value, extra = inputs.query, inputs.key, inputs.value, inputs.extra_key
    threads = torch.get_num_threads()
    known = (
        id(window),
        number,
        query.dtype,
        query.shape,
        key.shape,
        value.shape[-1],
        query.stride(),
        key.stride(),
        value.stride(),
        None if grad_out is None else grad_out.stride(),
        0 if extra is None else extra.shape[1],
        _slope_step(inputs),
        inputs.scale,
        inputs.softcap,
        threads,
    )
    found = _numbers.get(known)
    if found is None:
        if len(_numbers) >= _CACHE_SIZE:
            _numbers.clear()
        found = window, _packed(window, packed, number, inputs, grad_out, threads)
        _numbers[known] = found
    return found[1]


def _slope_step(inputs: Inputs) -> int:
    """How far the slopes of a sample are from those of the next one."""
    slopes = inputs.alibi_slopes
    return slopes.shape[-1] if slopes is not None and slopes.dim() == 2 else 0


def _packed(
    window: NativeArguments,
    packed: _Packed | None,
    number: int,
    inputs: Inputs,
    grad_out: Tensor | None,
    threads: int,
) -> bytes:
    query, key, value, extra = inputs.query, inputs.key, inputs.value, inputs.extra_key
    tiles = (window.forward, window.grad_query, window.grad_key, window.grad_all)[number]
    assert tiles is not None
    heads, head_dim, value_dim = *query.shape[-2:], value.shape[-1]
    # an empty table of grids has no address: it looks like none, so nothing must be left to do
    batch = query.shape[0] if packed is None else min(1, len(packed.grids))
    grid = (*(_TRIVIAL,) * (RANK - len(window.axes)), *window.axes)
    grad_stride = (0,) * query.dim() if grad_out is None else grad_out.stride()
    shapes = query.shape, key.shape, key.shape, query.shape
    strides = query.stride(), key.stride(), value.stride(), grad_stride
    held = [n for axis in grid for n in layout.held_numbers(axis)]
    if packed is not None:
        shapes, strides = ([(1, *each) for each in given] for given in (shapes, strides))
        held = layout.held_tokens(query.shape[0], key.shape[0])
    numbers = layout.pack_numbers(
        [n for each in map(layout.on_three_axes, shapes, strides) for n in each],
        inputs.scale,
        inputs.softcap or 0.0,
        [n for axis in grid for n in layout.axis_numbers(axis)],
        held,
        (
            batch,
            heads,
            heads // max(key.shape[-2], 1),
            0 if extra is None else extra.shape[1],
            len(window.axes),
            1,
            _slope_step(inputs),
            0 if packed is None else len(packed.grids),
        ),
    )
    extents = tiles.tile[1 + RANK - len(window.axes) :]
    columns = sum(
        times * math.prod(axis.tile_totals(n).keys for axis, n in zip(axes, extents, strict=True))
        for axes, times, _ in ((Part(window.axes, 1),) if packed is None else packed.parts)
    )
    products = batch * heads * columns * (head_dim + value_dim) // tiles.tile[0]
    threads = min(threads, 1 + int(products / _SHARE))
    job = _JOB.pack(
        *(_TYPES[query.dtype], number, *tiles.tile, *tiles.group, *tiles.slab),
        *(threads, head_dim, value_dim),
    )
    return numbers + job

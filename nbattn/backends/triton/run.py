"""Runs the project's Triton kernels on torch tensors: the launches of forward and backward.

Kernels take tensors with any strides, without copies. All that a launch needs besides tensors is
kept per shape and strides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nbattn.backends.inputs import (
    Gradients,
    Inputs,
    kernel_tensors,
    new_lse,
    new_output,
)
from nbattn.backends.logsumexp import sink_gradient
from nbattn.backends.triton import choice, launch
from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.kernels.numbers import (
    Axis,
    Counts,
    Strides,
    Variant,
    unlike_others,
)
from nbattn.backends.triton.launch import Launcher
from nbattn.backends.triton.meaning import (
    DELTA_WARPS,
    FIELDS,
    TritonArguments,
    delta_rows,
)
from nbattn.backends.triton.tiles import EXTRA, TABLE, Build, Tiles
from nbattn.geometry import BoundAxis, Ints
from nbattn.kernels import layout
from nbattn.program.parts import PackedCall
from nbattn.program.program import ByIdentity, Program
from nbattn.program.tile_counts import RANK, padded, row_tiles, row_tiles_of

# The functions of the kernels with tiles.
FUNCTIONS = {
    "fwd": "forward",
    "dq": "grad_query",
    "dkdv": "grad_key",
    EXTRA: "grad_extra",
    TABLE: "grad_table",
}
_DELTA = "delta"
_GRID = 16  # numbers of a grid in the table of grids, `kernels/place.py`
_CHUNK = 16  # bytes that are loaded at once
_LONGEST = (1 << 29) - 1  # side of a window, which no axis exceeds
_WIDE = 1 << 31  # offsets from here on need 64 bits
_EXTRA = ("extra_key", "extra_value")
_STRIDED = ("query", "key", "value", "grad_out")
_Window = TritonArguments | PackedCall[TritonArguments]
_Strides = tuple[int, ...]


class Shape(NamedTuple):
    """What launches depend on besides the plan and the tensors: sizes, strides and numbers.

    Args:
        query, key: shapes of the tensors, with a batch of 1 for packed grids.
        strides: of q, k, v and, in a backward, of grad_out.
        extra: extra keys.
        slopes: slopes of a sample; 0 where all samples have the same.
        scale, softcap: as in the kernels.
        precision: of products of float32.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    strides: tuple[_Strides, ...]
    extra: int
    slopes: int
    scale: float
    softcap: float
    precision: str


class Launch(NamedTuple):
    """One launch without its tensors."""

    function: str
    grid: tuple[int, ...]
    numbers: Mapping[str, Any]
    variant: Variant
    warps: int
    stages: int


def warmup(program: Program, launcher: Launcher | None = None) -> None:
    """Compile the kernels of a program, for training those of the backward, too; for contiguous
    tensors.
    """
    window, used = _window(program), launcher or launch.launcher()
    arguments, _ = _unpacked(window)
    example = _example(arguments)
    steps = _launches(ByIdentity(window), example)
    if arguments.grad_query is not None:
        grad_out = example.strides[2]
        steps += _launches(
            ByIdentity(window), example._replace(strides=(*example.strides, grad_out))
        )
    for step in steps:
        dtypes = _dtypes(step.function, arguments.build)
        used.load(step.function, {**dtypes, **step.numbers}, *step[3:])


def forward(
    program: Program, inputs: Inputs, *, return_lse: bool, launcher: Launcher | None = None
) -> tuple[Tensor, Tensor | None]:
    """Computes the output, and the logsumexp if it is requested or a backward may follow."""
    del return_lse  # it is always written: kernels without it would be compiled, too
    window = _window(program)
    tensors = kernel_tensors(inputs)
    out, lse = new_output(inputs.query, inputs.value), new_lse(inputs.query)
    tensors |= {"out": out, "lse": lse, **_grids(window, tensors)}
    (step,) = _launches(ByIdentity(window), _shape(inputs, tensors, ()))
    _run(launcher, step, tensors)
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
    window = _window(program)
    tensors = kernel_tensors(inputs)
    tensors |= _grids(window, tensors)
    tensors |= {"out": out.contiguous(), "lse": lse.contiguous(), "grad_out": grad_out}
    tensors |= {} if grad_lse is None else {"grad_lse": grad_lse.contiguous()}
    tensors["terms"] = lse.new_empty((*lse.shape, 2))
    query, key, value = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in (inputs.query, inputs.key, inputs.value)
    )
    extra_key, extra_value = (
        None if tensor is None else torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (inputs.extra_key, inputs.extra_value)
    )
    table = None
    for step in _launches(ByIdentity(window), _shape(inputs, tensors, (grad_out.stride(),))):
        match step.function:
            case "grad_query":
                _run(launcher, step, tensors | {"grad": query})
            case "grad_key":
                _run(launcher, step, tensors | {"grad_keys": key, "grad_values": value})
            case "grad_extra":
                parts = [_parts(step, tensors[name], lse) for name in _EXTRA]
                named = zip(("grad_keys", "grad_values"), parts, strict=True)
                _run(launcher, step, tensors | dict(named))
                extra_key, extra_value = (part.sum(0).to(query.dtype) for part in parts)
            case "grad_table":
                assert inputs.relative_bias is not None
                grads = _parts(step, tensors["relative_bias"], lse).zero_()
                _run(launcher, step, tensors | {"grad_tables": grads})
                table = grads.sum(0).to(inputs.relative_bias.dtype)
            case _:
                _run(launcher, step, tensors)
    sink = sink_gradient(inputs.sink, out, lse, grad_out, grad_lse)
    return Gradients(query, key, value, sink, extra_key, extra_value, table)


def _parts(step: Launch, like: Tensor, lse: Tensor) -> Tensor:
    """Memory for a tensor's gradient by each of the programs that share it."""
    return lse.new_empty(
        (step.grid[-1] if step.function == "grad_extra" else step.grid[0], *like.shape)
    )


def _run(launcher: Launcher | None, step: Launch, tensors: Mapping[str, Tensor]) -> None:
    if all(step.grid):
        (launcher or launch.launcher()).launch(
            step.function, step.grid, {**tensors, **step.numbers}, *step[3:]
        )


def _window(program: Program) -> _Window:
    """The arguments of the kernels, in the call on packed grids that they belong to, if any."""
    (call,) = program.calls
    arguments: Any = call.arguments
    return arguments


def _unpacked(window: _Window) -> tuple[TritonArguments, PackedCall[TritonArguments] | None]:
    if isinstance(window, PackedCall):
        return window.kernels, window
    return window, None


def _shape(inputs: Inputs, tensors: Mapping[str, Tensor], more: tuple[_Strides, ...]) -> Shape:
    """The sizes, strides and numbers of a call, `more` for grad_out."""
    query, key = inputs.query.shape, inputs.key.shape
    strides = (inputs.query.stride(), inputs.key.stride(), inputs.value.stride(), *more)
    slopes = inputs.alibi_slopes
    if inputs.grids is not None:
        query, key = (1, *query), (1, *key)
        strides = tuple((0, *each) for each in strides)
    return Shape(
        tuple(query),
        tuple(key),
        strides,
        tensors["extra_key"].shape[1] if "extra_key" in tensors else 0,
        query[-2] if slopes is not None and slopes.dim() == 2 else 0,
        inputs.scale,
        inputs.softcap or 0.0,
        _precision(inputs.query.dtype, inputs.query.device.type),
    )


def _precision(dtype: torch.dtype, device: str) -> str:
    """How float32 is multiplied: exactly, or with TF32 where torch's switch for CUDA allows it."""
    if dtype != torch.float32 or device != "cuda" or torch.version.hip:
        return "ieee"
    switch: Any = torch.backends.cuda.matmul
    if hasattr(switch, "fp32_precision"):
        return "tf32" if switch.fp32_precision == "tf32" else "ieee"
    return "tf32" if switch.allow_tf32 else "ieee"


@lru_cache(1024)
def _launches(identity: ByIdentity[_Window], shape: Shape) -> tuple[Launch, ...]:
    """The launches of a forward (strides of q, k, v) or of a backward (and those of grad_out)."""
    window, packed = _unpacked(identity.value)
    numbers, step, wide = _numbers(window, shape)
    is_backward = len(shape.strides) > len(_STRIDED[:-1])
    launches = [_delta_launch(window, shape, numbers)] if is_backward else []
    for kernel in triton_tiles.kernels(window.build, training=is_backward)[is_backward:]:
        tiles: Tiles | None = getattr(window, FIELDS[kernel])
        if tiles is None or (kernel == EXTRA and not shape.extra):
            continue
        variant = triton_tiles.variant(
            tiles, window.build, step=step, wide=wide, precision=shape.precision
        )
        grid, counts = _grid(kernel, tiles, window, packed, shape)
        samples = len(packed.grids) if kernel == EXTRA and packed is not None else shape.query[0]
        own = _written(numbers | {"counts": counts, "samples": samples})
        launches.append(Launch(FUNCTIONS[kernel], grid, own, variant, tiles.warps, tiles.stages))
    return tuple(launches)


def _written(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a launch, of which those in tuples make no further kernels."""
    return {
        name: unlike_others(value) if isinstance(value, tuple) else value
        for name, value in numbers.items()
    }


def _axis(axis: BoundAxis) -> Axis:
    """The numbers of an axis; an unlimited side is as long as 32 bits are when it is written."""
    made = Axis(*layout.axis_numbers(axis), *layout.held_numbers(axis))
    return made._replace(left=min(made.left, _LONGEST), right=min(made.right, _LONGEST))


def _numbers(window: TritonArguments, shape: Shape) -> tuple[dict[str, Any], int, bool]:
    """The numbers that all kernels take, the step of strides, and whether offsets are wide."""
    shapes = (shape.query, shape.key, shape.key, shape.query)
    step = _step(window, shapes, shape.strides)
    numbers: dict[str, Any] = {"scale": shape.scale, "softcap": shape.softcap}
    numbers["axes"] = tuple(_axis(axis) for axis in padded(window.axes))
    wide = False
    for name, size, strides in zip(_STRIDED, shapes, shape.strides, strict=False):
        numbers[f"{name}_strides"] = _strides(size, strides, step)
        last = ((n - 1) * s for n, s in zip(size[1:], strides[1:], strict=True))
        wide = wide or sum(map(abs, last)) >= _WIDE
    return numbers, step, wide


def _strides(shape: Sequence[int], strides: Sequence[int], step: int) -> Strides:
    """The strides of a tensor on three axes, in units of `step` elements but for the channel's."""
    *places, channel = layout.on_three_axes(shape, strides)
    return Strides._make((*(place // step for place in places), channel))


def _step(
    window: TritonArguments, shapes: Sequence[Sequence[int]], strides: Sequence[_Strides]
) -> int:
    """The largest power of two, up to 16 bytes, of which all strides are multiples; 1 where the
    channels of some tensor are no neighbours.
    """
    itemsize = {"float32": 4, "float64": 8}.get(window.build.dtype, 2)
    divisor = _CHUNK // itemsize
    for shape, steps in zip(shapes, strides, strict=False):
        if steps[-1] != 1 and shape[-1] > 1:
            return 1
        for length, stride in zip(shape[:-1], steps[:-1], strict=True):
            divisor = math.gcd(divisor, stride) if length > 1 else divisor
    return divisor


def _grid(
    kernel: str,
    tiles: Tiles,
    window: TritonArguments,
    packed: PackedCall[TritonArguments] | None,
    shape: Shape,
) -> tuple[tuple[int, ...], Counts]:
    """The programs of a kernel, and the numbers that it counts with."""
    heads, kv_heads = shape.query[-2], max(shape.key[-2], 1)
    samples = shape.query[0] if packed is None else 1
    grids = 0 if packed is None else len(packed.grids)
    inverse = kernel in ("dkdv", EXTRA)
    of_heads = kv_heads if inverse else heads
    if kernel == EXTRA:
        count = -(-shape.extra // tiles.row_count)
        samples = samples if packed is None else grids
    else:
        count = int(_counts(window, packed, tiles, inverse=inverse).sum())
    counts = Counts(count, of_heads, heads, heads // kv_heads, shape.extra, shape.slopes, grids)
    programs = count * of_heads * samples
    if kernel == EXTRA:
        queries = -(-math.prod(shape.query[1:-2]) // tiles.column_count)
        elements = (
            samples * shape.extra * kv_heads * max(window.build.head_dim, window.build.value_dim)
        )
        return (programs, choice.shares(programs, queries, elements)), counts
    if kernel == TABLE:
        entries = choice.table_entries([axis.spec for axis in window.axes])
        return (choice.shares(heads, count * samples, heads * entries), heads), counts
    return (programs,), counts


def _counts(
    window: TritonArguments,
    packed: PackedCall[TritonArguments] | None,
    tiles: Tiles,
    *,
    inverse: bool,
) -> Ints:
    """The tiles of rows of one head of every grid: of its queries or, inverse, of its keys."""
    if packed is not None:
        return row_tiles_of(packed.mask, packed.grids, tiles.rows, inverse=inverse)
    of_axes = zip(padded(window.axes), tiles.rows, strict=True)
    count = math.prod(row_tiles(axis, rows, inverse=inverse) for axis, rows in of_axes)
    return np.array([count], dtype=np.int64)


def _delta_launch(window: TritonArguments, shape: Shape, numbers: Mapping[str, Any]) -> Launch:
    """The launch that prepares the backward for all rows of all heads."""
    batch, *lengths, heads, _ = shape.query
    space = (*(1,) * (RANK - len(lengths)), *lengths)
    rows = delta_rows(window.build.value_dim)
    variant = triton_tiles.variant(
        Tiles((1, 1, rows), (1, 1, 1)), window.build, step=1, wide=False, precision="ieee"
    )
    own = {
        "grad_out_strides": _strides(shape.query, shape.strides[-1], 1),
        "space": space,
        "samples": batch,
        "counts": Counts(0, heads, heads, 1, 0, 0, 0),
    }
    grid = (-(-math.prod(shape.query[:-1]) // rows),)
    return Launch(_DELTA, grid, _written(own), variant, DELTA_WARPS, 1)


def _grids(window: _Window, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The table of packed grids, on the device of the tensors."""
    if not isinstance(window, PackedCall):
        return {}
    return {"grids": _grid_rows(ByIdentity(window), tensors["query"].device)}


@lru_cache(64)
def _grid_rows(identity: ByIdentity[PackedCall[TritonArguments]], device: torch.device) -> Tensor:
    """One row for each grid, as `kernels/place.py` reads it; copied to the device once."""
    packed = identity.value
    grids, window = packed.grids, packed.kernels
    rows = np.zeros((len(grids), _GRID), dtype=np.int64)
    rows[:, : 2 * RANK] = 1
    first = RANK - packed.mask.rank
    for at, numbers in enumerate((grids.query.array, grids.key.array, packed.offsets)):
        rows[:, RANK * at + first : RANK * (at + 1)] = numbers
    kernels = ("fwd", "dq", "dkdv", TABLE)
    for at, kernel in enumerate(kernels, 3 * RANK):
        tiles: Tiles | None = getattr(window, FIELDS[kernel])
        if tiles is not None:
            counts = _counts(window, packed, tiles, inverse=kernel == "dkdv")
            rows[1:, at] = np.cumsum(counts)[:-1]
    end = 3 * RANK + len(kernels)
    rows[:, end], rows[:, end + 1] = grids.query.starts[:-1], grids.key.starts[:-1]
    return torch.from_numpy(rows).to(device)


def _example(arguments: TritonArguments) -> Shape:
    """Contiguous tensors of one head that a call may have."""
    build, axes = arguments.build, arguments.axes
    query = (1, *(axis.queries for axis in axes), 1, build.head_dim)
    key = (1, *(axis.keys for axis in axes), 1, build.head_dim)
    shapes = (query, key, (*key[:-1], build.value_dim))
    strides = tuple(torch.empty(shape, device="meta").stride() for shape in shapes)
    device = "cuda" if torch.cuda.is_available() else "xpu"
    precision = _precision(getattr(torch, build.dtype), device)
    return Shape(query, key, strides, int(build.extra), 0, 1.0, 1.0, precision)


def _dtypes(function: str, build: Build) -> dict[str, torch.dtype]:
    """The dtypes of a kernel's tensors by name."""
    own: torch.dtype = getattr(torch, build.dtype)
    exact = torch.float64 if own == torch.float64 else torch.float32
    names = dict.fromkeys(("query", "key", "value", "out", "grad_out", "grad"), own)
    names |= dict.fromkeys(("lse", "terms", "grad_tables"), exact)
    grads = exact if function == "grad_extra" else own
    names |= dict.fromkeys(("grad_keys", "grad_values"), grads)
    names |= dict.fromkeys(_EXTRA, own) if build.extra else {}
    options: dict[str, tuple[bool, torch.dtype]] = {
        "extra_range": (build.extra_range, torch.int32),
        "key_range": (build.key_range, torch.int32),
        "grids": (build.grids, torch.int64),
        "sink": (build.sink, exact),
        "relative_bias": (build.table, exact),
        "alibi_slopes": (build.slopes, exact),
    }
    return names | {name: dtype for name, (given, dtype) in options.items() if given}

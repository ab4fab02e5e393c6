"""The project's CUDA kernels on torch tensors: variants, their one argument, and the launches of
forward and backward.

Tensors are read as they lie, with any strides. What a launch needs besides pointers is kept per
shape and strides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.meaning import FAR, CudaArguments
from nbattn.backends.cuda.tiles import RANK, Tiles
from nbattn.backends.inputs import Gradients, Inputs, accumulate_dtype, new_lse, new_output
from nbattn.backends.logsumexp import sink_gradient
from nbattn.geometry import BoundAxis
from nbattn.kernels import launch, layout
from nbattn.kernels.launch import Launcher
from nbattn.kernels.variant import Variant
from nbattn.program.program import ByIdentity, Program

_COPY = 16  # bytes of the tensor-core kernels' copies
_EXTRA = ("extra_key", "extra_value")
# Gradients by NB_GRADS; 0 is the kernel of the queries' gradients.
_VALUES, _KEYS = ("grad_value", "grad_extra_value"), ("grad_key", "grad_extra_key")
_WRITES = {0: ("grad_query",), 1: _VALUES, 2: _KEYS, 3: (*_VALUES, *_KEYS)}
Tensors = dict[str, Tensor]
Strides = tuple[int, ...]


class Launch(NamedTuple):
    """One kernel of a call, but for its pointers; the gradients that it writes, by name."""

    variant: Variant
    blocks: int
    numbers: bytes
    grads: tuple[str, ...] = ()


def warmup(program: Program, launcher: Launcher | None = None) -> None:
    """Compile and load the kernels of a program, backward ones when it is for training."""
    window, launcher = _window(program), launcher or launch.launcher()
    kernels = {"fwd": window.forward, "dq": window.queries, "dkdv": window.keys}
    for kernel, tiles in kernels.items():
        for grads in cuda_tiles.grads_of(kernel, window.build) if tiles else ():
            assert tiles is not None
            launcher.load(cuda_tiles.variant(kernel, tiles, window.build, grads=grads, vector=True))
    if window.keys is not None:
        launcher.load(cuda_tiles.delta(window.build.dtype, window.build.value_dim))


def forward(
    program: Program, inputs: Inputs, *, return_lse: bool, launcher: Launcher | None = None
) -> tuple[Tensor, Tensor | None]:
    """Output, and the logsumexp where it is wanted or a backward may follow."""
    window = _window(program)
    tensors = _tensors(inputs)
    (one,) = _launches(*_launch_key(window, inputs, tensors, None))
    tensors["out"] = out = new_output(inputs.query, inputs.value)
    lse = None
    if return_lse or window.keys is not None:
        tensors["lse"] = lse = new_lse(inputs.query)
    _run(launcher, one, tensors)
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
    """Gradients from the final output and logsumexp."""
    window = _window(program)
    out, lse = out.contiguous(), lse.contiguous()
    if window.forward.row_blocks and not _in_chunks(grad_out.shape, grad_out.stride()):
        grad_out = grad_out.contiguous()
    tensors = _tensors(inputs)
    tensors |= {"out": out, "lse": lse, "grad_out": grad_out}
    tensors |= {} if grad_lse is None else {"grad_lse": grad_lse.contiguous()}
    tensors["delta"] = torch.empty_like(lse)
    launches = _launches(*_launch_key(window, inputs, tensors, grad_out.stride()))
    named = {name: tensors.get(name) for name in ("query", "key", "value", *_EXTRA)}
    grads = {f"grad_{n}": t.new_empty(t.shape) for n, t in named.items() if t is not None}
    for one in launches:
        _run(launcher, one, tensors | {name: grads[name] for name in one.grads if name in grads})
    sink = sink_gradient(inputs.sink, out, lse, grad_out, grad_lse)
    extra_key, extra_value = (
        grads.get(f"grad_{name}", None if given is None else torch.zeros_like(given))
        for name, given in zip(_EXTRA, (inputs.extra_key, inputs.extra_value), strict=True)
    )
    query, key, value = (grads[f"grad_{name}"] for name in ("query", "key", "value"))
    return Gradients(query, key, value, sink, extra_key, extra_value)


def _window(program: Program) -> CudaArguments:
    (call,) = program.calls
    assert isinstance(call.arguments, CudaArguments)
    return call.arguments


def _tensors(inputs: Inputs) -> Tensors:
    """The inputs by their names in the argument, those without strides contiguous."""
    tensors = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if inputs.extra_key is not None and inputs.extra_value is not None and inputs.has_extra:
        tensors["extra_key"] = inputs.extra_key.contiguous()
        tensors["extra_value"] = inputs.extra_value.contiguous()
    if inputs.sink is not None:
        tensors["sink"] = inputs.sink.to(accumulate_dtype(inputs.query.dtype)).contiguous()
    if inputs.key_range is not None:
        tensors["key_range"] = inputs.key_range.to(torch.int32).contiguous()
    return tensors


def _run(launcher: Launcher | None, one: Launch, tensors: Mapping[str, Tensor]) -> None:
    if one.blocks:
        (launcher or launch.launcher()).launch(one.variant, one.blocks, tensors, one.numbers)


_LaunchKey = tuple[
    ByIdentity[CudaArguments], torch.Size, torch.Size, tuple[Strides, ...], int, bool, float, float
]


def _launch_key(
    window: CudaArguments, inputs: Inputs, tensors: Tensors, grad_out: Strides | None
) -> _LaunchKey:
    """What launches depend on, but for pointers."""
    query, key, value = inputs.query, inputs.key, inputs.value
    strides = (query.stride(), key.stride(), value.stride())
    copied = [query, key, value, *(tensors[n] for n in (*_EXTRA, "grad_out") if n in tensors)]
    return (
        ByIdentity(window),
        query.shape,
        key.shape,
        strides if grad_out is None else (*strides, grad_out),
        tensors["extra_key"].shape[1] if "extra_key" in tensors else 0,
        not any(tensor.data_ptr() % _COPY for tensor in copied),
        inputs.scale,
        inputs.softcap or 0.0,
    )


@lru_cache(1024)
def _launches(
    identity: ByIdentity[CudaArguments],
    query: torch.Size,
    key: torch.Size,
    strides: tuple[Strides, ...],
    extra: int,
    aligned: bool,
    scale: float,
    softcap: float,
) -> tuple[Launch, ...]:
    """The launches of a forward, or with a fourth tensor's strides of a backward."""
    window, build = identity.value, identity.value.build
    batch, heads, kv_heads = query[0], query[-2], key[-2]
    shapes = (query, key, key, query)
    vector = aligned and all(map(_in_chunks, shapes, strides))
    numbers = layout.pack_numbers(
        [n for one in (*strides, (0,) * len(query))[:4] for n in _six(one)],
        scale,
        softcap,
        [n for axis in cuda_tiles.padded(window.axes) for n in _axis(axis)],
        (batch, heads, heads // max(kv_heads, 1), extra, len(window.axes), 0),
    )

    def of(kernel: str, tiles: Tiles, items: int, more: int = 0) -> list[Launch]:
        inverse = kernel == "dkdv"
        tiled = zip(cuda_tiles.padded(window.axes), tiles.rows, strict=True)
        count = math.prod(cuda_tiles.row_tiles(a, n, inverse=inverse) for a, n in tiled) + more
        return [
            Launch(
                cuda_tiles.variant(kernel, tiles, build, grads=grads, vector=vector),
                count * items,
                numbers,
                _WRITES[grads],
            )
            for grads in cuda_tiles.grads_of(kernel, build)
        ]

    if len(strides) == 3:
        return tuple(of("fwd", window.forward, batch * heads))
    assert window.queries is not None
    assert window.keys is not None
    rows = math.prod(query[:-1])
    delta = cuda_tiles.delta(build.dtype, build.value_dim)
    more = -(-extra // window.keys.row_count)
    return (
        Launch(delta, -(-rows // cuda_tiles.DELTA_ROWS), numbers),
        *of("dq", window.queries, batch * heads),
        *of("dkdv", window.keys, batch * kv_heads, more),
    )


def _six(strides: Strides) -> Strides:
    """Strides of `[B, *space, H, D]` as kernels take them: with all three axes."""
    batch, *axes, head, channel = strides
    return (batch, *(0,) * (RANK - len(axes)), *axes, head, channel)


def _axis(axis: BoundAxis) -> tuple[int, ...]:
    """One axis as kernels take it: sides beyond every end stand for unlimited ones."""
    spec = axis.spec
    left, right = (FAR if side is None else min(side, FAR) for side in (spec.left, spec.right))
    return (
        axis.queries,
        axis.keys,
        left,
        right,
        spec.dilation,
        spec.stride,
        axis.offset,
        min(spec.prefix, axis.keys),
        layout.BORDERS[spec.border],
        int(spec.causal),
    )


def _in_chunks(shape: torch.Size, strides: Strides) -> bool:
    """Whether all vectors of channels lie in 16-byte chunks of halves, once the first one does."""
    step = _COPY // 2
    sized = zip(shape[:-1], strides[:-1], strict=True)
    return strides[-1] == 1 and not any(n > 1 and stride % step for n, stride in sized)

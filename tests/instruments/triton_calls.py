"""Programs of the Triton kernels with some legal tiles, and the tensors that they are for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbattn import Mask, biases, geometry
from nbattn.backends.inputs import Inputs
from nbattn.backends.triton import tiles
from nbattn.backends.triton.meaning import FIELDS, TritonArguments
from nbattn.backends.triton.tiles import Build
from nbattn.program.device import DEVICES
from nbattn.program.program import Call, Program, whole

HEADS, KEY_HEADS, EXTRA = 4, 2, 3


def program(mask: Mask, build: Build, space: tuple[int, ...], *, training: bool) -> Program:
    """A program with some legal tile for every kernel."""
    axes = geometry.bind(mask, space, space)
    long = tuple(range(3 - mask.rank, 3))
    chosen = {
        FIELDS[kernel]: tiles.legal_tiles(kernel, build, DEVICES["sm_90"], long)[-1]
        for kernel in tiles.kernels(build, training=training)
    }
    arguments = TritonArguments(axes, build, **chosen)
    return Program((Call(whole(space), whole(space), arguments),))


def inputs(mask: Mask, build: Build, space: tuple[int, ...]) -> tuple[Inputs, Tensor]:
    """The tensors that a build is for."""
    own: dict[str, Any] = {"dtype": getattr(torch, build.dtype)}
    batch, rows = 2, (2, *space)
    named: dict[str, Tensor] = {}
    if build.sink:
        named["sink"] = torch.randn(HEADS)
    if build.key_range:
        named["key_range"] = torch.zeros(batch, mask.rank, 2, dtype=torch.int32)
    if build.extra:
        named["extra_key"] = torch.randn(batch, EXTRA, KEY_HEADS, build.head_dim, **own)
        named["extra_value"] = torch.randn(batch, EXTRA, KEY_HEADS, build.value_dim, **own)
    if build.extra_range:
        named["extra_range"] = torch.zeros(batch, 2, dtype=torch.int64)
    if build.table:
        named["relative_bias"] = torch.randn(HEADS, *biases.table_sizes(mask.axes), **own)
    if build.slopes:
        named["alibi_slopes"] = torch.rand(HEADS)
    tensors = (
        torch.randn(*rows, heads, dim, **own)
        for heads, dim in (
            (HEADS, build.head_dim), (KEY_HEADS, build.head_dim), (KEY_HEADS, build.value_dim)
        )
    )  # fmt: skip
    grad = torch.randn(*rows, HEADS, build.value_dim, **own)
    return Inputs(*tensors, **named, softcap=2.0 if build.softcap else None), grad

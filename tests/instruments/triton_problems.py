"""Solves attention problems with the Triton kernels alone, launch by launch.

This computes the kernels' arguments a second time, so that a mistake in the backend's arguments
cannot cancel a mistake of the kernels. The problems are those of the CUDA kernels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from emulator.cases import CASES as CUDA_CASES
from emulator.problem import Problem, Tensors
from torch import Tensor
from triton_interpreter import Launcher

from nbattn.backends.triton.kernels.numbers import Axis, Counts, Strides, Variant

FAR = 1 << 29  # a side without a limit
BORDERS = ("clip", "shift", "wrap")
SHARES = 3  # programs that share a sum
EACH = 16  # rows of a program of `delta`
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def small(p: Problem, dtype: torch.dtype) -> Problem:
    """The problem with tiles that are small enough to interpret, in a dtype."""
    rows = (1, 1, 16) if p.rank == 1 else (1, 4, 4) if p.rank == 2 else (2, 2, 4)
    head_dim, value_dim = (min(size, 24) for size in (p.head_dim, p.value_dim))
    return replace(
        p, dtype=dtype, family="triton", rows=rows, columns=rows, packed=1, parts=SHARES,
        head_dim=head_dim, value_dim=value_dim,
    )  # fmt: skip


# Those without tensor cores are the same ones, and some are about what only CUDA kernels have.
_LEFT_OUT = ("big", "eight", "narrow", "kept", "many", "tall", "wide", "ring", "table-seam")
CASES = {
    name: small(case, DTYPES[number % 4])
    for number, (name, case) in enumerate(CUDA_CASES.items())
    if not name.endswith("-simt") and name not in _LEFT_OUT
}


def axes_of(p: Problem) -> tuple[Axis, ...]:
    """Three axes as the kernels take them."""
    found = []
    for axis, queries, keys in p.axes("dq"):
        found.append(
            Axis(
                keys=keys,
                left=FAR if axis.left is None else axis.left,
                right=FAR if axis.right is None else axis.right,
                dilation=axis.dilation,
                stride=axis.stride,
                offset=axis.offset + (0 if axis.align == "top-left" else keys - queries),
                prefix=min(axis.prefix, keys),
                border=BORDERS.index(axis.border),
                causal=int(axis.causal),
                queries=queries,
                first_key=0,
                held_keys=keys,
            )
        )
    return tuple(found)


def step_of(tensors: list[Tensor]) -> int:
    """Elements of which all strides are multiples where channels are neighbours."""
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return 1
    steps = [step for tensor in tensors for step in tensor.stride()[:-1]]
    return math.gcd(16, *steps)


def variant_of(p: Problem, known: Tensors) -> Variant:
    four = [known[name] for name in ("query", "key", "value", "grad_out")]
    specs = p.mask.axes
    return Variant(
        p.rank,
        p.rows,
        p.columns,
        p.head_dim,
        p.value_dim,
        two_runs=any(axis.prefix for axis in specs),
        circle=any(axis.border == "wrap" for axis in specs),
        softcap=p.softcap > 0,
        step=step_of(four),
        wide=p.layout == "far",
        double=p.dtype == torch.float64,
    )


def strides_of(tensor: Tensor, step: int) -> Strides:
    batch, *space, head, channel = tensor.stride()
    own = [batch, *(0,) * (3 - len(space)), *space, head]
    return Strides(*(number // step for number in own), channel)


def tiles_of(p: Problem, *, of_keys: bool) -> int:
    """Tiles of rows of one head of one sample."""
    tiles = 1
    for (axis, queries, keys), extent in zip(p.axes("dq"), p.rows, strict=True):
        length = keys if of_keys else queries
        tiles *= min(axis.dilation, length) * -(-(-(-length // axis.dilation)) // extent)
    return tiles


def solve(p: Problem, launcher: Launcher, made: Tensors) -> Tensors:
    """All outputs and gradients."""
    known = dict(made)
    for kernel in ("forward", "delta", "grad_query", "grad_key", "grad_extra", "grad_table"):
        known |= run(p, launcher, kernel, known)
    return {name: t for name, t in known.items() if name not in made and name != "terms"}


def run(p: Problem, launcher: Launcher, kernel: str, known: Tensors) -> Tensors:
    """The outputs of one kernel, from the inputs and the outputs of earlier kernels."""
    if (kernel == "grad_extra" and not p.extra) or (kernel == "grad_table" and not p.table):
        return {}
    variant, sums = variant_of(p, known), p.accumulator
    key_heads = p.heads // p.group
    scale = p.head_dim**-0.5 if p.scale is None else p.scale
    tiles = tiles_of(p, of_keys=kernel == "grad_key")
    blocks = p.heads if kernel in ("forward", "grad_query") else key_heads
    if kernel == "grad_extra":
        tiles = -(-p.extra // math.prod(p.rows))
    slope_step = p.heads if p.slopes == 2 else 0
    counts = Counts(tiles, blocks, p.heads, p.group, p.extra, slope_step, 0)
    axes = axes_of(p)
    query, key, value, grad_out = (
        strides_of(known[name], variant.step) for name in ("query", "key", "value", "grad_out")
    )
    given: dict[str, Tensor | None] = {
        name: known.get(name)
        for name in (
            "query", "key", "value", "extra_key", "extra_value", "extra_range", "key_range",
            "relative_bias", "alibi_slopes", "grad_out", "terms", "sink",
        )
    } | {"grids": None}  # fmt: skip

    def tensors(*names: str) -> list[Tensor | None]:
        return [given[name] for name in names]

    def empty(*shape: int, dtype: torch.dtype = p.dtype) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype)

    rows = (p.batch, *p.queries, p.heads)
    every = ("query", "key", "value")
    more = ("extra_key", "extra_value", "extra_range")
    added = ("relative_bias", "alibi_slopes", "grids")
    last = (scale, p.softcap)
    if kernel == "forward":
        made = {"out": empty(*rows, p.value_dim), "lse": empty(*rows, dtype=sums)}
        reads = tensors(*every, *more, "key_range", "sink", *added)
        numbers = (axes, query, key, value, counts, *last)
        grid: tuple[int, ...] = (tiles * p.batch * blocks,)
    elif kernel == "delta":
        made = {"terms": empty(*rows, 2, dtype=sums)}
        reads = [known["out"], known["grad_out"], known["lse"], known["grad_lse"]]
        lengths = tuple(axis.queries for axis in axes)
        own = strides_of(known["grad_out"], 1)
        numbers = (lengths, own, counts, p.batch)
        grid = (-(-math.prod(rows) // EACH),)
        variant = replace(variant, rows=(1, 1, EACH))
    elif kernel == "grad_query":
        made = {"grad_query": empty(*known["query"].shape)}
        reads = tensors(*every, *more, "key_range", *added, "grad_out", "terms")
        numbers = (axes, query, key, value, grad_out, counts, *last)
        grid = (tiles * p.batch * blocks,)
    elif kernel == "grad_key":
        made = {f"grad_{name}": empty(*known[name].shape) for name in ("key", "value")}
        reads = tensors(*every, "key_range", *added, "grad_out", "terms")
        numbers = (axes, query, key, value, grad_out, counts, *last)
        grid = (tiles * p.batch * blocks,)
    elif kernel == "grad_extra":
        shapes = {name: known[name].shape for name in ("extra_key", "extra_value")}
        made = {f"grad_{name}": empty(SHARES, *s, dtype=sums) for name, s in shapes.items()}
        reads = tensors("query", *more, "grids", "grad_out", "terms")
        numbers = (axes, query, grad_out, counts, p.batch, *last)
        grid = (tiles * p.batch * blocks, SHARES)
    else:
        made = {"grad_relative_bias": torch.zeros(SHARES, *p.table_shape, dtype=sums)}
        reads = tensors(*every, "key_range", *added, "grad_out", "terms")
        numbers = (axes, query, key, value, grad_out, counts, p.batch, *last)
        grid = (SHARES, p.heads)
    launcher.launch(kernel, grid, [*reads, *made.values(), *numbers], variant, 4, 2)
    if kernel in ("grad_extra", "grad_table"):
        made = {name: tensor.sum(0) for name, tensor in made.items()}
    return made

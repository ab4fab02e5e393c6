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

from nbattn import Axis as MaskAxis
from nbattn import Mask
from nbattn.backends.triton.kernels.numbers import (
    Axis,
    Counts,
    Strides,
    Variant,
    unlike_others,
)

FAR = 1 << 29  # a side without a limit
BORDERS = ("clip", "shift", "wrap")
SHARES = 2  # programs that share a sum
# What the kernels call the gradients of inputs.
NAMES = {
    "grad_query": {"grad": "grad_query"},
    "grad_key": {"grad_keys": "grad_key", "grad_values": "grad_value"},
    "grad_extra": {"grad_keys": "grad_extra_key", "grad_values": "grad_extra_value"},
    "grad_table": {"grad_tables": "grad_relative_bias"},
}
EACH = 16  # rows of a program of `delta`
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def small(p: Problem, dtype: torch.dtype) -> Problem:
    """The problem with tiles that are small enough to interpret, in a dtype."""
    rows = (1, 1, 16) if p.rank == 1 else (1, 4, 4) if p.rank == 2 else (2, 4, 4)
    head_dim, value_dim = (min(size, 24) for size in (p.head_dim, p.value_dim))
    return replace(
        p, dtype=dtype, family="triton", rows=rows, columns=rows, packed=1, parts=SHARES,
        head_dim=head_dim, value_dim=value_dim, heads=min(p.heads, 2 * p.group),
    )  # fmt: skip


# Those without tensor cores are the same ones, and some are about what only CUDA kernels have.
_LEFT_OUT = (
    "packed",
    "big",
    "eight",
    "narrow",
    "kept",
    "many",
    "tall",
    "wide",
    "ring",
    "table-seam",
)
CASES = {
    name: small(case, DTYPES[number % 4])
    for number, (name, case) in enumerate(CUDA_CASES.items())
    if not name.endswith("-simt") and name not in _LEFT_OUT
}


_MORE = {
    "full": Problem(Mask(MaskAxis(30, 27)), (50,), (50,), heads=1),  # visits that are not masked
    "full-ring": Problem(Mask(MaskAxis(30, 27, border="wrap")), (64,), (64,), heads=1),
    "full-prefix": Problem(Mask(MaskAxis(2, 1, prefix=37)), (50,), (50,), heads=1),
    "full-range": Problem(
        Mask(MaskAxis(30, 27)), (50,), (50,), heads=1, ranges=(((3, 41),), ((0, 20),)), batch=2,
    ),
    "blocks": Problem(Mask(MaskAxis(2, 3, stride=5, align="top-left")), (33,), (27,), heads=1),
    "laps": Problem(Mask(MaskAxis(9, 8, border="wrap")), (12,), (12,), heads=1),
    "odd": Problem(Mask(MaskAxis(3, 2)), (20,), (20,), head_dim=18, value_dim=7),
    "shift": Problem(Mask(MaskAxis(2, 2, border="shift", dilation=2)), (20,), (20,), heads=1),
    "causal": Problem(
        Mask(MaskAxis(causal=True, align="top-left", prefix=3)), (40,), (37,), heads=1
    ),
    "groups": Problem(Mask(MaskAxis(3, 2)), (20,), (20,), heads=4, group=2, batch=2, sink=True),
}  # fmt: skip
CASES |= {
    name: small(case, DTYPES[number % 4]) for number, (name, case) in enumerate(_MORE.items())
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
        longest = -(-length // axis.dilation)
        tiles *= min(axis.dilation, length) * -(-longest // extent)
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
    tiles = tiles_of(p, of_keys=kernel == "grad_key")
    blocks = p.heads if kernel in ("forward", "grad_query") else key_heads
    if kernel == "grad_extra":
        tiles = -(-p.extra // math.prod(p.rows))
    slope_step = p.heads if p.slopes == 2 else 0
    counts = Counts(tiles, blocks, p.heads, p.group, p.extra, slope_step, 0)
    numbers = {
        "axes": axes_of(p),
        "counts": counts,
        "samples": p.batch,
        "scale": p.head_dim**-0.5 if p.scale is None else p.scale,
        "softcap": p.softcap,
        "space": tuple(axis.queries for axis in axes_of(p)),
    }
    step = 1 if kernel == "delta" else variant.step
    for name in ("query", "key", "value", "grad_out"):
        numbers[f"{name}_strides"] = strides_of(known[name], step)
    rows = (p.batch, *p.queries, p.heads)
    programs = tiles * p.batch * blocks

    def empty(*shape: int, dtype: torch.dtype = p.dtype) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype)

    grid: tuple[int, ...] = (programs,)
    if kernel == "forward":
        made = {"out": empty(*rows, p.value_dim), "lse": empty(*rows, dtype=sums)}
    elif kernel == "delta":
        made, grid = {"terms": empty(*rows, 2, dtype=sums)}, (-(-math.prod(rows) // EACH),)
        variant = replace(variant, rows=(1, 1, EACH))
    elif kernel == "grad_query":
        made = {"grad": empty(*known["query"].shape)}
    elif kernel == "grad_key":
        made = {f"grad_{name}s": empty(*known[name].shape) for name in ("key", "value")}
    elif kernel == "grad_extra":
        grid = (programs, p.parts)
        made = {
            f"grad_{name}s": empty(p.parts, *known[f"extra_{name}"].shape, dtype=sums)
            for name in ("key", "value")
        }
    else:
        grid = (p.parts, p.heads)
        made = {"grad_tables": torch.zeros(p.parts, *p.table_shape, dtype=sums)}
    written = {n: unlike_others(v) if isinstance(v, tuple) else v for n, v in numbers.items()}
    launcher.launch(kernel, grid, known | made | written, variant, 4, 2)
    if kernel in ("grad_extra", "grad_table"):
        made = {name: tensor.sum(0) for name, tensor in made.items()}
    names = NAMES.get(kernel, {})
    return {names.get(name, name): tensor for name, tensor in made.items()}

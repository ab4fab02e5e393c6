"""Attention problems for the kernels of CPUs alone, without planner and backend.

What a problem is, its inputs and its exact results are those of the GPU kernels' emulator. This
file computes the kernels' argument a second time, so that a mistake in the backend's arguments
cannot cancel a mistake of the kernels.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import dense_attention
import torch
from emulator import problem as gpu
from emulator.problem import Tensors
from torch import Tensor

from native_checks.replay import Case, Data, Step
from nbattn import Mask
from nbattn.kernels import layout

PASSES = ("forward", "grad_query", "grad_key", "grad_all")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What a result may be off besides the error of its type. Gradients are sums that cancel; a missing
# key is a thousand times as much.
EPS = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}
LOG2E = 1.4426950408889634
Extents = tuple[int, int, int, int]


@dataclass(frozen=True)
class Problem:
    """One attention problem, and how each pass cuts it.

    Args:
        common: the mask, the sizes and the numbers; its tiles play no part.
        rows: the tile of each pass: heads of a key head, then three axes.
        groups: tiles of a group of each pass.
        slab: groups of an item on each axis, of the pass that computes all gradients: then it is
            the backward, else there are two, by queries and by keys. Slabs that run at a time may
            share no column: every other one of the last axis with several, all of other axes.
        heads_first: whether the inputs are views of `[B, H, *space, D]`.
    """

    common: gpu.Problem
    rows: tuple[Extents, ...]
    groups: tuple[Extents, ...]
    threads: int = 1
    heads_first: bool = False
    slab: tuple[int, int, int] | None = None

    @property
    def passes(self) -> tuple[str, ...]:
        return PASSES[:3] if self.slab is None else (PASSES[0], PASSES[3])


def case_of(name: str, p: Problem, made: Tensors) -> Case:
    """All that a process without torch needs to run the passes of a problem."""
    known = {n: _data(t) for n, t in made.items()}
    extra = {
        f"grad_extra_{n}": known[f"extra_{n}"].size for n in ("key", "value") if p.common.extra
    }
    rows = math.prod(made["query"].shape[:-1])
    item = p.common.accumulator.itemsize
    of_query = {"grad_query": _bytes(made["query"])}
    if p.common.table:
        of_query |= {"grad_relative_bias": _bytes(made["relative_bias"])}
    of_keys = {f"grad_{n}": _bytes(made[n]) for n in ("key", "value")}
    outputs = {
        "forward": {"out": made["grad_out"].numel() * p.common.dtype.itemsize, "lse": rows * item},
        "grad_query": of_query | {"delta": 2 * rows * item},
        "grad_key": of_keys | extra,
        "grad_all": of_query | of_keys,
    }
    numbers = gpu.numbers(p.common, "fwd", made)
    steps = []
    for kind, tile, group in zip(p.passes, p.rows, p.groups, strict=True):
        job = struct.pack(
            "<16i",
            DTYPES.index(p.common.dtype),
            PASSES.index(kind),
            *tile,
            *group,
            *(p.slab or (1, 1, 1)),
            p.threads,
            p.common.head_dim,
            p.common.value_dim,
        )
        steps.append(Step(numbers + job, outputs[kind]))
    return Case(name, known, tuple(steps), layout.POINTERS)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _data(tensor: Tensor) -> Data:
    """The memory from a tensor's first element to its last; what lies between them is NaN."""
    spans = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1 + sum((n - 1) * step for n, step in spans) if tensor.numel() else 0
    flat = torch.zeros(count, dtype=tensor.dtype)
    if tensor.is_floating_point():
        flat.fill_(torch.nan)
    flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
    return Data(flat.view(torch.uint8).numpy().tobytes(), _bytes(tensor))


def make(p: Problem) -> Tensors:
    """Inputs and upstream gradients."""
    made = gpu.make(p.common)
    if p.heads_first:
        for name in layout.STRIDES:
            made[name] = made[name].movedim(-2, 1).contiguous().movedim(1, -2)
    return made


def results_of(p: Problem, made: Tensors, raw: dict[str, bytes]) -> Tensors:
    """The outputs of a run as tensors."""
    common = p.common
    like = {f"grad_{n}": made[n] for n in ("query", "key", "value")}
    like |= {f"grad_extra_{n}": made[f"extra_{n}"] for n in ("key", "value") if common.extra}
    own = {"grad_relative_bias": made["relative_bias"]} if common.table else {}
    shapes = {n: (t.shape, common.dtype) for n, t in like.items()}
    shapes |= {n: (t.shape, t.dtype) for n, t in own.items()}
    shapes["out"] = made["grad_out"].shape, common.dtype
    shapes["lse"] = made["grad_lse"].shape, common.accumulator
    if p.slab is None:
        shapes["delta"] = (*made["grad_lse"].shape, 2), common.accumulator
    return {
        name: torch.frombuffer(bytearray(raw[name]), dtype=dtype).view(shape)
        for name, (shape, dtype) in shapes.items()
    }


def expected_results(p: Problem, made: Tensors) -> tuple[Tensors, Tensors]:
    """The results in the problem's dtype, and the exact results."""
    low, exact = gpu.expected_results(p.common, made)
    delta = (exact["out"] * made["grad_out"].double()).sum(-1) - made["grad_lse"].double()
    terms = torch.stack([exact["lse"] * LOG2E, delta], dim=-1)
    terms[exact["lse"].isinf()] = 0.0
    close = terms.to(p.common.accumulator)
    return low | {"delta": close}, exact | {"delta": terms}


def judge(p: Problem, found: Tensors, expected: tuple[Tensors, Tensors]) -> None:
    """Compares every output by the ratio rule.

    Raises:
        AssertionError: an output is wrong, or was not written.
    """
    low, exact = expected
    for name, tensor in found.items():
        dense_attention.judge(name, tensor, low[name], exact[name], EPS[p.common.dtype])


@cache
def pairs_of(mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(mask.dense(queries, keys))


def probes(p: Problem) -> tuple[Problem, Problem]:
    """Two problems whose results show which pairs the kernels use: the channels of keys and values,
    or of queries and upstream gradients, are one-hot.
    """
    queries, keys = (math.prod(n) for n in (p.common.queries, p.common.keys))
    plain = replace(
        p.common, dtype=torch.float32, scale=0.5, softcap=0.0, sink=False, extra=0, layout="plain",
        extra_ranges=(), table=False, slopes=0,
    )  # fmt: skip
    return tuple(
        replace(p, common=replace(plain, head_dim=n, value_dim=n), heads_first=False)
        for n in (keys, queries)
    )


def make_probe(p: Problem, *, of_keys: bool) -> Tensors:
    """The inputs of a probe: random, but one-hot in the channels that tell pairs apart."""
    made = make(p)
    for name in ("key", "value") if of_keys else ("query", "grad_out"):
        channels = made[name].shape[-1]
        one_hot = torch.eye(channels).view(*made[name].shape[1:-2], 1, channels)
        made[name] = torch.where(made[name].isnan(), made[name], one_hot.expand(made[name].shape))
    return made


def judge_probe(p: Problem, made: Tensors, found: Tensors, *, of_keys: bool) -> None:
    """Compares the pairs that a probe shows with the mask, exactly.

    Raises:
        AssertionError: a kernel uses other pairs.
    """
    allowed = pairs_of(p.common.mask, p.common.queries, p.common.keys).expand(
        p.common.batch, -1, -1
    )
    if p.common.ranges:
        allowed = allowed & ~made["value"][..., 0, 0].isnan().flatten(1)[:, None, :]
    names: Sequence[str] = ("out", "grad_query") if of_keys else ("grad_value", "grad_key")
    for name in names:
        used = (found[name] != 0).flatten(1, -3).movedim(-2, 1)  # [B, heads, rows, columns]
        wanted = (allowed if of_keys else allowed.mT)[:, None]
        wrong = (used != wanted).sum().item()
        assert not wrong, f"{name}: {wrong} wrong pairs"

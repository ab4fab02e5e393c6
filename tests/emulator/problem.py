"""Attention problems for the kernels alone, without planner and backend, computed launch by launch.

This file computes the kernels' arguments a second time, so that a mistake in the backend's
arguments cannot cancel a mistake of the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import dense_attention
import torch
from oracle import bias_entries, distances
from torch import Tensor

from emulator import mapped
from nbattn import Axis, Mask
from nbattn.kernels import layout
from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant

Tensors = dict[str, Tensor]
Tile = tuple[int, int, int]
FAR = 1 << 29
DIFFERENTIABLE = ("query", "key", "value", "extra_key", "extra_value", "relative_bias")
KERNELS = ("fwd", "delta", "dq", "dkdv", "dbias")
_EXTRA = ("extra_key", "extra_value", "extra_range")
_INPUTS = ("query", "key", "value", "key_range", "relative_bias", "alibi_slopes")
_BACKWARD = ("grad_out", "lse", "delta")
READS = {
    "fwd": (*_INPUTS, *_EXTRA, "sink"),
    "delta": ("out", "lse", "grad_out", "grad_lse"),
    "dq": (*_INPUTS, *_EXTRA, *_BACKWARD),
    "dkdv": (*_INPUTS, *_EXTRA, *_BACKWARD),
    "dbias": (*_INPUTS, *_BACKWARD),
}
SIMT_LINE: tuple[Tile, Tile] = ((1, 1, 8), (1, 1, 32))
SIMT_PLANE: tuple[Tile, Tile] = ((1, 2, 4), (1, 4, 8))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Launcher(Protocol):
    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Tensors,
        numbers: bytes,
        maps: tuple[TensorMap, ...] = (),
    ) -> None: ...


@dataclass(frozen=True)
class Problem:
    """One attention problem, and the tiles that compute it.

    Args:
        rows, columns: the tiles. Rows are queries and columns keys; in dK/dV the other way round.
        row_blocks: 16-row blocks of a warp (mma).
        vector: whether the kernels may copy 16 bytes at a time (mma).
        grads: the gradients that dK/dV computes: 1 grad_value, 2 grad_key, 3 both.
        packed: query heads that are rows of the same tile in the forward: its first axis.
        layout: the inputs' layout: "plain", "packed" (views of one tensor), "channels" (step 2),
            "heads" (`[B, H, *space, D]`) or "far" (a key's batch stride exceeds 32 bits).
        extra_ranges: of the extra keys, for each sample.
        table: whether there is a table of relative positions.
        louder: is added to its entries.
        slopes: dimensions of ALiBi's slopes, 1 or 2; 0 for none.
        parts: blocks of a head in the kernel of the table's gradient.
        ways: how tensor maps say a dilation (wgmma): by the "steps" of a traversal, a map for each
            of the "classes", or a "fold" of the last axis.
    """

    mask: Mask
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    dtype: torch.dtype = torch.float16
    family: str = "mma"
    rows: Tile = (1, 1, 32)
    columns: Tile = (1, 1, 16)
    row_blocks: int = 1
    stages: int = 2
    vector: bool = True
    grads: int = 3
    batch: int = 1
    heads: int = 2
    group: int = 1
    head_dim: int = 16
    value_dim: int = 16
    extra: int = 0
    scale: float | None = None
    softcap: float = 0.0
    packed: int = 1
    sink: bool = False
    ranges: tuple[tuple[tuple[int, int], ...], ...] = ()
    layout: str = "plain"
    extra_ranges: tuple[tuple[int, int], ...] = ()
    table: bool = False
    louder: float = 0.0
    slopes: int = 0
    parts: int = 2
    ways: str = "steps"
    seed: int = field(default=0, repr=False)

    @property
    def rank(self) -> int:
        return len(self.queries)

    def axes(self, kernel: str) -> list[tuple[Axis, int, int]]:
        """Three axes, each with its number of queries and keys."""
        leading = [(Axis(0, 0), 1, 1)] * (3 - self.rank)
        if self.packed_in(kernel) > 1:
            leading[0] = (Axis(align="top-left"), self.packed, 1)
        return leading + list(zip(self.mask.axes, self.queries, self.keys, strict=True))

    def packed_in(self, kernel: str) -> int:
        """Query heads that are rows of the same tile of a kernel."""
        return self.packed if kernel == "fwd" else 1

    def tiles(self, kernel: str) -> tuple[str, Tile, Tile]:
        """Family, rows and columns. The gradient of a table is without tensor cores."""
        if kernel != "dbias":
            return self.family, self.rows, self.columns
        return ("simt", *SIMT_LINE) if self.rank == 1 else ("simt", *SIMT_PLANE)

    @property
    def table_shape(self) -> tuple[int, ...]:
        axes = self.mask.axes
        return self.heads, *(2 * ((a.left or 0) + (a.right or 0)) + 1 for a in axes)

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def make(p: Problem) -> Tensors:
    """Inputs and upstream gradients; keys and values outside key_range and extra_range are NaN."""
    generator = torch.Generator().manual_seed(p.seed)
    key_heads = p.heads // p.group

    def normal(*shape: int, dtype: torch.dtype = p.dtype) -> Tensor:
        step = 2 if p.layout == "channels" else 1
        more = 8 if p.layout == "packed" else 0
        wide = (*shape[:-1], (shape[-1] + more) * step)
        whole = torch.randn(wide, generator=generator, dtype=torch.float64).to(dtype)
        return whole[..., ::step][..., : shape[-1]]

    made = {
        "query": normal(p.batch, *p.queries, p.heads, p.head_dim),
        "key": normal(p.batch, *p.keys, key_heads, p.head_dim),
        "value": normal(p.batch, *p.keys, key_heads, p.value_dim),
        "grad_out": normal(p.batch, *p.queries, p.heads, p.value_dim),
        "grad_lse": normal(p.batch, *p.queries, p.heads, dtype=p.accumulator).contiguous(),
    }
    if p.layout == "heads":
        for name in ("query", "key", "value", "grad_out"):
            made[name] = made[name].movedim(-2, 1).contiguous().movedim(1, -2)
    if p.layout == "far":
        far = (2**31 + 16, *made["key"].stride()[1:])
        made["key"] = torch.empty_strided(made["key"].shape, far, dtype=p.dtype).copy_(made["key"])
    if p.extra:
        made["extra_key"] = normal(p.batch, p.extra, key_heads, p.head_dim).contiguous()
        made["extra_value"] = normal(p.batch, p.extra, key_heads, p.value_dim).contiguous()
    if p.extra_ranges:
        made["extra_range"] = torch.tensor(p.extra_ranges, dtype=torch.int32)
        present = dense_attention.inside(made["extra_range"][:, None], (p.extra,))
        for name in ("extra_key", "extra_value"):
            made[name][~present] = torch.nan
    if p.table:
        made["relative_bias"] = normal(*p.table_shape, dtype=p.accumulator).contiguous()
        made["relative_bias"] += p.louder
    if p.slopes:
        made["alibi_slopes"] = normal(*(p.batch, p.heads)[-p.slopes :], dtype=p.accumulator).abs()
    if p.sink:
        made["sink"] = normal(p.heads, dtype=p.accumulator).contiguous()
    if p.ranges:
        made["key_range"] = torch.tensor(p.ranges, dtype=torch.int32)
        present = dense_attention.inside(made["key_range"], p.keys).view(p.batch, *p.keys)
        for name in ("key", "value"):
            made[name][~present] = torch.nan
    return made


def solve(p: Problem, launcher: Launcher, made: Tensors) -> Tensors:
    """All outputs and gradients, computed by the kernels."""
    known = dict(made)
    for kernel in KERNELS if p.table else KERNELS[:-1]:
        known |= run(p, launcher, kernel, known)
    return {n: t for n, t in known.items() if n not in made and n != "delta"}


def run(p: Problem, launcher: Launcher, kernel: str, known: Tensors) -> Tensors:
    """The outputs of one kernel, from the inputs and the outputs of earlier kernels."""
    rows = (p.batch, *p.queries, p.heads)
    if kernel == "fwd":
        like = {"out": known["grad_out"], "lse": torch.empty(rows, dtype=p.accumulator)}
    elif kernel == "delta":
        like = {"delta": torch.empty((*rows, 2), dtype=p.accumulator)}
    elif kernel == "dq":
        like = {"grad_query": known["query"]}
    elif kernel == "dbias":
        tables = torch.empty((4 * p.parts, *p.table_shape), dtype=p.accumulator)
        like = {"grad_relative_bias": tables}
    else:
        names = [n for bit, n in ((1, "value"), (2, "key")) if p.grads & bit]
        names += [f"extra_{n}" for n in names if p.extra]
        like = {f"grad_{n}": known[n] for n in names}
    writes = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in like.items()}
    reads = {n: known[n] for n in READS[kernel] if n in known}
    given = reads | writes
    if p.family == "wgmma" and kernel in ("fwd", "dq", "dkdv"):
        maps, boxes = mapped.maps_of(p, kernel, given)
        arguments = numbers(p, kernel, known) + boxes
        launcher.launch(variant(p, kernel), blocks(p, kernel), given, arguments, maps)
    else:
        launcher.launch(variant(p, kernel), blocks(p, kernel), given, numbers(p, kernel, known))
    if kernel == "dbias":
        return {n: t.sum(0) for n, t in writes.items()}
    return writes


def by_definition(p: Problem, made: Tensors, dtype: torch.dtype) -> Tensors:
    """All outputs and gradients by the definition, computed in this dtype."""
    wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in made.items()}
    inputs = {n: t.detach().clone() for n, t in wide.items() if not n.startswith("grad")}
    wanted = [n for n in inputs if n in DIFFERENTIABLE]
    for name in wanted:
        inputs[name].requires_grad_()
    allowed, place = torch.from_numpy(p.mask.dense(p.queries, p.keys)), (p.queries, p.keys)
    if p.table:
        inputs["entries"] = torch.from_numpy(bias_entries(p.mask.axes, *place))
    if p.slopes:
        (axis,), (queries,), (keys,) = p.mask.axes, *place
        inputs["distances"] = torch.from_numpy(distances(axis, queries, keys))
    out, lse = dense_attention.attend(
        **inputs, allowed=allowed, scale=p.scale, softcap=p.softcap or None
    )
    upward = [wide["grad_out"], wide["grad_lse"].to(lse.dtype)]
    grads = torch.autograd.grad([out, lse], [inputs[n] for n in wanted], upward)
    return {"out": out, "lse": lse} | {
        f"grad_{n}": grad for n, grad in zip(wanted, grads, strict=True)
    }


def expected_results(p: Problem, made: Tensors) -> tuple[Tensors, Tensors]:
    """The results in the problem's dtype, and the exact results."""
    return by_definition(p, made, p.dtype), by_definition(p, made, torch.float64)


def judge(p: Problem, found: Tensors, expected: tuple[Tensors, Tensors]) -> None:
    """Compares every output by the ratio rule.

    Raises:
        AssertionError: an output is wrong.
    """
    low, exact = expected
    eps = 5e-11 if p.dtype == torch.float64 else torch.finfo(p.dtype).eps
    eps += p.louder * torch.finfo(p.accumulator).eps  # a weight's last digit is that of its score
    for name in found:
        dense_attention.judge(name, found[name], low[name], exact[name], eps)


def variant(p: Problem, kernel: str) -> Variant:
    by_keys = kernel == "dkdv"
    family, rows, columns = p.tiles(kernel)
    query_tile, key_tile = (columns, rows) if by_keys else (rows, columns)
    axes = p.mask.axes
    two_runs = any(axis.border == "wrap" or axis.prefix for axis in axes)
    constants = {
        "NB_DTYPE": DTYPES.index(p.dtype),
        "NB_HEAD_DIM": p.head_dim,
        "NB_VALUE_DIM": p.value_dim,
        **{f"NB_QUERY_TILE_{i}": n for i, n in enumerate(query_tile)},
        **{f"NB_KEY_TILE_{i}": n for i, n in enumerate(key_tile)},
        "NB_TWO_RUNS": int(two_runs),
        "NB_SOFTCAP": int(p.softcap > 0),
        "NB_KEY_RANGE": int(bool(p.ranges)),
        "NB_EXTRA": int(p.extra > 0),
    }
    if p.extra_ranges:
        constants["NB_EXTRA_RANGE"] = 1
    if p.table or p.slopes:
        constants["NB_BIAS"] = p.table + 2 * (p.slopes > 0)
    if by_keys:
        constants["NB_GRADS"] = p.grads
    if kernel == "delta":
        constants["NB_VECTOR"] = int(p.vector and p.family != "simt")
        return Variant("delta.cu", "nb_delta", tuple(sorted(constants.items())), 128, 0)
    threads = 128
    if family == "mma":
        warps = math.prod(p.rows) // 16 // p.row_blocks
        threads = 32 * warps
        constants |= {
            "NB_WARPS": warps,
            "NB_ROW_BLOCKS": p.row_blocks,
            "NB_STAGES": p.stages,
            "NB_VECTOR": int(p.vector),
        }
    if family == "wgmma":
        warps = math.prod(p.rows) // 16 + 4
        threads = 32 * warps
        constants |= {"NB_WARPS": warps, "NB_ROW_BLOCKS": 1, "NB_STAGES": p.stages}
    name = f"{kernel}_{family}"
    return Variant(
        f"{name}.cu", f"nb_{name}", tuple(sorted(constants.items())), threads, _shared(p, kernel)
    )


def _shared(p: Problem, kernel: str) -> int:
    family, row_tile, column_tile = p.tiles(kernel)
    rows, columns = math.prod(row_tile), math.prod(column_tile)
    traversal = 256 + (32 if p.table else 16) * sum(row_tile)
    if family == "simt":
        return traversal + 8 * (3 * rows + 96) + (2 * rows + 32) * 33 * p.accumulator.itemsize

    visits, masks = 32 * 48, 16 * (sum(column_tile) + 3)
    if family == "wgmma":
        both = (p.head_dim + p.value_dim) * 2
        own = rows * (max(p.head_dim, p.value_dim) * 2 if kernel == "fwd" else both)
        stage = columns * (both + (8 if kernel == "dkdv" else 0))
        barriers, origins = 32 * p.stages + 16, 4 * 40
        return own + p.stages * stage + barriers + origins + traversal + visits + masks

    def vectors(count: int, channels: int) -> int:
        return count * (-(-channels // 16) * 16 + 8) * 2

    stage = vectors(columns, p.head_dim) + vectors(columns, p.value_dim)
    own = {
        "fwd": vectors(rows, max(p.head_dim, p.value_dim)),
        "dq": vectors(rows, p.head_dim) + vectors(rows, p.value_dim),
        "dkdv": vectors(rows, p.head_dim) + vectors(rows, p.value_dim),
    }[kernel]
    return (
        traversal
        + visits
        + masks
        + own
        + p.stages * (stage + (8 * columns if kernel == "dkdv" else 0))
    )


def _delta_wide(p: Problem) -> int:
    """Elements of a lane's chunk in the kernel of delta."""
    return 1 if p.value_dim * p.dtype.itemsize % 16 else 16 // p.dtype.itemsize


def blocks(p: Problem, kernel: str) -> int:
    def parts(length: int, by: int) -> int:
        return -(-length // by)

    if kernel == "delta":
        lanes = 1
        while lanes < min(32, p.value_dim // _delta_wide(p)):
            lanes *= 2
        return parts(p.batch * p.heads * math.prod(p.queries), 128 // lanes)
    if kernel == "dbias":
        return p.parts * p.heads
    tiles = 1
    for (axis, queries, keys), extent in zip(p.axes(kernel), p.rows, strict=True):
        length = keys if kernel == "dkdv" else queries
        tiles *= min(axis.dilation, length) * parts(parts(length, axis.dilation), extent)
    if kernel == "dkdv":
        return (tiles + parts(p.extra, math.prod(p.rows))) * p.batch * p.heads // p.group
    return tiles * p.batch * p.heads // p.packed_in(kernel)


def numbers(p: Problem, kernel: str, made: Tensors) -> bytes:
    strides, packed = [], p.packed_in(kernel)
    for name in layout.STRIDES:
        batch, *space, head, channel = made[name].stride()
        together = packed if name == "query" else 1
        leading = [head if together > 1 else 0, 0][: 3 - p.rank]
        strides += [batch, *leading, *space, together * head, channel]
    axes, axis_numbers = p.axes(kernel), list[int]()
    held = [n for _, queries, keys in axes for n in (queries, 0, keys)]
    for axis, queries, keys in axes:
        known = {
            "keys": keys,
            "left": FAR if axis.left is None else axis.left,
            "right": FAR if axis.right is None else axis.right,
            "offset": axis.offset + (0 if axis.align == "top-left" else keys - queries),
            "border": layout.BORDERS[axis.border],
            "causal": int(axis.causal),
        }
        axis_numbers += [known.get(name, getattr(axis, name, 0)) for name in layout.AXIS]
    counts = [p.batch, p.heads // packed, p.group // packed, p.extra, p.rank, packed]
    counts += [p.heads if p.slopes == 2 else 0, 0]
    scale = p.head_dim**-0.5 if p.scale is None else p.scale
    return layout.pack_numbers(strides, scale, p.softcap, axis_numbers, held, counts)

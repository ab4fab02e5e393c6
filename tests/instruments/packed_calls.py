"""Packed grids through a family's kernels: all grids in one call, and each alone in the same tiles.
Both sum in one order, so every bit is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import nbattn
from nbattn import Mask
from nbattn.backends.inputs import Inputs
from nbattn.grids import Grids, PackedGrids, grids_of
from nbattn.program.parts import PackedCall
from nbattn.program.program import Program

Tensors = dict[str, Tensor]
OF_QUERIES, OF_KEYS = ("query", "grad_out", "grad_lse", "out", "lse"), ("key", "value")
GRADIENTS = ("query", "key", "value", "extra_key", "extra_value", "sink")
_PER_GRID = ("key_range", "extra_key", "extra_value", "extra_range", "alibi_slopes")


@dataclass(frozen=True)
class Case:
    """A mask, the sizes of its grids, and what the call has.

    Args:
        strided: tensors are parts of wider ones, with NaN between their rows.
        ranges, slopes: whether each grid has a range of extra keys, and slopes.
    """

    mask: Mask
    grids: Sequence[Any]
    key_grids: Sequence[Any] | None = None
    heads: int = 2
    kv_heads: int = 1
    dim: int = 16
    value_dim: int = 16
    extra: int = 0
    sink: bool = False
    key_range: bool = False
    softcap: float | None = None
    strided: bool = False
    ranges: bool = False
    slopes: bool = False

    @property
    def packed(self) -> PackedGrids:
        """The grids."""
        sides = (self.grids, self.grids if self.key_grids is None else self.key_grids)
        return PackedGrids(*(grids_of(sizes, self.mask.rank) for sizes in sides))


def program_of(case: Case, dtype: torch.dtype, **options: Any) -> Program:
    """The proved program of a case, for training."""
    packed = case.packed
    plan = nbattn.plan(
        case.mask,
        (packed.query.tokens, case.heads, case.dim),
        (packed.key.tokens, case.kv_heads, case.dim),
        value_dim=case.value_dim,
        dtype=dtype,
        training=True,
        extra_keys=case.extra,
        sink=case.sink,
        key_range=case.key_range,
        extra_range=case.ranges,
        alibi_slopes=case.slopes,
        softcap=case.softcap,
        grids=case.grids,
        key_grids=case.key_grids,
        **options,
    )
    assert plan.chosen.program is not None
    assert isinstance(plan.chosen.program.calls[0].arguments, PackedCall)
    assert plan.verify()
    return plan.chosen.program


def drawn(case: Case, dtype: torch.dtype, seed: int = 0) -> Tensors:
    """Random tensors; keys and values outside key_range are NaN."""
    generator, packed = torch.Generator().manual_seed(seed), case.packed
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        made = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if not case.strided or len(shape) < 3:
            return made
        wide = made.new_full((*shape[:-2], shape[-2] + 1, shape[-1] + 8), float("nan"))
        return wide[..., : shape[-2], : shape[-1]].copy_(made)

    tokens, key_tokens, grids = packed.query.tokens, packed.key.tokens, len(packed)
    made = {
        "query": normal(tokens, case.heads, case.dim),
        "key": normal(key_tokens, case.kv_heads, case.dim),
        "value": normal(key_tokens, case.kv_heads, case.value_dim),
        "grad_out": normal(tokens, case.heads, case.value_dim),
        "grad_lse": normal(tokens, case.heads, dtype=exact),
    }
    if case.extra:
        made["extra_key"] = normal(grids, case.extra, case.kv_heads, case.dim)
        made["extra_value"] = normal(grids, case.extra, case.kv_heads, case.value_dim)
    if case.ranges:
        first = torch.arange(grids, dtype=torch.int32) % 3
        made["extra_range"] = torch.stack([first, first + torch.arange(grids) % 4], 1).int()
    if case.slopes:
        made["alibi_slopes"] = torch.rand(grids, case.heads, generator=generator)
    if case.sink:
        made["sink"] = normal(case.heads, dtype=exact)
    if case.key_range:
        made["key_range"] = torch.zeros((grids, case.mask.rank, 2), dtype=torch.int32)
        for grid, size in enumerate(packed.key.array.tolist()):
            own = torch.ones(size, dtype=torch.bool)
            for axis, length in enumerate(size):
                first = grid % 2 * min(1, length)
                stop = max(first, length - grid % 3)
                made["key_range"][grid, axis] = torch.tensor([first, stop])
                at = torch.arange(length)
                shape = [-1 if n == axis else 1 for n in range(len(size))]
                own = own & ((at >= first) & (at < stop)).view(shape)
            rows = rows_of(packed.key, grid)
            for name in OF_KEYS:
                made[name][rows][~own.reshape(-1)] = float("nan")
    return made


def rows_of(grids: Grids, number: int) -> slice:
    """The rows of a grid's tokens."""
    return slice(int(grids.starts[number]), int(grids.starts[number + 1]))


def solved(run: ModuleType, program: Program, case: Case, made: Tensors, **options: Any) -> Tensors:
    """Output, logsumexp and gradients of all grids in one call."""
    named = {n: made.get(n) for n in ("query", "key", "value", "sink", *_PER_GRID)}
    packed = case.packed if made["query"].dim() == 3 else None
    inputs = Inputs(
        **named,  # pyright: ignore[reportArgumentType]
        scale=0.3,
        softcap=case.softcap,
        grids=packed,
    )
    out, lse = run.forward(program, inputs, return_lse=True, **options)
    grads = run.backward(program, inputs, out, lse, made["grad_out"], made["grad_lse"], **options)
    named = {
        f"grad_{name}": given for name in GRADIENTS if (given := getattr(grads, name)) is not None
    }
    return {"out": out, "lse": lse, **named}


def one_by_one(
    run: ModuleType, program: Program, case: Case, made: Tensors, **options: Any
) -> Tensors:
    """The same, grid by grid."""
    call, packed = program.calls[0].arguments, case.packed
    assert isinstance(call, PackedCall)
    parts: list[Tensors] = []
    for grid, number in enumerate(packed.sizes.which.tolist()):
        own: Tensors = {}
        for name, tensor in made.items():
            if name in OF_QUERIES:
                space = packed.query.array[grid].tolist()
                own[name] = tensor[rows_of(packed.query, grid)].unflatten(0, (1, *space))
            elif name in OF_KEYS:
                space = packed.key.array[grid].tolist()
                own[name] = tensor[rows_of(packed.key, grid)].unflatten(0, (1, *space))
            else:
                own[name] = tensor[grid : grid + 1] if name in _PER_GRID else tensor
        parts.append(solved(run, call.of_size(number), case, own, **options))
    together: Tensors = {}
    for name in parts[0] if parts else ():
        every = [part[name] for part in parts]
        if name == "grad_sink":
            together[name] = torch.stack(every).sum(0)
        else:
            rank = 0 if "extra" in name else case.mask.rank
            together[name] = torch.cat([each.flatten(0, rank) for each in every])
    return together


def check(
    run: ModuleType,
    program: Program,
    case: Case,
    made: Tensors,
    *,
    nearly: Sequence[str] = ("grad_sink",),
    **options: Any,
) -> None:
    """Every bit is the same; `nearly` are sums of all rows, in another order."""
    found = solved(run, program, case, made, **options)
    wanted = one_by_one(run, program, case, made, **options)
    assert not wanted or found.keys() == wanted.keys()
    for name, tensor in found.items():
        if not wanted:
            assert not tensor.numel() or name == "grad_sink"
            continue
        if name in nearly:
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(tensor, wanted[name]), name

"""Packed grids by plain calls: each grid alone through the reference, as tensors `[1, *space, …]`.

Shares no code with the package's own packing: tokens are cut with `split`, results joined with
`cat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import nbattn
from nbattn import Mask

Size = tuple[int, ...]
PER_GRID = ("key_range", "extra_key", "extra_value", "extra_range")


def packed(
    sizes: Sequence[Size], key_sizes: Sequence[Size] | None = None, *, dim: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value of four heads and two key heads, float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    counts = (sum(map(prod, sizes)), *[sum(map(prod, key_sizes or sizes))] * 2)
    heads = (4, 2, 2)
    query, key, value = (
        torch.randn(n, h, dim, generator=generator, dtype=torch.float64).requires_grad_()
        for n, h in zip(counts, heads, strict=True)
    )
    return query, key, value


def one_by_one(
    tensors: Sequence[Tensor],
    mask: Mask,
    sizes: Sequence[Size],
    key_sizes: Sequence[Size] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of all grids, each by a call of its own."""
    key_sizes = sizes if key_sizes is None else key_sizes
    query, key, value = tensors
    sides = (
        t.split([prod(size) for size in s])
        for t, s in ((query, sizes), (key, key_sizes), (value, key_sizes))
    )
    outs = [query.new_empty((0, query.shape[1], value.shape[-1]))]
    lses = [query.new_empty((0, query.shape[1]))]
    for number, (q, k, v) in enumerate(zip(*sides, strict=True)):
        own = {name: t[number : number + 1] for name, t in options.items() if name in PER_GRID}
        slopes = options.get("alibi_slopes")
        if slopes is not None and slopes.dim() == 2:
            own["alibi_slopes"] = slopes[number : number + 1]
        out, lse = nbattn.attention(
            q.unflatten(0, (1, *sizes[number])),
            k.unflatten(0, (1, *key_sizes[number])),
            v.unflatten(0, (1, *key_sizes[number])),
            mask,
            backend="reference",
            return_lse=True,
            **{**options, **own},
        )
        outs.append(out.flatten(0, -3))
        lses.append(lse.flatten(0, -2))
    return torch.cat(outs), torch.cat(lses)


def support(
    mask: Mask, sizes: Sequence[Size], key_sizes: Sequence[Size] | None = None
) -> NDArray[np.bool_]:
    """The pairs of all grids, block by block."""
    key_sizes = sizes if key_sizes is None else key_sizes
    shape = sum(map(prod, sizes)), sum(map(prod, key_sizes))
    pairs = np.zeros(shape, dtype=np.bool_)
    row = column = 0
    for size, key_size in zip(sizes, key_sizes, strict=True):
        end, last = row + prod(size), column + prod(key_size)
        pairs[row:end, column:last] = mask.dense(size, key_size)
        row, column = end, last
    return pairs


def gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a number that depends on output and logsumexp."""
    out, lse = results
    finite = torch.where(lse.isinf(), 0.0, lse)
    total = (out * out.detach().cos()).sum() + finite.sin().sum()
    found = torch.autograd.grad(total, list(leaves), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]

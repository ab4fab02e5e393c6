"""NATTEN's unfused functions by brute force: windows listed query by query, in plain torch."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import oracle
import torch
from torch import Tensor


@lru_cache
def windows(
    space: tuple[int, ...], kernel_size: Any, dilation: Any, is_causal: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys `[Nq, slots]`, whether they are there, and distances in steps `[Nq, slots, rank]`."""
    rank = len(space)
    kernels, steps, causal = (oracle.per_axis(v, rank) for v in (kernel_size, dilation, is_causal))
    tables = [
        oracle.natten_axis(n, k, 1, d, c)
        for n, k, d, c in zip(space, kernels, steps, causal, strict=True)
    ]
    keys, present, distances = [], [], []
    for query in product(*(range(n) for n in space)):
        own = [
            [j for j in range(n) if table[i, j]]
            for i, n, table in zip(query, space, tables, strict=True)
        ]
        for slot in product(*(range(k) for k in kernels)):
            there = all(t < len(axis) for t, axis in zip(slot, own, strict=True))
            at = [axis[t] if there else 0 for t, axis in zip(slot, own, strict=True)]
            number = 0
            for place, n in zip(at, space, strict=True):
                number = number * n + place
            keys.append(number)
            present.append(there)
            distances.append([j // d - i // d for i, j, d in zip(query, at, steps, strict=True)])
    count = len(list(product(*(range(n) for n in space))))
    return (
        torch.tensor(keys).view(count, -1),
        torch.tensor(present).view(count, -1),
        torch.tensor(distances).view(count, -1, rank),
    )


def scores(
    query: Tensor, key: Tensor, kernel_size: Any, dilation: Any = 1, *, is_causal: Any = False,
    rpb: Tensor | None = None, extra: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`[B, H, *space, slots + E]` of `[B, H, *space, D]`."""
    space = tuple(query.shape[2:-1])
    keys, present, distances = windows(space, kernel_size, dilation, is_causal)
    flat_query, flat_key = query.flatten(2, -2), key.flatten(2, -2)
    found = torch.einsum("bhqd,bhqsd->bhqs", flat_query, flat_key[:, :, keys])
    if rpb is not None:
        kernels = torch.tensor(oracle.per_axis(kernel_size, len(space)))
        places = distances + kernels - 1
        found = found + rpb[(slice(None), *places.unbind(-1))]
    found = found.masked_fill(~present, float("-inf"))
    if extra is not None:
        found = torch.cat([found, torch.einsum("bhqd,bhed->bhqe", flat_query, extra)], dim=-1)
    return found.unflatten(2, space)


def weighted(
    attn: Tensor, value: Tensor, kernel_size: Any, dilation: Any = 1, *, is_causal: Any = False,
    extra: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`[B, H, *space, Dv]`."""
    space = tuple(value.shape[2:-1])
    keys, present, _ = windows(space, kernel_size, dilation, is_causal)
    flat = attn.flatten(2, -2)
    own = flat[..., : keys.shape[1]].masked_fill(~present, 0)
    found = torch.einsum("bhqs,bhqsd->bhqd", own, value.flatten(2, -2)[:, :, keys])
    if extra is not None:
        found = found + torch.einsum("bhqe,bhed->bhqd", flat[..., keys.shape[1] :], extra)
    return found.unflatten(2, space)

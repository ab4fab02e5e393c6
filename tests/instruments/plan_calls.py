"""Calls for tests of plans: masks, exact tensors, and the comparison of two results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbattn import Mask

LIMIT = 1e-10
CAUSAL, WINDOW = Mask.causal(), Mask.sliding_window(3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(queries: int = 7, keys: int = 7, seed: int = 0) -> list[Tensor]:
    sizes = ((2, queries, 4, 4), (2, keys, 2, 4), (2, keys, 2, 4))
    return [drawn(*size, seed=seed + n) for n, size in enumerate(sizes)]


def close(found: Any, wanted: Any) -> None:
    found, wanted = (t if isinstance(t, (tuple, list)) else (t,) for t in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, (tuple, list)):
            close(one, other)
            continue
        assert one.shape == other.shape
        assert not one.numel() or (one - other).abs().max() <= LIMIT

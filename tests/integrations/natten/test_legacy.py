"""Tests of NATTEN's older fused function, which adds a table of biases."""

from __future__ import annotations

import neighborhood_gather_oracle as gather
import torch
from torch import Tensor

from nbattn.integrations.natten import fused


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_the_older_function_adds_a_bias_table() -> None:
    query, key, value = (random(2, 7, 9, 3, 4, seed=n) for n in range(3))
    rpb, extra = random(3, 5, 5, seed=3), random(2, 2, 3, 4, seed=4)
    found = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=rpb, scale=0.3, additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    first = [t.movedim(-2, 1) for t in (query * 0.3, key, value)]
    more = extra.transpose(1, 2)
    attn = gather.scores(*first[:2], 3, (2, 3), rpb=rpb, extra=more).softmax(-1)
    wanted = gather.weighted(attn, first[2], 3, (2, 3), extra=more).movedim(1, -2)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    without = fused.older_na2d(
        query, key, value, 3, (2, 3), additional_keys=extra, additional_values=extra
    )
    zero = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=torch.zeros_like(rpb), additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    torch.testing.assert_close(without, zero, rtol=1e-11, atol=1e-11)

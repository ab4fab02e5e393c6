"""Tests that the reference is SDPA with the mask as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from judged_values import (
    MASKS,
    Feature,
    Shape,
    leaves,
    random,
    tensors,
)
from oracle import matrix

import nbattn

Count = Callable[[str, int], None]


@pytest.mark.parametrize("label", MASKS)
def test_the_reference_is_masked_sdpa(label: str, cases: Count) -> None:
    mask, queries, keys = MASKS[label]
    allowed = torch.from_numpy(matrix(mask.axes, queries, keys))
    made = tensors(MASKS[label], Feature(Shape(heads=4, key_heads=2)), torch.float64)
    inputs = leaves(made)
    out = nbattn.attention(**inputs, mask=mask, backend="reference")
    flat = [t.flatten(1, -3).transpose(1, 2) for t in inputs.values()]
    want = torch.nn.functional.scaled_dot_product_attention(
        *flat, attn_mask=allowed, enable_gqa=True
    )
    want = torch.where(allowed.any(1)[:, None], want, 0.0).transpose(1, 2).reshape(out.shape)
    assert (out - want).abs().max() <= 1e-10
    upward = random(tuple(out.shape), 9)
    for mine, theirs in zip(
        torch.autograd.grad(out, list(inputs.values()), upward),
        torch.autograd.grad(want, list(inputs.values()), upward),
        strict=True,
    ):
        assert (mine - theirs).abs().max() <= 1e-10
    cases("reference against sdpa", 1)


def test_an_empty_batch_with_a_range_of_extra_keys() -> None:
    grid, text = torch.empty(0, 5, 2, 4), torch.empty(0, 3, 2, 4)
    ranges = torch.empty(0, 2, dtype=torch.int32)
    given: dict[str, Any] = {"extra_key": text, "extra_value": text, "extra_range": ranges}
    out = nbattn.attention(grid, grid, grid, nbattn.Mask.causal(), backend="reference", **given)
    assert out.shape == grid.shape

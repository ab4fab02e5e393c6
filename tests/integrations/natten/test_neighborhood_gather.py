"""Tests of the slots of neighborhoods: their keys, missing slots, and memory."""

from __future__ import annotations

import torch

from nbattn.integrations import natten


def test_literal_slots_of_a_dilated_axis() -> None:
    """L 7, K 3, d 2: keys 0,2,4 · 1,3,5 · 0,2,4 · 1,3,5 · 2,4,6 · 1,3,5 · 2,4,6."""
    query, key = torch.ones(1, 1, 7, 1), torch.arange(7.0).view(1, 1, 7, 1)
    found = natten.na1d_qk(query, key, 3, 2)[0, 0].int().tolist()
    even, odd, late = [0, 2, 4], [1, 3, 5], [2, 4, 6]
    assert found == [even, odd, even, odd, late, odd, late]


def test_literal_slots_of_a_causal_axis() -> None:
    query, key = torch.ones(1, 1, 4, 1), torch.arange(4.0).view(1, 1, 4, 1)
    none = float("-inf")
    assert natten.na1d_qk(query, key, 3, is_causal=True)[0, 0].tolist() == [
        [0, none, none],
        [0, 1, none],
        [0, 1, 2],
        [1, 2, 3],
    ]


def test_values_in_missing_slots_are_ignored() -> None:
    value = torch.ones(1, 1, 4, 1)
    attn = torch.full((1, 1, 4, 3), float("nan"))
    attn[0, 0, 0, 0], attn[0, 0, 1, :2], attn[0, 0, 2:] = 1, 0.5, 0.25
    found = natten.na1d_av(attn, value, 3, is_causal=True)
    assert found.flatten().tolist() == [1, 1, 0.75, 0.75]


def test_memory_does_not_grow_with_all_pairs() -> None:
    """Dense scores of this axis would take 64 GiB."""
    long_axis = torch.randn(1, 1, 1 << 17, 2, requires_grad=True)
    natten.na1d_qk(long_axis, long_axis, 3, 5).sum().backward()
    assert long_axis.grad is not None

"""Tests that mask functions give the pairs of transformers' own matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from nbattn import Axis, Mask
from nbattn.integrations import transformers as integration


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


RULES = {
    "causal": (masking_utils.causal_mask_function, {}),
    "full": (masking_utils.bidirectional_mask_function, {}),
    "window_of_1": (masking_utils.sliding_window_causal_mask_function(1), {"local_size": 1}),
    "window_of_4": (masking_utils.sliding_window_causal_mask_function(4), {"local_size": 4}),
    "both_sides": (masking_utils.sliding_window_bidirectional_mask_function(3), {}),
    "narrower_of_two": (
        masking_utils.and_masks(
            masking_utils.sliding_window_causal_mask_function(6),
            masking_utils.sliding_window_bidirectional_mask_function(3),
        ),
        {},
    ),
    "wider_of_two": (
        masking_utils.or_masks(
            masking_utils.sliding_window_causal_mask_function(3),
            masking_utils.sliding_window_causal_mask_function(6),
        ),
        {},
    ),
    "one_chunk": (masking_utils.chunked_causal_mask_function(32, torch.zeros(2).long()), {}),
    "no_block": (
        masking_utils.or_masks(
            masking_utils.causal_mask_function,
            masking_utils.blockwise_overlay(torch.full((2, 32), -1)),
        ),
        {},
    ),
    "one_sequence": (
        masking_utils.and_masks(
            masking_utils.remap_positions_for_packed_sequence(
                masking_utils.sliding_window_causal_mask_function(4),
                torch.arange(5, 37).expand(2, -1),
            ),
            masking_utils.packed_sequence_mask_function(torch.zeros(2, 32).long()),
        ),
        {},
    ),
}

# padding of two samples, from position 0 on
PADDINGS = {
    "none": None,
    "left": torch.tensor([[0] * 6 + [1] * 6, [1] * 12]),
    "right": torch.tensor([[1] * 12, [1] * 7 + [0] * 5]),
    "both": torch.tensor([[0] * 2 + [1] * 5 + [0] * 5, [1] * 12]),
    "shorter": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "nothing": torch.tensor([[0] * 12, [1] * 12]),
}


def pairs(layer: integration.LayerMask) -> Tensor:
    """The keys that every query of every sample attends to, bool `[B, 1, queries, keys]`."""
    batch, _, queries, keys = layer.shape
    matrix = torch.from_numpy(layer.mask.dense(queries, keys)).expand(batch, 1, -1, -1)
    if layer.key_range is None:
        return matrix
    at = torch.arange(keys)
    start, stop = layer.key_range[:, 0, 0, None], layer.key_range[:, 0, 1, None]
    return matrix & ((at >= start) & (at < stop))[:, None, None, :]


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_those_of_transformers_own_matrix(rule, side, cases):
    function, named = RULES[rule]
    mask = None if PADDINGS[side] is None else PADDINGS[side].bool()
    sizes = itertools.product([1, 2, 5], [1, 5, 9, 12], [0, 1, 4, 8], [0, 3, 7])
    for queries, keys, first_query, first_key in sizes:
        where = (2, queries, keys, first_query, first_key, function, mask)
        wanted = masking_utils.sdpa_mask(*where, allow_is_causal_skip=False)
        found = pairs(integration.layer_mask(*where, **named))
        assert torch.equal(found, wanted.expand(2, 1, -1, -1)), where
        cases("transformers masks", 1)


def test_keys_outside_the_causal_mask_need_no_range():
    """A static cache that is not full: causality keeps queries from the rest of it already."""
    where = (2, 5, 40, 0, 0, masking_utils.causal_mask_function)
    assert integration.layer_mask(*where, torch.ones(2, 5).bool()).key_range is None
    assert integration.layer_mask(*where, torch.ones(2, 4).bool()).key_range is not None


def test_positions_of_static_caches_may_be_tensors():
    where = (1, 1, 40, torch.tensor(7), 0, masking_utils.causal_mask_function)
    assert integration.layer_mask(*where).mask == Mask(Axis(None, 0, causal=True, align=7))

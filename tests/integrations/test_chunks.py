"""Tests that chunked layers attend to the pairs of transformers' own matrix, in every piece."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from nbattn import InputError
from nbattn.integrations import transformers as integration

SIZE = 4


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


def pairs(mask: integration.LayerMask) -> Tensor:
    """Which weights are not 0, bool `[B, 1, queries, keys]`, for equal scores."""
    batch, _, queries, keys = mask.shape
    query = torch.zeros(batch, 1, queries, 8)
    value = torch.eye(keys).expand(batch, 1, keys, keys)
    module = torch.nn.Identity()
    out, _ = integration.attend(module, query, query.new_zeros(batch, 1, keys, 8), value, mask)
    return out.movedim(1, 2) > 0


PADDINGS = {
    "none": None,
    "left, by whole chunks": torch.tensor([[0] * 4 + [1] * 12, [1] * 16]),
    "left, alike": torch.tensor([[0] * 3 + [1] * 13] * 2),
    "right": torch.tensor([[1] * 16, [1] * 9 + [0] * 7]),
}
# queries, keys, position of the first query, position of the first key
SIZES = [
    *((rows, rows, 0, 0) for rows in (1, 4, 5, 7, 8, 11)),  # prefill, with last chunks cut
    *((1, at + 1, at, 0) for at in (3, 4, 9)),  # decoding from a growing cache
    *((1, 14, at, 0) for at in (0, 4, 13)),  # from a static cache
    *((3, 14, at, 0) for at in (0, 3, 6, 10)),  # a prompt in parts into a static cache
    *((5, 8, at, at - 3) for at in (4, 7, 9)),  # a rolling cache
]


@pytest.mark.parametrize("side", PADDINGS)
def test_pairs_are_those_of_transformers_own_matrix(side: str) -> None:
    padding = PADDINGS[side]
    left = [0, 0] if padding is None else (padding.cumsum(1) == 0).sum(1).tolist()
    function = masking_utils.chunked_causal_mask_function(SIZE, torch.tensor(left))
    for queries, keys, first_query, first_key in SIZES:
        mask = None if padding is None else padding[:, : first_key + keys].bool()
        where = (2, queries, keys, first_query, first_key, function, mask)
        wanted = masking_utils.sdpa_mask(*where, allow_is_causal_skip=False).expand(2, 1, -1, -1)
        assert torch.equal(pairs(integration.layer_mask(*where)), wanted), where[:5]


def test_borders_apart_need_one_chunk_for_every_sample() -> None:
    function = masking_utils.chunked_causal_mask_function(SIZE, torch.tensor([0, 3]))
    padding = torch.tensor([[1] * 9, [0] * 3 + [1] * 6]).bool()
    for row, first in itertools.product((5, 6), (0, 1)):
        where = (2, 1, row + 1, row, 0, function, padding[:, : row + 1 + first])
        wanted = masking_utils.sdpa_mask(*where, allow_is_causal_skip=False)
        assert torch.equal(pairs(integration.layer_mask(*where)), wanted)
    with pytest.raises(InputError, match="left paddings of 0, 3 tokens"):
        integration.layer_mask(2, 9, 9, 0, 0, function, padding)

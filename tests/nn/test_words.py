"""Tests of arguments that users bring from other libraries: every fix is the whole call."""

from __future__ import annotations

import pytest
import torch

import nbattn
from nbattn import Mask, NeighborhoodAttention

LAYER = NeighborhoodAttention(16, 2, Mask.neighborhood((3, 3)))
X = torch.zeros(2, 4, 5, 16)
NAMES = {
    "NeighborhoodAttention": NeighborhoodAttention, "Mask": Mask, "layer": LAYER, "x": X,
    "nbattn": nbattn, "padded": torch.arange(5).expand(2, 4, 5) > 2,
    "key_padding_mask": torch.arange(5).expand(2, 4, 5) > 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "fixed"),
    [
        ("NeighborhoodAttention(16, num_heads=2, kernel_size=3)",
         "NeighborhoodAttention(16, 2, Mask.neighborhood((3, 3)))"),
        ("NeighborhoodAttention(16, 2, (3, 3), qk_scale=0.5)",
         "NeighborhoodAttention(16, 2, (3, 3), scale=0.5)"),
        ("NeighborhoodAttention(embed_dim=16, heads=2, mask=Mask.full())",
         "NeighborhoodAttention(16, 2, Mask(Axis()))"),
        ("layer(x, need_weights=True)", "layer(x)"),
        ("layer(x, x, x)", "layer(x)"),
        ("layer(x, key_padding_mask=padded)",
         "layer(x, key_range=nbattn.key_range_from(~key_padding_mask))"),
    ],
)  # fmt: skip
def test_a_word_from_elsewhere_is_answered_with_the_whole_call(call: str, fixed: str) -> None:
    with pytest.raises(nbattn.InputError) as error:
        eval(call, NAMES)
    assert error.value.fix.rstrip(".") == fixed
    if "(3, 3)," not in fixed:
        eval(fixed, {**NAMES, "Axis": nbattn.Axis})

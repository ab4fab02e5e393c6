"""Tests of the values of every dense strategy of SDPA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from judged_values import (
    MASKS,
    Feature,
    Shape,
    compare,
)

Count = Callable[[str, int], None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

STRATEGIES = {
    "full": ("dense", "mask"),
    "full, wide": ("dense", "mask"),
    "causal": ("causal", "mask"),
    "causal, tall": ("causal", "mask"),
    "causal, dilated": ("causal", "fold", "mask"),
    "causal, moved": ("causal", "trim"),
    "blocks": ("fold", "mask"),
    "ragged blocks": ("dense",),
    "dilated": ("fold", "mask"),
    "folded": ("causal", "fold", "mask"),
    "folded blocks": ("fold", "mask"),
    "clip": ("mask",),
    "wrap": ("mask",),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("label", STRATEGIES)
def test_values_of_every_dense_strategy(label: str, batch: int, cases: Count) -> None:
    shape = Shape(batch=batch, heads=4, key_heads=2)
    for strategy in STRATEGIES[label]:
        for dtype in DTYPES:
            feature = Feature(shape, sink=True)
            compare(MASKS[label], feature, dtype, "sdpa", require=(strategy,))
            cases(f"values, sdpa/{strategy}", 1)
        if strategy != "mask":
            extra = Feature(shape._replace(extra=2), sink=True)
            compare(MASKS[label], extra, torch.bfloat16, "sdpa", require=(strategy, "merge"))

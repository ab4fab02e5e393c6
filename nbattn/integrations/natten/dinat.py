"""Repairs transformers' DiNAT, whose attention passes NATTEN tensors that are not heads first.

In transformers 5.24 these tensors are `[B, X, Y, H, D]`, which no NATTEN supports: rows of the map
are in the place of heads. Weights, configuration and the rest of the model do not change.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from nbattn.integrations.natten import fused, unfused

_MODULE = "transformers.models.dinat.modeling_dinat"
_ORIGINAL: list[Callable[..., Any]] = []


def repair_dinat() -> None:
    """Gives DiNAT's attention a forward pass with the layout of its published weights.

    It holds for the whole process, until `restore_dinat()`; results that were right stay the same.
    Needs transformers, and `install()` first, as DiNAT checks that natten is installed.
    """
    attention: Any = importlib.import_module(_MODULE).NeighborhoodAttention
    if not _ORIGINAL:
        _ORIGINAL.append(attention.forward)
        attention.forward = _forward


def restore_dinat() -> None:
    """Reverses `repair_dinat()`."""
    if _ORIGINAL:
        attention: Any = sys.modules[_MODULE].NeighborhoodAttention  # pyright: ignore
        attention.forward = _ORIGINAL.pop()


def _forward(
    self: Any, hidden_states: Tensor, output_attentions: bool | None = False
) -> tuple[Tensor, ...]:
    """Maps `[B, Y, X, C]` to `[B, Y, X, C]`; also returns the weights if `output_attentions`."""
    shape = (self.num_attention_heads, self.attention_head_size)
    query, key, value = (
        projection(hidden_states).unflatten(-1, shape)
        for projection in (self.query, self.key, self.value)
    )
    window = {"kernel_size": self.kernel_size, "dilation": self.dilation}
    if not (output_attentions or (self.training and self.dropout.p)):
        return (fused.older(query, key, value, **window, rpb=self.rpb).flatten(-2),)
    query, key, value = (t.movedim(-2, 1) for t in (query * shape[1] ** -0.5, key, value))
    scores = unfused.scores(query, key, **window, rpb=self.rpb)
    weights = self.dropout(scores.softmax(dim=-1))
    out = unfused.weighted(weights, value, **window).movedim(1, -2).flatten(-2)
    return (out, weights) if output_attentions else (out,)

"""Repairs transformers' DiNAT, whose attention hands NATTEN tensors that are not heads first.

In transformers 5.24 its heads come out as `[B, X, Y, H, D]`, which no NATTEN runs: rows of the map
stand where heads belong. Weights, configuration and everything around the attention are untouched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from nbattn.integrations.natten import unfused

_MODULE = "transformers.models.dinat.modeling_dinat"
_ORIGINAL: list[Callable[..., Any]] = []


def repair_dinat() -> None:
    """Give DiNAT's attention a forward pass with the layout of its published weights.

    For the whole process, until `restore_dinat()`; what transformers does right by itself stays
    the same. Needs transformers, and `install()` first: DiNAT asks whether natten is there.
    """
    attention: Any = importlib.import_module(_MODULE).NeighborhoodAttention
    if not _ORIGINAL:
        _ORIGINAL.append(attention.forward)
        attention.forward = _forward


def restore_dinat() -> None:
    """Undo `repair_dinat()`."""
    if _ORIGINAL:
        attention: Any = sys.modules[_MODULE].NeighborhoodAttention  # pyright: ignore
        attention.forward = _ORIGINAL.pop()


def _forward(
    self: Any, hidden_states: Tensor, output_attentions: bool | None = False
) -> tuple[Tensor, ...]:
    """`[B, Y, X, C]` to the same, and the weights where they are asked for."""
    shape = (self.num_attention_heads, self.attention_head_size)
    query, key, value = (
        projection(hidden_states).unflatten(-1, shape).movedim(-2, 1)
        for projection in (self.query, self.key, self.value)
    )
    window = {"kernel_size": self.kernel_size, "dilation": self.dilation}
    scores = unfused.scores(query * shape[1] ** -0.5, key, **window, rpb=self.rpb)
    weights = self.dropout(scores.softmax(dim=-1))
    found = unfused.weighted(weights, value, **window).movedim(1, -2).flatten(-2)
    return (found, weights) if output_attentions else (found,)

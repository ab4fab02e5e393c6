"""Attention of one sequence that holds a grid, and text and reference images beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbattn.functional import attention
from nbattn.joint import joint_attention
from nbattn.mask import Mask


@dataclass(frozen=True)
class Tokens:
    """What stands in the sequence of one forward pass.

    Args:
        grid: the grid's sizes.
        text: how many tokens of text there are.
        further: how many tokens of reference images stand behind the grid.
        valid: int32 `[B, 2]`: which tokens beside the grid are read, in the order of `beside`; None
            for all.
    """

    grid: tuple[int, ...]
    text: int = 0
    further: int = 0
    valid: Tensor | None = None

    @property
    def in_grid(self) -> int:
        """How many tokens the grid has."""
        return math.prod(self.grid)


def attend_alone(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, tokens: Tokens, *, scale: float | None
) -> Tensor:
    """Attention of a sequence that is the grid, and nothing else.

    Args:
        query, key, value: `[B, S, H, D]`.
        mask: of the grid.
        tokens: what stands in the sequence of the forward pass.
        scale: factor of the scores; default `D ** -0.5`.

    Returns:
        `[B, S, H, Dv]`.
    """
    query, key, value = (part.unflatten(1, tokens.grid) for part in (query, key, value))
    return attention(query, key, value, mask, scale=scale).flatten(1, len(tokens.grid))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    tokens: Tokens,
    *,
    before: int,
    text: str,
    scale: float | None,
) -> Tensor:
    """Attention of a sequence: windows within the grid, and tokens beside it that are global.

    Args:
        query, key, value: `[B, S, H, D]`.
        mask: of the grid.
        tokens: what stands in the sequence.
        before: how many tokens stand before the grid.
        text: "joint": tokens beside the grid attend to everything; "keys": to one another only.
        scale: factor of the scores; default `D ** -0.5`.

    Returns:
        `[B, S, H, Dv]`.
    """
    end = before + tokens.in_grid
    after = query.shape[1] - end
    rank = len(tokens.grid)

    def in_grid(part: Tensor) -> Tensor:
        return part[:, before:end].unflatten(1, tokens.grid)

    def beside(part: Tensor) -> Tensor:
        """What is behind the grid, then what is before it: text is last, with its padding."""
        if not before:
            return part[:, end:]
        if not tokens.further:
            return part[:, :before]
        return torch.cat([part[:, end:], part[:, :before]], dim=1)

    grid = (in_grid(query), in_grid(key), in_grid(value))
    extras = (beside(query), beside(key), beside(value))
    named: dict[str, Any] = {"scale": scale, "extra_range": tokens.valid}
    out: Any
    extra_out: Any
    if text == "joint":
        out, extra_out = joint_attention(*grid, mask, *extras, **named)
    else:
        valid = None if tokens.valid is None else tokens.valid[:, None]
        out = attention(*grid, mask, extra_key=extras[1], extra_value=extras[2], **named)
        extra_out = attention(*extras, Mask.full(), scale=scale, key_range=valid)
    return torch.cat([extra_out[:, after:], out.flatten(1, rank), extra_out[:, :after]], dim=1)

"""Checks the tensors that are added to scores: the table of relative positions, ALiBi's slopes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from nbattn import biases, geometry
from nbattn.errors import InputError
from nbattn.grids import PackedGrids
from nbattn.mask import Mask
from nbattn.packing import TracedGrids, grid_count
from nbattn.symbolic import holds


def check(
    mask: Mask,
    query: Tensor,
    key: Tensor,
    relative_bias: Tensor | None,
    alibi_slopes: Tensor | None,
    packed: PackedGrids | TracedGrids | None = None,
) -> None:
    """Checks shapes and dtypes; the lengths of the axes are checked where a plan is made.

    Raises:
        InputError: a tensor does not fit.
        MaskError: the mask has no table.
    """
    if relative_bias is not None:
        _check_table(mask, query, key, relative_bias, packed)
    if alibi_slopes is not None:
        batch = query.shape[0] if packed is None else grid_count(packed)
        _check_slopes(batch, query.shape[-2], alibi_slopes)


def _check_table(
    mask: Mask,
    query: Tensor,
    key: Tensor,
    table: Tensor,
    packed: PackedGrids | TracedGrids | None,
) -> None:
    if any(axis.left is None or axis.right is None for axis in mask.axes):
        spaces = [(query.shape[1:-2], key.shape[1:-2])] if packed is None else packed.spaces()
        queries, keys = (
            [
                max((operator.index(space[side][axis]) for space in spaces), default=0)
                for axis in range(mask.rank)
            ]
            for side in (0, 1)
        )
        biases.check_table(mask, geometry.bind(mask, queries, keys))
    expected = (query.shape[-2], *biases.table_sizes(mask.axes))
    if not _is(table.shape, expected):
        raise InputError(
            f"relative_bias has shape {list(table.shape)}, not {list(expected)}: [H, 2 K - 1 per "
            "axis], K = left + right + 1.",
            _reshaped(table.shape, expected),
        )
    if not table.is_floating_point():
        raise InputError(
            f"relative_bias is {str(table.dtype).removeprefix('torch.')}, not a floating dtype.",
            "relative_bias=relative_bias.float().",
        )


def _reshaped(sizes: Sequence[int], expected: Sequence[int]) -> str:
    """The code of the table for one that lacks the heads, has them last, or has all in one row."""
    if _is(sizes, (expected[0], math.prod(expected[1:]))) or _is(sizes, (1, *expected)):
        return f"relative_bias=relative_bias.reshape({', '.join(map(str, expected))})."
    if _is(sizes, expected[1:]):
        return f"relative_bias=relative_bias.expand({', '.join(map(str, expected))})."
    if _is(sizes, (*expected[1:], expected[0])):
        return "relative_bias=relative_bias.movedim(-1, 0)."
    if _is(sizes, (math.prod(expected[1:]), expected[0])):
        window = tuple((size + 1) // 2 for size in expected[1:])
        table = f"nbattn.integrations.swin.relative_bias_from(relative_bias, {window})"
        return f"relative_bias={table}, for Swin's table."
    return ""


def _check_slopes(batch: int, heads: int, slopes: Tensor) -> None:
    if not (_is(slopes.shape, (heads,)) or _is(slopes.shape, (batch, heads))):
        ones = ((heads, 1, 1), (1, heads, 1, 1), (heads, 1), (1, heads))
        flat = any(_is(slopes.shape, sizes) for sizes in ones)
        raise InputError(
            f"alibi_slopes has shape {list(slopes.shape)}, not [{heads}] or [{batch}, {heads}]: "
            "one slope per head.",
            "alibi_slopes=alibi_slopes.flatten()." if flat else "",
        )
    if slopes.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"alibi_slopes is {str(slopes.dtype).removeprefix('torch.')}, not float32: a rounded "
            "slope is off by its error times the distance.",
            "alibi_slopes=alibi_slopes.float().",
        )
    if slopes.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "alibi_slopes requires a gradient, and has none.",
            "alibi_slopes=alibi_slopes.detach().",
        )


def _is(sizes: Sequence[int], expected: Sequence[int]) -> bool:
    return len(sizes) == len(expected) and all(
        holds(a == b) for a, b in zip(sizes, expected, strict=True)
    )

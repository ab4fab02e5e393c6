"""What is added to scores by position inside of graphs: entries of the table and ALiBi's distances,
from the positions of queries and keys, as `biases` has them outside of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn import biases
from nbattn.axis import Axis
from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.export.graph_masks import offset_of, outer
from nbattn.rows import leader_distance
from nbattn.symbolic import is_symbolic


class Places(NamedTuple):
    """Queries `[…, rows]` and keys `[…, columns]` of one axis, by number, and its lengths."""

    axis: Axis
    lengths: tuple[int, int]
    queries: Tensor
    keys: Tensor


def added(inputs: Inputs, axes: Sequence[Places]) -> Tensor | None:
    """Returns what is added to the scores, `[1 or B, T, Hk, G, rows, columns]`; None if there is
    nothing.

    Args:
        inputs: the tensors of the call.
        axes: the places of `[T, rows]` queries and `[T, columns]` keys per axis.
    """
    exact, heads = accumulate_dtype(inputs.query.dtype), inputs.query.shape[-2]
    kv_heads, group = inputs.key.shape[-2], heads // inputs.key.shape[-2]
    parts: list[Tensor] = []
    if inputs.relative_bias is not None:
        entries = entries_of(axes)
        table = inputs.relative_bias.to(exact).flatten(1)
        read = table.index_select(1, entries.flatten()).unflatten(1, entries.shape)
        parts.append(read.movedim(0, 1).unflatten(1, (kv_heads, group))[None])
    if inputs.alibi_slopes is not None:
        (place,) = axes
        distances = (_steps(place).abs() * place.axis.dilation).to(exact)
        slopes = inputs.alibi_slopes.to(exact).reshape(-1, 1, kv_heads, group, 1, 1)
        parts.append(-slopes * distances[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


def whole(
    axes: Sequence[Axis], spaces: Sequence[Sequence[int]], device: torch.device
) -> list[Places]:
    """Returns the places of all queries and keys, as one tile."""
    return [
        Places(
            axis, (queries, keys), *(torch.arange(n, device=device)[None] for n in (queries, keys))
        )
        for axis, queries, keys in zip(axes, *spaces, strict=True)
    ]


def entries_of(axes: Sequence[Places]) -> Tensor:
    """Returns the flat entry of every pair, `[T, rows, columns]`."""
    sizes = biases.table_sizes([place.axis for place in axes])
    on_axes = [
        (_steps(place) + size // 2).clamp(0, size - 1) * math.prod(sizes[number + 1 :])
        for number, (place, size) in enumerate(zip(axes, sizes, strict=True))
    ]
    return outer(on_axes, torch.add)


def _steps(place: Places) -> Tensor:
    """Returns the steps from queries to keys of their class, `[…, rows, columns]`."""
    axis, (queries, keys) = place.axis, place.lengths
    position = (place.queries + offset_of(axis, queries, keys))[..., None]
    steps = (place.keys[..., None, :] - position) // axis.dilation
    if axis.border == "wrap":  # whose groups divide the circle
        assert axis.left is not None
        length = keys // axis.dilation
        u = position // axis.dilation
        first = leader_distance(axis) - axis.left - u % axis.stride
        steps = first + (steps - first) % (length if is_symbolic(length) else max(length, 1))
    return steps


def present_extras(inputs: Inputs) -> Tensor | None:
    """Returns whether extra keys are in the range of their sample, bool `[B, E]`; None if all."""
    if inputs.extra_range is None or inputs.extra_key is None:
        return None
    at = torch.arange(inputs.extra_key.shape[1], device=inputs.extra_range.device)
    start, stop = (inputs.extra_range[:, side, None] for side in (0, 1))
    return (at >= start) & (at < stop)

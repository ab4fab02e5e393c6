"""Attention in torch's standard operators alone, for graphs that other programs than torch run:
dense, all scores at once; or by tiles of queries against copies of the keys that a tile attends to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.export.graph_masks import Tiles, Tiling, dense_mask, outer, tiles, tiling
from nbattn.export.graph_steps import Places, added, present_extras, whole
from nbattn.mask import Mask
from nbattn.symbolic import is_symbolic, untraced

DENSE_PAIRS = 1 << 18  # of queries and keys: up to so many, attention is always dense
_LONG = 1 << 12  # what a length that is a symbol counts as where the form is chosen


def attend(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    """Computes out `[B, *space, H, Dv]` and lse `[B, *space, H]`, as the reference does."""
    space, key_space = (untraced(t.shape[1:-2]) for t in (inputs.query, inputs.key))
    cuts = best_tilings(inputs, mask, space, key_space)
    if cuts is None:
        out, lse = _dense(inputs, mask, space, key_space)
    else:
        out, lse = _tiled(inputs, cuts)
    return out.contiguous(), lse.contiguous()  # as the operator's results, for views of them


def best_tilings(
    inputs: Inputs, mask: Mask, space: Sequence[int], key_space: Sequence[int]
) -> list[Tiling] | None:
    """Returns the tiles of every axis with which a graph keeps the fewest numbers, or None where
    attention is dense: on small grids, and where tiles keep more than half of the numbers.
    """
    lengths = list(zip(mask.axes, space, key_space, strict=True))
    counted = [(axis, _counted(queries), _counted(keys)) for axis, queries, keys in lengths]
    pairs = math.prod(queries * keys for _, queries, keys in counted)
    if pairs <= DENSE_PAIRS:
        return None
    (heads,) = untraced(inputs.query.shape[-2:-1])
    kv_heads, dim, value_dim = untraced((*inputs.key.shape[-2:], inputs.value.shape[-1]))
    channels = kv_heads * (dim + value_dim)

    def kept(cuts: Sequence[Tiling]) -> int:
        columns = math.prod(cut.total * cut.columns for cut in cuts)
        return columns * (math.prod(cut.rows for cut in cuts) * heads + channels)

    sizes = [[1 << n for n in range(queries.bit_length())] for _, queries, _ in counted]
    best = min(
        product(*sizes),
        key=lambda rows: kept([tiling(*axis, n) for axis, n in zip(counted, rows, strict=True)]),
    )
    if 2 * kept([tiling(*axis, n) for axis, n in zip(counted, best, strict=True)]) > pairs * heads:
        return None
    return [tiling(*axis, n) for axis, n in zip(lengths, best, strict=True)]


def _counted(length: int) -> int:
    return _LONG if is_symbolic(length) else length


def _dense(
    inputs: Inputs, mask: Mask, space: Sequence[int], key_space: Sequence[int]
) -> tuple[Tensor, Tensor]:
    allowed = dense_mask(mask, space, key_space, inputs.query.device)[None]
    inputs, present = _readable(inputs)
    query, key, value = (t.flatten(1, inputs.rank) for t in inputs[:3])
    if present is not None:
        allowed = allowed & present.flatten(1)[:, None]
    if any(not is_symbolic(n) and n == 0 for n in key_space):  # a key that no query attends to
        key, value = (torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 1)) for t in (key, value))
        allowed = torch.nn.functional.pad(allowed, (0, 1))
    one_tile = query[:, None], key[:, None], value[:, None], allowed[:, None]
    results = _attend_tiles(inputs, *one_tile, _added(inputs, mask, space, key_space))
    out, lse = (t.squeeze(1).unflatten(1, space) for t in results)
    return out, lse


def _added(
    inputs: Inputs, mask: Mask, space: Sequence[int], key_space: Sequence[int]
) -> Tensor | None:
    """Returns what is added to the scores of one tile with all queries and keys."""
    if any(not is_symbolic(n) and n == 0 for n in (*space, *key_space)):
        return None  # no query attends to a key
    return added(inputs, whole(mask.axes, (space, key_space), inputs.query.device))


def _tiled(inputs: Inputs, cuts: Sequence[Tiling]) -> tuple[Tensor, Tensor]:
    axes = [tiles(cut, inputs.query.device) for cut in cuts]
    queries, keys = [axis.queries for axis in axes], [axis.keys for axis in axes]
    allowed = outer([axis.allowed for axis in axes])[None]
    inputs, present = _readable(inputs)
    if present is not None:
        allowed = allowed & _gathered(present, keys)[:, :, None]
    query = _gathered(inputs.query, queries)
    key, value = (_gathered(t, keys) for t in (inputs.key, inputs.value))
    places = [
        Places(cut.axis, (cut.queries, cut.keys), axis.queries, axis.keys)
        for cut, axis in zip(cuts, axes, strict=True)
    ]
    out, lse = _attend_tiles(inputs, query, key, value, allowed, added(inputs, places))
    return _scattered(out, axes), _scattered(lse, axes)


def _gathered(grid: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """Returns `[B, *space, …]` as tiles `[B, T, size, …]`, by the indices `[T, size]` per axis."""
    rank = len(indices)
    for axis, at in enumerate(indices):
        grid = grid.index_select(1 + axis, at.flatten())
    for axis in reversed(range(rank)):
        grid = grid.unflatten(1 + axis, indices[axis].shape)
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2)]
    grid = grid.permute(*order, *range(2 * rank + 1, grid.dim()))
    return grid.flatten(1, rank).flatten(2, 1 + rank)


def _scattered(of_tiles: Tensor, axes: Sequence[Tiles]) -> Tensor:
    """Returns tiles `[B, T, rows, …]` as the grid `[B, *space, …]`."""
    rank, shapes = len(axes), [axis.queries.shape for axis in axes]
    counts, sizes = zip(*shapes, strict=True)
    grid = of_tiles.unflatten(2, sizes).unflatten(1, counts)
    order = [n for axis in range(rank) for n in (1 + axis, 1 + rank + axis)]
    grid = grid.permute(0, *order, *range(2 * rank + 1, grid.dim()))
    for number, axis in enumerate(axes):
        grid = grid.flatten(1 + number, 2 + number).index_select(1 + number, axis.places)
    return grid


def _readable(inputs: Inputs) -> tuple[Inputs, Tensor | None]:
    """Returns inputs with zeros outside of `key_range`, where keys and values may be NaN, and
    whether a key is inside, bool `[B, *key_space]`.
    """
    if inputs.key_range is None:
        return inputs, None
    axes: list[Tensor] = []
    for number, length in enumerate(inputs.key.shape[1:-2]):
        at = torch.arange(length, device=inputs.key_range.device)
        start, stop = (inputs.key_range[:, number, side, None] for side in (0, 1))
        shape = [
            inputs.key_range.shape[0],
            *(length if n == number else 1 for n in range(inputs.rank)),
        ]
        axes.append(((at >= start) & (at < stop)).reshape(shape))
    present = reduce(torch.logical_and, axes)
    absent = ~present[..., None, None]
    key, value = (t.masked_fill(absent, 0) for t in (inputs.key, inputs.value))
    return inputs._replace(key=key, value=value), present


def _attend_tiles(
    inputs: Inputs,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    positional: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Computes attention inside of tiles, with the sink, extra keys and numbers of the inputs.

    Args:
        query: `[B, T, rows, H, D]`.
        key: `[B, T, columns, Hk, D]`.
        value: `[B, T, columns, Hk, Dv]`.
        allowed: bool, `[B, T, rows, columns]`, or with 1 for B.
        positional: what is added to the scores, `[B or 1, T, Hk, G, rows, columns]`.

    Returns:
        out `[B, T, rows, H, Dv]`, lse `[B, T, rows, H]`.
    """
    exact, rows, heads = accumulate_dtype(query.dtype), query.shape[2], query.shape[3]
    kv_heads = key.shape[3]
    group = heads // kv_heads
    query = query.unflatten(3, (kv_heads, group)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4).to(exact)

    def scores_of(key: Tensor) -> Tensor:
        scores = (query @ key.permute(0, 1, 3, 4, 2).to(exact)) * inputs.scale
        if inputs.softcap is not None:
            scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
        return scores.unflatten(3, (group, rows))  # [B, T, Hk, G, rows, keys]

    of_grid = scores_of(key) if positional is None else scores_of(key) + positional
    scores = [torch.where(allowed[:, :, None, None], of_grid, float("-inf"))]
    values = [value]
    if inputs.extra_key is not None and inputs.extra_value is not None:
        (count,) = untraced(inputs.extra_key.shape[1:2])
        if is_symbolic(count) or count > 0:
            extra_scores, extra_value = _extras(inputs, scores_of)
            scores.append(extra_scores)
            values.append(extra_value[:, None])
    sink = None
    if inputs.sink is not None:
        sink = inputs.sink.to(exact).reshape(1, 1, kv_heads, group, 1, 1)
    powers, total, lse = _exponentials(scores, sink)
    products = [
        p.flatten(3, 4) @ v.permute(0, 1, 3, 2, 4).to(exact)
        for p, v in zip(powers, values, strict=True)
    ]
    out = sum(products[1:], products[0]).unflatten(3, (group, rows)) / total
    out = out.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).to(inputs.query.dtype)
    return out, lse.squeeze(-1).permute(0, 1, 4, 2, 3).flatten(3, 4)


def _extras(inputs: Inputs, scores_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the scores of the extra keys `[B, T, Hk, G, rows, E]` and their values `[B, E, Hk,
    Dv]`; those out of range, which may be NaN, have scores of -inf and values of 0.
    """
    assert inputs.extra_key is not None
    assert inputs.extra_value is not None
    present = present_extras(inputs)
    if present is None:
        return scores_of(inputs.extra_key[:, None]), inputs.extra_value
    absent = ~present[:, :, None, None]
    key, value = (t.masked_fill(absent, 0) for t in (inputs.extra_key, inputs.extra_value))
    scores = scores_of(key[:, None])
    return torch.where(present[:, None, None, None, None], scores, float("-inf")), value


def _exponentials(
    scores: Sequence[Tensor], sink: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns the weights of the keys before division, what to divide by, and the logsumexp; rows
    without keys and sink have weights 0 and -inf.
    """
    infinite = float("-inf")
    largest = reduce(torch.maximum, [s.amax(dim=-1, keepdim=True) for s in scores])
    largest = largest if sink is None else torch.maximum(largest, sink)
    largest = largest.masked_fill(largest == infinite, 0)
    powers = [(s - largest).exp() for s in scores]
    total = sum((p.sum(dim=-1, keepdim=True) for p in powers[1:]), powers[0].sum(-1, keepdim=True))
    total = total if sink is None else total + (sink - largest).exp()
    empty = total == 0
    total = total.masked_fill(empty, 1)
    return powers, total, (largest + total.log()).masked_fill(empty, infinite)

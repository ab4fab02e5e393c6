"""Chunked causal layers (Llama 4): a query attends to the keys of its own chunk up to itself.

Where all queries of a sample are in one chunk, its keys are a range. Otherwise whole chunks are
one mask, with the chunk as window and stride, and what is before the first border and after the
last one is causal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn.axis import Axis
from nbattn.errors import InputError
from nbattn.integrations.mask_functions import Chunks
from nbattn.mask import Mask


class Borders(NamedTuple):
    """Chunks of a call: one border is at key `first`, every other a multiple of `size` from it."""

    size: int
    first: int


def one_chunk(chunks: Chunks, queries: range, keys: int, kv_offset: int) -> Tensor | None:
    """Returns the key at which the chunk of each sample's queries begins, `[B]`; None if a sample
    has queries in several chunks.

    Args:
        queries: positions of the queries, on the scale of the padding.
        keys: their number in this call; the first is at position `kv_offset`.
    """
    starts: list[int] = []
    for padding in chunks.padding:
        # padding before the first chunk has no keys, so it needs no chunk of its own
        first, last = max(queries[0], padding) - padding, queries[-1] - padding
        if last >= 0 and first // chunks.size != last // chunks.size:
            return None
        start = padding + max(first, 0) // chunks.size * chunks.size - kv_offset
        starts.append(min(max(start, 0), keys))
    return torch.tensor(starts)


def borders(chunks: Chunks, kv_offset: int) -> Borders:
    """Returns the borders that all samples share.

    Raises:
        InputError: the samples' paddings move their borders apart.
    """
    size = chunks.size
    places = {(padding - kv_offset) % size for padding in chunks.padding}
    if len(places) > 1:
        raise InputError(
            f"left paddings of {', '.join(map(str, sorted(set(chunks.padding))))} tokens move the "
            f"borders of the chunks of {size} tokens apart.",
            'model.set_attn_implementation("sdpa"), or one call per sample, without padding.',
        )
    return Borders(size, places.pop() if places else 0)


def attend(
    run: Callable[[Tensor, Tensor, Tensor, Mask, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    place: Borders,
    *,
    offset: int,
    key_range: Tensor | None,
) -> Tensor:
    """Runs attention on up to three pieces, and joins their rows.

    Args:
        run: of (query, key, value, mask, key range).
        query, key, value: `[B, N, H, D]`.
        place: where the chunks begin.
        offset: position of query 0 on the keys of this call.
        key_range: int32 `[B, 1, 2]` or None.
    """
    rows, keys = query.shape[1], key.shape[1]
    first = min(place.first, keys)
    last = first + (keys - first) // place.size * place.size
    outputs: list[Tensor] = []
    for start, stop in ((0, first), (first, last), (last, keys)):
        top, bottom = (min(max(at - offset, 0), rows) for at in (start, stop))
        bottom = rows if stop == keys else bottom
        if top < bottom:
            left = place.size - 1 if (start, stop) == (first, last) else None
            stride = place.size if left is not None else 1
            axis = Axis(left, causal=True, stride=stride, align=offset + top - start)
            keys_here, values_here = key[:, start:stop], value[:, start:stop]
            moved = None if key_range is None else (key_range - start).clamp(0, stop - start)
            outputs.append(run(query[:, top:bottom], keys_here, values_here, Mask(axis), moved))
    return torch.cat(outputs, dim=1)

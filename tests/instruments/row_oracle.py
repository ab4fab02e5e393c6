"""The pairs of one long axis, by the rules of an axis as DESIGN.md writes them, for all rows at
once. `oracle` goes step by step, and judges this one on short axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
FAR = 1 << 40  # an unlimited side


def pairs(axis: Any, queries: int, keys: int) -> tuple[Ints, Ints]:
    """Query and key of every pair; each pair once."""
    i = np.arange(queries, dtype=np.int64)
    d, s = axis.dilation, axis.stride
    p = i + axis.offset + (keys - queries if axis.align == "bottom-right" else 0)
    r, u = p % d, p // d
    size = np.maximum(0, (keys - r + d - 1) // d)
    base = u // s * s
    lead = base + (s - 1 if axis.causal else s // 2)
    lead = np.where(base < size, np.minimum(lead, size - 1), lead)
    left = FAR if axis.left is None else axis.left
    right = 0 if axis.causal else FAR if axis.right is None else axis.right
    first, last = lead - left, lead + right
    if axis.border == "clip":
        first, last = np.maximum(first, 0), np.minimum(last, size - 1)
    elif axis.border == "shift":
        first = np.clip(first, 0, np.maximum(0, size - (left + right + 1)))
        last = first + np.minimum(size, left + right + 1) - 1
    else:
        last = np.minimum(last, first + size - 1)
    if axis.causal:
        last = np.minimum(last, u)
    count = np.maximum(0, last - first + 1)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    t = np.repeat(first, count) + step
    if axis.border == "wrap":
        t %= np.repeat(np.maximum(size, 1), count)
    query, key = np.repeat(i, count), np.repeat(r, count) + d * t
    if not axis.prefix:
        return query, key
    j = np.arange(min(axis.prefix, keys))
    more = ((j < first[:, None]) | (j > last[:, None])) & ((j <= p[:, None]) | (not axis.causal))
    extra = np.argwhere(more)
    return np.concatenate([query, extra[:, 0]]), np.concatenate([key, extra[:, 1]])


def codes(query: Ints, key: Ints, keys: int) -> Ints:
    """One number for every pair, in order; a pair that is there twice is twice among them."""
    return np.sort(query * keys + key)

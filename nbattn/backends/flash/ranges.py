"""The keys that `key_range` leaves of every sample, as sequences of a varlen call, computed on the
device: the host never waits for them, and a CUDA graph replays them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def intervals(key_range: Tensor, axis: int, keys: int) -> tuple[Tensor, Tensor]:
    """Returns the keys `[start, stop)` of every sample, both `[B]`; start = stop without keys.

    Args:
        key_range: int32 `[B, rank, 2]`.
        axis: the axis of the keys; all others have one key, which is in its range or is not.
        keys: the number of keys on it.

    >>> both = torch.tensor([[[2, 9]], [[-3, 4]], [[5, 1]]], dtype=torch.int32)
    >>> [side.tolist() for side in intervals(both, 0, 6)]
    [[2, 0, 5], [6, 4, 5]]
    """
    start, stop = key_range[:, axis].clamp(0, keys).unbind(-1)
    if key_range.shape[1] == 1:
        return start, torch.maximum(start, stop)
    lowest, highest = key_range[..., 0].clone(), key_range[..., 1].clone()
    lowest[:, axis], highest[:, axis] = 0, 1
    has_others = ((lowest <= 0) & (highest > 0)).all(-1)
    return start, torch.where(has_others, torch.maximum(start, stop), start)


def boundaries(key_range: Tensor, axis: int, rows: int, keys: int) -> tuple[Tensor, Tensor]:
    """Returns the boundaries of the queries' and of the keys' sequences, int32 `[3 B + 1]`.

    Of a sample's three sequences the second has all its queries and its keys in range. The others
    have no queries: the keys before the range, and those behind it, whose gradients the backward
    sets to 0 (flash_bwd_kernel.h of Flash 2). None is longer than a sample, since the backward
    reaches as many keys as the longest sequence may have.

    >>> both = torch.tensor([[[2, 9]], [[-3, 4]]], dtype=torch.int32)
    >>> [side.tolist() for side in boundaries(both, 0, 5, 6)]
    [[0, 0, 5, 5, 5, 10, 10], [0, 2, 6, 6, 6, 10, 12]]
    """
    sample = torch.arange(key_range.shape[0], dtype=torch.int32, device=key_range.device)
    start, stop = intervals(key_range, axis, keys)
    of_query = torch.stack((sample, sample + 1, sample + 1), 1) * rows
    of_key = torch.stack((start, stop, torch.full_like(stop, keys)), 1) + (sample * keys)[:, None]
    return pad(of_query.flatten(), (1, 0)), pad(of_key.flatten(), (1, 0))


def outside(key_range: Tensor, axis: int, keys: int) -> Tensor:
    """Returns whether a key is outside its sample's range, bool `[B, keys]`."""
    at = torch.arange(keys, device=key_range.device)
    start, stop = (side[:, None] for side in intervals(key_range, axis, keys))
    return (at < start) | (at >= stop)

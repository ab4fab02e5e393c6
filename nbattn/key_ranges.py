"""Ranges of keys that are read: from padding, and from lists, for every sample and axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbattn.errors import InputError, counted, kind
from nbattn.fixes.call_names import DENSE, PAIRS

Ranges = Any  # a tensor of whole numbers, or nested lists of them
_WHOLE = (torch.int64, torch.int16, torch.int8, torch.uint8)


def key_range_from(padding: Tensor) -> Tensor:
    """Returns the `key_range` of padded keys: the box of real tokens in each sample.

    Args:
        padding: bool `[B, *key_space]`, True where a token is real (transformers' attention_mask
            as bool; the opposite of torch's key_padding_mask).

    Returns:
        int32 `[B, rank, 2]`: start and stop on every axis; `[0, 0)` for a sample without tokens.

    Raises:
        InputError: not such a tensor, or the real tokens of a sample fill no box.

    >>> key_range_from(torch.tensor([[True, True, False], [False, True, True]])).tolist()
    [[[0, 2]], [[1, 3]]]
    """
    _check_padding(padding)
    rank = padding.dim() - 1
    ranges = torch.stack([_ends(_along(padding, axis + 1)) for axis in range(rank)], 1)
    wrong = (ranges[..., 1] - ranges[..., 0]).prod(1) != padding.flatten(1).sum(1)
    if not torch.compiler.is_compiling() and wrong.any():
        sample = int(wrong.nonzero()[0])
        box = ", ".join(f"{a}:{b}" for a, b in ranges[sample].tolist())
        raise InputError(
            f"sample {sample} has {counted(int(padding[sample].sum()), 'real token')}, which do "
            f"not fill the box [{box}] around them; key_range is a box.",
            DENSE.format(f"({PAIRS} & padding.flatten(1)[:, None, None])") + ".",
            f"padding {list(padding.shape)}",
        )
    return ranges


def _check_padding(padding: object) -> None:
    if not isinstance(padding, Tensor):
        raise InputError(
            f"padding is {kind(padding)}, not a bool tensor [B, *key_space].",
            "nbattn.key_range_from(torch.as_tensor(padding).bool()).",
        )
    if padding.dtype != torch.bool:
        name = str(padding.dtype).removeprefix("torch.")
        real = "padding == 0" if padding.is_floating_point() else "padding.bool()"
        raise InputError(
            f"padding is {name}, not bool with True where a token is real.",
            f"nbattn.key_range_from({real}).",
        )
    if not 2 <= padding.dim() <= 4:
        raise InputError(
            f"padding has {counted(padding.dim(), 'dimension')} {list(padding.shape)}, "
            "not those of [B, *key_space].",
            "nbattn.key_range_from(padding[None])."
            if padding.dim() == 1
            else "nbattn.key_range_from(padding.flatten(1, -1))."
            if padding.dim() == 0
            else "nbattn.key_range_from(padding.squeeze(1)).",
        )


def _along(padding: Tensor, kept: int) -> Tensor:
    """Whether any token is real, at each place of one dimension: `[B, N]`."""
    others = [n for n in range(1, padding.dim()) if n != kept]
    return padding.any(dim=others) if others else padding


def _ends(real: Tensor) -> Tensor:
    """Start and stop `[B, 2]` of the True entries of `[B, N]`."""
    count = real.shape[1]
    if not count:
        return real.new_zeros((len(real), 2), dtype=torch.int32)
    some, places = real.any(1), real.int()
    start, stop = places.argmax(1), count - places.flip(1).argmax(1)
    return torch.stack([start.where(some, 0), stop.where(some, 0)], 1).int()


def standard(ranges: Ranges, query: Tensor) -> Ranges:
    """Returns the ranges as an int32 tensor `[B, rank, 2]` on the query's device, from nested
    lists, whole numbers of other types, and `[B, 2]` for one axis; other things unchanged.
    """
    if isinstance(ranges, Tensor):
        if ranges.dtype == torch.int32 and ranges.dim() == 3:
            return ranges
        if ranges.dtype in _WHOLE:
            ranges = ranges.int()
    elif isinstance(ranges, (list, tuple)):
        try:
            ranges = torch.tensor(ranges, device=query.device)
        except (TypeError, ValueError, RuntimeError):
            return ranges
        if ranges.dtype in _WHOLE:
            ranges = ranges.int()
    if isinstance(ranges, Tensor) and query.dim() == 4 and ranges.dim() == 2:
        return ranges[:, None]
    return ranges

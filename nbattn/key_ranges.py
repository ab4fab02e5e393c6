"""Ranges of keys that are read: from padding, and from lists, for every sample and axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from nbattn import mistaken_places
from nbattn.errors import InputError, counted, kind
from nbattn.fixes.code import DENSE, PAIRS
from nbattn.fixes.signatures import answering

Ranges = Any  # a tensor of whole numbers, or nested lists of them
_NO_GRIDS: Mapping[str, int] = MappingProxyType({})
_WHOLE = (torch.int64, torch.int16, torch.int8, torch.uint8)


@answering(mistaken_places.refusal)
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
            _of_values(torch.as_tensor(padding), "torch.as_tensor(padding)")
            if isinstance(padding, (list, tuple)) or hasattr(padding, "__array__")
            else "key_range=None, for no padding.",
        )
    if padding.dtype != torch.bool:
        name = str(padding.dtype).removeprefix("torch.")
        raise InputError(
            f"padding is {name}, not bool with True where a token is real.",
            _of_values(padding, "padding"),
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


def _of_values(padding: Tensor, name: str) -> str:
    """The code of the range of what is not bool: lengths of samples, scores that are added, which
    are 0 where a token is real, or numbers that are not 0 there.
    """
    if torch.compiler.is_compiling():  # which cannot look at values
        is_clear = padding.dim() > 1 and not padding.is_floating_point()
        return f"nbattn.key_range_from({name}.bool())." if is_clear else ""
    if padding.dim() == 1 and padding.numel() and padding.max() > 1:
        return f"key_range=[[0, int(stop)] for stop in {name}], for lengths of samples."
    adds = padding.is_floating_point() and not bool((padding > 0).any())
    return f"nbattn.key_range_from({name}{' == 0' if adds else '.bool()'})."


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


_PADDED = "key_range=nbattn.key_range_from({})"


def refusal(
    given: Tensor, batch: int, space: Sequence[int], packed: Mapping[str, int] = _NO_GRIDS
) -> InputError:
    """Makes the error of a tensor, or of lists that are one by now, that is no `key_range`.

    Args:
        given: what `standard` has made of the argument.
        batch: the batch of the call.
        space: the lengths of the key axes; of packed keys, zeros where grids differ.
        packed: of packed keys, the argument that has their grids, and their tokens.
    """
    rank = len(space)
    sizes = (len(given), *given.shape[2:]) if rank == 1 and given.dim() == 3 else (*given.shape,)
    name = str(given.dtype).removeprefix("torch.")
    each = "grid" if packed else "sample"
    problem = (
        f"key_range has shape {list(sizes)}, not [{batch}, {rank}, 2]: [start, stop) per {each} "
        "and axis."
    )
    for argument, tokens in packed.items():
        if sizes == (tokens,) and tokens != batch and not given.is_floating_point():
            return InputError(problem, _of_packed_padding(argument, name))
    if sizes in ((batch, *space), (batch, math.prod(space)), (batch, 1, 1, math.prod(space))):
        return InputError(problem, _of_padding(name, sizes, rank))
    if given.dtype not in (torch.int32, *_WHOLE):
        is_number = given.is_floating_point()
        fix = "key_range=torch.as_tensor(key_range).int()." if is_number else ""
        return InputError(f"key_range is {name}, not int32.", fix)
    fixes: list[str] = []
    if sizes == (batch,) and rank == 1:
        fixes.append(f"key_range=[[0, int(stop)] for stop in key_range], for lengths of {each}s")
    elif sizes == (batch, rank) and rank > 1:
        fixes.append(
            "key_range=[[[0, int(stop)] for stop in stops] for stops in key_range], for "
            "lengths of axes"
        )
    if sizes == (2,) and rank == 1:
        fixes.append(f"key_range=[[*map(int, key_range)]] * {batch}, for one range of all {each}s")
    elif sizes in ((rank, 2), (1, rank, 2), (1, 2)):
        shared = f"torch.as_tensor(key_range).expand({batch}, {rank}, 2)"
        fixes.append(f"key_range={shared}, for the same ranges of all {each}s")
    return InputError(problem, f"{'; or '.join(fixes)}." if fixes else "")


def _of_packed_padding(argument: str, name: str) -> str:
    """The code of the ranges of a padding mask of all packed tokens, grid by grid."""
    real = "key_range" if name == "bool" else "key_range.bool()"
    sizes = f"nbattn.Grids({argument})"
    parts = f"zip({real}.split({sizes}.counts.tolist()), {sizes}.array.tolist())"
    each = "nbattn.key_range_from(part.view(1, *size))"
    return f"key_range=torch.cat([{each} for part, size in {parts}])."


def _of_padding(name: str, sizes: Sequence[int], rank: int) -> str:
    """The code of the range of a padding mask `[B, *key_space]`, `[B, N]` or `[B, 1, 1, N]`."""
    flat = "[:, 0, 0]" if len(sizes) == 4 and rank != 3 else ""
    grid = ".unflatten(1, key.shape[1:-2])" if rank > 1 and len(sizes) != rank + 1 else ""
    source = f"torch.as_tensor(key_range){flat}{grid}"
    if "float" not in name:
        return _PADDED.format(source + ("" if name == "bool" else ".bool()")) + "."
    zero, one = _PADDED.format(f"{source} == 0"), _PADDED.format(f"{source}.bool()")
    return f"{zero}, where 0 is a real token; or {one}, where 1 is."


def standard(ranges: Ranges, query: Tensor, packed: Any = None) -> Ranges:
    """Returns the ranges as an int32 tensor `[B, rank, 2]` on the query's device, from nested
    lists, whole numbers of other types, and `[B, 2]` for one axis; other things unchanged. With
    packed grids, B is their number.
    """
    ranges = of_extra(ranges, query)
    is_line = packed.rank == 1 if packed is not None else query.dim() == 4
    if isinstance(ranges, Tensor) and is_line and ranges.dim() == 2:
        return ranges[:, None]
    return ranges


def of_extra(ranges: Ranges, query: Tensor) -> Ranges:
    """Returns ranges of extra keys as an int32 tensor `[B, 2]` on the query's device, from nested
    lists and whole numbers of other types; other things unchanged.
    """
    if isinstance(ranges, (list, tuple)):
        try:
            ranges = torch.tensor(ranges, device=query.device)
        except (TypeError, ValueError, RuntimeError):
            return ranges
    if isinstance(ranges, Tensor) and ranges.dtype in _WHOLE:
        return ranges.int()
    return ranges

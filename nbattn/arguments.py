"""What `attention()` accepts: the checks of its tensors and numbers, each with both numbers and the
fix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn.errors import InputError
from nbattn.mask import MAX_RANK, Mask
from nbattn.planner.request import BACKENDS, DTYPES, check_traits


def check_mask(mask: object) -> None:
    """A mask is a Mask."""
    if not isinstance(mask, Mask):
        raise InputError(
            f"mask is a {type(mask).__name__}, not an nbattn.Mask.",
            fix="mask=nbattn.Mask(nbattn.Axis(3, 3), …).",
        )


def check_shapes(
    mask: Mask, query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> None:
    """The shapes fit one another and the mask."""
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != mask.rank + 3:
            space = ", ".join("XYZ"[: mask.rank])
            raise InputError(
                f"{name} has {len(shape)} dimensions {list(shape)}; "
                f"a mask of {mask.rank} axes needs {mask.rank + 3}.",
                where=repr(mask),
                fix=f"{name} as [B, {space}, H, D], or a mask of {len(shape) - 3} axes."
                if 0 < len(shape) - 3 <= MAX_RANK
                else f"{name} as [B, {space}, H, D].",
            )
    where = f"query {list(query)} key {list(key)} value {list(value)}"
    _same("batch", query[0], key[0], "query", "key", where)
    _same("head_dim", query[-1], key[-1], "query", "key", where)
    if list(key[:-1]) != list(value[:-1]):
        raise InputError(
            f"key and value differ before their last dimension: "
            f"{list(key[:-1])} and {list(value[:-1])}.",
            where=where,
            fix="one key and one value per position and head.",
        )
    for name, size in (("heads", query[-2]), ("key heads", key[-2]), ("head_dim", query[-1])):
        if size < 1:
            raise InputError(f"{name} is {size}.", where=where, fix="at least 1.")
    if query[-2] % key[-2]:
        raise InputError(
            f"{query[-2]} query heads are no multiple of {key[-2]} key heads.",
            where=where,
            fix=f"a number of key heads that divides {query[-2]}; "
            "query head h reads key head h // (H // Hk).",
        )


def _same(what: str, a: int, b: int, first: str, second: str, where: str) -> None:
    if a != b:
        raise InputError(
            f"{what} differs: {a} in {first}, {b} in {second}.",
            where=where,
            fix=f"the same {what} in both.",
        )


def check_tensors(query: Tensor, named: dict[str, Tensor | None]) -> None:
    """Every tensor is one, on the query's device, and floating ones of its dtype."""
    for name, tensor in (("query", query), *named.items()):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{name} is a {type(tensor).__name__}, not a tensor.",
                fix=f"torch.as_tensor({name}).",
            )
        if tensor.device != query.device:
            raise InputError(
                f"{name} is on {tensor.device}, query on {query.device}.",
                fix=f"{name}.to({str(query.device)!r}).",
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (
            name in ("query", "key", "value", "extra_key", "extra_value")
            and tensor.dtype != query.dtype
        ):
            raise InputError(
                f"{name} is {dtype}, query {str(query.dtype).removeprefix('torch.')}.",
                fix=f"{name}.to(query.dtype).",
            )
        if name == "query" and dtype not in DTYPES:
            raise InputError(f"query is {dtype}.", fix=f"one of {', '.join(DTYPES)}.")


def check_numbers(scale: object, softcap: object) -> None:
    """Scale and softcap are finite numbers."""
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(
                f"{name}={value!r} is a {type(value).__name__}, not a number.",
                fix=f"{name}=None or a float.",
            )
        if not math.isfinite(value) or (name == "softcap" and value <= 0):
            legal = (
                "a finite number above 0, or None"
                if name == "softcap"
                else "a finite number, or None"
            )
            raise InputError(f"{name}={value} is not legal.", fix=f"{name}: {legal}.")


def check_extras(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_range: Tensor | None,
    extra_key: Tensor | None,
    extra_value: Tensor | None,
) -> None:
    """Shapes and dtypes of the optional tensors."""
    batch, rank, heads = query.shape[0], query.dim() - 3, key.shape[-2]
    if sink is not None:
        _shaped("sink", sink, (query.shape[-2],), "one logit per query head")
        if not sink.is_floating_point():
            raise InputError(f"sink is {sink.dtype}.", fix="a floating tensor [H].")
    if key_range is not None:
        _shaped("key_range", key_range, (batch, rank, 2), "[start, stop) per sample and axis")
        if key_range.dtype != torch.int32:
            raise InputError(
                f"key_range is {str(key_range.dtype).removeprefix('torch.')}, not int32.",
                fix="key_range.int().",
            )
    if (extra_key is None) != (extra_value is None):
        missing = "extra_key" if extra_key is None else "extra_value"
        raise InputError(
            f"{missing} is missing; extra keys need both.",
            fix="extra_key= and extra_value=, or neither.",
        )
    if extra_key is not None and extra_value is not None:
        count = extra_key.shape[1] if extra_key.dim() == 4 else 0
        _shaped("extra_key", extra_key, (batch, count, heads, key.shape[-1]), "[B, E, Hk, D]")
        _shaped(
            "extra_value", extra_value, (batch, count, heads, value.shape[-1]), "[B, E, Hk, Dv]"
        )


def _shaped(name: str, tensor: Tensor, shape: tuple[Any, ...], meaning: str) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise InputError(
            f"{name} has shape {list(tensor.shape)}, not {list(shape)}.",
            fix=f"{name}: {meaning}, {list(shape)}.",
        )


def check_backend(backend: str, require: Sequence[str], forbid: Sequence[str]) -> None:
    """Names are known, and require= and forbid= are tuples of them."""
    if backend not in BACKENDS:
        names = ", ".join(map(repr, BACKENDS))
        raise InputError(f"backend={backend!r} is not known.", fix=f"one of {names}.")
    for name, traits in (("require", require), ("forbid", forbid)):
        if isinstance(traits, str):
            raise InputError(f"{name}={traits!r} is a string.", fix=f"{name}=({traits!r},).")
        check_traits(name, tuple(traits))

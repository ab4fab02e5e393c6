"""Checks of the arguments of the layer's constructor; a fix has the numbers at hand."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from nbattn import biases, synonyms
from nbattn.axis import whole
from nbattn.errors import InputError, MaskError, kind
from nbattn.mask import Mask
from nbattn.program.request import DTYPES


def number(name: str, value: int, low: int) -> int:
    """Returns a whole number of at least `low`."""
    try:
        return whole(name, value, low)
    except MaskError as error:
        raise InputError(error.problem, error.fix) from None


def kv_heads(heads: int, argument: int | None) -> int:
    """Returns the number of key heads, which divides that of the query heads."""
    count = heads if argument is None else number("kv_heads", argument, 1)
    if heads % count:
        near = max(n for n in range(1, min(count, heads) + 1) if heads % n == 0)
        raise InputError(
            f"num_heads={heads} is no multiple of kv_heads={count}.",
            f"kv_heads={near}: query head h uses key head h // {heads // near}.",
        )
    return count


def head_dim(dim: int, heads: int, argument: int | None) -> int:
    """Returns the channels of a head."""
    if argument is not None:
        return number("head_dim", argument, 1)
    if dim % heads:
        near = max(n for n in range(1, heads + 1) if dim % n == 0)
        raise InputError(
            f"dim={dim} is no multiple of num_heads={heads}.",
            f"num_heads={near}, or head_dim={max(1, dim // heads)}.",
        )
    return dim // heads


def probability(name: str, value: float) -> None:
    """Checks a number between 0 and 1."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value <= 1:
        return
    try:
        nearest = min(max(float(value), 0.0), 1.0)
    except (TypeError, ValueError):
        nearest = 0.0
    what = "is not a probability" if is_number else f"is {kind(value)}, not a number"
    fix = f"{name}={nearest if nearest < 1 else 0.0}."
    raise InputError(f"{name}={value if is_number else repr(value)} {what}.", fix)


def transform(module: object) -> None:
    """Checks that a qk_transform is a Module."""
    if module is None or isinstance(module, nn.Module):
        return
    problem = f"qk_transform is {kind(module)}, not a torch.nn.Module."
    name = getattr(module, "__name__", "rotate")
    name = name if name.isidentifier() else "qk_transform"  # of a lambda
    if isinstance(module, type) and issubclass(module, nn.Module):
        needed = [
            p.name
            for p in inspect.signature(module).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        raise InputError(problem, f"qk_transform={name}({', '.join(needed)}).")
    raise InputError(
        f"{problem} Its forward(query, key) returns both.",
        f"class Transform(torch.nn.Module): forward = staticmethod({name})\n"
        "         qk_transform=Transform().",
    )


def table(heads: int, mask: Mask, made: dict[str, Any]) -> nn.Parameter:
    """Returns a new table of relative positions, with NATTEN's initial values."""
    for number, axis in enumerate(mask.axes):
        if axis.left is None or axis.right is None:
            raise InputError(
                f"relative_bias: axis {number} has an unlimited side, for which a table has no "
                f"size: {axis!r}.",
                "",
                repr(mask),
            )
    values = torch.empty(heads, *biases.table_sizes(mask.axes), **made)
    return nn.Parameter(nn.init.trunc_normal_(values, std=0.02))


def layout(name: str) -> str:
    """Checks the place of the channels."""
    if name not in synonyms.LAYOUTS:
        meant = synonyms.meant(name, synonyms.LAYOUTS, synonyms.LAYOUTS) or "channels_last"
        raise InputError(
            f"layout={name!r} is not known; channels come last, or first after the batch.",
            f"layout={meant!r}.",
        )
    return name


def factory(device: object, dtype: object) -> dict[str, Any]:
    """Returns device and dtype of the parameters as torch's modules take them."""
    if isinstance(dtype, str) and dtype in DTYPES:
        dtype = getattr(torch, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        name = synonyms.meant(dtype, DTYPES, synonyms.DTYPES) or "float32"
        raise InputError(
            f"dtype={dtype!r} is no dtype that parameters can have.", f"dtype=torch.{name}."
        )
    try:
        return {"device": None if device is None else torch.device(device), "dtype": dtype}  # pyright: ignore
    except (RuntimeError, TypeError):
        raise InputError(
            f"device={device!r} is not known to torch.", 'device="cpu", or device="cuda".'
        ) from None

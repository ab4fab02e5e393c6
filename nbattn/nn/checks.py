"""Checks of the layer's arguments and inputs; every error has both numbers and code that mends
it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbattn.axis import whole
from nbattn.errors import InputError, MaskError, counted, kind
from nbattn.mask import MAX_RANK, Mask
from nbattn.program.request import DTYPES
from nbattn.symbolic import holds

LAYOUTS = ("channels_last", "channels_first")


# Arguments of the constructor.


def number(name: str, value: int, low: int, example: int) -> int:
    """Returns a whole number of at least `low`; a message names what the value probably means, or
    the example.
    """
    try:
        return whole(name, value, low)
    except MaskError as error:
        problem = error.problem
    meant: Any = value
    try:
        meant = example if isinstance(value, bool) else int(meant)
    except (TypeError, ValueError, OverflowError):
        meant = example
    fitting = low <= meant < 2**31
    raise InputError(problem, f"{name}={meant if fitting else example}.") from None


def kv_heads(heads: int, argument: int | None) -> int:
    """Returns the number of key heads, which divides that of the query heads."""
    count = heads if argument is None else number("kv_heads", argument, 1, heads)
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
        return number("head_dim", argument, 1, max(1, dim // heads))
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
        meant = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        meant = -1.0
    what = "is not a probability" if is_number else f"is {kind(value)}, not a number"
    shown = f"{value}" if is_number else f"{value!r}"
    raise InputError(f"{name}={shown} {what}.", f"{name}={meant if 0 <= meant <= 1 else 0.1}.")


def transform(module: object) -> None:
    """Checks that a qk_transform is a Module."""
    if module is None or isinstance(module, nn.Module):
        return
    problem = f"qk_transform is {kind(module)}, not a torch.nn.Module."
    name = getattr(module, "__name__", "rotate")
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


def layout(name: str) -> str:
    """Checks the place of the channels."""
    if name not in LAYOUTS:
        first = str(name).lower().replace("-", "_") in ("nchw", "nchwd", "bchw", "first", "ncl")
        first = first or "first" in str(name).lower()
        raise InputError(
            f"layout={name!r} is not known; channels come last, or first after the batch.",
            f"layout={LAYOUTS[first]!r}.",
        )
    return name


def factory(device: object, dtype: object) -> dict[str, Any]:
    """Returns device and dtype of the parameters as torch's modules take them."""
    if isinstance(dtype, str) and dtype in DTYPES:
        dtype = getattr(torch, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        meant = {"bf16": "bfloat16", "half": "float16", "fp16": "float16", "double": "float64"}
        name = meant.get(str(dtype), "float32")
        raise InputError(
            f"dtype={dtype!r} is no dtype that parameters can have.", f"dtype=torch.{name}."
        )
    try:
        return {"device": None if device is None else torch.device(device), "dtype": dtype}  # pyright: ignore
    except (RuntimeError, TypeError):
        raise InputError(
            f"device={device!r} is not known to torch.", 'device="cpu", or device="cuda".'
        ) from None


# Inputs of a call.


def tokens(name: str, given: object, mask: Mask, channels: int, first: bool, call: str) -> None:
    """Checks that an input is a dense tensor of the layer's shape.

    Args:
        name: of the argument.
        given: its value.
        mask: of the layer.
        channels: how many it must have.
        first: whether channels come first after the batch.
        call: the layer's constructor as code, for messages.
    """
    if not isinstance(given, Tensor):
        actual = "None" if given is None else kind(given)
        sizes = _example(name, mask, channels, first)
        fix = f"torch.zeros{sizes}" if given is None else f"torch.as_tensor({name})"
        raise InputError(f"{name} is {actual}, not a tensor: {list(sizes)}.", f"{fix}.")
    if given.is_nested or given.layout != torch.strided:
        dense = f"torch.nested.to_padded_tensor({name}, 0.0)"
        raise InputError(
            f"{name} is a sparse or nested tensor.",
            f"{dense}, with key_range= for the padding."
            if given.is_nested
            else f"{name}.to_dense().",
        )
    shape(name, given.shape, mask, channels, first, call)


def fits(given: object, dimensions: int, at: int, channels: int) -> bool:
    """Whether an input is a dense tensor with so many dimensions, and so many channels at one."""
    return (
        isinstance(given, Tensor)
        and given.layout is torch.strided
        and not given.is_nested
        and len(given.shape) == dimensions
        and holds(given.shape[at] == channels)
    )


def shape(
    name: str,
    sizes: Sequence[int],
    mask: Mask,
    channels: int,
    first: bool,
    call: str,
    *,
    is_tensor: bool = True,
) -> None:
    """Checks the shape of an input, or a shape that `plan_for` gets."""
    rank = 1 if name == "extra_tokens" else mask.rank
    first = first and name != "extra_tokens"
    at = 1 if first else -1
    if len(sizes) == rank + 2 and holds(sizes[at] == channels):
        return
    sizes = tuple(sizes)
    if len(sizes) != rank + 2:
        problem = f"{name} has {counted(len(sizes), 'dimension')} {list(sizes)}, not {rank + 2}."
        advice = _other_rank(name, sizes, mask, rank, channels, first)
    else:
        problem = f"{name} has {counted(sizes[at], 'channel')} {list(sizes)}, not {channels}."
        advice = _other_channels(name, sizes, channels, first, call)
    fix = f"{name}={advice.shape}" if advice.shape and not is_tensor else advice.code
    raise InputError(problem, f"{fix}.", repr(mask))


class _Advice(NamedTuple):
    """Code that mends an input, and the shape that it gives; none if it mends the layer."""

    code: str
    shape: tuple[int, ...] = ()


def _other_rank(
    name: str, sizes: tuple[int, ...], mask: Mask, rank: int, channels: int, first: bool
) -> _Advice:
    """Gives an input the dimensions that the mask needs, or a mask for those it has."""
    given, wanted = len(sizes), rank + 2
    if given == wanted + 1 and not first and prod(sizes[-2:]) == channels:
        return _Advice(f"{name}.flatten(-2)", (*sizes[:-2], channels))
    if name == "extra_tokens" and given > wanted:
        return _Advice(f"{name}.flatten(1, -2)")
    if given > wanted and rank == 1 and given - 2 <= MAX_RANK:
        return _Advice(f"mask={widened(mask, given - 2)}")
    if given == 3 and rank == 2:
        at = 2 if first else 1
        grid = _factors(sizes[at])
        code = f"{name}.unflatten({at}, {grid}), or {name}[None] without a batch"
        return _Advice(code, (*sizes[:at], *grid, *sizes[at + 1 :]))
    if given == wanted - 1:
        return _Advice(f"{name}[None]", (1, *sizes))
    if given > wanted:
        folded = given - wanted + 1
        return _Advice(f"{name}.flatten(0, {folded - 1})", (prod(sizes[:folded]), *sizes[folded:]))
    example = _example(name, mask, channels, first)
    return _Advice(f"torch.zeros{example}", example)


def _other_channels(
    name: str, sizes: tuple[int, ...], channels: int, first: bool, call: str
) -> _Advice:
    """An input with other channels, or a layer that takes them."""
    moved = (sizes[0], sizes[-1], *sizes[1:-1]) if first else (sizes[0], *sizes[2:], sizes[1])
    if moved[1 if first else -1] == channels:
        if name == "extra_tokens":
            return _Advice(f"{name}.mT")
        move = f"{name}.movedim({'-1, 1' if first else '1, -1'})"
        return _Advice(f"{move}, or layout={LAYOUTS[not first]!r} in the layer", moved)
    found = sizes[1 if first else -1]
    if name.startswith("context") and "context_dim" not in call:
        return _Advice(f"{call[:-1]}, context_dim={found})")
    if first:
        code = f"torch.nn.Conv{len(sizes) - 2}d({found}, {channels}, 1)({name})"
        return _Advice(code, (sizes[0], channels, *sizes[2:]))
    return _Advice(f"torch.nn.Linear({found}, {channels})({name})", (*sizes[:-1], channels))


def _example(name: str, mask: Mask, channels: int, first: bool) -> tuple[int, ...]:
    """A small legal shape."""
    space = (4,) if name == "extra_tokens" else (14,) * mask.rank
    is_first = first and name != "extra_tokens"
    return (1, channels, *space) if is_first else (1, *space, channels)


def _factors(count: int) -> tuple[int, int]:
    """The two factors of a number of tokens that are nearest to a square."""
    low = next((n for n in range(isqrt(count), 0, -1) if count % n == 0), 1)
    return low, count // low


def widened(mask: Mask, rank: int) -> str:
    """A mask of one axis for more axes, as code."""
    axis, wide = mask.axes[0], Mask(*mask.axes * rank)
    if axis.left is None or axis.right is None:
        return repr(wide)
    dilation, stride, causal = axis.dilation, axis.stride, axis.causal
    size = (axis.left + axis.right + 1,) * rank
    if Mask.neighborhood(size, dilation=dilation, stride=stride, is_causal=causal) != wide:
        return repr(wide)
    given = "".join(
        f", {name}={value}"
        for name, value in (("dilation", dilation), ("stride", stride), ("is_causal", causal))
        if value is True or value > 1
    )
    return f"Mask.neighborhood({size}{given})"


def placement(name: str, given: Tensor, weight: Tensor, cast: torch.dtype | None) -> None:
    """Checks device and dtype of an input against a weight; under autocast floats are cast."""
    if given.device != weight.device:
        problem = f"{name} is on {given.device}, the layer on {weight.device}."
        if weight.is_meta:
            fix = f"layer.to_empty(device={str(given.device)!r}), then its weights."
        elif given.is_meta:
            fix = f"torch.zeros_like({name}, device={str(weight.device)!r})."
        else:
            fix = f"{name}.to({str(weight.device)!r})."
        raise InputError(problem, fix)
    if cast is not None and given.is_floating_point() and given.dtype != torch.float64:
        return
    if given.dtype != weight.dtype:
        actual, expected = (str(t.dtype).removeprefix("torch.") for t in (given, weight))
        raise InputError(
            f"{name} is {actual}, the layer {expected}.", f"{name}.to({weight.dtype})."
        )


def same_batch(x: Sequence[int], name: str, other: Sequence[int], first: str = "x") -> None:
    """Checks that an input has the batch of x; `extra_tokens` may have a batch of 1."""
    if holds(x[0] == other[0]) or (name == "extra_tokens" and holds(other[0] == 1)):
        return
    short, long = sorted(((x[0], first), (other[0], name)))
    if first == "shape":
        fix = f"{name}={(x[0], *other[1:])}"
    elif short[0] and long[0] % short[0] == 0:
        fix = f"torch.cat([{short[1]}] * {long[0] // short[0]})"
    else:
        fix = f"{long[1]}[:{short[0]}]"
    raise InputError(
        f"batch differs: {x[0]} in {first}, {other[0]} in {name}.",
        f"{fix}.",
        f"{first} {list(x)} {name} {list(other)}",
    )


def no_context(channels: int, call: str) -> InputError:
    """The error for a call without the context that a layer with `context_dim` needs."""
    return InputError(
        f"context is missing; with context_dim={channels} keys and values come from it.",
        f"{call}, the context with {channels} channels.",
    )


def proj_not_sharded() -> InputError:
    """The error for a layer whose heads are sharded, and whose output projection is not."""
    return InputError(
        "each rank has some of the heads, but layer.proj is whole.",
        'parallelize_module(model, mesh, {"attn.proj": RowwiseParallel()}), where model.attn is '
        "the layer.",
    )


def extra_key(module: object) -> None:
    """Checks that a transform, if any, has a method for the keys of extra tokens."""
    if module is not None and not callable(getattr(module, "extra_key", None)):
        raise InputError(
            f"extra_tokens with {kind(module)} as qk_transform, which has no method "
            "extra_key for their keys.",
            "give it the method: def extra_key(self, key): return key.",
        )


def pair(module: object, results: Any) -> tuple[Any, Any]:
    """Checks that a transform returned two results."""
    if not isinstance(results, tuple) or len(results) != 2:
        raise InputError(
            f"{kind(module)} as qk_transform returned {kind(results)}, not two tensors.",
            "return query, key.",
        )
    return results


def like(name: str, result: object, before: Tensor) -> Tensor:
    """Returns a transform's result, contiguous and in the dtype of its input; checks its shape."""
    if not isinstance(result, Tensor) or result.shape != before.shape:
        actual, fix = kind(result), "return query, key"
        if isinstance(result, Tensor):
            actual = list(result.shape)
            heads_first = result.dim() > 2 and result.movedim(1, -2).shape == before.shape
            fix = "return query.movedim(1, -2), key.movedim(1, -2)" if heads_first else fix
        raise InputError(
            f"qk_transform made the {name} {list(before.shape)} into {actual}.", f"{fix}."
        )
    return result.to(before.dtype).contiguous()


def is_shape(name: str, sizes: object) -> Sequence[Any]:
    """Checks that `plan_for` got a shape."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise InputError(f"{name} is {kind(sizes)}, not a shape.", f"{name}=x.shape.")
    return sizes

"""Checks of what the layer is called with; a fix has the shapes at hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn.axis import MAX_RANK, nearest, whole
from nbattn.errors import InputError, MaskError, counted, kind
from nbattn.mask import Mask
from nbattn.shapes import as_code, most_square
from nbattn.symbolic import holds


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
        is_array = isinstance(given, Sequence) or hasattr(given, "__array__")
        fix = f"torch.as_tensor({name})" if is_array else f"torch.zeros{sizes}"
        raise InputError(f"{name} is {actual}, not a tensor: {list(sizes)}.", f"{fix}.")
    if given.layout == torch.jagged and mask.rank == 1 and name == "x" and given.dim() == 3:
        raise InputError(
            "x is a nested tensor; the layer takes packed grids.",
            "layer(x.values(), grids=nbattn.grids_from(x.offsets())), with the other arguments.",
        )
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
    if given == 3 and name.startswith("context") and mask == Mask.full(rank=max(2, rank)):
        ones = (1,) * (rank - 1)
        code = ", None" * (rank - 1)
        if first:
            return _Advice(f"{name}[..., {code[2:]}], for text", (*sizes, *ones))
        return _Advice(f"{name}[:, :{code}], for text", (*sizes[:2], *ones, sizes[2]))
    if given == wanted + 1 and not first and prod(sizes[-2:]) == channels:
        return _Advice(f"{name}.flatten(-2)", (*sizes[:-2], channels))
    if name == "extra_tokens" and given > wanted:
        return _Advice(f"{name}.flatten(1, -2)")
    if given > wanted and rank == 1 and given - 2 <= MAX_RANK:
        return _Advice(f"mask={as_code(mask.axes * (given - 2))}")
    if given == 3 and rank == 2:
        at = 2 if first else 1
        grid = most_square(sizes[at])
        if grid[0] == 1:  # no grid: rather an image without a batch
            return _Advice(f"{name}[None]", (1, *sizes))
        code = f"{name}.unflatten({at}, {grid}), or {name}[None] without a batch"
        return _Advice(code, (*sizes[:at], *grid, *sizes[at + 1 :]))
    if given == wanted - 1:
        return _Advice(f"{name}[None]", (1, *sizes))
    if given > wanted:
        folded = given - wanted + 1
        return _Advice(f"{name}.flatten(0, {folded - 1})", (prod(sizes[:folded]), *sizes[folded:]))
    if given == 2 and rank == 2 and sizes[-1] == channels and not first:
        grid = most_square(sizes[0])
        return _Advice(
            f"{name}.unflatten(0, {(1, *grid)}), or grids=[{grid}]", (1, *grid, channels)
        )
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
        other = "channels_last" if first else "channels_first"
        move = f"{name}.movedim({'-1, 1' if first else '1, -1'})"
        return _Advice(f"{move}, or layout={other!r} in the layer", moved)
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


def extra_key(module: object, method: str = "extra_key") -> None:
    """Checks that a transform, if any, has a method for the keys of extra tokens, or for their
    queries, `extra_query`.
    """
    if module is not None and not callable(getattr(module, method, None)):
        part, parts = ("key", "keys") if method == "extra_key" else ("query", "queries")
        raise InputError(
            f"extra_tokens with {kind(module)} as qk_transform, which has no method "
            f"{method} for their {parts}.",
            f"type(layer.qk_transform).{method} = lambda self, {part}: {part}, which leaves them "
            "as they are.",
        )


def nothing_to_update() -> InputError:
    """The error for a call that updates extra tokens, and has none."""
    return InputError("update_extra=True, but there are no extra_tokens.", "update_extra=False.")


def no_queries(dim: int, channels: int) -> InputError:
    """The error for extra tokens that are queries, and have other channels than x."""
    return InputError(
        f"update_extra: extra tokens have context_dim={channels} channels, and queries come from "
        f"{dim}; text with channels of its own has projections of its own.",
        "nbattn.joint_attention(query, key, value, layer.mask, extra_query, extra_key, "
        "extra_value), of both projections.",
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


def sizes_of(name: str, given: object) -> tuple[int, ...]:
    """Returns a shape that `plan_for` gets as plain integers."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"{name} is {kind(given)}, not a shape.", f"{name}=x.shape.")
    try:
        return tuple(whole(f"{name}[{n}]", size, 0) for n, size in enumerate(given))
    except MaskError as error:
        fitting = tuple(nearest(size, 0) for size in given)
        raise InputError(error.problem, f"{name}={fitting}.") from None

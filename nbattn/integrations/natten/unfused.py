"""NATTEN's unfused functions: scores by window slot, with relative position bias and extra keys,
and weighted sums; heads first, differentiable any number of times.

Layout `[B, H, *space, D]`; scores and weights `[B, H, *space, slots]`, slots row-major over the
axes, then extra keys. Slot t of an axis is key `start + t` of the window, in steps of the dilation.
A causal window that is cut at the start has no keys for its last slots: -inf. The scores
are not scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nbattn.errors import InputError
from nbattn.integrations.natten import neighborhood_gather, parameters
from nbattn.integrations.natten.parameters import Causal, Sizes
from nbattn.mask import Mask


def scores(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: Causal = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Computes the products of every query with the keys of its window, by slot.

    Args:
        query, key: `[B, H, *space, D]`, one to three axes.
        kernel_size, dilation, is_causal: per axis, or one value for all.
        additional_keys: `[B, H, E, D]`; every query attends to them.
        rpb: `[H, 2 K - 1]` per axis: bias, by the distance of key and query in steps, plus K - 1.

    Returns:
        `[B, H, *space, slots + E]`, in the query's dtype; -inf in slots without a key.

    Raises:
        InputError, MaskError: shapes or parameters do not fit.

    >>> query = torch.randn(1, 2, 8, 9, 16)
    >>> scores(query, query, 3, rpb=torch.zeros(2, 5, 5)).shape
    torch.Size([1, 2, 8, 9, 9])
    """
    rank = _check("query", query)
    parameters.check_fits("key", key, query)
    if query.shape != key.shape:
        raise InputError(
            f"query is {list(query.shape)}, key {list(key.shape)}.", f"key.expand{(*query.shape,)}."
        )
    mask = parameters.window(query.shape[2:-1], kernel_size, dilation=dilation, is_causal=is_causal)
    code, exact = mask.code(), _exact(query.dtype)
    flat = neighborhood_gather.products(
        query.flatten(0, 1).to(exact), key.flatten(0, 1).to(exact), code
    )
    out = flat.unflatten(0, query.shape[:2])
    if rpb is not None:
        parameters.check_table(rpb, query, query.shape[1], kernel_size)
        out = out + _bias(rpb.to(exact), mask, query.shape)
    if any(axis.causal for axis in mask.axes):
        out = out.masked_fill(_missing(mask, query), float("-inf"))
    if additional_keys is not None:
        _check_additional("additional_keys", additional_keys, query)
        extra = query.flatten(2, -2).to(exact) @ additional_keys.to(exact).mT
        out = torch.cat([out, extra.unflatten(2, query.shape[2:-1])], dim=rank + 2)
    return out.to(query.dtype)


def weighted(
    attn: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_values: Tensor | None = None,
    is_causal: Causal = False,
) -> Tensor:
    """Computes the sums of the values of every query's window, weighted by slot.

    Args:
        attn: `[B, H, *space, slots + E]`; slots without a key may have any weight.
        value: `[B, H, *space, Dv]`.
        kernel_size, dilation, is_causal: as for the scores.
        additional_values: `[B, H, E, Dv]`.

    Returns:
        `[B, H, *space, Dv]`, in the values' dtype.

    Raises:
        InputError, MaskError: shapes or parameters do not fit.
    """
    rank = _check("value", value)
    parameters.check_fits("attn", attn, value)
    mask = parameters.window(value.shape[2:-1], kernel_size, dilation=dilation, is_causal=is_causal)
    if additional_values is not None:
        _check_additional("additional_values", additional_values, value)
    extra = 0 if additional_values is None else additional_values.shape[2]
    count = parameters.slots(kernel_size, rank)
    if tuple(attn.shape) != (*value.shape[:-1], count + extra):
        raise InputError(
            f"attn is {list(attn.shape)}, value {list(value.shape)}.",
            f"attn[..., :{count + extra}]: {count} slots, {extra} extra keys.",
        )
    exact = _exact(value.dtype)
    window, rest = attn.to(exact).split([count, extra], dim=-1)
    flat = neighborhood_gather.sums(
        window.flatten(0, 1), value.flatten(0, 1).to(exact), mask.code()
    )
    out = flat.unflatten(0, value.shape[:2])
    if additional_values is not None:
        more = rest.flatten(2, -2) @ additional_values.to(exact)
        out = out + more.unflatten(2, value.shape[2:-1])
    return out.to(value.dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums: float32 for halves, which would round at every tile."""
    return torch.promote_types(dtype, torch.float32)


def _check(name: str, tensor: Tensor) -> int:
    """Checks a tensor `[B, H, *space, D]`; returns the number of axes of its space."""
    if not isinstance(tensor, Tensor) or not 4 <= tensor.dim() <= 6:
        actual = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(
            f"{name} is {actual}, not [B, H, *space, D] of one to three axes.",
            f"{name}[None]: a batch and heads come before the space."
            if isinstance(tensor, Tensor)
            else f"{name}=torch.as_tensor({name}).",
        )
    parameters.check_fits(name, tensor, tensor)
    return tensor.dim() - 3


def _check_additional(name: str, extra: Tensor, like: Tensor) -> None:
    parameters.check_fits(name, extra, like)
    expected = (*like.shape[:2], extra.shape[2] if extra.dim() == 4 else "E", like.shape[-1])
    if tuple(extra.shape) != expected:
        raise InputError(
            f"{name} is {list(extra.shape)}, not [{', '.join(map(str, expected))}].",
            f"{name}.expand({expected[0]}, {expected[1]}, -1, {expected[3]}).",
        )


def _lengths(shape: torch.Size) -> tuple[int, ...]:
    """The lengths of a space `[B, H, *space, D]`; numbers also where `torch.jit.trace` runs."""
    is_traced = not torch.compiler.is_compiling() and torch._C._is_tracing()  # pyright: ignore
    return tuple(map(int, shape[2:-1])) if is_traced else shape[2:-1]


def _bias(rpb: Tensor, mask: Mask, shape: torch.Size) -> Tensor:
    """Returns the bias of every slot `[H, *space, slots]`, from the table, axis by axis."""
    counts = neighborhood_gather.axis_slots(mask.code())
    space, rank = _lengths(shape), mask.rank
    for axis, (length, count) in enumerate(zip(space, counts, strict=True)):
        index = neighborhood_gather.steps(rpb, mask.code(), space, axis).flatten() + count - 1
        rpb = rpb.index_select(1 + 2 * axis, index).unflatten(1 + 2 * axis, (length, count))
    order = (*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    return rpb.permute(0, *order).flatten(1 + rank)


def _missing(mask: Mask, like: Tensor) -> Tensor:
    """Returns the slots without a key, bool `[*space, slots]`: on causal axes those after the
    query.
    """
    space, counts, rank = (
        _lengths(like.shape),
        neighborhood_gather.axis_slots(mask.code()),
        mask.rank,
    )
    missing = torch.zeros((*space, *counts), dtype=torch.bool, device=like.device)
    for axis, (length, count) in enumerate(zip(space, counts, strict=True)):
        if mask.axes[axis].causal:
            late = neighborhood_gather.steps(like, mask.code(), space, axis) > 0
            shape = [1] * (2 * rank)
            shape[axis], shape[rank + axis] = length, count
            missing = missing | late.view(shape)
    return missing.flatten(rank)

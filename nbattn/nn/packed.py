"""The layer on packed grids: tokens `[T, dim]` of grids of different sizes, one after another."""

# pyright: reportPrivateUsage=false
# the other half of the layer's forward, which calls its methods

from __future__ import annotations

from collections.abc import Sequence, Sized
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nbattn import packing
from nbattn.errors import InputError, kind
from nbattn.nn import inputs, projections
from nbattn.symbolic import holds

if TYPE_CHECKING:
    from nbattn.nn.layer import NeighborhoodAttention


def attend(
    layer: NeighborhoodAttention,
    x: Tensor,
    context: Tensor | None,
    *,
    extra_tokens: Tensor | None,
    update_extra: bool,
    grids: Any,
    key_grids: Any,
    **placed: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes the layer on packed grids; channels are last in every layout."""
    channels = layer.context_dim or layer.dim
    if layer.space_parallel is not None or (
        projections.is_sharded(x) and not layer.is_head_parallel
    ):
        raise InputError(
            "packed grids have one axis for the tokens of all grids, which ranks cannot share; "
            "layers without SpaceParallel take the tokens of a rank's own grids."
        )
    _check("x", x, 2, layer.dim)
    if context is not None:
        _check("context", context, 2, channels)
    elif layer.context_dim is not None:
        raise inputs.no_context(layer.context_dim, "layer(x, context, grids=grids)")
    extra_line, entries = None, 0
    if extra_tokens is not None:
        _check("extra_tokens", extra_tokens, 3, channels)
        entries = _entries(extra_tokens, grids)
        inputs.extra_key(layer.qk_transform)
        extra_line = extra_tokens.flatten(0, 1)[None]
    if update_extra:
        layer._check_update(update_extra)
        if extra_tokens is None:
            raise inputs.nothing_to_update()
    lines = (x[None], None if context is None else context[None], extra_line)
    query, key, value, *extra = (part[0] for part in layer._projected(*lines, update_extra))
    if extra_tokens is not None:
        extra = [part.unflatten(0, extra_tokens.shape[:2]) for part in extra]
        if not holds(extra_tokens.shape[0] == entries):  # the same for all grids
            extra = [part.expand(entries, -1, -1, -1).contiguous() for part in extra]
    extras = (*(None,) * (3 - len(extra)), *extra)
    if not layer._is_packed(context is None):
        query, key = _transformed(
            layer, query, key, packing.packed_of(layer.mask, grids, key_grids)
        )
        extras = (*layer._transformed_extras(*extras[:2]), extras[2])
        value = value.contiguous()
    sizes = {"grids": grids, "key_grids": key_grids}
    out, *more = layer._attended((query, key, value), extras, **placed, **sizes)
    return (out, more[0]) if more else out


def tokens_of(name: str, shape: Sequence[int], channels: int) -> tuple[int, ...]:
    """Returns the tokens of a shape `[T, dim]` that `plan_for` gets."""
    sizes = inputs.sizes_of(name, shape)
    if len(sizes) != 2 or sizes[1] != channels:
        raise InputError(
            f"{name} is {list(sizes)}, not [T, {channels}]: with grids, the tokens of all.",
            f"{name}={(prod(sizes[:-1]), channels)}." if sizes[-1:] == (channels,) else "",
        )
    return sizes[:1]


def _check(name: str, tokens: object, dimensions: int, channels: int) -> None:
    """Checks that an input is a dense tensor of this shape."""
    if inputs.fits(tokens, dimensions, -1, channels):
        return
    shape = f"[{'T' if dimensions == 2 else 'grids, E'}, {channels}]"
    if not isinstance(tokens, Tensor):
        actual = "None" if tokens is None else kind(tokens)
        raise InputError(f"{name} is {actual}, not a tensor {shape}.")
    fix = ""
    if tokens.dim() and holds(tokens.shape[-1] == channels):
        if dimensions == 2 and tokens.dim() > 2:
            fix = f"{name}.flatten(0, -2)."
        elif dimensions == 3 and tokens.dim() == 2:
            fix = f"{name}[None], the same for all grids."
    raise InputError(
        f"{name} is {list(tokens.shape)}, not {shape}: with grids, the tokens of all.", fix
    )


def _entries(extra_tokens: Tensor, grids: Any) -> int:
    """The entries that extra tokens need, one for each grid; they may have one for all. What is
    given as grids is checked later.
    """
    given = extra_tokens.shape[0]
    count = len(grids) if isinstance(grids, Sized) else given
    if not (holds(given == count) or holds(given == 1)):
        raise InputError(
            f"extra_tokens is {list(extra_tokens.shape)}, and there are {count} grids: it needs an "
            "entry for each, or one for all."
        )
    return count


def _transformed(
    layer: NeighborhoodAttention, query: Tensor, key: Tensor, sizes: Any
) -> tuple[Tensor, Tensor]:
    """Normalises and transforms queries and keys; a transform sees one grid after another."""
    if layer.qk_transform is None:
        return layer._transformed(query, key)
    spaces = sizes.spaces()
    sides = (t.split([prod(both[side]) for both in spaces]) for side, t in enumerate((query, key)))
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    for both, *tokens in zip(spaces, *sides, strict=True):
        grid = [t.view(1, *space, *t.shape[1:]) for t, space in zip(tokens, both, strict=True)]
        new_query, new_key = layer._transformed(*grid)
        queries.append(new_query.flatten(0, -3))
        keys.append(new_key.flatten(0, -3))
    return (torch.cat(queries), torch.cat(keys)) if spaces else (query, key)

"""Projects tokens to heads: by one call of a linear layer, or by blocks of rows of its weight where
nothing but torch's own `nn.Linear` stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

from nbattn.errors import InputError, kind
from nbattn.nn import inputs
from nbattn.symbolic import holds

ALL = slice(None)
# The name of tokens in messages, the tokens `[B, *space, C]`, and which parts of the rows they need
Source = tuple[str, Tensor, slice]
SHARDED = (
    'parallelize_module(model, mesh, {"attn": nbattn.nn.HeadParallel(), "attn.proj": '
    "RowwiseParallel()}), where model.attn is the layer."
)
# Weights whose rows can be taken apart. A quantised or sharded weight is of a class of its own.
_PLAIN_WEIGHTS = (Tensor, nn.Parameter, FakeTensor)  # torch 2.8 cannot trace a look-up in a set


def is_plain(linear: Any) -> bool:
    """Whether calling this module is `nn.functional.linear` with its weight and nothing else: no
    other class, hooks, parametrisation, replaced forward, or weight of a class of its own.
    """
    if type(linear) is not nn.Linear:
        return False
    own = linear.__dict__  # faster than attributes, which look in parameters first
    return not (
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or type(linear.weight) not in _PLAIN_WEIGHTS
        or torch_module._has_any_global_hook()  # pyright: ignore[reportPrivateUsage]
    )


def project(
    name: str, linear: Any, heads: Sequence[int], head_dim: int, sources: Sequence[Source]
) -> list[Sequence[Tensor]]:
    """Returns, for every source, the parts that it needs as `[B, *space, heads, head_dim]`.

    A plain linear layer computes only the rows that a source needs. Any other module is called, and
    once, for all sources side by side: a parametrisation, dropout of an adapter or a hook sees one
    call with one weight, whatever tokens there are.

    Args:
        name: of the linear layer, for messages.
        linear: maps C channels to `sum(heads) * head_dim`.
        heads: the heads of each part of its rows: of q, k and v, or of some of them.
        head_dim: D.
        sources: tokens, the first with the batch of the call, and the parts that each needs.

    Raises:
        InputError: tokens are on another device than a plain layer's weight, or of another dtype;
            or another module returned something else than these channels.
    """
    width = sum(heads) * head_dim
    if is_plain(linear):
        if not holds(linear.weight.shape[0] == width):
            raise _refused(name, f"{linear.weight.shape[0]} channels, not {width}", width)
        return _plainly(linear, heads, head_dim, sources)
    if len(sources) == 1:
        _, tokens, wanted = sources[0]
        return [_parts(_checked(name, linear, linear(tokens), width), heads, head_dim)[wanted]]
    batch = sources[0][1].shape[0]
    flat = [tokens.flatten(1, -2).expand(batch, -1, -1) for _, tokens, _ in sources]
    joined = _checked(name, linear, linear(torch.cat(flat, dim=1)), width)
    rows = joined.split([tokens.shape[1] for tokens in flat], dim=1)
    found: list[Sequence[Tensor]] = []
    for (_, tokens, wanted), part in zip(sources, rows, strict=True):
        grid = part.unflatten(1, tokens.shape[1:-1])
        found.append(_parts(grid, heads, head_dim)[wanted])
    return found


def called(linear: Any, tokens: Sequence[Tensor]) -> list[Tensor]:
    """Calls a linear layer with tokens `[B, *, C]`, or those of packed grids first, `[T, C]`: each
    apart if it is a plain one, which copies nothing; any other module once, for all side by side,
    as `project` does.
    """
    if len(tokens) == 1 or is_plain(linear):
        return [linear(part) for part in tokens]
    at = 0 if tokens[0].dim() == 2 else 1
    joined = linear(torch.cat([part.flatten(at, -2) for part in tokens], dim=at))
    rows = joined.split([prod(part.shape[at:-1]) for part in tokens], dim=at)
    return [row.unflatten(at, part.shape[at:-1]) for row, part in zip(rows, tokens, strict=True)]


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The autocast dtype on the device of this weight; None if autocast is off, or for float64."""
    place = weight.device.type
    if weight.dtype == torch.float64 or place == "meta" or not torch.is_autocast_enabled(place):
        return None
    return torch.get_autocast_dtype(place)


def _plainly(
    linear: Any, heads: Sequence[int], head_dim: int, sources: Sequence[Source]
) -> list[Sequence[Tensor]]:
    """The parts of every source: all of them as views of one result, some of them contiguous."""
    weight, bias = linear.weight, linear.bias  # once: getting one from a module takes time
    cast = autocast_dtype(weight)
    blocks: Sequence[tuple[Tensor, Tensor | None, int]] = ()
    found: list[Sequence[Tensor]] = []
    for name, tokens, wanted in sources:
        inputs.placement(name, tokens, weight, cast)
        if wanted == ALL:
            found.append(_parts(linear(tokens), heads, head_dim))
            continue
        blocks = blocks or _blocks(weight, bias, heads, head_dim)
        cut = tokens if cast is None else tokens.to(cast)  # once, not for every part
        size = cut.shape[:-1]
        found.append(
            [
                nn.functional.linear(cut, part, shift).view(*size, count, head_dim)
                for part, shift, count in blocks[wanted]
            ]
        )
    return found


def _blocks(
    weight: Tensor, bias: Tensor | None, heads: Sequence[int], head_dim: int
) -> list[tuple[Tensor, Tensor | None, int]]:
    """The rows of every part of a weight and a bias, with the part's heads."""
    rows = [count * head_dim for count in heads]
    biases = [None] * len(rows) if bias is None else bias.split(rows)
    return list(zip(weight.split(rows), biases, heads, strict=True))


def _parts(result: Tensor, heads: Sequence[int], head_dim: int) -> Sequence[Tensor]:
    """Views of a result, cut into parts and each into heads."""
    if len(heads) == 1:
        return (result.view(*result.shape[:-1], heads[0], head_dim),)
    return result.view(*result.shape[:-1], sum(heads), head_dim).split(tuple(heads), dim=-2)


def _checked(name: str, linear: Any, result: object, width: int) -> Tensor:
    """Checks what a module in the place of a linear layer returned."""
    fits = isinstance(result, Tensor) and holds(result.shape[-1] == width)
    if fits and not is_sharded(result):
        return result  # pyright: ignore[reportReturnType]
    if is_sharded(getattr(linear, "weight", None)):
        raise InputError(
            f"layer.{name} is sharded as one matrix, which cuts q from k and v: a rank needs the "
            "rows of its own heads of each.",
            SHARDED,
        )
    is_tensor = isinstance(result, Tensor)
    found = f"{result.shape[-1]} channels, not {width}" if is_tensor else kind(result)
    raise _refused(name, found if is_tensor else f"{found}, not a tensor", width)


def _refused(name: str, found: str, width: int) -> InputError:
    """The error for a module that does not map to the channels of all heads."""
    source = "layer.context_dim" if name == "kv" else "layer.dim"
    return InputError(
        f"layer.{name} returned {found}.", f"layer.{name} = torch.nn.Linear({source}, {width})."
    )


def is_sharded(tensor: object) -> bool:
    """Whether this is one of torch's distributed tensors, without loading them."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")

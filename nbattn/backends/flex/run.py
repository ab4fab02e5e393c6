"""FlexAttention: builds its block masks from masks, and runs programs of one compiled call.

The first run of a function compiles it, which takes seconds. Block masks and compiled functions are
cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from nbattn import geometry
from nbattn.axis import whole
from nbattn.backends.flex import meaning as flex
from nbattn.backends.flex.meaning import FlexArguments
from nbattn.backends.inputs import Gradients, Inputs, repeated
from nbattn.errors import MaskError
from nbattn.geometry import Axes, BoundAxis
from nbattn.mask import Mask, Space
from nbattn.program.program import Program

_COMPILATIONS = 256  # limit per process, after which a call raises an error
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def block_mask(
    mask: Mask,
    query_space: Space,
    key_space: Space | None,
    device: torch.device | str,
    block: int | Sequence[int],
) -> BlockMask:
    """Returns the block mask of a mask, on flat row-major tokens, for `Mask.to_flex`."""
    axes = geometry.bind(mask, query_space, key_space)
    sizes = (block, block) if isinstance(block, int) else block
    rows, columns = (whole("block", size, 1) for size in sizes)
    if any(axis.queries * axis.keys == 0 for axis in axes):
        raise MaskError(
            f"a BlockMask of {[axis.queries for axis in axes]} queries and "
            f"{[axis.keys for axis in axes]} keys has no blocks.",
            "nbattn.attention(query, key, value, mask), which supports empty axes",
            repr(mask),
        )
    return _block_mask(FlexArguments(axes, rows, columns), torch.device(device))


@lru_cache(16)
def _block_mask(blocks: FlexArguments, device: torch.device) -> BlockMask:
    lengths = [1, 1]
    for axis in blocks.axes:
        lengths = [lengths[0] * axis.queries, lengths[1] * axis.keys]
    partial, full = (_listed(chosen, device) for chosen in (blocks.partial(), blocks.full()))
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=(blocks.query_block, blocks.key_block),
        mask_mod=mask_function(blocks.axes, device),
        seq_lengths=(lengths[0], lengths[1]),
    )


def _listed(chosen: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns how many blocks of every row are chosen, and all blocks, the chosen ones first."""
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    counts = chosen.sum(axis=1, dtype=np.int32)
    return tuple(torch.from_numpy(a)[None, None].to(device) for a in (counts, order))  # pyright: ignore


def mask_function(axes: Axes, device: torch.device) -> MaskFunction:
    """Returns the mask as FlexAttention's `mask_mod`, which looks up intervals by the query."""
    functions = [_axis_function(axis, device) for axis in axes]
    lengths = [(axis.queries, axis.keys) for axis in axes]

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = None
        for function, (queries, keys) in zip(
            reversed(functions[1:]), reversed(lengths[1:]), strict=True
        ):
            on_axis = function(query % queries, key % keys)
            allowed = on_axis if allowed is None else allowed & on_axis
            query, key = query // queries, key // keys
        first = functions[0](query, key)
        return first if allowed is None else first & allowed

    return mask_mod


def _axis_function(axis: BoundAxis, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the mask of one axis: whether the key is in the query's residue class and its
    coordinate there is inside one of two intervals.
    """
    bounds = flex.table(axis)
    step = bounds.step
    residue, low, lo, hi = (
        torch.from_numpy(side.astype(np.int32)).to(device)
        for side in (bounds.residue, bounds.low, bounds.lo, bounds.hi)
    )
    has_low = bool(bounds.low.any())

    def allowed(query: Tensor, key: Tensor) -> Tensor:
        t = key if step == 1 else key // step
        inside = (t >= lo[query]) & (t < hi[query])
        if has_low:
            inside = inside | (t < low[query])
        return inside if step == 1 else inside & (key % step == residue[query])

    return allowed


@lru_cache(1)
def _compiled() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=False, fullgraph=True))


@lru_cache(16)
def _capped(cap: float | None) -> Callable[..., Tensor] | None:
    """Returns softcap as FlexAttention's `score_mod`, cached so that it is compiled once."""
    if cap is None:
        return None
    return lambda score, *_: cap * torch.tanh(score / cap)


def _attend(program: Program, inputs: Inputs) -> Tensor:
    """Returns the output `[B, *space, H, Dv]`, differentiable on devices with a backward."""
    (call,) = program.calls
    assert isinstance(call.arguments, FlexArguments)
    rank = inputs.rank
    query, key, value = (
        t.flatten(1, rank).transpose(1, 2) for t in (inputs.query, inputs.key, inputs.value)
    )
    # every mask is compiled, so many compilations do not mean that shapes change all the time
    with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):  # pyright: ignore
        out = _compiled()(
            query,
            key,
            value,
            score_mod=_capped(inputs.softcap),
            block_mask=_block_mask(call.arguments, inputs.query.device),
            scale=inputs.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2).reshape(*inputs.query.shape[:-1], value.shape[-1])


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the output without a logsumexp."""
    with torch.no_grad():
        return _attend(program, inputs).contiguous(), None


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients by repeating the call under autograd."""
    return repeated(lambda leaves: _attend(program, leaves), inputs, grad_out)


def warmup(program: Program) -> None:
    """Counts the blocks, so that the first run does not."""
    for call in program.calls:
        assert isinstance(call.arguments, FlexArguments)
        call.arguments.counts()

"""The reference: dense attention in plain torch. It defines the results, supports double backward
and all devices, and is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nbattn import geometry
from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.mask import Mask, from_code
from nbattn.symbolic import untraced

_library = torch.library.Library("nbattn", "FRAGMENT")
_library.define(
    "dense_mask(Tensor like, SymInt[] mask, SymInt[] query_space, SymInt[] key_space) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _dense_mask(
    like: Tensor, mask: Sequence[int], query_space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    """Returns the mask on the device of `like`; an operator, so that compilers do not trace it."""
    return torch.from_numpy(geometry.dense(from_code(mask), query_space, key_space)).to(like.device)


def _fake_dense_mask(
    like: Tensor, mask: Sequence[int], query_space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    sizes = [1, 1]
    for number, space in enumerate((query_space, key_space)):
        for length in space:
            sizes[number] = sizes[number] * length
    return like.new_empty(sizes, dtype=torch.bool)


_library.impl("dense_mask", _dense_mask, "CompositeExplicitAutograd")
torch.library.register_fake("nbattn::dense_mask", _fake_dense_mask, lib=_library)
DENSE_MASK = torch.ops.nbattn.dense_mask.default


def attend(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    """Computes dense attention: out `[B, *space, H, Dv]` and lse `[B, *space, H]`, both
    differentiable.

    Scores and softmax are float32, or float64 for float64 inputs. Keys outside `key_range` do not
    take part, even if they are NaN. A query without keys has output 0, logsumexp -inf and no
    gradient.
    """
    device = inputs.query.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):  # it would lower the dtype of the products
            return _attend(inputs, mask)
    return _attend(inputs, mask)


def _attend(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    query = inputs.query
    exact = accumulate_dtype(query.dtype)
    group = query.shape[-2] // inputs.key.shape[-2]
    like = torch.empty(0, device=query.device)
    spaces = [list(untraced(t.shape[1:-2])) for t in (query, inputs.key)]
    counts = [math.prod(lengths) for lengths in spaces]
    if all(isinstance(count, int) for count in counts):  # symbols while a compiler traces
        geometry.check_dense(*counts)
    allowed = DENSE_MASK(like, mask.code(), *spaces).unsqueeze(0).unsqueeze(0)
    key, value = (_heads_first(t, mask.rank) for t in (inputs.key, inputs.value))
    if inputs.key_range is not None:
        present = _present(inputs.key_range, inputs.key.shape[1:-2])
        allowed = allowed & present[:, None, None]
        key, value = (t.masked_fill(~present[:, None, :, None], 0) for t in (key, value))
    if inputs.extra_key is not None and inputs.extra_value is not None:
        extra = inputs.extra_key.shape[1]
        allowed = torch.nn.functional.pad(allowed, (0, extra), value=True)
        key = torch.cat([key, inputs.extra_key.transpose(1, 2)], dim=2)
        value = torch.cat([value, inputs.extra_value.transpose(1, 2)], dim=2)
    key, value = (t.to(exact).repeat_interleave(group, dim=1) for t in (key, value))
    scores = (_heads_first(query, mask.rank).to(exact) @ key.mT) * inputs.scale
    if inputs.softcap is not None:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    scores = torch.where(allowed, scores, float("-inf"))
    if inputs.sink is not None:
        column = inputs.sink.to(exact).view(1, query.shape[-2], 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
        value = torch.nn.functional.pad(value, (0, 0, 0, 1))
    weights, lse = _softmax(scores)
    rows = query.shape[:-1]
    out, lse = (
        t.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        for t in ((weights @ value).to(query.dtype), lse)
    )
    return out.view(*rows, value.shape[-1]), lse.view(rows)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights and logsumexp; rows of only -inf have weights 0 and logsumexp -inf."""
    if untraced(scores.shape[-1:])[0] == 0:
        return scores, scores.new_full(scores.shape[:-1], float("-inf")) + scores.sum(-1)
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    filled = scores.masked_fill(empty, 0)
    # written out, since the gradient of torch's logsumexp uses its rounded result
    largest = filled.amax(dim=-1, keepdim=True).detach()
    powers = (filled - largest).exp()
    total = powers.sum(dim=-1, keepdim=True)
    lse = (largest + total.log()).masked_fill(empty, float("-inf"))
    return (powers / total).masked_fill(empty, 0), lse.squeeze(-1)


def _heads_first(tensor: Tensor, rank: int) -> Tensor:
    """Returns `[B, *space, H, D]` as `[B, H, N, D]`."""
    return tensor.flatten(1, rank).transpose(1, 2)


def _present(key_range: Tensor, space: Sequence[int]) -> Tensor:
    """Returns whether a key is inside the range of its sample, bool `[B, Nk]`."""
    inside = key_range.new_ones((key_range.shape[0], 1), dtype=torch.bool)
    for axis, length in enumerate(space):
        at = torch.arange(length, device=key_range.device)
        start, stop = (key_range[:, axis, side, None] for side in (0, 1))
        on_axis = (at >= start) & (at < stop)
        inside = (inside[:, :, None] & on_axis[:, None, :]).flatten(1)
    return inside

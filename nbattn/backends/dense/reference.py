"""The reference: dense attention in plain torch. It defines the results, supports double backward
and all devices, and is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nbattn import biases, geometry
from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.mask import Mask, from_code
from nbattn.symbolic import is_symbolic, untraced

_library = torch.library.Library("nbattn", "FRAGMENT")
for _name in ("dense_mask", "bias_entries"):
    _library.define(
        f"{_name}(Tensor like, SymInt[] mask, SymInt[] query_space, SymInt[] key_space) -> Tensor",
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


def _entries(
    like: Tensor, mask: Sequence[int], query_space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    """Returns the entry of the table of relative positions that each pair reads, int64."""
    axes = geometry.bind(from_code(mask), query_space, key_space)
    biases.check_table(from_code(mask), axes)
    return torch.from_numpy(biases.entries(axes)).to(like.device, copy=True)


def _fake_entries(
    like: Tensor, mask: Sequence[int], query_space: Sequence[int], key_space: Sequence[int]
) -> Tensor:
    return _fake_dense_mask(like, mask, query_space, key_space).to(torch.int64)


_library.impl("dense_mask", _dense_mask, "CompositeExplicitAutograd")
torch.library.register_fake("nbattn::dense_mask", _fake_dense_mask, lib=_library)
_library.impl("bias_entries", _entries, "CompositeExplicitAutograd")
torch.library.register_fake("nbattn::bias_entries", _fake_entries, lib=_library)
ENTRIES = torch.ops.nbattn.bias_entries.default
DENSE_MASK = torch.ops.nbattn.dense_mask.default


def attend(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    """Computes dense attention: out `[B, *space, H, Dv]` and lse `[B, *space, H]`, both
    differentiable.

    Scores and softmax are float32, or float64 for float64 inputs. Keys outside `key_range` do not
    take part, even if they are NaN. A query without keys has output 0, logsumexp -inf and no
    gradient.
    """
    if inputs.grids is not None:
        return _each(inputs, mask)
    device = inputs.query.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):  # it would lower the dtype of the products
            return _attend(inputs, mask)
    return _attend(inputs, mask)


def _each(inputs: Inputs, mask: Mask) -> tuple[Tensor, Tensor]:
    """Computes each of the packed grids on its own."""
    assert inputs.grids is not None
    rows, heads = inputs.query, inputs.query.shape[-2]
    outs = [rows[:0, :, :1].expand(0, heads, inputs.value.shape[-1])]  # for no grids
    lses = [rows.new_empty((0, heads), dtype=accumulate_dtype(rows.dtype))]
    row = key_row = 0
    for number, (space, key_space) in enumerate(inputs.grids.spaces()):
        end, key_end = row + math.prod(space), key_row + math.prod(key_space)
        of_grid = _of_grid(inputs, number, slice(row, end), slice(key_row, key_end))
        query, key, value = (
            t.reshape(1, *sizes, *t.shape[1:])
            for t, sizes in zip(of_grid[:3], (space, key_space, key_space), strict=True)
        )
        out, lse = attend(of_grid._replace(query=query, key=key, value=value), mask)
        outs.append(out.flatten(0, -3))
        lses.append(lse.flatten(0, -2))
        row, key_row = end, key_end
    return torch.cat(outs), torch.cat(lses)


def _of_grid(inputs: Inputs, number: int, rows: slice, key_rows: slice) -> Inputs:
    """Returns the tensors of one grid, its tokens without their axes."""

    def entry(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[number : number + 1]

    slopes = inputs.alibi_slopes
    return inputs._replace(
        query=inputs.query[rows],
        key=inputs.key[key_rows],
        value=inputs.value[key_rows],
        key_range=entry(inputs.key_range),
        extra_key=entry(inputs.extra_key),
        extra_value=entry(inputs.extra_value),
        extra_range=entry(inputs.extra_range),
        alibi_slopes=entry(slopes) if slopes is not None and slopes.dim() == 2 else slopes,
        grids=None,
    )


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
    added = _added(inputs, mask, like, spaces)
    if inputs.extra_key is not None and inputs.extra_value is not None:
        extra_key, extra_value = (t.transpose(1, 2) for t in (inputs.extra_key, inputs.extra_value))
        extra = extra_key.shape[2]
        added = None if added is None else torch.nn.functional.pad(added, (0, extra))
        inside = allowed.new_ones((1, 1, 1, extra))
        if inputs.extra_range is not None:
            inside = _present(inputs.extra_range[:, None], (extra,))[:, None, None]
            extra_key, extra_value = (
                t.masked_fill(~inside.mT, 0) for t in (extra_key, extra_value)
            )
        samples = len(inside) if len(allowed) == 1 else len(allowed)
        sizes = (samples, 1, allowed.shape[2], -1)
        allowed = torch.cat([allowed.expand(sizes), inside.expand(sizes)], dim=-1)
        key, value = torch.cat([key, extra_key], dim=2), torch.cat([value, extra_value], dim=2)
    key, value = (t.to(exact).repeat_interleave(group, dim=1) for t in (key, value))
    scores = (_heads_first(query, mask.rank).to(exact) @ key.mT) * inputs.scale
    if inputs.softcap is not None:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    if added is not None:
        scores = scores + added
    scores = torch.where(allowed, scores, float("-inf"))
    if inputs.sink is not None:
        column = inputs.sink.to(exact).view(1, query.shape[-2], 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
        value = torch.nn.functional.pad(value, (0, 0, 0, 1))
    weights, lse = softmax(scores)
    rows = query.shape[:-1]
    out, lse = (
        t.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        for t in ((weights @ value).to(query.dtype), lse)
    )
    return out.view(*rows, value.shape[-1]), lse.view(rows)


def _added(
    inputs: Inputs, mask: Mask, like: Tensor, spaces: Sequence[Sequence[int]]
) -> Tensor | None:
    """Returns what is added to the scores of the grid's keys, `[1 or B, H, Nq, Nk]`."""
    exact = accumulate_dtype(inputs.query.dtype)
    added = None
    if inputs.relative_bias is not None:
        entries = ENTRIES(like, mask.code(), *spaces)
        table = inputs.relative_bias.to(exact).flatten(1)
        added = table.index_select(1, entries.flatten()).unflatten(1, entries.shape)[None]
    if inputs.alibi_slopes is not None:
        if not any(is_symbolic(length) for space in spaces for length in space):
            biases.check_slopes(mask, geometry.bind(mask, spaces[0], spaces[1]))
        (queries,), (keys,) = spaces
        spec = mask.axes[0]
        first = spec.offset + (keys - queries if spec.align == "bottom-right" else 0)
        p, j = (torch.arange(n, device=like.device, dtype=exact) for n in (queries, keys))
        distance = (p[:, None] + first - j).abs()
        slopes = inputs.alibi_slopes.to(exact).reshape(-1, inputs.query.shape[-2], 1, 1)
        linear = slopes * -distance
        added = linear if added is None else added + linear
    return added


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
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

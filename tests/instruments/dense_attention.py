"""Masked attention by its definition, in plain float64, and the rule that judges values.

Nothing here comes from the package: weights are exponentials over a boolean matrix, divided by
their sum. Autograd through it gives the gradients that backends are judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor


def inside(key_range: Tensor, space: Sequence[int]) -> Tensor:
    """bool [B, prod(space)] on key_range's device: keys with all coordinates in [start, stop)."""
    places = torch.tensor(list(product(*(range(length) for length in space))))
    places = places.to(key_range.device)[None].long()  # [1, keys, rank]
    start, stop = key_range.long()[:, None].unbind(-1)  # [B, 1, rank]
    return ((start <= places) & (places < stop)).all(dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_range: Tensor | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    entries: Tensor | None = None,
    distances: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of query [B, *space, H, D] under bool `allowed` [Nq, Nk]; `entries` and
    `distances` of the same shape tell what a pair reads of the table, and how far apart it is.
    """
    batch, heads, key_heads = query.shape[0], query.shape[-2], key.shape[-2]
    flat_query, flat_key, flat_value = (t.flatten(1, -3) for t in (query, key, value))
    reads = allowed.expand(batch, -1, -1)
    if key_range is not None:
        present = inside(key_range, key.shape[1:-2])
        reads = reads & present[:, None, :]
        flat_key, flat_value = (
            torch.where(present[:, :, None, None], t, 0.0) for t in (flat_key, flat_value)
        )
    if extra_key is not None and extra_value is not None:
        every = reads.new_ones((batch, flat_query.shape[1], extra_key.shape[1]))
        if extra_range is not None:
            present = inside(extra_range[:, None], extra_key.shape[1:2])
            every = every & present[:, None, :]
            extra_key, extra_value = (
                torch.where(present[:, :, None, None], t, 0.0) for t in (extra_key, extra_value)
            )
        reads = torch.cat([reads, every], dim=2)
        flat_key = torch.cat([flat_key, extra_key], dim=1)
        flat_value = torch.cat([flat_value, extra_value], dim=1)
    group, own = heads // key_heads, allowed.shape[1]
    flat_key, flat_value = (t.repeat_interleave(group, dim=2) for t in (flat_key, flat_value))
    scores = torch.einsum("bqhd,bkhd->bhqk", flat_query, flat_key)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores, extra = scores[..., :own], scores[..., own:]
    if relative_bias is not None:
        scores = scores + relative_bias.flatten(1)[:, entries]
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[..., None, None].to(scores.dtype) * distances
    out, total = rows(torch.cat([scores, extra], dim=3), reads[:, None], flat_value, sink)
    out = out.reshape(*query.shape[:-1], value.shape[-1])
    return out, total.transpose(1, 2).reshape(query.shape[:-1])


def rows(
    scores: Tensor, reads: Tensor, value: Tensor, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores [B, H, Nq, Nk], reads [B, 1, Nq, Nk], value [B, Nk, H, Dv]: output [B, Nq, H, Dv],
    logsumexp [B, H, Nq].
    """
    logit = None if sink is None else sink[:, None, None]
    none = scores.new_full((*scores.shape[:3], 1), float("-inf"))
    known = torch.cat([scores.masked_fill(~reads, float("-inf")), none], dim=3)
    if logit is not None:
        known = torch.cat([known, logit.expand(none.shape)], dim=3)
    largest = known.detach().amax(dim=3, keepdim=True)
    largest = torch.where(largest.isinf(), torch.zeros_like(largest), largest)
    weights = torch.where(reads, scores - largest, float("-inf")).exp()
    total = weights.sum(dim=3, keepdim=True)
    if logit is not None:
        total = total + (logit - largest).exp()
    empty = total == 0
    filled = torch.where(empty, 1.0, total)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, value) / filled.transpose(1, 2)
    return out, torch.where(empty, float("-inf"), largest + filled.log())[..., 0]


def largest(tensor: Tensor) -> float:
    return tensor.detach().abs().max().item() if tensor.numel() else 0.0


def score_gradients(
    inputs: dict[str, Tensor], pairs: dict[str, Tensor], grad_out: Tensor,
    grad_lse: Tensor | None, numbers: dict[str, float],
) -> dict[str, float]:  # fmt: skip
    """The size of what gradients add up: P x (|dP| + |delta| + |dlse|) x |q| or |k|, P x |dO|.

    These sums cancel, so their rounding is a matter of their terms, not of their result. `pairs`
    are the arguments `[Nq, Nk]` of `attend`.
    """
    allowed = pairs["allowed"]
    with torch.no_grad():
        fixed = {name: t.detach() for name, t in inputs.items()}
        out, lse = attend(**fixed, **pairs, **numbers)
        present = allowed.new_ones(fixed["key"].shape[:-2]).flatten(1)
        if "key_range" in fixed:
            present = inside(fixed["key_range"], fixed["key"].shape[1:-2])
        key, value = (
            torch.where(present[:, :, None, None], fixed[name].flatten(1, -3), 0.0)
            for name in ("key", "value")
        )
        present = present.expand(len(key), -1)
        if "extra_key" in fixed:
            inside_extra = present.new_ones((len(key), fixed["extra_key"].shape[1]))
            if "extra_range" in fixed:
                inside_extra = inside(fixed["extra_range"][:, None], fixed["extra_key"].shape[1:2])
            present = torch.cat([present, inside_extra], dim=1)
            extra_key, extra_value = (
                torch.where(inside_extra[:, :, None, None], fixed[name], 0.0)
                for name in ("extra_key", "extra_value")
            )
            key = torch.cat([key, extra_key], dim=1)
            value = torch.cat([value, extra_value], dim=1)
        heads = out.shape[-2]
        key, value = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (key, value))
        query, out, upward = (t.flatten(1, -3) for t in (fixed["query"], out, grad_out))
        delta = (out * upward).abs().sum(-1)
        if grad_lse is not None:
            delta = delta + grad_lse.flatten(1, -2).abs()
        scale = numbers.get("scale", query.shape[-1] ** -0.5)
        score = torch.einsum("bqhd,bkhd->bqhk", query, key) * scale
        if "softcap" in numbers:
            score = numbers["softcap"] * torch.tanh(score / numbers["softcap"])
        own = allowed.shape[1]
        reads = present[:, None] & torch.nn.functional.pad(
            allowed, (0, key.shape[1] - own), value=True
        )
        if "relative_bias" in fixed:
            table = fixed["relative_bias"].flatten(1)[:, pairs["entries"]]
            score[..., :own] += table.transpose(0, 1)
        if "alibi_slopes" in fixed:
            slopes = fixed["alibi_slopes"].reshape(-1, 1, heads, 1).to(score.dtype)
            score[..., :own] -= slopes * pairs["distances"][:, None]
        total = lse.flatten(1, -2)
        total = total.masked_fill(total.isinf(), 0.0)
        weight = torch.where(reads[:, :, None], score - total[..., None], float("-inf")).exp()
        size = torch.einsum("bqhd,bkhd->bqhk", upward.abs(), value.abs()) + delta[..., None]
        size = weight * size
        by_pair = size[..., :own].sum(0).movedim(1, 0)  # [H, Nq, Nk]
        size = size * abs(scale)
        of_keys = largest(torch.einsum("bqhk,bqhd->bkhd", size, query.abs()))
        of_values = torch.einsum("bqhk,bqhd->bkhd", weight, upward.abs())
        sizes = {
            "dquery": largest(torch.einsum("bqhk,bkhd->bqhd", size, key.abs())),
            "dkey": of_keys,
            "dextra_key": of_keys,
            "dvalue": largest(of_values[:, :own]),
            "dextra_value": largest(of_values[:, own:]),
        }
        if "relative_bias" in fixed:
            table = torch.zeros_like(fixed["relative_bias"]).flatten(1)
            sizes["drelative_bias"] = largest(
                table.index_add(1, pairs["entries"].flatten(), by_pair.flatten(1))
            )
        if "sink" in fixed:
            share = (fixed["sink"] - total).exp() * delta
            sizes["dsink"] = largest(share.flatten(0, -2).sum(0))
        return sizes


def judge(
    name: str, found: Tensor, low: Tensor, exact: Tensor, eps: float, terms: float = 0.0
) -> None:
    """max|found - exact| <= 2 * (max|low - exact| + eps * max|exact|), and all of it finite.

    Where `exact` is a sum that cancels, `terms` is the size of what it adds up and replaces
    max|exact|. A logsumexp of -inf must be -inf in both.
    """
    assert found.shape == exact.shape, f"{name}: {list(found.shape)}, not {list(exact.shape)}"
    found, low = found.detach().double(), low.detach().double()
    exact = exact.detach()
    none = exact == float("-inf")
    assert torch.equal(found == float("-inf"), none), f"{name}: -inf in other places"
    found, low, exact = (t.masked_fill(none, 0) for t in (found, low, exact))
    assert found.isfinite().all(), f"{name} is not finite"
    error, known = largest(found - exact), largest(low - exact)
    bound = 2 * (known + eps * max(largest(exact), terms))
    assert error <= bound, f"{name}: off by {error:.3g}, allowed {bound:.3g}"

"""The functions of flash-attn by their documentation, dense and in plain torch.

Query i of Nq sees keys `[i + Nk - Nq - left, i + Nk - Nq + right]` of Nk, a negative side has no
limit, `causal` sets right to 0, and ALiBi adds `-slope * |i + Nk - Nq - j|`. Nothing is imported
from the package. Every function takes the arguments that models pass to flash-attn 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Attend = Callable[..., tuple[Tensor, Tensor]]  # of one batch: output, logsumexp [B, H, N]


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: tuple[int, int],
    softcap: float, slopes: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output `[B, N, H, D]` and logsumexp `[B, H, N]`."""
    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    left, right = window[0], 0 if causal else window[1]
    repeated = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (key, value))
    key, value = repeated
    scores = torch.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(queries)[:, None] + keys - queries
    steps = torch.arange(keys) - position
    if slopes is not None:
        scores = scores - torch.atleast_2d(slopes)[..., None, None] * steps.abs()
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if left >= 0:
        hidden |= steps < -left
    if right >= 0:
        hidden |= steps > right
    scores = scores.masked_fill(hidden, -torch.inf)
    out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1).nan_to_num(0), value)
    return out, scores.logsumexp(-1)


def functions(attend: Attend = attend) -> dict[str, Any]:
    """`flash_attn_func`, the packed, varlen and cache ones, around one definition of attention."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, causal: bool = False,
        window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
        alibi_slopes: Tensor | None = None, return_attn_probs: bool = False,
    ) -> Any:  # fmt: skip
        named = {"causal": causal, "window": window_size, "softcap": softcap}
        out, lse = attend(q, k, v, **named, slopes=alibi_slopes)
        return (out, lse, None) if return_attn_probs else out

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, **options: Any,
    ) -> Tensor:  # fmt: skip
        assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
        assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
        sizes = [cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
        parts = (t.split(size) for t, size in zip((q, k, v), sizes, strict=True))
        alone = ([t[None] for t in part] for part in parts)
        return torch.cat([flash_attn_func(*one, **options)[0] for one in zip(*alone, strict=True)])

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None,
        v: Tensor | None = None, *, cache_seqlens: Any, **options: Any,
    ) -> Tensor:  # fmt: skip
        lengths = torch.as_tensor(cache_seqlens).expand(len(q)).tolist()
        rows = []
        for n, length in enumerate(lengths):
            if k is not None and v is not None:
                new = k.shape[1]
                k_cache[n, length : length + new] = k[n]
                v_cache[n, length : length + new] = v[n]
                length += new
            cached = (t[n : n + 1, :length] for t in (k_cache, v_cache))
            rows.append(flash_attn_func(q[n : n + 1], *cached, **options))
        return torch.cat(rows)

    return {
        f.__name__: f for f in (flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)
    }

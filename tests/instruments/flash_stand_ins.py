"""Modules that replace Flash providers: the providers' own signatures, computed densely.

Their masks come from the host code of `flash_oracle`, their layouts, signs and refusals from the
providers: what an adapter gets wrong shows as a wrong number or an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flash_oracle
import torch
from torch import Tensor

Arrays = tuple[Tensor, Tensor, Tensor]


def check(tensors: Arrays, scale: float) -> None:
    sizes = {t.shape[-1] for t in tensors}
    assert len(sizes) == 1, sizes
    assert sizes.pop() % 8 == 0
    assert all(t.stride(-1) == 1 for t in tensors)
    assert scale > 0


def scores(
    tensors: Arrays, allowed: Any, scale: float, softcap: float, added: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Scores `[B, H, N, M]` of tensors `[B, N, H, D]`, and the slope of their cap."""
    query, key = (t.transpose(1, 2).double() for t in tensors[:2])
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scaled = query @ key.mT * scale
    slope = torch.ones_like(scaled)
    if softcap:
        slope = 1 - torch.tanh(scaled / softcap) ** 2
        scaled = softcap * torch.tanh(scaled / softcap)
    scaled = scaled + added
    return scaled.masked_fill(~torch.from_numpy(allowed), float("-inf")), slope


def alibi(slopes: Tensor | None, tensors: Arrays, at: int | None, *window: Any) -> Tensor | float:
    """What slopes add to scores: those of sequence `at`, or of all samples of a dense call."""
    if slopes is None:
        return 0.0
    samples, rows, heads = tensors[0].shape[:3]
    assert slopes.dtype == torch.float32
    assert slopes.stride(-1) == 1
    assert slopes.shape[-1] == heads
    if at is None:
        assert slopes.dim() == 1 or len(slopes) == samples
    elif slopes.dim() == 2:
        slopes = slopes[at]
    added = torch.from_numpy(flash_oracle.flash2_added(rows, tensors[1].shape[1], *window))
    return torch.atleast_2d(slopes)[..., None, None].double() * added


def forward(
    tensors: Arrays, allowed: Any, scale: float, softcap: float, empty: float,
    added: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output `[B, N, H, D]` and logsumexp `[B, H, N]`, `empty` for rows without keys."""
    check(tensors, scale)
    scaled, _ = scores(tensors, allowed, scale, softcap, added)
    lse = scaled.logsumexp(-1)
    value = tensors[2].transpose(1, 2).double()
    value = value.repeat_interleave(scaled.shape[1] // value.shape[1], dim=1)
    out = torch.softmax(scaled, -1).nan_to_num(0) @ value
    out = out.transpose(1, 2).contiguous().to(tensors[0].dtype)
    return out, lse.masked_fill(lse == float("-inf"), empty).to(tensors[0].dtype)


def backward(
    tensors: Arrays, rows: tuple[Tensor, Tensor, Tensor], allowed: Any, scale: float,
    softcap: float, empty: float, grad_lse: Tensor | None = None, added: Tensor | float = 0.0,
) -> Arrays:  # fmt: skip
    """Gradients from grad_out, out `[B, N, H, D]` and lse `[B, H, N]`."""
    check(tensors, scale)
    grad_out, out, lse = rows
    assert grad_out.shape == out.shape == tensors[0].shape
    scaled, slope = scores(tensors, allowed, scale, softcap, added)
    assert lse.is_contiguous()
    assert lse.shape == scaled.shape[:3]
    nothing = torch.from_numpy(~allowed.any(1)).expand_as(lse)
    assert (lse[nothing] != -empty).all()
    weights = (scaled - lse.double()[..., None]).exp().nan_to_num(0)
    group = scaled.shape[1] // tensors[1].shape[2]
    query, key, value = (t.transpose(1, 2).double() for t in tensors)
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    upward = grad_out.transpose(1, 2).double()
    delta = (upward * out.transpose(1, 2).double()).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    grad = weights * (upward @ value.mT - delta[..., None]) * slope * scale
    parts = (grad @ key, grad.mT @ query, weights.mT @ upward)
    parts = (parts[0], *(t.unflatten(1, (-1, group)).sum(2) for t in parts[1:]))
    query, key, value = (t.transpose(1, 2).to(tensors[0].dtype) for t in parts)
    return query, key, value


def sequences(
    tensors: Arrays, starts: tuple[Tensor, Tensor]
) -> Iterator[tuple[slice, slice, Arrays]]:
    """The sequences of a packed batch that have queries, each as a batch of one."""
    for start in starts:
        assert start.dtype == torch.int32
        assert start.is_contiguous()
        assert (start.diff() >= 0).all()
    assert len(starts[0]) == len(starts[1])
    assert [int(start[-1]) for start in starts] == [len(t) for t in tensors[:2]]
    bounds = (start.tolist() for start in starts)
    for at, to in zip(*(map(slice, start, start[1:]) for start in bounds), strict=True):
        query, key, value = (t[part][None] for t, part in zip(tensors, (at, to, to), strict=True))
        yield at, to, (query, key, value)


WRITTEN: list[Tensor] = []  # the outputs that kernels were given to write into


def written(out: Tensor, into: Tensor | None) -> Tensor:
    """The output, in the memory that was given."""
    if into is None:
        return out
    assert (into.shape, into.dtype, into.stride(-1)) == (out.shape, out.dtype, 1)
    WRITTEN.append(into)
    return into.copy_(out)


class Flash2Extension:
    """flash_attn_2_cuda 2.8: what its Python functions call, by position."""

    def fwd(
        self, q, k, v, out, alibi_slopes, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, return_softmax, generator, /,
    ):  # fmt: skip
        assert (dropout_p, return_softmax, generator) == (0.0, False, None)
        window = (window_size_left, window_size_right, causal)
        sloped = {"slopes": alibi_slopes is not None}
        allowed = flash_oracle.flash2(q.shape[1], k.shape[1], *window, **sloped)
        added = alibi(alibi_slopes, (q, k, v), None, *window)
        result, lse = forward((q, k, v), allowed, softmax_scale, softcap, float("inf"), added)
        return written(result, out), lse, None, None

    def varlen_fwd(
        self, q, k, v, out, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k, block_table,
        alibi_slopes, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, zero_tensors, causal,
        window_size_left, window_size_right, softcap, return_softmax, generator, /,
    ):  # fmt: skip
        assert (dropout_p, zero_tensors, return_softmax) == (0.0, False, False)
        unused = (seqused_k, leftpad_k, block_table, generator)
        assert all(one is None for one in unused)
        assert alibi_slopes is None or alibi_slopes.dim() == 1 or (
            len(alibi_slopes) == len(cu_seqlens_q) - 1
        )  # fmt: skip
        result, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
        every = sequences((q, k, v), (cu_seqlens_q, cu_seqlens_k))
        for number, (at, _, tensors) in enumerate(every):
            rows, keys = (t.shape[1] for t in tensors[:2])
            assert rows <= max_seqlen_q
            assert keys <= max_seqlen_k
            window = (
                window_size_left, window_size_right, causal, "varlen", max_seqlen_q, max_seqlen_k,
            )  # fmt: skip
            sloped = {"slopes": alibi_slopes is not None}
            allowed = flash_oracle.flash2(rows, keys, *window, **sloped)
            rest = (softmax_scale, softcap, float("inf"))
            added = alibi(alibi_slopes, tensors, number, *window)
            out_of, lse_of = forward(tensors, allowed, *rest, added)
            result[at], lse[:, at] = out_of[0], lse_of[0]
        swaps = max_seqlen_q == 1 and q.shape[1] > k.shape[1]
        swaps = swaps and window_size_left < 0 and window_size_right < 0 and alibi_slopes is None
        assert not (swaps and out is not None)  # it would not write there
        return written(result, out), lse, None, None


def cached(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, allowed: Any, scale: float, softcap: float,
    used: int, empty: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """flash_attn_with_kvcache: the first `used` keys, in whatever strides the cache has."""
    assert type(used) is int
    assert 0 < used <= k_cache.shape[1] == v_cache.shape[1]
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    return forward((q, k_cache[:, :used], v_cache[:, :used]), allowed, scale, softcap, empty)


class Flash2:
    """flash_attn.flash_attn_interface 2.8, and the meaning of torch's operator."""

    softcaps = True
    flash_attn_gpu = Flash2Extension()

    def flash_attn_with_kvcache(
        self, q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None,
        cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None,
        softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
    ):  # fmt: skip
        assert (k, v, return_softmax_lse) == (None, None, True)
        allowed = flash_oracle.flash2(
            q.shape[1], cache_seqlens, *window_size, causal, "kvcache", max_keys=k_cache.shape[1]
        )
        rest = (softmax_scale, softcap, cache_seqlens, float("inf"))
        return cached(q, k_cache, v_cache, allowed, *rest)

    def _flash_attn_backward(
        self, dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        window = (window_size_left, window_size_right, causal)
        sloped = {"slopes": alibi_slopes is not None}
        allowed = flash_oracle.flash2(q.shape[1], k.shape[1], *window, **sloped)
        rest = (softmax_scale, softcap, float("inf"))
        added = alibi(alibi_slopes, (q, k, v), None, *window)
        grads = backward((q, k, v), (dout, out, softmax_lse), allowed, *rest, added=added)
        for into, part in zip((dq, dk, dv), grads, strict=True):
            into.copy_(part)

    def _flash_attn_varlen_backward(
        self, dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert softmax_lse.is_contiguous()
        every = sequences((q, k, v), (cu_seqlens_q, cu_seqlens_k))
        for number, (at, to, tensors) in enumerate(every):
            rows = (dout[at][None], out[at][None], softmax_lse[:, at].contiguous()[None])
            window = (
                window_size_left, window_size_right, causal, "varlen", max_seqlen_q, max_seqlen_k,
            )  # fmt: skip
            sizes = [t.shape[1] for t in tensors[:2]]
            sloped = {"slopes": alibi_slopes is not None}
            allowed = flash_oracle.flash2(*sizes, *window, **sloped)
            rest = (softmax_scale, softcap, float("inf"))
            added = alibi(alibi_slopes, tensors, number, *window)
            grads = backward(tensors, rows, allowed, *rest, added=added)
            for into, part, place in zip((dq, dk, dv), grads, (at, to, to), strict=True):
                into[place] = part[0]


def aten_forward(
    q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
    scale=None, window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
    block_table=None, num_splits=None,
):  # fmt: skip
    """aten::_flash_attention_forward."""
    out, lse, *_ = aten_written(
        None, q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale,
        window_size_left, window_size_right, alibi_slopes,
    )  # fmt: skip
    none = torch.empty(0)
    return out, lse, none, none.clone(), none.clone()


def aten_forward_into(
    out, q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
    scale=None, window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
    block_table=None, num_splits=None,
):  # fmt: skip
    """aten::_flash_attention_forward_no_dropout_inplace."""
    _, lse, *_ = aten_written(
        out, q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale,
        window_size_left, window_size_right, alibi_slopes,
    )  # fmt: skip
    return lse


def aten_written(
    out, q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale, left, right,
    slopes,
):  # fmt: skip
    """Torch's copy of Flash 2, which has no softcap."""
    window, extension = (is_causal, left, right, 0.0, False, None), Flash2Extension()
    if cum_seq_q is None:
        assert (max_q, max_k) == (q.shape[1], k.shape[1])
        return extension.fwd(q, k, v, out, slopes, dropout_p, scale, *window)
    return extension.varlen_fwd(
        q, k, v, out, cum_seq_q, cum_seq_k, None, None, None, slopes, max_q, max_k, dropout_p,
        scale, False, *window,
    )  # fmt: skip


def aten_backward(
    grad_out, q, k, v, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
    rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    """aten::_flash_attention_backward."""
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v)]
    window = (is_causal, window_size_left, window_size_right, 0.0, None, False)
    rows = (grad_out, q, k, v, out, logsumexp, *grads)
    if not isinstance(cum_seq_q, Tensor):
        Flash2()._flash_attn_backward(*rows, dropout_p, scale, *window)
    else:
        Flash2()._flash_attn_varlen_backward(
            *rows, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, scale, *window
        )
    return tuple(grads)


FLASH3 = (
    "fwd(Tensor q, Tensor k, Tensor v, *, Tensor(out!)? out=None, float? softmax_scale=None, "
    "bool is_causal=False, int window_size_left=-1, int window_size_right=-1, float softcap=0., "
    "int num_splits=0) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)


def flash3_forward(
    q, k, v, *, out=None, softmax_scale=None, is_causal=False, window_size_left=-1,
    window_size_right=-1, softcap=0.0, num_splits=0,
):  # fmt: skip
    """flash_attn_3::fwd, with those of its arguments that are used here."""
    assert num_splits == 1
    allowed = flash_oracle.flash3(
        q.shape[1], k.shape[1], window_size_left, window_size_right, is_causal
    )
    result, lse = forward((q, k, v), allowed, softmax_scale, softcap, float("-inf"))
    return written(result, out), lse, torch.empty(0), torch.empty(0)


class Flash3:
    """flash_attn_interface of flash-attn 3."""

    def flash_attn_with_kvcache(
        self, q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
        cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
        cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
        q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
        return_softmax_lse=False,
    ):  # fmt: skip
        assert (k, v, return_softmax_lse) == (None, None, True)
        allowed = flash_oracle.flash3(
            q.shape[1], cache_seqlens, *window_size, causal, k_cache.shape[1]
        )
        rest = (softmax_scale, softcap, cache_seqlens, float("-inf"))
        return *cached(q, k_cache, v_cache, allowed, *rest), None, None

    def _flash_attn_backward(
        self, dout, q, k, v, out, softmax_lse, *, dq, dk, dv, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False,
    ):  # fmt: skip
        allowed = flash_oracle.flash3(
            q.shape[1], k.shape[1], window_size_left, window_size_right, is_causal
        )
        rows = (dout, out, softmax_lse)
        grads = backward((q, k, v), rows, allowed, softmax_scale, softcap, float("-inf"))
        for into, part in zip((dq, dk, dv), grads, strict=True):
            into.copy_(part)


class Flash4:
    """flash_attn.cute.interface of flash-attn 4."""

    def _flash_attn_fwd(
        self, q, k, v, *, softmax_scale=None, causal=False, softcap=None, window_size_left=None,
        window_size_right=None, return_lse=False, out=None,
    ):  # fmt: skip
        assert return_lse
        assert softcap is None or softcap > 0
        allowed = flash_oracle.flash4(
            q.shape[1], k.shape[1], window_size_left, window_size_right, causal
        )
        result, lse = forward((q, k, v), allowed, softmax_scale, softcap or 0.0, float("-inf"))
        return written(result, out), lse

    def _flash_attn_bwd(
        self, q, k, v, out, dout, lse, *, softmax_scale=None, causal=False, softcap=0.0,
        window_size_left=None, window_size_right=None, deterministic=False, dlse=None,
    ):  # fmt: skip
        allowed = flash_oracle.flash4(
            q.shape[1], k.shape[1], window_size_left, window_size_right, causal
        )
        rows = (dout, out, lse)
        return backward((q, k, v), rows, allowed, softmax_scale, softcap, float("-inf"), dlse)

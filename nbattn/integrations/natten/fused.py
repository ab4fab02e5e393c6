"""NATTEN's fused functions of 0.21 and of 0.17, run by nbattn's planner.

Layout `[B, *space, H, D]`. The generations differ in the argument after `kernel_size`: stride in
0.21, dilation in 0.17. A call does not show which is meant, so each generation has its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from nbattn import functional
from nbattn.errors import InputError, counted
from nbattn.integrations.natten import generations, parameters
from nbattn.integrations.natten.parameters import Causal, Sizes
from nbattn.mask import Mask

Result = Tensor | tuple[Tensor, Tensor]
# Replaces packed sequences.
PER_SEQUENCE = (
    "torch.cat([natten.functional.attention(q, k, v) for q, k, v in "
    "zip(query.split(seqlens_Q.tolist(), 1), key.split(seqlens_KV.tolist(), 1), "
    "value.split(seqlens_KV.tolist(), 1))], 1)."
)


def neighborhood_attention_generic(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = 1,
    dilation: Sizes | None = 1,
    is_causal: Causal = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: object = None,
    kv_tile_shape: object = None,
    backward_q_tile_shape: object = None,
    backward_kv_tile_shape: object = None,
    backward_kv_splits: object = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: object = None,
    torch_compile: bool = False,
    return_lse: bool = False,
    try_fuse_additional_kv: bool = False,
) -> Result:
    """Neighborhood attention of one to three axes, as in NATTEN 0.21; always differentiable.

    Args:
        query: `[B, *space, H, D]`.
        key: `[B, *space, Hk, D]`, Hk a divisor of H; value: `[B, *space, Hk, Dv]`.
        kernel_size, stride, dilation, is_causal: per axis, or one value for all.
        scale: factor of the scores; default `D ** -0.5`; 0.0 means 0.
        additional_keys, additional_values: `[B, E, Hk, D | Dv]`; every query attends to them.
        attention_kwargs: tuning of the attention over them; other arguments are an error.
        backend: None, or a backend of nbattn; the names of NATTEN's kernels are an error.
        return_lse: whether to return the logsumexp `[B, *space, H]` as well, differentiable.

    The other arguments only tune NATTEN's kernels; they have no effect.

    Raises:
        InputError, MaskError, BackendError: an argument does not fit, also by NATTEN's own rules.

    >>> import torch
    >>> query = torch.randn(1, 16, 16, 4, 32)
    >>> neighborhood_attention_generic(query, query, query, 7, dilation=2).shape
    torch.Size([1, 16, 16, 4, 32])
    """
    generations.check_places(dilation, is_causal)
    parameters.check_tuning(attention_kwargs)
    parameters.check_tensors(query=query, key=key, value=value)
    parameters.check_additional(additional_keys, additional_values)
    window: dict[str, Any] = {"stride": stride, "dilation": dilation, "is_causal": is_causal}
    more = _code(scale, extra_key=additional_keys, extra_value=additional_values)
    _check_spaces(query, key, kernel_size, more, **window)
    mask = parameters.window(query.shape[1:-2], kernel_size, **window, more=more)
    return functional.attention(
        query,
        key,
        value,
        mask,
        scale=scale,
        extra_key=additional_keys,
        extra_value=additional_values,
        backend=parameters.backend_name(backend),
        return_lse=return_lse,
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: Tensor | None = None,  # noqa: N803
    seqlens_KV: Tensor | None = None,  # noqa: N803
    cumulative_seqlen_Q: Tensor | None = None,  # noqa: N803
    cumulative_seqlen_KV: Tensor | None = None,  # noqa: N803
    max_seqlen_Q: int | None = None,  # noqa: N803
    max_seqlen_KV: int | None = None,  # noqa: N803
    backend: str | None = None,
    q_tile_size: object = None,
    kv_tile_size: object = None,
    backward_q_tile_size: object = None,
    backward_kv_tile_size: object = None,
    backward_kv_splits: object = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: object = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Result:
    """Full or causal attention of sequences, as in NATTEN 0.21.

    Args:
        query: `[B, N, H, D]`; key `[B, M, Hk, D]`; value `[B, M, Hk, Dv]`.
        is_causal: query i attends to keys up to i, also if N and M differ.
        scale, backend, return_lse: as in `neighborhood_attention_generic`.
        seqlens_Q, seqlens_KV, cumulative_seqlen_Q, cumulative_seqlen_KV: packed sequences, which
            are an error, as max_seqlen_Q and max_seqlen_KV are.

    The other arguments only tune NATTEN's kernels; they have no effect.

    Raises:
        InputError, BackendError: an argument does not fit.

    >>> import torch
    >>> query = torch.randn(1, 16, 4, 32)
    >>> attention(query, query, query, is_causal=True).shape
    torch.Size([1, 16, 4, 32])
    """
    packed = {
        "seqlens_Q": seqlens_Q,
        "seqlens_KV": seqlens_KV,
        "cumulative_seqlen_Q": cumulative_seqlen_Q,
        "cumulative_seqlen_KV": cumulative_seqlen_KV,
        "max_seqlen_Q": max_seqlen_Q,
        "max_seqlen_KV": max_seqlen_KV,
    }
    for name, argument in packed.items():
        if argument is not None:
            raise InputError(
                f"{name} is given: packed sequences are not supported.",
                PER_SEQUENCE,
            )
    _check_not_nested("attention", query, key, value)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        parameters.check_rank(name, tensor, 1, "[B, N, H, D]")
    return functional.attention(
        query,
        key,
        value,
        Mask.causal("top-left") if is_causal else Mask.full(),
        scale=scale,
        backend=parameters.backend_name(backend),
        return_lse=return_lse,
    )


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """Calls `nbattn.merge`, whose gradients are exact; the switches have no effect.

    >>> import torch
    >>> query = torch.randn(1, 16, 4, 32)
    >>> parts = [attention(query, k, k, return_lse=True) for k in (query[:, :4], query[:, 4:])]
    >>> out, lse = merge_attentions(*zip(*parts))
    >>> torch.allclose(out, attention(query, query, query), atol=1e-5)
    True
    """
    return functional.merge(outputs, lse_tensors)


def older(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    is_causal: Causal = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    xformers_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Neighborhood attention as in NATTEN 0.17: dilation after kernel_size, and a bias table.

    Args:
        rpb: `[H, 2 K - 1]` per axis: bias by the step from query to key, plus K - 1; also with
            causal axes, where the entries of later keys are not read.
        xformers_kwargs: None or empty.

    The other arguments are those of `neighborhood_attention_generic`.
    """
    if xformers_kwargs:
        raise InputError(
            f"xformers_kwargs={dict(xformers_kwargs)!r} is not supported.",
            "xformers_kwargs=None.",
        )
    parameters.check_tensors(query=query, key=key, value=value)
    parameters.check_additional(additional_keys, additional_values)
    window: dict[str, Any] = {"dilation": dilation, "is_causal": is_causal}
    more = _code(scale, relative_bias=rpb, extra_key=additional_keys, extra_value=additional_values)
    _check_spaces(query, key, kernel_size, more, **window)
    mask = parameters.window(query.shape[1:-2], kernel_size, **window, more=more)
    if rpb is not None:
        parameters.check_table(rpb, query, query.shape[-2], kernel_size)
    out = functional.attention(
        query,
        key,
        value,
        mask,
        scale=scale,
        relative_bias=rpb,
        extra_key=additional_keys,
        extra_value=additional_values,
    )
    assert isinstance(out, Tensor)
    return out


_NAMES = {
    "relative_bias": "rpb",
    "extra_key": "additional_keys",
    "extra_value": "additional_values",
}


def _code(scale: float | None, **tensors: object) -> str:
    """The code of a call's options as those of `nbattn.attention`, so that a fix keeps them."""
    given = [name for name, tensor in tensors.items() if tensor is not None]
    of_scale = "" if scale is None else f", scale={scale}"
    return of_scale + "".join(f", {name}={_NAMES[name]}" for name in given)


def _check_spaces(query: Tensor, key: Tensor, kernel_size: Sizes, more: str, **window: Any) -> None:
    """Checks that queries and keys have one space."""
    if query.shape[1:-2] != key.shape[1:-2]:
        mask = parameters.window((1 << 40,) * (query.dim() - 3), kernel_size, **window)
        # a table has no entries for queries beside the keys
        beyond = any(n > m for n, m in zip(query.shape[1:-2], key.shape[1:-2], strict=True))
        fix = f"nbattn.attention(query, key, value, {_aligned(mask)}{more})."
        raise InputError(
            f"query is {list(query.shape)}, key {list(key.shape)}: their spaces differ.",
            "" if beyond and "relative_bias" in more else fix,
        )


def _aligned(mask: Mask) -> str:
    """The code of a mask for spaces that differ, where positions need an alignment."""
    axes = (f"nbattn.{replace(axis, align='top-left')!r}" for axis in mask.axes)
    return f"nbattn.Mask({', '.join(axes)})"


def _check_not_nested(call: str, *tensors: object) -> None:
    window = "" if call == "attention" else ", kernel_size=3"
    parameters.check_not_nested(
        f"[natten.functional.{call}(q[None], k[None], v[None]{window})[0] for q, k, v in "
        "zip(query.unbind(), key.unbind(), value.unbind())].",
        *tensors,
    )


def _of_rank(function: Callable[..., Any], rank: int, generation: str) -> Callable[..., Any]:
    """Makes the function for spaces of this many axes."""
    layout = f"[B, {', '.join('XYZ'[:rank])}, H, D]"

    def ranked(query: Tensor, *arguments: Any, **named: Any) -> Any:
        _check_not_nested(f"na{rank}d", query, *arguments[:2])
        parameters.check_rank("query", query, rank, layout)
        return call(query, *arguments, **named)

    call = generations.checked(function)

    axes = counted(rank, "axis", "axes")
    ranked.__name__ = ranked.__qualname__ = f"na{rank}d"
    ranked.__doc__ = f"`fused.{function.__name__}` of {axes}, as in NATTEN {generation}."
    ranked.__wrapped__ = function  # pyright: ignore[reportFunctionMemberAccess]
    return ranked


na1d, na2d, na3d = (_of_rank(neighborhood_attention_generic, n, "0.21") for n in (1, 2, 3))
older_na1d, older_na2d, older_na3d = (_of_rank(older, n, "0.17") for n in (1, 2, 3))

"""Calls the Flash kernels on CUDA, forward and backward, all with one form of arguments: torch's
built-in, flash-attn 2, 3 and 4.

Written from the providers' sources; `tests/gpu/test_flash.py` tests the calls on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nbattn.backends.calls import Arrays, RowTensors
from nbattn.backends.flash import ranges, run
from nbattn.backends.flash import slopes as alibi
from nbattn.backends.flash.meaning import FlashArguments, Sequences
from nbattn.backends.flash.providers import padded
from nbattn.backends.inputs import Gradients, Inputs, rows_apart
from nbattn.errors import BackendError
from nbattn.grids import PackedGrids
from nbattn.program.program import Program

_VECTOR = 16  # bytes that one load instruction of the kernels reads
_WRITES = "_flash_attention_forward_no_dropout_inplace"


class Packed(NamedTuple):
    """The boundaries of a varlen call's sequences, int32 `[sequences + 1]`, and its `max_seqlen`
    arguments. A dense call has no boundaries.
    """

    query: Tensor | None
    key: Tensor | None
    max_query: int
    max_key: int


class KernelOptions(NamedTuple):
    """The arguments of a provider's kernel that are not tensors to compute with."""

    call: FlashArguments
    packed: Packed
    scale: float
    softcap: float
    slopes: Tensor | None = None

    @property
    def causal(self) -> bool:
        """The causal flag."""
        return self.call.window.causal

    @property
    def window(self) -> tuple[Any, Any]:
        """The sides (left, right), in the form that the provider takes."""
        return self.call.window.left, self.call.window.right


_Forward = Callable[[Arrays, KernelOptions, Tensor | None], tuple[Tensor, Tensor]]
_Backward = Callable[[Tensor, Arrays, Tensor, Tensor, Tensor | None, KernelOptions], Arrays]


@dataclass(frozen=True, slots=True)
class Kernels:
    """Runs each call with the kernels of the provider that the call names.

    Args:
        key_range: int32 `[B, rank, 2]`, for calls that are `ranged`.
        slopes: `[H]` or `[B, H]`, for calls with slopes.
    """

    key_range: Tensor | None = None
    slopes: Tensor | None = None

    def forward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes output `[B, N, H, Dv]` and logsumexp `[B, N, H]`."""
        value_dim = arrays[2].shape[-1]
        tensors, options = self._prepared(call, arrays, scale, softcap)
        written = None if into is None else _writable(into, tensors[0])
        call_forward, _ = _ENTRY_POINTS[call.provider]
        out, lse = call_forward(tensors, options, written)
        batch, rows = arrays[0].shape[:2]
        lse = _by_rows(lse, batch)
        # Flash 2 returns +inf for rows without keys
        lse = lse[:, :rows].masked_fill(lse[:, :rows] == float("inf"), float("-inf"))
        if into is not None and out is written:
            return into, lse
        out = out.unflatten(0, (batch, -1)) if out.dim() == 3 else out
        return out[..., :value_dim], lse

    def backward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Computes the gradients of q, k, v from the rows' final output and logsumexp."""
        tensors, options = self._prepared(call, arrays, scale, softcap)
        size = tensors[0].shape[-1]
        out, grad_out = (_sized(t, size) for t in (rows.out, rows.grad_out))
        lse = rows.lse
        if call.provider in ("aten", "fa2"):
            lse = lse.masked_fill(lse == float("-inf"), float("inf"))
        varlen = options.packed.query is not None
        lse, grad_lse = (None if t is None else _by_heads(t, varlen) for t in (lse, rows.grad_lse))
        if varlen:
            out, grad_out = out.flatten(0, 1), grad_out.flatten(0, 1)
        assert lse is not None
        _, call_backward = _ENTRY_POINTS[call.provider]
        grads = call_backward(grad_out, tensors, out, lse, grad_lse, options)
        query, key, value = (
            grad.reshape(*tensor.shape[:-1], size)[..., : tensor.shape[-1]]
            for grad, tensor in zip(grads, arrays, strict=True)
        )
        return query, key, value

    def _prepared(
        self, call: FlashArguments, arrays: Arrays, scale: float, softcap: float | None
    ) -> tuple[Arrays, KernelOptions]:
        """Tensors with head sizes and strides that the kernels take, and the other arguments. A
        varlen call gets all samples in one dimension.
        """
        size = padded(max(arrays[0].shape[-1], arrays[2].shape[-1]))
        query, key, value = (_sized(t, size) for t in arrays)
        rows, keys = query.shape[1], key.shape[1]
        packed = Packed(None, None, rows, keys)
        if call.entry == "varlen":
            window = call.window
            packed = Packed(
                *_boundaries(call, query, key, self.key_range),
                rows if window.max_queries is None else window.max_queries,
                keys if window.max_keys is None else window.max_keys,
            )
            query, key, value = (t.flatten(0, 1) for t in (query, key, value))
        slopes = None
        if call.window.slopes:
            assert self.slopes is not None
            slopes = alibi.of_sequences(call, self.slopes)
        return (query, key, value), KernelOptions(call, packed, scale, softcap or 0.0, slopes)


def _sized(tensor: Tensor, size: int) -> Tensor:
    """The tensor with heads padded with zeros to this size, in strides that kernels can load. Rows
    that overlap in memory are copied: their strides cannot describe a box for TMA loads.
    """
    if tensor.shape[-1] != size:
        return pad(tensor, (0, size - tensor.shape[-1]))
    unit = tensor.element_size()
    strides = (tensor.stride(n) for n in range(tensor.dim() - 1) if tensor.shape[n] > 1)
    whole = rows_apart(tensor) and all(stride * unit % _VECTOR == 0 for stride in strides)
    aligned = whole and tensor.data_ptr() % _VECTOR == 0
    return tensor if aligned else tensor.clone(memory_format=torch.contiguous_format)


def _writable(into: Tensor, query: Tensor) -> Tensor | None:
    """The rows `into` in the shape of the kernel's output, packed as the queries are; None if the
    kernel cannot write them, because of their dtype, head size or strides.
    """
    if into.dtype != query.dtype or _sized(into, query.shape[-1]) is not into:
        return None
    if query.dim() == into.dim():
        return into
    merged = into.shape[0] == 1 or into.stride(0) == into.shape[1] * into.stride(1)
    return into.flatten(0, 1) if merged else None


def _boundaries(
    call: FlashArguments, query: Tensor, key: Tensor, key_range: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The boundaries of the queries' and keys' sequences in a varlen call, int32."""
    if call.ranged:
        assert key_range is not None
        return ranges.boundaries(key_range, call.axis, query.shape[1], key.shape[1])
    if call.grids is not None:
        return _of_grids(call.grids, query.device)
    if call.runs:
        return _of_runs(call.runs, query.shape[0], query.device)
    query_boundaries, key_boundaries = (
        torch.arange(0, t.shape[0] * t.shape[1] + 1, t.shape[1], dtype=torch.int32, device=t.device)
        for t in (query, key)
    )
    return query_boundaries, key_boundaries


@lru_cache(256)  # copying a list to a device blocks the host and cannot be captured in a CUDA graph
def _of_runs(
    runs: tuple[Sequences, ...], batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The boundaries of all samples' sequences, from the runs of one sample."""
    lengths = [(run.queries, run.keys) for run in runs for _ in range(run.times)] * batch
    at = torch.tensor([(0, 0), *lengths], dtype=torch.int32, device="cpu")
    at = at.cumsum(0, dtype=torch.int32)
    query, key = at.t().contiguous().to(device)
    return query, key


@lru_cache(256)
def _of_grids(packed: PackedGrids, device: torch.device) -> tuple[Tensor, Tensor]:
    """The boundaries of packed grids."""
    starts = (torch.from_numpy(side.starts).int() for side in (packed.query, packed.key))
    query, key = (side.to(device) for side in starts)
    return query, key


def _by_rows(lse: Tensor, batch: int) -> Tensor:
    """Returns logsumexps `[B, H, N]`, or `[H, B * N]` of a varlen call, as `[B, N, H]`."""
    if lse.dim() == 2:
        return lse.unflatten(1, (batch, -1)).permute(1, 2, 0)
    return lse.transpose(1, 2)


def _by_heads(rows: Tensor, varlen: bool) -> Tensor:
    """Returns `[B, N, H]` in the kernels' layout: `[B, H, N]`, or `[H, B * N]` of a varlen call."""
    if varlen:
        return rows.flatten(0, 1).t().contiguous()
    return rows.transpose(1, 2).contiguous()


# torch's built-in


def _aten_forward(
    tensors: Arrays, options: KernelOptions, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_built_in()
    packed, (left, right) = options.packed, options.window
    rest = (*tensors, *packed, 0.0, options.causal, False)
    named = {"scale": options.scale, "window_size_left": left, "window_size_right": right}
    named |= {"alibi_slopes": options.slopes}
    write: Any = getattr(torch.ops.aten, _WRITES, None)  # since torch 2.12
    if into is not None and write is not None:
        return into, write(into, *rest, **named)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(*rest, **named)
    return out, lse


def _aten_backward(
    grad_out: Tensor,
    tensors: Arrays,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    options: KernelOptions,
) -> Arrays:
    _check_built_in()
    packed, (left, right) = options.packed, options.window
    seed = torch.zeros(2, dtype=torch.uint64, device=out.device)
    return torch.ops.aten._flash_attention_backward(
        grad_out, *tensors, out, lse, *packed, 0.0, options.causal, seed, torch.empty_like(seed),
        scale=options.scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip


def _check_built_in() -> None:
    """Raises if another implementation replaced torch's Flash operator, which is Flash 2."""
    module: Any = import_module("torch.nn.attention")
    current = getattr(module, "current_flash_attention_impl", lambda: None)()
    if current is not None:
        raise BackendError(
            f"torch's Flash operator was replaced by {current}, whose windows may differ.",
            "torch.nn.attention.restore_flash_attention_impl(); or name the package: "
            'backend="flash:fa4"',
        )


# flash-attn 2


def _fa2_forward(
    tensors: Arrays, options: KernelOptions, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Calls the extension itself, since its Python functions take no output tensor to write."""
    module: Any = import_module("flash_attn.flash_attn_interface")
    if options.call.entry == "kvcache":
        return _cached(module, tensors, options)
    packed = options.packed
    rest = (options.causal, *options.window, options.softcap, False, None)
    if packed.query is None:
        out, lse, *_ = module.flash_attn_gpu.fwd(
            *tensors, into, options.slopes, 0.0, options.scale, *rest
        )  # fmt: skip
    else:
        out, lse, *_ = module.flash_attn_gpu.varlen_fwd(
            *tensors, into, packed.query, packed.key, None, None, None, options.slopes,
            packed.max_query, packed.max_key, 0.0, options.scale, False, *rest,
        )  # fmt: skip
    return out if into is None else into, lse


def _fa2_backward(
    grad_out: Tensor,
    tensors: Arrays,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    options: KernelOptions,
) -> Arrays:
    module: Any = import_module("flash_attn.flash_attn_interface")
    packed, (left, right) = options.packed, options.window
    grads = _like(tensors)
    named = {
        "dropout_p": 0.0,
        "softmax_scale": options.scale,
        "causal": options.causal,
        "window_size_left": left,
        "window_size_right": right,
        "softcap": options.softcap,
        "alibi_slopes": options.slopes,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    entry = module._flash_attn_backward
    if packed.query is not None:
        entry = module._flash_attn_varlen_backward
        named |= _varlen(packed)
    query, key, value = grads
    entry(grad_out, *tensors, out, lse, dq=query, dk=key, dv=value, **named)
    return grads


def _cached(module: Any, tensors: Arrays, options: KernelOptions) -> tuple[Tensor, Tensor]:
    """Calls the kv-cache entry of flash-attn 2 or 3 without new keys to append."""
    out, lse, *_ = module.flash_attn_with_kvcache(
        *tensors,
        cache_seqlens=options.call.window.used,
        softmax_scale=options.scale,
        causal=options.causal,
        window_size=options.window,
        softcap=options.softcap,
        return_softmax_lse=True,
    )
    return out, lse


def _varlen(packed: Packed) -> dict[str, Any]:
    return {
        "cu_seqlens_q": packed.query,
        "cu_seqlens_k": packed.key,
        "max_seqlen_q": packed.max_query,
        "max_seqlen_k": packed.max_key,
    }


def _like(tensors: Arrays) -> Arrays:
    query, key, value = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors
    )
    return query, key, value


# flash-attn 3


def _fa3_forward(
    tensors: Arrays, options: KernelOptions, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Calls the operator itself, since its Python function may not return the `out` that it got."""
    module = import_module("flash_attn_interface")
    if options.call.entry == "kvcache":
        return _cached(module, tensors, options)
    left, right = options.window
    out, lse, *_ = torch.ops.flash_attn_3.fwd(
        *tensors,
        out=into,
        softmax_scale=options.scale,
        is_causal=options.causal,
        window_size_left=left,
        window_size_right=right,
        softcap=options.softcap,
        num_splits=1,
    )
    return out if into is None else into, lse


def _fa3_backward(
    grad_out: Tensor,
    tensors: Arrays,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    options: KernelOptions,
) -> Arrays:
    module: Any = import_module("flash_attn_interface")
    left, right = options.window
    query, key, value = grads = _like(tensors)
    module._flash_attn_backward(
        grad_out,
        *tensors,
        out,
        lse,
        dq=query,
        dk=key,
        dv=value,
        softmax_scale=options.scale,
        is_causal=options.causal,
        window_size_left=left,
        window_size_right=right,
        softcap=options.softcap,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return grads


# flash-attn 4


def _fa4_forward(
    tensors: Arrays, options: KernelOptions, into: Tensor | None
) -> tuple[Tensor, Tensor]:
    module: Any = import_module("flash_attn.cute.interface")
    left, right = options.window
    out, lse, *_ = module._flash_attn_fwd(
        *tensors,
        softmax_scale=options.scale,
        causal=options.causal,
        window_size_left=left,
        window_size_right=right,
        softcap=options.softcap or None,
        return_lse=True,
        out=into,
    )
    return out if into is None else into, lse


def _fa4_backward(
    grad_out: Tensor,
    tensors: Arrays,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    options: KernelOptions,
) -> Arrays:
    module: Any = import_module("flash_attn.cute.interface")
    left, right = options.window
    query, key, value, *_ = module._flash_attn_bwd(
        *tensors,
        out,
        grad_out,
        lse,
        softmax_scale=options.scale,
        causal=options.causal,
        window_size_left=left,
        window_size_right=right,
        softcap=options.softcap,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **({} if grad_lse is None else {"dlse": grad_lse}),
    )
    return query, key, value


_ENTRY_POINTS: dict[str, tuple[_Forward, _Backward]] = {
    "aten": (_aten_forward, _aten_backward),
    "fa2": (_fa2_forward, _fa2_backward),
    "fa3": (_fa3_forward, _fa3_backward),
    "fa4": (_fa4_forward, _fa4_backward),
}


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor]:
    """Computes output and logsumexp of a program."""
    return run.forward(program, inputs, _kernels(inputs))


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients of a program."""
    return run.backward(program, inputs, _kernels(inputs), out, lse, grad_out, grad_lse)


def _kernels(inputs: Inputs) -> Kernels:
    return Kernels(inputs.key_range, inputs.alibi_slopes)

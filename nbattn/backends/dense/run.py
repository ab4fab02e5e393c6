"""Runs programs of torch's scaled_dot_product_attention calls: dense, top-left causal, or with the
mask as a matrix.

On the CPU it calls the kernel below autograd, which returns the logsumexp: extra keys and sinks can
be merged, and the backward reuses the forward's results. On other devices it calls the public
function, and the backward repeats it under autograd. On CUDA that function chooses a kernel itself,
the one that the plan names (`kernels.py`) unless the user's switches exclude it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nbattn.backends import calls
from nbattn.backends.calls import Arrays, RowTensors
from nbattn.backends.dense.meaning import DenseArguments, DenseMask, NoMask, TopLeftCausal
from nbattn.backends.inputs import Gradients, Inputs, rows_apart
from nbattn.program.program import ByIdentity, CallArguments, Program

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Sdpa:
    """SDPA as a kernel of `backends.calls`, on `[B, N, H, D]`."""

    def forward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output `[B, N, H, Dv]` and, on the CPU, the logsumexp `[B, N, H]`."""
        heads_first = _heads_first(arrays)
        if arrays[0].device.type != "cpu":
            return _public(arguments, heads_first, scale).transpose(1, 2), None
        out, lse = _kernel(arguments, heads_first, scale)
        return out.to(arrays[0].dtype).transpose(1, 2), lse.transpose(1, 2)

    def backward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Returns the gradients of q, k, v, in their shapes."""
        heads_first = _heads_first(arrays)
        grad_out = rows.grad_out.transpose(1, 2)
        if arrays[0].device.type != "cpu":
            return _heads_first(_public_backward(arguments, heads_first, scale, grad_out))
        out, lse = rows.out.transpose(1, 2), rows.lse.transpose(1, 2)
        return _heads_first(_kernel_backward(arguments, heads_first, scale, grad_out, out, lse))

    def without_mask(self, program: Program) -> CallArguments:
        """Returns the arguments of a call without a mask."""
        return NoMask()


_SDPA = Sdpa()


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the output and, on the CPU, the logsumexp of a program."""
    return calls.forward(program, inputs, _SDPA)


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Returns the gradients of a program."""
    return calls.backward(program, inputs, _SDPA, out, lse, grad_out, grad_lse)


def _heads_first(arrays: Arrays) -> Arrays:
    """Returns `[B, N, H, D]` as `[B, H, N, D]`, and the reverse."""
    query, key, value = arrays
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _kernel_arguments(
    arguments: CallArguments, arrays: Arrays, scale: float
) -> tuple[Arrays, dict[str, object]]:
    """Returns tensors in a dtype that the CPU kernel is fast in, and its named arguments."""
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    if query.dtype == torch.float16:
        query, key, value = query.float(), key.float(), value.float()
    query, key, value = _readable(query), _readable(key), _readable(value)
    if group > 1:
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    bias = None
    if isinstance(arguments, DenseMask):
        bias = _bias(ByIdentity(arguments), query.dtype)
    return (query, key, value), {"attn_mask": bias, "scale": scale}


def _readable(tensor: Tensor) -> Tensor:
    """Returns `[B, H, N, D]` with strides that torch's kernels support, copied if necessary.

    They ignore the last stride and load D adjacent numbers per row. The CPU kernel's products use
    the rows' stride as a leading dimension, which must be D or more; and its output has the order
    of the query's strides, so that its rows overlap if two of those are equal.
    """
    whole = tensor.transpose(1, 2).is_contiguous()
    return tensor if whole or rows_apart(tensor, shared=True) else tensor.contiguous()


def _kernel(arguments: CallArguments, arrays: Arrays, scale: float) -> tuple[Tensor, Tensor]:
    """Runs one call: returns output `[B', H', N', D]` and logsumexp `[B', H', N']`."""
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    # without a mask the position of a query does not matter: the query heads of a key head become
    # rows of it, which copies queries instead of keys and values
    as_rows = group > 1 and isinstance(arguments, NoMask) and query.shape[2] < key.shape[2]
    if as_rows:
        query = query.unflatten(1, (-1, group)).flatten(2, 3)
    tensors, named = _kernel_arguments(arguments, (query, key, value), scale)
    causal = isinstance(arguments, TopLeftCausal)
    out, lse = _FORWARD(*tensors, 0.0, causal, **named)
    if as_rows:
        out, lse = (t.unflatten(2, (group, -1)).flatten(1, 2) for t in (out, lse))
    return out, lse


def _kernel_backward(
    arguments: CallArguments,
    arrays: Arrays,
    scale: float,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
) -> Arrays:
    tensors, named = _kernel_arguments(arguments, arrays, scale)
    causal = isinstance(arguments, TopLeftCausal)
    # the kernel expects the logsumexp with the strides of [B, N, H]: keep them
    rows = [_readable(t.to(tensors[0].dtype)) for t in (grad_out, out)]
    query, key, value = _BACKWARD(rows[0], *tensors, rows[1], lse, 0.0, causal, **named)
    group = query.shape[1] // arrays[1].shape[1]
    if group > 1:
        key, value = (t.unflatten(1, (-1, group)).sum(2) for t in (key, value))
    return query, key, value


def _public(arguments: CallArguments, arrays: Arrays, scale: float) -> Tensor:
    bias = (
        _bias(ByIdentity(arguments), arrays[0].dtype).to(arrays[0].device)
        if isinstance(arguments, DenseMask)
        else None
    )
    assert isinstance(arguments, DenseArguments)
    group = arrays[0].shape[1] // arrays[1].shape[1]
    query, key, value = (_readable(t) for t in arrays)
    if group > 1 and arguments.taken is not None and arguments.taken.repeats:
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        is_causal=isinstance(arguments, TopLeftCausal),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _public_backward(
    arguments: CallArguments, arrays: Arrays, scale: float, grad_out: Tensor
) -> Arrays:
    with torch.enable_grad():
        leaves = tuple(t.detach().requires_grad_() for t in arrays)
        return torch.autograd.grad(_public(arguments, leaves, scale), leaves, grad_out)  # pyright: ignore


@lru_cache(16)
def _bias(mask: ByIdentity[DenseMask], dtype: torch.dtype) -> Tensor:
    """Returns the mask as an additive matrix."""
    allowed = torch.from_numpy(mask.value.allowed((), ()))
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, float("-inf"))

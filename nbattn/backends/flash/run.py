"""Runs Flash programs on tensors, call by call with any Flash kernel; masks padded keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from nbattn.backends import calls
from nbattn.backends.calls import Arrays, RowTensors
from nbattn.backends.flash.meaning import DIALECTS, FlashArguments, WindowArguments
from nbattn.backends.inputs import Gradients, Inputs
from nbattn.program.program import CallArguments, Program

_SMALL = 1e-4  # below this scale, padded keys would get a weight above 0 in float16


class FlashKernel(Protocol):
    """Forward and backward of one Flash call without padded keys; compare `calls.Kernel`."""

    def forward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes output `[B, N, H, Dv]` and logsumexp `[B, N, H]`, -inf for rows without keys."""
        ...

    def backward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Computes the gradients of q, k, v, in their shapes."""
        ...


@dataclass(frozen=True, slots=True)
class Padded:
    """Extends a Flash kernel to calls with padded keys."""

    kernel: FlashKernel

    def forward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes output and logsumexp of one call."""
        call, arrays, scale = _without_padding(arguments, arrays, scale)
        return self.kernel.forward(call, arrays, scale, softcap, into)

    def backward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Computes the gradients of one call, without those of its padded keys."""
        call, padded, inner = _without_padding(arguments, arrays, scale)
        query, key, value = self.kernel.backward(call, padded, rows, inner, softcap)
        if call is arguments:
            return query, key, value
        size, keys = arrays[0].shape[-1], arrays[1].shape[1]
        # the kernel's queries were the call's queries times scale / inner
        query = query[..., :size] * (scale / inner)
        return query, key[:, :keys, :, :size], value[:, :keys]

    def without_mask(self, program: Program) -> CallArguments:
        """A dense call without a window, of the program's provider."""
        first = program.calls[0].arguments
        assert isinstance(first, FlashArguments)
        unlimited = DIALECTS[first.provider].unlimited
        return FlashArguments(first.provider, "dense", WindowArguments(unlimited, unlimited))


def _without_padding(
    arguments: CallArguments, arrays: Arrays, scale: float
) -> tuple[FlashArguments, Arrays, float]:
    """The call with its padded keys in the tensors, masked by one more channel per head.

    Their score is -scale * 2**30 in float16, otherwise -scale * 2**80. If the scale is too small
    for that, the queries are multiplied by it, and the kernel gets scale 1.
    """
    call, (query, key, value) = arguments, arrays
    assert isinstance(call, FlashArguments)
    if not call.pad:
        return call, arrays, scale
    large = 2.0**15 if query.dtype == torch.float16 else 2.0**40
    if scale < _SMALL:
        query, scale = query * scale, 1.0
    query = pad(query, (0, 1), value=large)
    key = pad(pad(key, (0, 1)), (0, 0, 0, 0, 0, call.pad))
    key[:, -call.pad :, :, -1] = -large
    value = pad(value, (0, 0, 0, 0, 0, call.pad))
    return replace(call, pad=0), (query, key, value), scale


def forward(program: Program, inputs: Inputs, kernel: FlashKernel) -> tuple[Tensor, Tensor]:
    """Computes output and logsumexp of a program."""
    out, lse = calls.forward(program, _as_line(inputs), Padded(kernel))
    assert lse is not None
    return (out, lse) if inputs.grids is None else (out[0], lse[0])


def backward(
    program: Program,
    inputs: Inputs,
    kernel: FlashKernel,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients of a program."""
    if inputs.grids is None:
        return calls.backward(program, inputs, Padded(kernel), out, lse, grad_out, grad_lse)
    rows = (out[None], lse[None], grad_out[None], None if grad_lse is None else grad_lse[None])
    grads = calls.backward(program, _as_line(inputs), Padded(kernel), *rows)
    return replace(grads, query=grads.query[0], key=grads.key[0], value=grads.value[0])


def _as_line(inputs: Inputs) -> Inputs:
    """Packed grids `[T, H, D]` as one sample, whose sequences the program has."""
    if inputs.grids is None:
        return inputs
    query, key, value = (t[None] for t in inputs[:3])
    return inputs._replace(query=query, key=key, value=value, grids=None)

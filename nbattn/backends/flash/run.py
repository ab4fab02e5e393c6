"""Flash programs on tensors: runs any raw Flash kernel call by call, with padded keys masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from nbattn.backends import calls
from nbattn.backends.calls import Arrays, Rows
from nbattn.backends.flash.meaning import DIALECTS, FlashArguments, WindowArguments
from nbattn.backends.inputs import Gradients, Inputs
from nbattn.program.program import CallArguments, Program

_SMALL = 1e-4  # a scale below it would leave padded keys in float16 a weight


class FlashKernel(Protocol):
    """Raw forward and backward of one Flash call without padding; as `calls.Kernel` has them."""

    def forward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output `[B, N, H, Dv]` and logsumexp `[B, N, H]`, -inf for rows without keys."""
        ...

    def backward(
        self, call: FlashArguments, arrays: Arrays, rows: Rows, scale: float, softcap: float | None
    ) -> Arrays:
        """Gradients of q, k, v, in their shapes."""
        ...


@dataclass(frozen=True, slots=True)
class Padded:
    """A Flash kernel that also takes calls with padded keys."""

    kernel: FlashKernel

    def forward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output and logsumexp of one call."""
        call, arrays, scale = _without_padding(arguments, arrays, scale)
        return self.kernel.forward(call, arrays, scale, softcap, into)

    def backward(
        self,
        arguments: CallArguments,
        arrays: Arrays,
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Gradients of one call, on its own queries and keys."""
        call, padded, inner = _without_padding(arguments, arrays, scale)
        query, key, value = self.kernel.backward(call, padded, rows, inner, softcap)
        if call is arguments:
            return query, key, value
        size, keys = arrays[0].shape[-1], arrays[1].shape[1]
        # the kernel has seen the queries times scale / inner
        query = query[..., :size] * (scale / inner)
        return query, key[:, :keys, :, :size], value[:, :keys]

    def without_mask(self, program: Program) -> CallArguments:
        """The call without a window of the program's provider."""
        first = program.calls[0].arguments
        assert isinstance(first, FlashArguments)
        unlimited = DIALECTS[first.provider].unlimited
        return FlashArguments(first.provider, "dense", WindowArguments(unlimited, unlimited))


def _without_padding(
    arguments: CallArguments, arrays: Arrays, scale: float
) -> tuple[FlashArguments, Arrays, float]:
    """The call with its padded keys in the tensors: one more column of the heads masks them.

    Their score is -scale x 2**30 in float16, -scale x 2**80 else; a scale too small for that goes
    into the queries.
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
    """Output and logsumexp of a program."""
    out, lse = calls.forward(program, inputs, Padded(kernel))
    assert lse is not None
    return out, lse


def backward(
    program: Program,
    inputs: Inputs,
    kernel: FlashKernel,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Gradients of a program."""
    return calls.backward(program, inputs, Padded(kernel), out, lse, grad_out, grad_lse)

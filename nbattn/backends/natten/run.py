"""The natten package as a backend: its generic function, which selects a kernel by itself."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from nbattn.backends.inputs import Gradients, Inputs, repeated
from nbattn.backends.natten.meaning import NattenArguments
from nbattn.errors import BackendError
from nbattn.program.program import Program


def _attend(program: Program, inputs: Inputs) -> tuple[Tensor, Tensor]:
    (call,) = program.calls
    assert isinstance(call.arguments, NattenArguments)
    functional: Any = importlib.import_module("natten.functional")
    if getattr(functional, "__nbattn__", False):
        raise BackendError(
            "natten is nbattn's own stand-in here, which would call itself.",
            "nbattn.integrations.natten.uninstall()",
        )
    # a scale of 0 means its default there: put it into the queries
    query, scale = (inputs.query, inputs.scale) if inputs.scale else (inputs.query * 0.0, 1.0)
    return functional.neighborhood_attention_generic(
        query, inputs.key, inputs.value, **call.arguments.named(), scale=scale, return_lse=True
    )


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Output and logsumexp."""
    with torch.no_grad():
        return _attend(program, inputs)


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Gradients by repeating the call under autograd, which keeps what its kernels need."""
    return repeated(lambda again: _attend(program, again)[0], inputs, grad_out)

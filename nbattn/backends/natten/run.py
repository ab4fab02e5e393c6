"""Runs the natten package: its generic function, which selects a kernel itself."""

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
            "the installed natten is nbattn's drop-in replacement, which would call itself.",
            "nbattn.integrations.natten.uninstall()",
        )
    # NATTEN replaces a scale of 0 by its default: multiply the queries by 0 instead
    query, scale = (inputs.query, inputs.scale) if inputs.scale else (inputs.query * 0.0, 1.0)
    return functional.neighborhood_attention_generic(
        query, inputs.key, inputs.value, **call.arguments.named(), scale=scale, return_lse=True
    )


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the output and the logsumexp."""
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
    """Computes the gradients by repeating the call under autograd."""
    return repeated(lambda leaves: _attend(program, leaves)[0], inputs, grad_out)

"""Tests of the call that the natten package receives.

natten's kernels need a GPU; here a stand-in in plain torch takes the call.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import dense_attention
import oracle
import pytest
import torch
from natten_plans import planned
from torch import Tensor

from nbattn import BackendError, Mask
from nbattn.backends.inputs import Inputs
from nbattn.backends.natten import run as backend


def stand_in(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    """NATTEN's generic function, its treatment of a scale of 0 included."""
    allowed = oracle.natten_matrix(
        query.shape[1:-2], named["kernel_size"], named["stride"], named["dilation"],
        named["is_causal"],
    )  # fmt: skip
    assert named["return_lse"] is True
    scale = named["scale"] or query.shape[-1] ** -0.5
    return dense_attention.attend(query, key, value, torch.from_numpy(allowed), scale=scale)


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_the_call_and_its_gradients(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(neighborhood_attention_generic=stand_in)
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(functional=module))
    monkeypatch.setitem(sys.modules, "natten.functional", module)
    mask, space = Mask.neighborhood((3, 4), dilation=(2, 1), stride=(1, 2)), (7, 8)
    program = planned(mask, space, training=True).chosen.program
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, *space, 2, 8, generator=generator).double() for _ in range(4)]
    leaves = [t.requires_grad_() for t in tensors[:3]]
    inputs = Inputs(*(t.detach() for t in leaves), scale=scale)
    out, lse = backend.forward(program, inputs, return_lse=True)
    allowed = torch.from_numpy(mask.dense(space))
    wanted = dense_attention.attend(*leaves, allowed, scale=scale)
    for one, other in zip((out, lse), wanted, strict=True):
        torch.testing.assert_close(one, other.detach())
    assert lse is not None
    grads = backend.backward(program, inputs, out, lse, tensors[3], None)
    exact = torch.autograd.grad(wanted[0], leaves, tensors[3])
    for one, other in zip((grads.query, grads.key, grads.value), exact, strict=True):
        torch.testing.assert_close(one, other)


def test_the_drop_in_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would call itself."""
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "natten.functional", SimpleNamespace(__nbattn__=True))
    program = planned(Mask.neighborhood(3), (9,)).chosen.program
    query = torch.zeros(1, 9, 2, 8)
    inputs = Inputs(query, query, query, scale=1.0)
    with pytest.raises(BackendError) as error:
        backend.forward(program, inputs, return_lse=False)
    assert str(error.value) == (
        "the installed natten is nbattn's drop-in replacement, which would call itself.\n"
        "  fix:   nbattn.integrations.natten.uninstall()"
    )

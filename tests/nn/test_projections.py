"""Tests of the projections: blocks of rows equal whole projections, and tools may take their
place.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nbattn import Mask, NeighborhoodAttention
from nbattn.nn import projections


def made(**named: object) -> NeighborhoodAttention:
    torch.manual_seed(0)
    return NeighborhoodAttention(16, 4, Mask.full(2), kv_heads=2, **named).double()  # pyright: ignore


X, CONTEXT, EXTRA = (
    torch.randn(2, *size, 16, dtype=torch.float64) for size in ((4, 5), (3, 7), (2,))
)


@pytest.mark.parametrize("context", [None, CONTEXT])
@pytest.mark.parametrize("extra", [None, EXTRA, EXTRA[:1]])
def test_blocks_of_rows_equal_whole_projections(
    context: torch.Tensor | None, extra: torch.Tensor | None
) -> None:
    plain, whole = made(), made()
    whole.qkv.register_forward_hook(lambda *_: None)
    assert projections.is_plain(plain.qkv)
    assert not projections.is_plain(whole.qkv)
    results = [layer(X, context, extra_tokens=extra) for layer in (plain, whole)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    for result in results:
        result.square().sum().backward()
    for one, other in zip(plain.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", [["qkv", "proj"], "all-linear"])
def test_adapters_train_and_merge(target: list[str] | str) -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(made())
    config = peft.LoraConfig(target_modules=target, r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    found = adapted(X)
    assert not torch.allclose(found, model(X))
    found.sum().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    torch.testing.assert_close(adapted.merge_and_unload()(X), found)


def test_dynamic_int8_is_near_the_layer() -> None:
    layer = made().float()
    quantised = copy.deepcopy(layer)
    with pytest.warns(DeprecationWarning, match="quantization"):
        quantised = torch.ao.quantization.quantize_dynamic(quantised, {nn.Linear})
    assert type(quantised.qkv) is not nn.Linear
    torch.testing.assert_close(quantised(X.float()), layer(X.float()), rtol=0.1, atol=0.05)


def test_another_width_is_refused() -> None:
    layer = made()
    layer.qkv = nn.Sequential(nn.Linear(16, 5).double())  # pyright: ignore
    with pytest.raises(ValueError, match="returned 5 channels, not 32"):
        layer(X)

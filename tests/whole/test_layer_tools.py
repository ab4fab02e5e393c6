"""Tests of the layer under tools that replace, wrap or quantise its projections: PEFT, torchao,
and torch's dynamic quantisation.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbattn import Mask, NeighborhoodAttention

peft = pytest.importorskip("peft")
ALIGNED = Mask.full(rank=2)


class Net(nn.Module):
    """Attention of an image over itself with registers, and then over a context."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.attn = NeighborhoodAttention(32, 4, Mask.neighborhood((3, 3)), kv_heads=2)
        self.cross = NeighborhoodAttention(32, 4, ALIGNED, context_dim=8, qk_norm=True)
        self.mixed = NeighborhoodAttention(32, 4, ALIGNED, kv_heads=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.attn(y, extra_tokens=y[:1, 0])
        y = y + self.cross(y, x[:, 1:])
        return y + self.mixed(y, y[:, :, 1:], extra_tokens=y[:, 0])


X = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def lora(targets: Any, **options: Any) -> Any:
    return peft.LoraConfig(target_modules=targets, r=4, **options)


ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: lora(["qkv", "proj"]),
    "lora of two matrices": lambda: lora(["q", "kv"]),
    "dora": lambda: lora(["qkv", "proj"], use_dora=True),
    "all-linear": lambda: lora("all-linear"),
    "ia3": lambda: peft.IA3Config(target_modules=["qkv", "proj"], feedforward_modules=[]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_train_and_merge(net: Net, name: str) -> None:
    before = net(X).detach()
    model = peft.get_peft_model(copy.deepcopy(net), ADAPTERS[name]())
    assert model.base_model.model.attn.plan_for((2, 5, 6, 32)).verify()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        (model(X) ** 2).mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in trained)
    model.eval()
    after = model(X)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    assert {type(merged.attn.qkv), type(merged.attn.proj), type(merged.cross.kv)} == {nn.Linear}
    assert list(merged.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(merged(X), after, rtol=1e-4, atol=1e-5)


def near(found: Tensor, wanted: Tensor) -> bool:
    """Whether the error is that of 8 bits, and not zero."""
    return bool(0 < (found - wanted).norm() < 0.05 * wanted.norm())


@pytest.mark.parametrize(
    "name",
    ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig"],
)
def test_torchao_quantises_the_projections(net: Net, name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(net).eval()
    quantization.quantize_(model, getattr(quantization, name)())
    assert type(model.attn.qkv) is nn.Linear
    assert type(model.attn.qkv.weight) is not nn.Parameter
    with torch.no_grad():
        found = model(X)
        assert near(found, net(X))
        assert near(model.attn(model.stem(X)), net.attn(net.stem(X)))
    assert model.attn.plan_for((2, 5, 6, 32)).request.dtype == "float32"
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Net().eval()
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(other(X), found)


def test_adapters_on_quantised_projections_train(net: Net) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(net)
    quantization.quantize_(
        model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and "attn" in name,
    )
    model = peft.get_peft_model(model, lora(["qkv", "proj"], init_lora_weights=False))
    model(X).square().mean().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_dynamic_quantisation_of_torch(net: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch names the successor
        model = torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}, torch.qint8)
    assert type(model.attn.qkv) is not nn.Linear
    with torch.no_grad():
        assert near(model(X), net(X))
    assert "DynamicQuantizedLinear" in repr(model.attn)
    assert model.attn.plan_for((2, 5, 6, 32)).request.dtype == "float32"

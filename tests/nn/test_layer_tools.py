"""Tests of tools around a layer: adapters, quantisers, hooks, parametrisations, traces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbattn import Mask, NeighborhoodAttention, attention

MASK = Mask.neighborhood((3, 3))


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = NeighborhoodAttention(32, 2, MASK, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 6, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(1)
    return Model()


def projected(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value in heads, from the weight alone."""
    return (
        nn.functional.linear(x, layer.qkv.weight, layer.qkv.bias)
        .unflatten(-1, (3, 2, 16))
        .unbind(-3)
    )


def by_hand(layer: Any, x: Tensor, **options: Any) -> Tensor:
    return layer.proj(attention(*projected(layer, x), MASK, **options).flatten(-2))


def test_parts_are_plain_linear_layers(model: Model, x: Tensor) -> None:
    assert type(model.attn.qkv) is type(model.attn.proj) is nn.Linear
    torch.testing.assert_close(model(x), by_hand(model.attn, x))


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_train_and_merge(model: Model, x: Tensor, use_dora: bool) -> None:
    peft = pytest.importorskip("peft")
    before = model(x).detach()
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj"], use_dora=use_dora)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    torch.testing.assert_close(adapted(x), before)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the second factor is zero at first
        adapted(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted(x).detach()
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted.merge_and_unload()(x), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
def test_int8_weights(model: Model, x: Tensor, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    before = model(x).detach()
    quantization.quantize_(model, getattr(quantization, config)())
    assert type(model.attn.qkv.weight) is not nn.Parameter
    error = (model(x) - before).abs().max() / before.abs().max()
    assert 0 < error < 0.1


def test_hooks_of_every_part_are_called(model: Model, x: Tensor) -> None:
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    parts = {"layer": model.attn, "qkv": model.attn.qkv, "proj": model.attn.proj}
    for name, part in parts.items():
        part.register_forward_hook(note(f"{name} forward"))
        part.register_full_backward_hook(note(f"{name} backward"))
    model(x.requires_grad_()).sum().backward()
    assert sorted(called) == sorted(f"{n} {way}" for n in parts for way in ("forward", "backward"))


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_are_used_and_trained(model: Model, x: Tensor, name: str) -> None:
    getattr(nn.utils.parametrizations, name)(model.attn.qkv)
    model.eval()
    torch.testing.assert_close(model(x), by_hand(model.attn, x))
    model(x).sum().backward()
    assert model.attn.qkv.parametrizations.weight[0] is not None
    assert all(p.grad is not None for p in model.attn.qkv.parameters() if p.requires_grad)


def test_averaged_and_copied_models(model: Model, x: Tensor) -> None:
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    torch.testing.assert_close(average(x), model(x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_one_step_in_a_traced_graph_and_one_compiled_graph(model: Model, x: Tensor) -> None:
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(traced(x), model(x))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_channels_first(model: Model, x: Tensor) -> None:
    first = Model(layout="channels_first")
    first.load_state_dict(model.state_dict())
    out = first(x.movedim(-1, 1))
    assert out.shape == (2, 32, 5, 6)
    torch.testing.assert_close(out.movedim(1, -1), model(x))


def test_scale(model: Model, x: Tensor) -> None:
    scaled = Model(scale=0.7)
    scaled.load_state_dict(model.state_dict())
    torch.testing.assert_close(scaled(x), by_hand(model.attn, x, scale=0.7))
    assert (scaled(x) - model(x)).abs().max() > 1e-3


def test_norm_of_queries_and_keys(x: Tensor) -> None:
    layer: Any = NeighborhoodAttention(32, 2, MASK, qk_norm=True)
    nn.init.normal_(layer.q_norm.weight)
    nn.init.normal_(layer.k_norm.weight)
    query, key, value = projected(layer, x)

    def normed(tokens: Tensor, gain: Tensor) -> Tensor:
        return tokens * (tokens.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain

    query, key = normed(query, layer.q_norm.weight), normed(key, layer.k_norm.weight)
    out = layer.proj(attention(query, key, value, MASK).flatten(-2))
    torch.testing.assert_close(layer(x), out, atol=1e-5, rtol=1e-4)


def test_context_with_channels_of_its_own(x: Tensor) -> None:
    layer: Any = NeighborhoodAttention(32, 2, MASK, context_dim=12)
    context = torch.randn(2, 5, 6, 12)
    query = layer.q(x).unflatten(-1, (2, 16))
    key, value = layer.kv(context).unflatten(-1, (2, 2, 16)).unbind(-3)
    out = layer.proj(attention(query, key, value, MASK).flatten(-2))
    torch.testing.assert_close(layer(x, context), out)


def test_registers_of_all_samples(model: Model, x: Tensor) -> None:
    registers = torch.randn(1, 3, 32, requires_grad=True)
    out = model.attn(x, extra_tokens=registers)
    torch.testing.assert_close(out, model.attn(x, extra_tokens=registers.expand(2, -1, -1)))
    out.sum().backward()
    assert registers.grad is not None
    assert registers.grad.abs().max() > 0


def test_parameters_of_a_device_and_dtype() -> None:
    layer = NeighborhoodAttention(32, 2, MASK, device="meta", dtype="bfloat16", qk_norm=True)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}

"""Tests of projections: plain layers by rows, everything else by one call, and what it returns."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_layers import CROSS, PLANE, build, random
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nbattn import InputError
from nbattn.nn import projections

X, CONTEXT, EXTRA = random(2, 4, 5, 12), random(2, 3, 7, 12, seed=1), random(2, 3, 12, seed=2)


class Own(nn.Linear):
    """A class of a user."""


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda *_: None)


def with_forward(linear: nn.Linear) -> None:
    linear.forward = linear.forward  # as offloading tools do it


def of_a_class(linear: nn.Linear) -> None:
    linear.__class__ = Own


def watched_everywhere(linear: nn.Linear) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    linear.unwatch = handle.remove  # pyright: ignore


TOUCHES: dict[str, Callable[[Any], object]] = {
    "forward hook": hooked,
    "forward pre-hook": lambda linear: linear.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda linear: linear.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda linear: linear.register_full_backward_pre_hook(lambda *_: None),
    "own forward": with_forward,
    "own class": of_a_class,
    "hook of all modules": watched_everywhere,
    "weight norm": parametrizations.weight_norm,
    "pruned": lambda linear: prune.identity(linear, "weight"),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_whatever_is_not_plain_is_called_once_and_gives_the_same(touch: str) -> None:
    layer = build(CROSS, kv_heads=2)
    wanted = [layer(X, CONTEXT, extra_tokens=EXTRA), layer(X, CONTEXT)]
    assert projections.is_plain(layer.qkv)
    TOUCHES[touch](layer.qkv)
    try:
        assert not projections.is_plain(layer.qkv)
        found = [layer(X, CONTEXT, extra_tokens=EXTRA), layer(X, CONTEXT)]
    finally:
        getattr(layer.qkv, "unwatch", int)()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_plain_layers_compute_only_the_rows_that_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, rows = build(CROSS, kv_heads=2), []
    linear = nn.functional.linear

    def spy(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.append((tokens.shape[1:-1].numel(), len(weight)))
        return linear(tokens, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", spy)
    layer(X, CONTEXT, extra_tokens=EXTRA)
    assert rows == [(20, 12), (21, 6), (21, 6), (3, 6), (3, 6), (20, 12)]
    rows.clear()
    layer.mask = PLANE
    layer(X, extra_tokens=EXTRA)
    assert rows == [(20, 24), (3, 6), (3, 6), (20, 12)]
    rows.clear()
    hooked(layer.qkv)
    layer(X, extra_tokens=EXTRA)
    assert rows == [(23, 24), (20, 12)]


def test_hooks_see_every_module_forward_and_backward() -> None:
    layer, seen = build(PLANE, kv_heads=2), []
    for name, module in (("layer", layer), ("qkv", layer.qkv), ("proj", layer.proj)):

        def forward(_: Any, __: Any, result: Tensor, name: str = name) -> None:
            seen.append((name, tuple(result.shape)))

        def backward(_: Any, given: Any, result: Any, name: str = name) -> None:
            seen.append((name, tuple(given[0].shape), tuple(result[0].shape)))

        module.register_forward_hook(forward)
        module.register_full_backward_hook(backward)
    layer(X.clone().requires_grad_()).sum().backward()
    grid = (2, 4, 5)
    assert seen == [
        ("qkv", (*grid, 24)),
        ("proj", (*grid, 12)),
        ("layer", (*grid, 12)),
        ("proj", (*grid, 12), (*grid, 12)),
        ("qkv", (*grid, 12), (*grid, 24)),
        ("layer", (*grid, 12), (*grid, 12)),
    ]


def test_a_hook_may_change_the_result() -> None:
    layer, twice = build(CROSS), build(CROSS)
    with torch.no_grad():
        for parameter in twice.qkv.parameters():
            parameter *= 2
    layer.qkv.register_forward_hook(lambda module, given, result: 2 * result)
    torch.testing.assert_close(layer(X, CONTEXT), twice(X, CONTEXT))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_layer_is_the_layer_with_that_weight(norm: str) -> None:
    layer = build(CROSS, kv_heads=2)
    getattr(parametrizations, norm)(layer.qkv)
    layer(X, CONTEXT, extra_tokens=EXTRA).sum().backward()
    originals = [p for name, p in layer.named_parameters() if "parametrizations" in name]
    assert all(p.grad is not None and p.grad.any() for p in originals)
    layer.eval()  # spectral_norm changes its vectors while it trains
    found = layer(X, CONTEXT, extra_tokens=EXTRA)
    assert layer.plan_for(X.shape, CONTEXT.shape).request.dtype == "float64"
    parametrize.remove_parametrizations(layer.qkv, "weight")
    assert type(layer.qkv) is nn.Linear
    torch.testing.assert_close(found, layer(X, CONTEXT, extra_tokens=EXTRA))


def test_pruned_weights_and_averages_and_copies() -> None:
    layer = build(PLANE)
    prune.l1_unstructured(layer.qkv, "weight", amount=0.5)
    found = layer(X)
    prune.remove(layer.qkv, "weight")
    assert (layer.qkv.weight == 0).double().mean() == 0.5
    torch.testing.assert_close(found, layer(X))
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(layer)
    with torch.no_grad():
        layer.qkv.weight.zero_()
    average.update_parameters(layer)
    scaled = copy.deepcopy(average.module)
    hooked(scaled.qkv)
    assert torch.equal(pickle.loads(pickle.dumps(average.module))(X), scaled(X))
    assert not torch.equal(scaled(X), layer(X))


def test_a_replacement_that_returns_something_else() -> None:
    layer = build(PLANE)
    layer.qkv = nn.Linear(12, 12).double()
    hooked(layer.qkv)
    with pytest.raises(InputError) as error:
        layer(X)
    assert str(error.value) == (
        "layer.qkv returned 12 channels, not 36.\n"
        "  fix:   layer.qkv = torch.nn.Linear(layer.dim, 36)."
    )
    own = build(CROSS, context_dim=7)
    own.kv.register_forward_hook(lambda module, given, result: (result, None))
    with pytest.raises(InputError) as error:
        own(X, random(2, 3, 7, 7))
    assert str(error.value) == (
        "layer.kv returned a tuple, not a tensor.\n"
        "  fix:   layer.kv = torch.nn.Linear(layer.context_dim, 24)."
    )


def test_a_plain_layer_of_another_size_is_refused() -> None:
    layer = build(PLANE)
    layer.qkv = nn.Linear(12, 12).double()
    with pytest.raises(InputError, match="12 channels, not 36"):
        layer(X)


def test_one_step_of_a_graph_of_fx() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attn = nn.Linear(3, 12).double(), build(CROSS)

        def forward(self, x: Tensor, context: Tensor, registers: Tensor) -> Tensor:
            return self.attn(self.stem(x), context, extra_tokens=registers)

    net, given = Net(), (random(2, 4, 5, 3), CONTEXT, EXTRA)
    graph = torch.fx.symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == [
        "stem",
        "attn",
    ]
    assert torch.equal(graph(*given), net(*given))
    assert graph.attn.qkv is net.attn.qkv
    twin = copy.deepcopy(graph)
    assert torch.equal(twin(*given), net(*given))
    again = torch.fx.symbolic_trace(nn.Sequential(build(PLANE)))
    assert torch.equal(again(X), build(PLANE)(X))
    with pytest.raises(InputError, match="the layer alone is one step"):
        torch.fx.symbolic_trace(net.attn)

"""Tests of NATTEN's modules and weights of both generations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import neighborhood_gather_oracle as gather
import pytest
import torch
from torch import Tensor

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import modules


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


# Modules.


def plain(x: Tensor, weights: dict[str, Tensor], heads: int, window: dict[str, Any]) -> Tensor:
    """A module's forward from its weights alone, row by row of NATTEN's layout."""
    channels, space = x.shape[-1], x.shape[1:-1]
    parts = weights["qkv.weight"].split(channels), weights["qkv.bias"].split(channels)
    query, key, value = (
        (x @ weight.T + bias).unflatten(-1, (heads, -1)).movedim(-2, 1)
        for weight, bias in zip(*parts, strict=True)
    )
    query = query * (channels // heads) ** -0.5
    attn = gather.scores(query, key, **window, rpb=weights.get("rpb")).softmax(-1)
    found = gather.weighted(attn, value, **window).movedim(1, -2).flatten(-2)
    assert found.shape == (x.shape[0], *space, channels)
    return found @ weights["proj.weight"].T + weights["proj.bias"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("generation", ["today", "older", "older with bias"])
def test_modules_load_natten_named_weights(rank: int, generation: str) -> None:
    space, channels, heads = ((9,), (7, 8), (4, 6, 5))[rank - 1], 8, 2
    weights = {
        "qkv.weight": random(3 * channels, channels),
        "qkv.bias": random(3 * channels, seed=1),
        "proj.weight": random(channels, channels, seed=2),
        "proj.bias": random(channels, seed=3),
    }
    window = {"kernel_size": 3, "dilation": (1, 2, 1)[:rank] if rank > 1 else 2}
    named: dict[str, Any] = {}
    if generation == "older with bias":
        weights["rpb"] = random(heads, *(5,) * rank, seed=4)
        named["rel_pos_bias"] = True
    prefix = "" if generation == "today" else "Older"
    kind = getattr(modules, f"{prefix}NeighborhoodAttention{rank}D")
    module = kind(channels, heads, **window, **named).double()
    assert set(module.state_dict()) == set(weights)
    module.load_state_dict({name: t.detach() for name, t in weights.items()})
    x = random(2, *space, channels, seed=5)
    found, wanted = module(x), plain(x, weights, heads, window)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-9, atol=1e-9)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(twin(x), found)
    assert f"kernel_size={(3,) * rank}" in repr(module)


@pytest.mark.parametrize("space", [(9, 11), (4, 11), (4, 5)])
def test_modules_of_0_14_pad_what_is_smaller_than_their_window(space: tuple[int, int]) -> None:
    """With zeros on the right, before the projections; the padding is attended to."""
    channels, heads = 8, 2
    torch.manual_seed(0)
    module = modules.OldestNeighborhoodAttention2D(channels, heads, 3, 2).double()
    weights = {name: t.detach() for name, t in module.named_parameters()}
    assert list(weights["rpb"].shape) == [heads, 5, 5]
    x = random(2, *space, channels)
    padded = torch.zeros(2, *(max(length, 6) for length in space), channels).double()
    padded[:, : space[0], : space[1]] = x
    wanted = plain(padded, weights, heads, {"kernel_size": 3, "dilation": 2})
    torch.testing.assert_close(module(x), wanted[:, : space[0], : space[1]])
    without = modules.OldestNeighborhoodAttention1D(channels, heads, 5, None, False)
    assert set(without.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert without(x[:, 0, :2].float()).shape == (2, 2, channels)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    with pytest.raises(InputError, match=r"x is \[2, 9\]"):
        module(x[:, 0, :1, 0].expand(2, 9))


@pytest.mark.parametrize("causal", [False, (True, False)])
def test_a_bias_table_takes_the_fused_path(causal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless weights are dropped; also on causal axes. It is initialised as NATTEN's."""
    torch.manual_seed(0)
    module = modules.OlderNeighborhoodAttention2D(
        64, 32, 7, is_causal=causal, rel_pos_bias=True, attn_drop=0.5
    )
    table: Any = module.rpb
    assert table.shape == (32, 13, 13)
    assert 0.019 < table.std() < 0.021
    assert table.abs().max() < 0.2
    module = module.double().eval()
    x = random(1, 9, 8, 64)
    weights = {name: t.detach() for name, t in module.named_parameters()}
    wanted = plain(x, weights, 32, {"kernel_size": 7, "is_causal": causal})
    monkeypatch.setattr(modules.unfused, "scores", None)
    torch.testing.assert_close(module(x), wanted, rtol=1e-11, atol=1e-11)
    with pytest.raises(TypeError, match="NoneType"):
        module.train()(x)


def test_attention_dropout_is_applied() -> None:
    torch.manual_seed(0)
    module = modules.OlderNeighborhoodAttention2D(8, 2, 3, attn_drop=0.5, proj_drop=0.0)
    x = torch.randn(1, 6, 6, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_a_scale_given_to_a_module_is_used() -> None:
    module = natten.NeighborhoodAttention1D(8, 2, 3, qk_scale=0.0)
    _, _, value = module.heads(x := torch.randn(1, 5, 8))
    wanted = module.proj(value[:, 1:4].mean(1).flatten(-2))
    torch.testing.assert_close(module(x)[:, 2], wanted)


def test_the_generic_module_is_that_of_its_number_of_axes() -> None:
    generic = modules.NeighborhoodAttentionGeneric(2, 16, 2, (3, 5), dilation=(2, 1))
    wanted = modules.NeighborhoodAttention2D(16, 2, (3, 5), dilation=(2, 1))
    wanted.load_state_dict(generic.state_dict())
    x = torch.randn(1, 7, 9, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generic(x), wanted(x), rtol=0, atol=0)
    assert pickle.loads(pickle.dumps(generic)).window() == wanted.window()
    with pytest.raises(InputError, match=r"NATTEN 0\.17"):
        modules.NeighborhoodAttentionGeneric(2, dim=16, num_heads=2, kernel_size=3)

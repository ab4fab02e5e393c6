"""Tests that checkpoints of the first generation, of NAT and DiNAT, load into models on nbattn and
give the logits of the plain computation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import first_generation as first
import pytest
import torch
from first_generation import Sizes
from torch import Tensor, nn

from nbattn import Mask, NeighborhoodAttention
from nbattn.integrations import natten

SMALL = {
    "nat": Sizes(16, (2, 1, 1), (2, 4, 8), ((1, 1), (1,), (1,)), 3, 3, classes=5),
    "dinat": Sizes(16, (2, 2, 1), (2, 4, 8), ((1, 4), (1, 3), (2,)), 3, 2, True, 5),
    "one window": Sizes(16, (1, 2), (2, 4), ((1,), (1, 1)), 7, 2, classes=5),
}
# 13 x 18 tokens, then 7 x 9, then 4 x 5: odd, and the last ones smaller than some windows.
PICTURES = torch.randn(
    2, 3, 52, 72, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)


@pytest.fixture(autouse=True)
def uninstalled_after() -> Iterator[None]:
    yield
    natten.restore_dinat()
    natten.uninstall()


def modules_of(generation: str) -> first.Attention:
    """The attention of code for a generation of NATTEN, with its bias table."""
    natten.install(replace=True, generation=generation)
    from natten import NeighborhoodAttention2D  # pyright: ignore

    flag = "bias" if generation == "0.14" else "rel_pos_bias"
    return lambda channels, heads, kernel, dilation: NeighborhoodAttention2D(
        channels, num_heads=heads, kernel_size=kernel, dilation=dilation, **{flag: True}
    )


def layer(channels: int, heads: int, kernel: int, dilation: int) -> nn.Module:
    mask = Mask.neighborhood((kernel, kernel), dilation=dilation)
    return NeighborhoodAttention(channels, heads, mask, relative_bias=True)


def check(sizes: Sizes, attention: first.Attention, pictures: Tensor) -> None:
    """Strict loading, logits, and gradients of all weights."""
    weights = first.checkpoint(sizes)
    model = first.Model(sizes, attention).double()
    model.load_state_dict(weights)
    leaves = {name: t.requires_grad_() for name, t in weights.items()}
    found, wanted = model(pictures), first.logits(leaves, sizes, pictures)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert wanted.std() > 0.1
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in model.named_parameters():
        grad: Any = leaves[name].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-7, atol=1e-9, msg=name)
        assert not name.endswith("rpb") or grad.abs().sum() > 0


@pytest.mark.parametrize("name", SMALL)
def test_models_on_natten_0_14_are_the_plain_computation(name: str) -> None:
    """Its modules pad what is smaller than their windows; the padding is attended to."""
    check(SMALL[name], modules_of("0.14"), PICTURES)


@pytest.mark.parametrize("on", ["0.17", "layer"])
@pytest.mark.parametrize("name", ["nat", "dinat"])
def test_models_on_natten_0_17_and_on_the_layer_are_the_plain_computation(
    name: str, on: str
) -> None:
    """Where no map is smaller than a window: 0.17 raises there, the layer reads what there is."""
    pictures = torch.nn.functional.interpolate(PICTURES[:1], size=(104, 100))
    check(SMALL[name], layer if on == "layer" else modules_of(on), pictures)


@pytest.mark.parametrize("name", first.PUBLISHED)
def test_names_shapes_and_numbers_of_weights_are_the_published_ones(name: str) -> None:
    sizes, attention = first.PUBLISHED[name], modules_of("0.14")
    with torch.device("meta"):
        model = first.Model(sizes, attention)
    found = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    assert found == first.shapes(sizes)
    millions = sum(map(math.prod, found.values())) / 1e6
    assert round(millions) == {"nat_mini": 20, "nat_base": 90, "dinat_mini": 20}[name]


def test_one_block_of_every_level_of_nat_mini_at_224_pixels() -> None:
    mini = first.PUBLISHED["nat_mini"]
    sizes = Sizes(64, (1, 1, 1, 1), mini.heads, mini.dilations)
    weights = {name: t.float() for name, t in first.checkpoint(sizes).items()}
    picture = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = first.logits(weights, sizes, picture)
        for attention in (modules_of("0.14"), layer):
            model = first.Model(sizes, attention)
            model.load_state_dict(weights)
            torch.testing.assert_close(model(picture), wanted, rtol=1e-3, atol=1e-3)


_RENAMED = {
    "patch_embed.proj": "dinat.embeddings.patch_embeddings.projection",
    "patch_embed.norm": "dinat.embeddings.norm",
    "levels": "dinat.encoder.levels",
    "blocks": "layers",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.rpb": "attention.self.rpb",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "head": "classifier",
}


def of_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint by transformers' names: q, k and v apart, both layer scales together."""
    found: dict[str, Tensor] = {}
    for name, values in weights.items():
        new = f"dinat.layer{name}" if name.startswith("norm.") else name
        for old, other in _RENAMED.items():
            new = new.replace(old, other)
        if "qkv" in new:
            for part, rows in zip(("query", "key", "value"), values.chunk(3), strict=True):
                found[new.replace("attn.qkv", f"attention.self.{part}")] = rows
        elif new.endswith("gamma1"):
            both = torch.stack([values, weights[name.replace("gamma1", "gamma2")]])
            found[new.replace("gamma1", "layer_scale_parameters")] = both
        elif not new.endswith("gamma2"):
            found[new] = values
    return found


@pytest.mark.parametrize("name", SMALL)
def test_transformers_dinat_on_the_drop_in_is_the_plain_computation(name: str) -> None:
    pytest.importorskip("transformers")
    natten.install(replace=True)
    natten.repair_dinat()
    from transformers import DinatConfig, DinatForImageClassification

    sizes = SMALL[name]
    config = DinatConfig(
        embed_dim=sizes.channels,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        kernel_size=sizes.kernel,
        dilations=[list(level) for level in sizes.dilations],
        mlp_ratio=float(sizes.mlp_ratio),
        num_labels=sizes.classes,
        layer_scale_init_value=1.0 if sizes.layer_scale else 0.0,
        drop_path_rate=0.0,
    )
    weights = first.checkpoint(sizes)
    model = DinatForImageClassification(config).double().eval()
    model.load_state_dict(of_transformers(weights))
    wanted = first.logits(weights, sizes, PICTURES)
    torch.testing.assert_close(model(PICTURES).logits, wanted, rtol=1e-9, atol=1e-9)

"""Tests of the sizes of published models: against diffusers' defaults, and the configurations whose
masks they name.
"""

from __future__ import annotations

import inspect
from collections import Counter

import pytest

import nbattn
from nbattn import Mask
from nbattn.published import grids
from nbattn.published.models import MODELS

DEFAULTS = {  # models whose checkpoint has the defaults of diffusers' class
    "flux": "FluxTransformer2DModel",
    "flux2": "Flux2Transformer2DModel",
    "qwen_image": "QwenImageTransformer2DModel",
    "hunyuan_video": "HunyuanVideoTransformer3DModel",
    "wan": "WanTransformer3DModel",
    "cogvideox_2b": "CogVideoXTransformer3DModel",
    "mochi": "MochiTransformer3DModel",
    "ltx_video": "LTXVideoTransformer3DModel",
    "cosmos_7b": "CosmosTransformer3DModel",
}
CLASSES = DEFAULTS | {
    **dict.fromkeys(("sd3.5", "sd3.5_large"), "SD3Transformer2DModel"),
    "wan_1.3b": "WanTransformer3DModel",
    "cogvideox": "CogVideoXTransformer3DModel",
    "cosmos": "CosmosTransformer3DModel",
}
# Layers, heads and head size of checkpoints that have other sizes, from their config.json.
CHECKPOINTS = {
    "sd3.5": [("double", 24, 24, 64), ("self", 13, 24, 64)],
    "sd3.5_large": [("double", 38, 38, 64)],
    "wan_1.3b": [("self", 30, 12, 128)],
    "cogvideox": [("single", 42, 48, 64)],
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_sizes_are_the_defaults_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(getattr(diffusers, DEFAULTS[name]).__init__)
    given = {key: value.default for key, value in signature.parameters.items()}
    layers = MODELS[name].layers
    assert {one.heads for one in layers} == {given["num_attention_heads"]}
    assert {one.head_dim for one in layers} == {given["attention_head_dim"]}
    counts = [given["num_layers"]]
    if "num_single_layers" in given:
        counts.append(given["num_single_layers"])
    assert [one.count for one in layers] == counts


@pytest.mark.parametrize("name", CLASSES)
def test_kinds_of_layers_are_those_that_apply_finds(name: str) -> None:
    """What is planned by a kind is what `apply` gives a mask by that type of layer."""
    pytest.importorskip("diffusers")
    from nbattn.integrations.diffusers.families import FAMILIES

    family, model = FAMILIES[CLASSES[name]], MODELS[name]
    assert {one.kind for one in model.layers} <= family.layers.keys()
    assert (family.rank, family.text == "apart") == (model.rank, model.text == 0)


def test_the_stages_of_the_decoder_are_the_defaults_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(diffusers.LTX2VideoDiffusionDecoderModel.__init__)
    given = {key: value.default for key, value in signature.parameters.items()}
    model, head_dim = MODELS["ltx2_decoder"], given["decoder_head_dim"]
    kernels = (*given["decoder_stage_kernels"], given["decoder_stage5_kernel"])
    assert [one.windows for one in model.layers] == [Mask.neighborhood(k) for k in kernels]
    assert [one.dim for one in model.layers] == list(given["decoder_stage_channels"])
    assert [one.count for one in model.layers] == list(given["decoder_stage_depths"])
    assert {one.head_dim for one in model.layers} == {head_dim}
    assert model.upsampling == given["decoder_upsample_strides"]
    assert model.pixels == given["spatial_compression_ratio"]
    assert model.stride == given["temporal_compression_ratio"]
    assert model.ghosts == kernels[0][0] // 2 * 2


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_sizes_are_those_of_the_checkpoint(name: str) -> None:
    found = [(one.kind, one.count, one.heads, one.head_dim) for one in MODELS[name].layers]
    assert found == CHECKPOINTS[name]


def test_every_model_is_checked_above() -> None:
    others = {"ltx2_decoder", "cosmos"}
    assert {*DEFAULTS, *CHECKPOINTS, *others} == {*MODELS}


def test_named_windows_are_planned_for_these_sizes() -> None:
    """A mask that a model names is declared for its grid, its heads and its text."""
    named = 0
    for model in MODELS.values():
        for layers, grid in zip(
            model.layers, grids.of(model, model.size, model.frames), strict=True
        ):
            if isinstance(layers.windows, str) and layers.windows:
                config, mask = layers.windows.split("/")
                plan = nbattn.load(config).plans[mask]
                assert plan.query == (1, *grid, layers.heads, layers.head_dim)
                assert plan.extra_keys == model.text
                assert plan.mask == nbattn.load(config).masks[mask]
                named += 1
    assert named == 2 + 2 + 1 + 5 + 1


def test_the_layers_of_cosmos_are_those_of_its_table() -> None:
    config = nbattn.load("cosmos_predict2")
    expected = Counter(layer.mask for layer in config.layers.values())
    found = {config.masks[str(one.windows).split("/")[1]]: one.count for one in
             MODELS["cosmos"].layers}  # fmt: skip
    assert found == expected
    assert sum(found.values()) == 28


def test_channels_of_a_token() -> None:
    assert MODELS["flux"].layers[0].dim == 3072
    assert MODELS["wan"].layers[0].dim == 5120
    assert MODELS["flux"].rank, MODELS["wan"].rank == (2, 3)

"""Attention modules with windows: what is saved, copied, adapted, fused, quantised, refused."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from integrations.diffusers.dense_windows import windows
from integrations.diffusers.models import (
    MODELS,
    WIDTH,
    Small,
    ids,
    in_float32,
    output,
    random,
    window,
)
from peft import LoraConfig
from torch import nn

from nbattn import Mask
from nbattn.errors import InputError
from nbattn.integrations.diffusers import apply, processors, restore

SAME = {"rtol": 0.0, "atol": 1e-10}


def run(small: Small, model: Any) -> torch.Tensor:
    return output(model, small.inputs(small.sizes[0], padded=True)).detach()


@pytest.mark.parametrize("name", MODELS)
def test_restore_gives_the_own_output_bit_for_bit(name: str):
    small, model = MODELS[name], MODELS[name].model()
    own, types = run(small, model), [type(model.get_submodule(n).processor) for n in small.layers]
    apply(model, window(small))
    assert not torch.equal(run(small, model), own)
    restore(model)
    assert torch.equal(run(small, model), own)
    assert [type(model.get_submodule(n).processor) for n in small.layers] == types
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("name", MODELS)
def test_states_and_files(name: str, tmp_path: Path):
    small, model = MODELS[name], MODELS[name].model()
    own, keys = run(small, model), [*model.state_dict()]
    expected = run(small, apply(model, window(small)))
    assert [*model.state_dict()] == keys
    other = small.model(seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(small, other), own)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.float64).double().eval()
    torch.testing.assert_close(run(small, loaded), own, rtol=0, atol=1e-5)  # some are kept in fp32
    found = run(small, apply(loaded, window(small)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
@pytest.mark.parametrize("name", MODELS)
def test_copies_are_independent(name: str, copied: Any):
    small, model = MODELS[name], MODELS[name].model()
    own, three = run(small, model), run(small, apply(model, window(small)))
    twin = copied(model)
    assert torch.equal(run(small, twin), three)
    two = run(small, apply(twin, window(small, 2)))
    assert not torch.equal(two, three)
    assert torch.equal(run(small, model), three)
    restore(model)
    assert torch.equal(run(small, twin), two)
    assert torch.equal(run(small, model), own)


LORA = LoraConfig(
    r=2, target_modules=["to_q", "to_k", "to_v", "to_qkv_mlp_proj"], init_lora_weights=False
)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_of_weights_before_and_after(name: str):
    small, found = MODELS[name], []
    for is_before in (True, False):
        model = small.model()
        if is_before:
            apply(model, window(small))
        torch.manual_seed(0)
        model.add_adapter(LORA)
        model.double()
        found.append(run(small, model if is_before else apply(model, window(small))))
        model.disable_adapters()
        without = run(small, model)
    assert torch.equal(*found)
    assert not torch.equal(found[0], without)


FUSED = [name for name in MODELS if name not in ("cosmos", "mochi", "sd3")]


@pytest.mark.parametrize("name", FUSED)
def test_fused_projections(name: str):
    small, model = MODELS[name], MODELS[name].model()
    expected = run(small, apply(model, window(small)))
    fused = small.model()
    fused.fuse_qkv_projections()
    torch.testing.assert_close(run(small, apply(fused, window(small))), expected, **SAME)
    model.fuse_qkv_projections()
    if name.startswith("cogvideox"):
        with pytest.raises(InputError, match="by FusedCogVideoXAttnProcessor2_0"):
            run(small, model)
        apply(model, window(small))
    torch.testing.assert_close(run(small, model), expected, **SAME)


def test_fused_projections_of_stable_diffusion_3():
    """Fused, the model is another one: diffusers then leaves the norms of queries and keys out."""
    small = MODELS["sd3"]
    model = small.model()
    model = type(model)(**{**model.config, "dual_attention_layers": ()}).double().eval()
    apply(model, Mask.full(2))
    model.fuse_qkv_projections()
    with pytest.raises(InputError, match="by FusedJointAttnProcessor2_0"):
        run(small, model)
    own = run(small, restore(model))
    torch.testing.assert_close(run(small, apply(model, Mask.full(2))), own, **SAME)
    assert (run(small, apply(model, window(small))) - own).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_attention_backends_before_and_after(name: str, monkeypatch: pytest.MonkeyPatch):
    small, model = MODELS[name], MODELS[name].model()
    expected = run(small, apply(model, window(small)))
    with pytest.raises(InputError, match=r"is nbattn's. .*\n.*restore\(model\)"):
        model.set_attention_backend("_native_math")
    torch.testing.assert_close(run(small, model), expected, **SAME)
    restore(model)
    model.set_attention_backend("_native_math")
    apply(model, window(small))
    used: list[Any] = []
    own = torch.nn.attention.sdpa_kernel
    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", lambda *a: used.append(a) or own(*a))
    torch.testing.assert_close(run(small, model), expected, **SAME)
    assert bool(used) == (small.text == "apart")  # cross attention alone


def test_context_parallel_and_attention_kwargs():
    small, model = MODELS["flux"], MODELS["flux"].model()
    apply(model, window(small))
    model.transformer_blocks[0].attn.processor._parallel_config = object()
    with pytest.raises(InputError, match="parallel_config is set: context parallel splits"):
        run(small, model)


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"dropout_p": 0.1}, "dropout_p is set"),
        ({"is_causal": True}, "is_causal is set"),
        ({"attn_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}, "attention_mask is set"),
    ],
)
def test_what_a_processor_may_not_ask_for(
    named: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
):
    small, model = MODELS["wan"], apply(MODELS["wan"].model(), window(MODELS["wan"]))
    own = processors.dispatch
    processor = type(model.blocks[0].attn1.processor)
    bound = processor.__call__.__closure__[0].cell_contents.__globals__
    monkeypatch.setitem(bound, "dispatch_attention_fn", lambda *a, **n: own(*a, **(n | named)))
    with pytest.raises(InputError, match=match):
        run(small, model)


@pytest.mark.parametrize("name", MODELS)
def test_int8_weights_before_and_after(name: str):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small, full = MODELS[name], Mask.full(len(MODELS[name].patches))
    model = small.model()
    given = in_float32(model, small.inputs(small.sizes[0]))
    applied = apply(copy.deepcopy(model), full)
    quantize_(model, Int8WeightOnlyConfig())
    quantize_(applied, Int8WeightOnlyConfig())
    with torch.no_grad():
        own = model(**given).sample
        torch.testing.assert_close(applied(**given).sample, own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(apply(model, full)(**given).sample, own, rtol=1e-4, atol=1e-4)
        windowed = apply(model, window(small))(**given).sample
    assert (windowed - own).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str):
    small, model = MODELS[name], MODELS[name].model()
    given = in_float32(model, small.inputs(small.sizes[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = model(**given).sample
        full = apply(model, Mask.full(len(small.patches)))(**given).sample
        windowed = apply(model, window(small))(**given).sample
    assert full.dtype is windowed.dtype is own.dtype
    torch.testing.assert_close(full, own, rtol=0.05, atol=0.1)
    assert (windowed - own).abs().mean() > 2 * (full - own).abs().mean()


class Images(nn.Module):
    """What an adapter makes of its images."""

    def forward(self, images: Any) -> Any:
        return images


@pytest.mark.parametrize("references", [0, 12])
def test_images_of_an_adapter_stay_dense(references: int):
    small, size = MODELS["flux"], (5, 7)
    models = [small.model(), small.model()]
    for model in models:
        torch.manual_seed(3)
        adapter = FluxIPAdapterAttnProcessor(WIDTH, 6, num_tokens=(4,), scale=1.0).double()
        model.transformer_blocks[0].attn.set_processor(adapter)
        model.encoder_hid_proj = Images()
    model, same = models
    given = small.inputs(size)
    if references:
        given["hidden_states"] = torch.cat([given["hidden_states"], random(references, 8)], dim=1)
        given["img_ids"] = torch.cat([given["img_ids"], ids(1, references, image=1)])

    def images() -> dict[str, Any]:
        torch.manual_seed(4)
        return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [random(4, 6)]}}

    keys = [*model.state_dict()]
    mask = window(small)
    with windows(small, same, size, dict.fromkeys(small.layers, mask.axes)):
        expected = output(same, given | images())
    apply(model, mask)
    assert [*model.state_dict()] == keys
    torch.testing.assert_close(output(model, given | images()), expected, **SAME)
    torch.testing.assert_close(output(copy.deepcopy(model), given | images()), expected, **SAME)
    restore(model)
    assert type(model.transformer_blocks[0].attn.processor) is FluxIPAdapterAttnProcessor
    assert [*model.state_dict()] == keys


def test_both_halves_of_a_guided_batch():
    small = MODELS["wan"]
    model = apply(small.model(), window(small))
    given = small.inputs(small.sizes[0])
    both = {name: torch.cat([part, part]) for name, part in given.items()}
    single = output(model, given)
    torch.testing.assert_close(output(model, both), torch.cat([single, single]), **SAME)

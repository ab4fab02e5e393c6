"""Tests of attn_implementation="nbattn" in more models and ways to generate, against transformers'
eager attention: encoders joined to decoders, head sizes by layer, values of another size, chunks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from small_models import DECODERS, exact_softmax, fill, make, padding, tokens
from torch import Tensor
from transformers import DynamicCache

from nbattn import InputError
from nbattn.integrations import transformers as integration

BATCH, LENGTH = 2, 19
LEFT, RIGHT = (padding(side, BATCH, LENGTH) for side in ("left", "right"))
IDS, SHORT = tokens(BATCH, LENGTH), tokens(BATCH, 9)
PIXELS = torch.rand(BATCH, 3, 20, 20, generator=torch.Generator().manual_seed(0)).double()
SOUND = torch.randn(BATCH, 8, 40, generator=torch.Generator().manual_seed(0)).double()
_BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GROUPED = {**_BASE, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
_PICTURES = {**_BASE, "num_hidden_layers": 2, "image_size": 20, "patch_size": 4}
_BOTH_SIDES = {
    **{"vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2


def _two_towers(name: str) -> Any:
    text = {n: size for n, size in _BASE.items() if not n.endswith("token_id")}
    text |= {"num_hidden_layers": 2, "max_position_embeddings": 32}
    pictures = {n: size for n, size in _PICTURES.items() if n not in ("vocab_size", *_SPECIAL)}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=pictures)
    return getattr(transformers, f"{name}Model")(config)


_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def _t5gemma() -> Any:
    side = {**_GROUPED, "num_hidden_layers": 2, "sliding_window": 5}
    part = transformers.T5GemmaModuleConfig
    config = transformers.T5GemmaConfig(
        encoder=part(**side), decoder=part(**side, cross_attention_hidden_size=32), vocab_size=97
    )
    return transformers.T5GemmaForConditionalGeneration(config)


def _causal(name: str, **changes: Any) -> Any:
    config = getattr(transformers, name)(**{**_GROUPED, **changes})
    config._experts_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


PER_LAYER = {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8}
MODELS: dict[str, Callable[[], Any]] = {
    "values of another size": lambda: _causal(
        "DeepseekV3Config", num_key_value_heads=4, head_dim=4, kv_lora_rank=8, q_lora_rank=16,
        qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16,
    ),
    "head sizes by layer": lambda: _causal(
        "Gemma4TextConfig", **PER_LAYER, num_kv_shared_layers=0, sliding_window=5,
        layer_types=_ALTERNATING, global_head_dim=16,
    ),
    "keys shared by layers": lambda: _causal(
        "Gemma3nTextConfig", **PER_LAYER, num_kv_shared_layers=2, sliding_window=5,
        layer_types=_ALTERNATING, intermediate_size=[48] * 4, altup_num_inputs=2, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "a decoder of local layers on both kinds": lambda: _causal(
        "ModernBertDecoderConfig", global_attn_every_n_layers=2, local_attention=6,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    exact_softmax(monkeypatch)
    integration.register()
    yield
    integration.unregister()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the keys of every call of nbattn.attention."""
    found: list[tuple[int, ...]] = []
    attention = integration.attention

    def spy(*tensors: Any, **named: Any) -> Any:
        found.append(tuple(tensors[1].shape))
        return attention(*tensors, **named)

    monkeypatch.setattr(integration, "attention", spy)
    return found


def with_eager_and_nbattn(model: Any, run: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    """What eager and nbattn give."""
    results: list[Tensor] = []
    for implementation in ("eager", "nbattn"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            results.append(run(model))
    return results[0], results[1]


def same(model: Any, run: Callable[[Any], Tensor], rows: Tensor | None = None) -> None:
    wanted, found = with_eager_and_nbattn(model, run)
    rows = torch.ones(wanted.shape[:1], dtype=torch.bool) if rows is None else rows.bool()
    torch.testing.assert_close(found[rows], wanted[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_decoders_of_other_shapes(name, calls):
    model = fill(MODELS[name]())
    same(model, lambda m: m(IDS).logits)
    assert len(calls) == 4
    same(model, lambda m: m(IDS, attention_mask=LEFT).logits, LEFT)
    wanted, found = with_eager_and_nbattn(
        model,
        lambda m: m.generate(IDS, attention_mask=LEFT, max_new_tokens=8, do_sample=False),
    )
    assert torch.equal(found, wanted)
    if name.startswith("head sizes"):
        assert {shape[2:] for shape in calls} == {(2, 8), (2, 16)}


JOINED: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor], int]] = {
    "whisper": (
        lambda: transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                **_BOTH_SIDES, num_mel_bins=8, max_source_positions=20, max_target_positions=40,
                decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        ),
        lambda m: m(input_features=SOUND, decoder_input_ids=SHORT).logits,
        6,
    ),
    "bart": (
        lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(**_BOTH_SIDES, max_position_embeddings=64)
        ),
        lambda m: m(IDS, attention_mask=RIGHT, decoder_input_ids=SHORT).logits,
        6,
    ),
    "bart, beams": (
        lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(**_BOTH_SIDES, max_position_embeddings=64)
        ),
        lambda m: m.generate(IDS, attention_mask=RIGHT, max_new_tokens=8, num_beams=3),
        30,
    ),
    "t5gemma": (
        _t5gemma,
        lambda m: m(IDS, attention_mask=RIGHT, decoder_input_ids=SHORT).logits,
        6,
    ),
    "clip": (
        lambda: _two_towers("CLIP"),
        lambda m: m(input_ids=IDS, attention_mask=RIGHT, pixel_values=PIXELS).logits_per_image,
        4,
    ),
    "siglip": (
        lambda: _two_towers("Siglip"),
        lambda m: m(input_ids=IDS, pixel_values=PIXELS).logits_per_image,
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_encoders_and_decoders_joined(name, calls):
    build, run, count = JOINED[name]
    same(fill(build()), run)
    assert len(calls) >= count


CACHES: dict[str, dict[str, Any]] = {
    "growing": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "in parts": {"prefill_chunk_size": 5},
}


def test_chunked_layers(calls):
    model = fill(
        _causal(
            "Llama4TextConfig", attention_chunk_size=8, num_local_experts=2,
            num_experts_per_tok=1, intermediate_size_mlp=48, interleave_moe_layer_step=2,
        )
    )  # fmt: skip
    assert set(model.config.layer_types) == {"chunked_attention", "full_attention"}
    for length in (8, 12, 19):
        same(model, lambda m, length=length: m(IDS[:, :length]).logits)
    mask = torch.tensor([[0] * 3 + [1] * 16, [0] * 11 + [1] * 8])  # borders at the same places
    same(model, lambda m: m(IDS, attention_mask=mask).logits, mask)
    for named in CACHES.values():
        wanted, found = with_eager_and_nbattn(
            model,
            lambda m, named=named: m.generate(
                IDS[:, :7], max_new_tokens=11, do_sample=False, **named
            ),
        )
        assert torch.equal(found, wanted)
    assert {shape[1] for shape in calls} >= {8, 16}  # pieces of whole chunks
    with pytest.raises(InputError, match="left paddings of 0, 7 tokens move the borders"):
        model(IDS, attention_mask=LEFT)


@pytest.mark.parametrize("name", ["static", "growing"])
def test_a_model_that_asks_how_many_dimensions_its_mask_has(name, calls):
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=None,
        pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = fill(transformers.GPT2LMHeadModel(config))
    wanted, found = with_eager_and_nbattn(model, lambda m: _greedy(m, **CACHES[name]))
    assert torch.equal(found, wanted)
    assert calls


def _assisted(model: Any) -> Tensor:
    helper = copy.deepcopy(model)
    helper.set_attn_implementation(model.config._attn_implementation)
    generator = torch.Generator().manual_seed(3)
    for parameter in helper.parameters():
        parameter += 0.01 * torch.randn(parameter.shape, generator=generator).double()
    return model.generate(IDS[:1], assistant_model=helper, max_new_tokens=10, do_sample=False)


def _sampled(model: Any, **named: Any) -> Tensor:
    torch.manual_seed(0)
    return model.generate(IDS, attention_mask=LEFT, max_new_tokens=6, do_sample=True, **named)


def _greedy(model: Any, **named: Any) -> Tensor:
    return model.generate(IDS, attention_mask=LEFT, max_new_tokens=9, do_sample=False, **named)


def _cropped(model: Any) -> Tensor:
    """A cache that lost its last tokens again, as rejected drafts are lost."""
    cache = DynamicCache()
    model(IDS[:, :11], cache=cache)
    cache.crop(-5)
    return model(IDS[:, 6:13], cache=cache).logits


WAYS: dict[str, Callable[[Any], Tensor]] = {
    "beams": lambda m: _greedy(m, num_beams=3),
    "beams on a static cache": lambda m: _greedy(
        m, num_beams=3, cache_implementation="static", disable_compile=True
    ),
    "several answers": lambda m: _sampled(m, num_return_sequences=3),
    "prompt in chunks": lambda m: _greedy(m, prefill_chunk_size=4),
    "no cache": lambda m: _greedy(m, use_cache=False),
    "drafts from the prompt": lambda m: m.generate(
        IDS[:1], prompt_lookup_num_tokens=3, max_new_tokens=10, do_sample=False
    ),
    "drafts of a helper": _assisted,
    "a cropped cache": _cropped,
    "positions further on": lambda m: m(IDS, position_ids=torch.arange(7, 7 + LENGTH)[None]).logits,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DECODERS)
def test_ways_to_generate(name, way, calls):
    model = make(name)
    if name == "gpt_oss" and way == "drafts of a helper":
        model.generation_config.pad_token_id = None  # it writes token 0, which is no padding here
    wanted, found = with_eager_and_nbattn(model, WAYS[way])
    assert calls
    if wanted.dtype == torch.int64:
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_padding_after_the_prompt_leaves_a_hole_which_is_refused():
    model = make("gemma2")
    model.set_attn_implementation("nbattn")
    with pytest.raises(InputError, match="the padding of sample 1 has holes"):
        model.generate(IDS, attention_mask=RIGHT, max_new_tokens=4, do_sample=False)

"""Small transformers models of real configuration classes, with weights large enough to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

transformers.logging.set_verbosity_error()

WINDOW = 5  # keys, the query itself among them; of ModernBERT on each side
VOCABULARY, CHANNELS, HEADS = 97, 32, 4
# At the usual 0.02 every softmax is nearly uniform, and a wrong mask hardly changes anything.
SPREAD = 0.4

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": CHANNELS,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "initializer_range": SPREAD,
    "tie_word_embeddings": False,  # tied, a large embedding repeats its token for ever
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_DECODER = {
    **_SHARED,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
}
ALTERNATING = ["sliding_attention", "full_attention"]


def _mistral() -> Any:
    return transformers.MistralForCausalLM, transformers.MistralConfig(**_DECODER)


def _gemma2() -> Any:
    config = transformers.Gemma2Config(
        **_DECODER, query_pre_attn_scalar=3, attn_logit_softcapping=2.0
    )
    return transformers.Gemma2ForCausalLM, config


def _gemma3() -> Any:
    config = transformers.Gemma3TextConfig(
        **_DECODER, query_pre_attn_scalar=3, layer_types=ALTERNATING
    )
    return transformers.Gemma3ForCausalLM, config


def _qwen3() -> Any:
    config = transformers.Qwen3Config(**_DECODER, use_sliding_window=True, max_window_layers=1)
    return transformers.Qwen3ForCausalLM, config


def _gpt_oss() -> Any:
    config = transformers.GptOssConfig(**_DECODER, num_local_experts=3, num_experts_per_tok=2)
    return transformers.GptOssForCausalLM, config


def _modernbert() -> Any:
    config = transformers.ModernBertConfig(
        **{**_SHARED, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        num_hidden_layers=2,
        global_attn_every_n_layers=2,
        local_attention=2 * WINDOW,
        initializer_cutoff_factor=2.0,
    )
    return transformers.ModernBertForMaskedLM, config


def _vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=CHANNELS,
        intermediate_size=48,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        image_size=20,
        patch_size=4,
        initializer_range=SPREAD,
    )
    return transformers.ViTForImageClassification, config


DECODERS: dict[str, Callable[[], Any]] = {
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen3": _qwen3,
    "gpt_oss": _gpt_oss,
}
MODELS = {**DECODERS, "modernbert": _modernbert, "vit": _vit}


def make(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model in eval mode, on eager; its configuration with changes."""
    kind, config = MODELS[name]()
    for field, value in changes.items():
        setattr(config, field, value)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # torch's grouped product has no float64
    torch.manual_seed(0)
    model = kind(config).to(dtype).eval()
    for parameter, values in model.named_parameters():
        if parameter.endswith("sinks"):
            torch.nn.init.normal_(values, std=2.0)
    return model


def fill(model: Any) -> Any:
    """The model in float64, in eval mode, with matrices that matter."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention computes its softmax in float32, which for float64 is a loss: leave it out.

    It also turns a row without keys, all at float64's minimum, into NaN, which spreads.
    """
    softmax = torch.nn.functional.softmax

    def exact(scores: Tensor, dim: int | None = None, *_: Any, dtype: Any = None) -> Tensor:
        return softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


def tokens(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def padding(side: str, batch: int, length: int) -> Tensor | None:
    """A padding mask: none, or every row but the first padded, the second beyond its window."""
    if side == "none":
        return None
    rows = [torch.arange(length) >= 7 * row for row in range(batch)]
    mask = torch.stack(rows).long()
    return mask if side == "left" else mask.flip(1)

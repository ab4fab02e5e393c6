"""Tests of models whose attention is a class of their own, chosen by name when they are made."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import PreTrainedModel

from nbattn import InputError
from nbattn.integrations import attention_classes
from nbattn.integrations import transformers as integration

SMALL: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1, "hidden_size": 32}
MODELS: dict[str, tuple[Any, Any, str]] = {
    "falcon": (
        transformers.FalconModel,
        lambda **named: transformers.FalconConfig(
            **SMALL, num_hidden_layers=1, num_attention_heads=4, **named
        ),
        'attn_implementation="sdpa".',
    ),
    "gpt_neo": (
        transformers.GPTNeoModel,
        lambda **named: transformers.GPTNeoConfig(
            **SMALL, num_layers=1, num_heads=4, attention_types=[[["global"], 1]], **named
        ),
        'attn_implementation="eager".',
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_classes_of_its_own_is_refused_in_words(name: str) -> None:
    model, config, fix = MODELS[name]
    before = getattr(PreTrainedModel, attention_classes._METHOD)
    integration.register()
    integration.register("window")
    try:
        for implementation in ("nbattn", "window"):
            with pytest.raises(InputError, match="has attention classes of its own") as error:
                model(config(attn_implementation=implementation))
            assert error.value.fix == fix
        model(config(attn_implementation="eager"))
    finally:
        integration.unregister()
        assert getattr(PreTrainedModel, attention_classes._METHOD) is not before
        integration.unregister("window")
    assert getattr(PreTrainedModel, attention_classes._METHOD) is before

"""Tests of compiled decoding from static caches in transformers: no more graphs than its own
attention, and the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from small_models import (
    ALTERNATING,
    CHANNELS,
    HEADS,
    SPREAD,
    VOCABULARY,
    WINDOW,
    make,
    padding,
    tokens,
)
from torch import Tensor
from torch.fx.experimental import sym_node

from nbattn.integrations import transformers as integration

BATCH, LENGTH, STEPS = 2, 9, 12
NO_WINDOW = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
# Model, changes of its configuration, and the attention that it is held against.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "sdpa"),
    "qwen3": ("qwen3", NO_WINDOW, "sdpa"),
    "window shorter than the text": ("mistral", {}, "sdpa"),
    "window longer than the text": ("mistral", {"sliding_window": 40}, "sdpa"),
    "gemma3": ("gemma3", {"layer_types": ALTERNATING}, "sdpa"),
    "gpt_oss": ("gpt_oss", {}, "eager"),
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


def model_of(name: str, changes: dict[str, Any]) -> Any:
    if name == "llama":
        sizes = {"num_attention_heads": HEADS, "num_key_value_heads": 2, "num_hidden_layers": 2}
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=CHANNELS, intermediate_size=48, **sizes,
            initializer_range=SPREAD, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()
    model = make(name, torch.float32, **changes)
    model.config._experts_implementation = "batched_mm"  # "eager" loops over data
    return model


def generated(model: Any, implementation: str, side: str) -> tuple[Tensor, int]:
    """Tokens, and how many graphs their steps took."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.set_attn_implementation(implementation)
    options = transformers.CompileConfig(backend="eager", fullgraph=True, mode=None)
    options._compile_all_devices = True
    found = model.generate(
        tokens(BATCH, LENGTH),
        attention_mask=padding(side, BATCH, LENGTH),
        do_sample=False,
        max_new_tokens=STEPS,
        cache_implementation="static",
        compile_config=options,
    )
    return found, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def cases_of(side_of_the_first: int) -> list[Any]:
    """Every model, padded or not in turn."""
    sides = ("none", "left")
    return [(name, sides[(n + side_of_the_first) % 2]) for n, name in enumerate(CASES)]


QUICK = cases_of(1)[::3]
DEEP = [case for case in [*cases_of(0), *cases_of(1)] if case not in QUICK]


@pytest.mark.parametrize(
    ("name", "side"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.deep) for case in DEEP)],
)
def test_as_many_graphs_and_the_same_tokens(name: str, side: str) -> None:
    kind, changes, peer = CASES[name]
    model = model_of(kind, changes)
    wanted, most = generated(model, peer, side)
    found, count = generated(model, "nbattn", side)
    assert torch.equal(found, wanted)
    known = hasattr(sym_node, "DynamicInt")  # since torch 2.9; before, a second value adds a graph
    assert 0 < count <= most + (not known)
    assert LENGTH > WINDOW
    torch._dynamo.reset()

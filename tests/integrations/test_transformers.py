"""Tests of registering attn_implementation="nbattn", and of the messages of its refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from small_models import HEADS, WINDOW, make, tokens
from transformers import masking_utils

from nbattn import Axis, InputError, Mask
from nbattn.integrations import mask_functions
from nbattn.integrations import transformers as integration

BATCH, LENGTH = 2, 19
SLIDING = Axis(WINDOW - 1, 0, causal=True, align="top-left")
EVERY_KEY = Axis(align="top-left")
AROUND = Axis(WINDOW, WINDOW, align="top-left")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


def ready(model_name: str, switch: str | None = None, **changes: Any) -> Any:
    """A model on nbattn; a switch of its configuration was set before."""
    model = make(model_name, torch.float32, **changes)
    if switch is not None:
        setattr(model.config, switch, True)
    model.set_attn_implementation("nbattn")
    return model


def ask(model_name: str = "mistral", **given: Any) -> Any:
    """Run a model on nbattn, with something it should refuse."""
    changes, switch = given.pop("changes", {}), given.pop("switch", None)
    model = ready(model_name, switch, **changes)
    return model.train(bool(changes))(**{"input_ids": tokens(BATCH, LENGTH), **given})


def rule(function: object, queries: int = 4, keys: int = 4, **named: Any) -> Any:
    return integration.layer_mask(BATCH, queries, keys, 0, 0, function, **named)


def layer(mask: object, **named: Any) -> Any:
    query = torch.zeros(BATCH, HEADS, 4, 8)
    return integration.attend(torch.nn.Identity(), query, query, query, mask, **named)


def parts(**named: Any) -> Any:
    model = make("mistral", torch.float32)
    model.set_attn_implementation("nbattn")
    return masking_utils.create_causal_mask(
        model.config, torch.zeros(BATCH, 4, 1), None, cache=None, **named
    )


PIXELS = torch.zeros(BATCH, 3, 20, 20)
HOLED = torch.tensor([[1] * LENGTH, [1] * 4 + [0] + [1] * (LENGTH - 5)])
RESTARTING = torch.tensor([[*range(9), *range(LENGTH - 9)]] * BATCH)
WHOLE = masking_utils.bidirectional_mask_function
REFUSED = {
    "user_4d_mask": (
        lambda: ask(attention_mask=torch.ones(BATCH, 1, LENGTH, LENGTH).bool()),
        "attention_mask is a Tensor [2, 1, 19, 19], made by the caller or by the model.\n"
        "  fix:   attention_mask=torch.ones(2, 19), with 0 for padding; or "
        'model.set_attn_implementation("eager").',
    ),
    "user_3d_mask": (
        lambda: ask(attention_mask=torch.ones(BATCH, LENGTH, LENGTH)),
        "attention_mask is [2, 19, 19], the batch 2.\n"
        "  fix:   attention_mask=torch.ones(2, 19), with 0 for padding.",
    ),
    "padding_of_one_row": (
        lambda: ask(attention_mask=torch.ones(1, LENGTH)),
        "attention_mask is [1, 19], the batch 2.\n"
        "  fix:   attention_mask=torch.ones(2, 19), with 0 for padding.",
    ),
    "holes": (
        lambda: ask(attention_mask=HOLED),
        "the padding of sample 1 has holes: its valid tokens are not one run.\n"
        '  fix:   model.set_attn_implementation("sdpa"), after apply(model): restore(model), or '
        "padding on the left or on the right only.",
    ),
    "packed": (
        lambda: ask(position_ids=RESTARTING, use_cache=False),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask. Or one sequence per '
        "row, with attention_mask= for its padding (all ones, if there is none and the positions "
        "are not packed).",
    ),
    "packed_by_number": (
        lambda: rule(masking_utils.packed_sequence_mask_function(torch.arange(8).view(2, 4))),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask. Or one sequence per '
        "row, with attention_mask= for its padding (all ones, if there is none and the positions "
        "are not packed).",
    ),
    "positions_in_steps_of_2": (
        lambda: rule(
            masking_utils.remap_positions_for_packed_sequence(
                masking_utils.causal_mask_function, torch.arange(0, 8, 2)[None]
            )
        ),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask. Or one sequence per '
        "row, with attention_mask= for its padding (all ones, if there is none and the positions "
        "are not packed).",
    ),
    "dropout": (
        lambda: ask(changes={"attention_dropout": 0.1}),
        "dropout=0.1 of attention weights, which nbattn does not support.\n"
        "  fix:   model.eval(), or config.attention_dropout = 0.0 (the name differs between "
        'models), or model.set_attn_implementation("eager").',
    ),
    "output_attentions": (
        lambda: ask(output_attentions=True),
        "output_attentions is set: nbattn never computes the attention weights.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "output_attentions_by_configuration": (
        lambda: ask("vit", input_ids=None, pixel_values=PIXELS, switch="output_attentions"),
        "output_attentions is set: nbattn never computes the attention weights.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "export": (
        lambda: torch.export.export(ready("mistral"), (tokens(BATCH, LENGTH),)),
        "torch.export has no values of the padding, from which nbattn makes its mask.\n"
        '  fix:   before the export: model.set_attn_implementation("eager").',
    ),
    "head_mask": (
        lambda: ask(head_mask=torch.ones(2, HEADS)),
        "head_mask is set: nbattn cannot switch heads off.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "packed_lengths": (
        lambda: ask(cu_seq_lens_q=torch.tensor([0, 9, LENGTH])),
        "cu_seq_lens_q is set: packed sequences are not a window.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "position_bias": (
        lambda: layer(rule(WHOLE), position_bias=torch.zeros(1)),
        "position_bias is set: nbattn adds no bias to scores.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "unknown_argument": (
        lambda: layer(rule(WHOLE), temperature=2.0),
        "temperature is set: nbattn does not know this argument.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "encoder_of_a_decoder": (
        lambda: layer(rule(masking_utils.causal_mask_function), is_causal=False),
        "is_causal=False contradicts the causal mask that the model made.\n"
        "  fix:   model.config.is_causal = False makes the model's masks bidirectional.",
    ),
    "no_mask": (
        lambda: layer(None),
        "a causal layer has no mask: the model did not call nbattn's mask function.\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "mask_of_other_lengths": (
        lambda: layer(rule(WHOLE, keys=7)),
        "the mask is for (batch, 1, queries, keys) = (2, 1, 4, 7), the layer has (2, 1, 4, 4).\n"
        '  fix:   model.set_attn_implementation("eager").',
    ),
    "mask_as_a_matrix": (
        lambda: rule(WHOLE) + torch.zeros(1),
        "the model calls add on its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   model.set_attn_implementation("eager").',
    ),
    "mask_of_another_dtype": (
        lambda: rule(WHOLE).to(torch.float16),
        "the model casts its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   model.set_attn_implementation("eager").',
    ),
    "mask_by_index": (
        lambda: rule(WHOLE)[:, :, :, :2],
        "the model indexes its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   model.set_attn_implementation("eager").',
    ),
    "chunks_apart": (
        lambda: rule(masking_utils.chunked_causal_mask_function(3, torch.tensor([0, 2]))),
        "left paddings of 0, 2 tokens move the borders of the chunks of 3 tokens apart.\n"
        '  fix:   model.set_attn_implementation("sdpa"), or one call per sample, without padding.',
    ),
    "chunks_in_a_window": (
        lambda: rule(
            masking_utils.and_masks(
                masking_utils.chunked_causal_mask_function(3, torch.zeros(2).long()),
                masking_utils.sliding_window_overlay(2),
            )
        ),
        "the model has chunks together with another window.\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask.',
    ),
    "mask_asked_for_its_size": (
        lambda: rule(WHOLE).size(),
        "the model asks for the size of its attention mask, which nbattn stores as a window, not "
        'as a matrix.\n  fix:   model.set_attn_implementation("eager").',
    ),
    "blocks": (
        lambda: parts(block_sequence_ids=torch.tensor([[-1, 0, 0, -1]] * BATCH)),
        "some tokens attend to their whole block (blockwise attention): not a window.\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask.',
    ),
    "own_function": (
        lambda: parts(and_mask_function=lambda batch, head, query, key: key > 2),
        "the model has a mask function of its own, <lambda>.<locals>.<lambda>, which nbattn "
        'does not know.\n  fix:   model.set_attn_implementation("sdpa"), which takes any mask.',
    ),
    "windows_side_by_side": (
        lambda: rule(
            masking_utils.or_masks(
                masking_utils.sliding_window_causal_mask_function(3),
                masking_utils.sliding_window_bidirectional_mask_function(1),
            )
        ),
        "the model joins windows, none of which contains the others: "
        "Window(left=2, right=0), Window(left=1, right=1).\n"
        '  fix:   model.set_attn_implementation("sdpa"), which takes any mask.',
    ),
    "newer_mask_argument": (
        lambda: rule(WHOLE, strides=2),
        "transformers passes strides= to mask functions, which nbattn does not know.\n"
        '  fix:   pip install "transformers>=5.24,<6"',
    ),
    "name_of_another": (
        lambda: integration.register("sdpa"),
        "'sdpa' is already another attention implementation.\n  fix:   register(\"nbattn\").",
    ),
    "name_of_the_default": (
        lambda: integration.register("eager"),
        "'eager' is already another attention implementation.\n  fix:   register(\"nbattn\").",
    ),
    **{
        f"name_{name}": (
            lambda name=name: integration.register(name),
            f"name={name!r} cannot be the name of an implementation.\n"
            '  fix:   register("nbattn"): letters, digits and "_", without "flash".',
        )
        for name in ("paged|nbattn", "org/nbattn", "nbattn_flash", "", None)
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_message_of_every_unsupported_argument(case):
    act, text = REFUSED[case]
    with pytest.raises(InputError) as error:
        act()
    assert str(error.value) == text


@pytest.mark.usefixtures("float64")
def test_a_decoder_as_an_encoder(attention_arguments):
    model, text = make("gemma2"), tokens(BATCH, LENGTH)
    wanted = model(text, is_causal=False, use_cache=False).logits
    model.set_attn_implementation("nbattn")
    found = model(text, is_causal=False, use_cache=False).logits
    assert [mask for mask, _ in attention_arguments] == [Mask(AROUND), Mask(EVERY_KEY)]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_layer_with_is_causal_false_needs_no_mask():
    query = torch.randn(1, 2, 4, 8)
    found, weights = integration.attend(
        torch.nn.Identity(), query, query, query, None, is_causal=False
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(found.transpose(1, 2), wanted)
    assert weights is None


def registered_names() -> tuple[bool, bool]:
    interfaces = (transformers.AttentionInterface(), transformers.AttentionMaskInterface())
    return tuple("nbattn" in interface for interface in interfaces)


def test_register_and_unregister_twice():
    assert registered_names() == (True, True)
    integration.register()
    integration.unregister()
    assert registered_names() == (False, False)
    integration.unregister()
    integration.unregister("sdpa")
    assert "sdpa" in transformers.AttentionInterface()
    with pytest.raises(ValueError, match="nbattn"):
        make("mistral").set_attn_implementation("nbattn")


def test_register_under_another_name(attention_arguments):
    integration.register("window")
    model = make("mistral", torch.float32)
    model.set_attn_implementation("window")
    model(tokens(1, 8))
    assert [mask for mask, _ in attention_arguments] == [Mask(SLIDING)] * 2
    integration.unregister("window")
    assert registered_names() == (True, True)


def test_a_release_whose_windows_mean_something_else_is_refused(monkeypatch):
    def one_more(sliding_window: int) -> Any:
        return lambda batch, head, query, key: key >= query - sliding_window

    monkeypatch.setattr(masking_utils, "sliding_window_overlay", one_more)
    mask_functions._readers.cache_clear()
    with pytest.raises(InputError) as error:
        integration.register()
    mask_functions._readers.cache_clear()
    assert str(error.value) == (
        f"transformers {transformers.__version__} has masks that nbattn does not know: "
        "and_masks.<locals>.and_mask is not Window(left=2, right=0).\n"
        '  fix:   pip install "transformers>=5.24,<6"'
    )


def test_a_release_without_a_part_is_refused(monkeypatch):
    monkeypatch.delattr(masking_utils, "blockwise_overlay")
    mask_functions._readers.cache_clear()
    with pytest.raises(InputError) as error:
        integration.register()
    assert str(error.value) == (
        f"transformers {transformers.__version__} has masks that nbattn does not know: "
        "module 'transformers.masking_utils' has no attribute 'blockwise_overlay'.\n"
        '  fix:   pip install "transformers>=5.24,<6"'
    )


def test_importing_the_integration_does_not_load_transformers():
    code = "import sys, nbattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0

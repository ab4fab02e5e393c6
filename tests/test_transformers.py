"""attn_implementation="nbattn": transformers' own eager attention is the oracle."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from small_models import DECODERS, HEADS, MODELS, WINDOW, exact_softmax, make, padding, tokens
from torch import Tensor
from transformers import DynamicCache, StaticCache, masking_utils

from nbattn import Axis, InputError, Mask
from nbattn.integrations import mask_functions
from nbattn.integrations import transformers as integration
from nbattn.integrations.mask_functions import Window

BATCH, LENGTH = 2, 19
SIDES = ["none", "left", "right"]
CAUSAL = Axis(None, 0, causal=True, align="top-left")
SLIDING = Axis(WINDOW - 1, 0, causal=True, align="top-left")
EVERY_KEY = Axis(align="top-left")
AROUND = Axis(WINDOW, WINDOW, align="top-left")
RECEIVED = {
    "mistral": [SLIDING, SLIDING],
    "gemma2": [SLIDING, CAUSAL],
    "gemma3": [SLIDING, CAUSAL],
    "qwen3": [CAUSAL, SLIDING],
    "gpt_oss": [SLIDING, CAUSAL],
    "modernbert": [EVERY_KEY, AROUND],
    "vit": [EVERY_KEY, EVERY_KEY],
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_softmax(monkeypatch)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mask, Tensor | None]]:
    """Mask and key range of every call of nbattn.attention by a layer."""
    found: list[tuple[Mask, Tensor | None]] = []
    attention = integration.attention

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Mask, **named: Any) -> Any:
        found.append((mask, named["key_range"]))
        return attention(query, key, value, mask, **named)

    monkeypatch.setattr(integration, "attention", spy)
    return found


def inputs(name: str, side: str) -> tuple[dict[str, Tensor], Tensor]:
    """What a model is called with, and which of its output's rows count."""
    if name == "vit":
        generator = torch.Generator().manual_seed(1)
        pixels = torch.rand((BATCH, 3, 20, 20), generator=generator, dtype=torch.float64)
        return {"pixel_values": pixels}, torch.ones(BATCH, dtype=torch.bool)
    mask = padding(side, BATCH, LENGTH)
    given = {"input_ids": tokens(BATCH, LENGTH)}
    if mask is None:
        return given, torch.ones(BATCH, LENGTH, dtype=torch.bool)
    return {**given, "attention_mask": mask}, mask.bool()


def results(model: Any, implementation: str, side: str = "none") -> dict[str, Tensor]:
    """Logits at valid places, and the gradient of every parameter, by an implementation."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    given, valid = inputs(model.config.model_type.removesuffix("_text"), side)
    given = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in given.items()}
    logits = model(**given).logits[valid]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits.double() * weights.double()).sum().div(logits.numel() ** 0.5).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **{n: g.clone() for n, g in grads.items()}}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[n] - t).abs().max() / t.abs().max().clamp(min=1)) for n, t in wanted.items()
    )


PAIRS = [(n, s) for n in MODELS for s in SIDES if n != "vit" or s == "none"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "side"), PAIRS)
def test_logits_and_gradients_are_those_of_eager(name, side, received, cases):
    model = make(name)
    wanted = results(model, "eager", side)
    assert received == []
    found = results(model, "nbattn", side)
    assert len(received) == 2
    assert len(found) > 10
    cases("transformers tensors", len(found))
    assert distance(found, wanted) < 1e-6


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit"])
def test_a_window_off_by_one_is_noticed(name, step, monkeypatch):
    model = make(name)
    wanted = results(model, "eager")
    read = mask_functions.read

    def wrong(function: object, end: int) -> Window:
        window = read(function, end)
        return window if window.left is None else window._replace(left=window.left + step)

    monkeypatch.setattr(mask_functions, "read", wrong)
    assert distance(results(model, "nbattn"), wanted) > 1e-3


@pytest.mark.parametrize(("name", "side"), PAIRS)
def test_layers_get_the_masks_of_their_kind(name, side, received):
    model = make(name, torch.float32)
    model.set_attn_implementation("nbattn")
    given, _ = inputs(name, side)
    model(**{n: t.float() if t.is_floating_point() else t for n, t in given.items()})
    assert [mask for mask, _ in received] == [Mask(axis) for axis in RECEIVED[name]]
    for _, key_range in received:
        if side == "none":
            assert key_range is None
        else:
            run = [7, LENGTH] if side == "left" else [0, LENGTH - 7]
            assert key_range.tolist() == [[[0, LENGTH]], [run]]


def by_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and biases of a module as one vector: a bias can have a gradient of 0 by itself."""
    grouped: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        grouped.setdefault(name.rpartition(".")[0], []).append(tensor.double().flatten())
    return {name: torch.cat(parts) for name, parts in grouped.items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "side"), PAIRS)
def test_bfloat16_errs_no_more_than_twice_eagers_error(name, side, cases):
    # Every token goes to every expert: which ones a router takes may hang on the last bit.
    every = {"num_experts_per_tok": 3} if name == "gpt_oss" else {}
    half = make(name, torch.bfloat16, initializer_range=0.2, **every)
    exact = make(name, **every)
    exact.load_state_dict(half.state_dict())
    wanted = by_module(results(exact, "eager", side))
    # ViT has no mask, so that ours is torch's SDPA, which errs more than eager does in torch 2.8.
    judges = ("eager", "sdpa") if name == "vit" else ("eager",)
    theirs = [by_module(results(half, kind, side)) for kind in judges]
    ours = by_module(results(half, "nbattn", side))
    for module, right in wanted.items():
        allowed = max((one[module] - right).abs().max() for one in theirs)
        allowed += 2**-7 * right.abs().max()
        assert ours[module].isfinite().all()
        assert (ours[module] - right).abs().max() <= 2 * allowed, module
        cases("transformers bf16 modules", 1)


CACHES = {
    "growing": lambda config: DynamicCache(),
    "rolling": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=40),
}
SLIDING_LAYERS = {"growing": set(), "rolling": {True, False}, "static": {True, False}}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", DECODERS)
def test_generate_gives_eagers_tokens(name, cache, received):
    """A left-padded batch, from a prompt and to an end beyond the window."""
    model, answers = make(name), []
    for implementation in ("eager", "nbattn"):
        model.set_attn_implementation(implementation)
        state = CACHES[cache](model.config)
        answer = model.generate(
            tokens(BATCH, LENGTH),
            attention_mask=padding("left", BATCH, LENGTH),
            cache=state,
            max_new_tokens=14,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(answer)
        if cache != "growing":
            assert {False, *state.is_sliding} == SLIDING_LAYERS[cache]
    wanted, found = answers
    assert len(received) == 2 * 14
    assert len(wanted.sequences[:, LENGTH:].unique()) > 8
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", DECODERS)
def test_a_text_in_pieces_is_one_text(name, cache, side, cases):
    """Several queries at once on a cache that has keys, before and after it rolls."""
    model, mask = make(name), padding(side, BATCH, LENGTH)
    text = tokens(BATCH, LENGTH)
    valid = torch.ones_like(text).bool() if mask is None else mask.bool()
    whole = model(text, attention_mask=mask, use_cache=False).logits
    model.set_attn_implementation("nbattn")
    state, at = CACHES[cache](model.config), 0
    for length in (3, 1, 6, 1, 5, 3):
        piece = slice(at, at + length)
        at += length
        until = None if mask is None else mask[:, :at]
        logits = model(text[:, piece], attention_mask=until, cache=state).logits
        error = (
            (logits - whole[:, piece])[valid[:, piece]].abs().max() if valid[:, piece].any() else 0
        )
        assert error < 1e-6
        cases("transformers pieces", 1)
    assert at == LENGTH


def test_masks_go_where_their_layers_are(received):
    """As accelerate's hooks send everything that has a `to` to the device of the layer."""
    model = make("gemma2")
    wanted = results(model, "nbattn", "left")

    def send(module: Any, args: Any, named: dict[str, Any]) -> Any:
        moved = {n: t.to("cpu", non_blocking=True) for n, t in named.items() if hasattr(t, "to")}
        return args, named | moved

    for block in model.model.layers:
        block.register_forward_pre_hook(send, with_kwargs=True)
    assert distance(results(model, "nbattn", "left"), wanted) == 0
    mask = rule(WHOLE, attention_mask=torch.ones(BATCH, 3).bool())
    assert mask.to("meta").key_range.device.type == "meta"
    assert mask.to(torch.device("meta")).mask == mask.mask
    assert rule(WHOLE).to("meta").key_range is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_masks_survive_gradient_checkpointing(use_reentrant, received):
    model = make("gemma2")
    wanted = results(model, "nbattn", "left")
    model.train().activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert distance(results(model, "nbattn", "left"), wanted) < 1e-12
    assert len(received) == 2 + 4
    assert [mask for mask, _ in received[-2:]] == [Mask(CAUSAL), Mask(SLIDING)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("side", ["none", "left"])
def test_a_compiled_model_gives_the_same(side):
    """Making a mask stays outside of the graphs; so does the check whether rows are packed."""
    torch._dynamo.reset()
    model = make("mistral", torch.float32)
    model.set_attn_implementation("nbattn")
    text, mask = tokens(BATCH, LENGTH), padding(side, BATCH, LENGTH)
    wanted = model(text, attention_mask=mask, use_cache=False).logits
    compiled = torch.compile(model, backend="aot_eager")
    found = compiled(text, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(found, wanted)
    torch._dynamo.reset()


def test_a_compiled_step_takes_its_mask_from_outside():
    """As generate() does with a static cache: one graph, whatever the position."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make("mistral", torch.float32)
    given = {"attention_mask": padding("left", BATCH, LENGTH), "max_new_tokens": 8}
    wanted = model.generate(tokens(BATCH, LENGTH), do_sample=False, **given)
    model.set_attn_implementation("nbattn")
    options = transformers.CompileConfig(backend="aot_eager", fullgraph=True, mode=None)
    options._compile_all_devices = True
    found = model.generate(
        tokens(BATCH, LENGTH),
        do_sample=False,
        cache_implementation="static",
        compile_config=options,
        **given,
    )
    assert torch.equal(found, wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


RULES = {
    "causal": (masking_utils.causal_mask_function, {}),
    "full": (masking_utils.bidirectional_mask_function, {}),
    "window_of_1": (masking_utils.sliding_window_causal_mask_function(1), {"local_size": 1}),
    "window_of_4": (masking_utils.sliding_window_causal_mask_function(4), {"local_size": 4}),
    "both_sides": (masking_utils.sliding_window_bidirectional_mask_function(3), {}),
    "narrower_of_two": (
        masking_utils.and_masks(
            masking_utils.sliding_window_causal_mask_function(6),
            masking_utils.sliding_window_bidirectional_mask_function(3),
        ),
        {},
    ),
    "wider_of_two": (
        masking_utils.or_masks(
            masking_utils.sliding_window_causal_mask_function(3),
            masking_utils.sliding_window_causal_mask_function(6),
        ),
        {},
    ),
    "one_chunk": (masking_utils.chunked_causal_mask_function(32, torch.zeros(2).long()), {}),
    "no_block": (
        masking_utils.or_masks(
            masking_utils.causal_mask_function,
            masking_utils.blockwise_overlay(torch.full((2, 32), -1)),
        ),
        {},
    ),
    "one_sequence": (
        masking_utils.and_masks(
            masking_utils.remap_positions_for_packed_sequence(
                masking_utils.sliding_window_causal_mask_function(4),
                torch.arange(5, 37).expand(2, -1),
            ),
            masking_utils.packed_sequence_mask_function(torch.zeros(2, 32).long()),
        ),
        {},
    ),
}
# padding of two samples, from position 0 on
PADDINGS = {
    "none": None,
    "left": torch.tensor([[0] * 6 + [1] * 6, [1] * 12]),
    "right": torch.tensor([[1] * 12, [1] * 7 + [0] * 5]),
    "both": torch.tensor([[0] * 2 + [1] * 5 + [0] * 5, [1] * 12]),
    "shorter": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "nothing": torch.tensor([[0] * 12, [1] * 12]),
}


def pairs(layer: integration.LayerMask) -> Tensor:
    """Which keys every query of every sample reads, bool `[B, 1, queries, keys]`."""
    batch, _, queries, keys = layer.shape
    matrix = torch.from_numpy(layer.mask.dense(queries, keys)).expand(batch, 1, -1, -1)
    if layer.key_range is None:
        return matrix
    at = torch.arange(keys)
    start, stop = layer.key_range[:, 0, 0, None], layer.key_range[:, 0, 1, None]
    return matrix & ((at >= start) & (at < stop))[:, None, None, :]


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_those_of_transformers_own_matrix(rule, side, cases):
    function, named = RULES[rule]
    mask = None if PADDINGS[side] is None else PADDINGS[side].bool()
    sizes = itertools.product([1, 2, 5], [1, 5, 9, 12], [0, 1, 4, 8], [0, 3, 7])
    for queries, keys, first_query, first_key in sizes:
        where = (2, queries, keys, first_query, first_key, function, mask)
        wanted = masking_utils.sdpa_mask(*where, allow_is_causal_skip=False)
        found = pairs(integration.layer_mask(*where, **named))
        assert torch.equal(found, wanted.expand(2, 1, -1, -1)), where
        cases("transformers masks", 1)


def test_keys_that_nobody_reads_need_no_range():
    """A static cache that is not full: causality keeps queries from the rest of it already."""
    where = (2, 5, 40, 0, 0, masking_utils.causal_mask_function)
    assert integration.layer_mask(*where, torch.ones(2, 5).bool()).key_range is None
    assert integration.layer_mask(*where, torch.ones(2, 4).bool()).key_range is not None


def test_positions_of_static_caches_may_be_tensors():
    where = (1, 1, 40, torch.tensor(7), 0, masking_utils.causal_mask_function)
    assert integration.layer_mask(*where).mask == Mask(Axis(None, 0, causal=True, align=7))


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
        "  fix:   attention_mask as [B, length], 1 for tokens and 0 for padding; or "
        'attn_implementation="eager".',
    ),
    "user_3d_mask": (
        lambda: ask(attention_mask=torch.ones(BATCH, LENGTH, LENGTH)),
        "attention_mask is [2, 19, 19], the batch 2.\n"
        "  fix:   attention_mask as [2, length], 1 for tokens and 0 for padding.",
    ),
    "padding_of_one_row": (
        lambda: ask(attention_mask=torch.ones(1, LENGTH)),
        "attention_mask is [1, 19], the batch 2.\n"
        "  fix:   attention_mask as [2, length], 1 for tokens and 0 for padding.",
    ),
    "holes": (
        lambda: ask(attention_mask=HOLED),
        "the padding of sample 1 has holes: its valid tokens are not one run.\n"
        "  fix:   padding on the left or on the right only.",
    ),
    "packed": (
        lambda: ask(position_ids=RESTARTING, use_cache=False),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        "  fix:   one sequence per row, with attention_mask= for its padding (all ones, if there "
        "is none and the positions are not packed); or "
        'attn_implementation="sdpa", which takes any mask.',
    ),
    "packed_by_number": (
        lambda: rule(masking_utils.packed_sequence_mask_function(torch.arange(8).view(2, 4))),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        "  fix:   one sequence per row, with attention_mask= for its padding (all ones, if there "
        "is none and the positions are not packed); or "
        'attn_implementation="sdpa", which takes any mask.',
    ),
    "positions_in_steps_of_2": (
        lambda: rule(
            masking_utils.remap_positions_for_packed_sequence(
                masking_utils.causal_mask_function, torch.arange(0, 8, 2)[None]
            )
        ),
        "position_ids do not go up by one: several sequences in a row, which is not a window.\n"
        "  fix:   one sequence per row, with attention_mask= for its padding (all ones, if there "
        "is none and the positions are not packed); or "
        'attn_implementation="sdpa", which takes any mask.',
    ),
    "dropout": (
        lambda: ask(changes={"attention_dropout": 0.1}),
        "dropout=0.1 of attention weights, which nbattn does not support.\n"
        "  fix:   config.attention_dropout = 0.0 (the name differs between models), or "
        'model.eval(), or attn_implementation="eager".',
    ),
    "output_attentions": (
        lambda: ask(output_attentions=True),
        "output_attentions is set: nbattn never computes the attention weights.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "output_attentions_by_configuration": (
        lambda: ask("vit", input_ids=None, pixel_values=PIXELS, switch="output_attentions"),
        "output_attentions is set: nbattn never computes the attention weights.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "export": (
        lambda: torch.export.export(ready("mistral"), (tokens(BATCH, LENGTH),)),
        "torch.export has no values of the padding, from which nbattn makes its mask.\n"
        '  fix:   export with attn_implementation="eager".',
    ),
    "head_mask": (
        lambda: ask(head_mask=torch.ones(2, HEADS)),
        'head_mask is set: nbattn cannot switch heads off.\n  fix:   attn_implementation="eager".',
    ),
    "packed_lengths": (
        lambda: ask(cu_seq_lens_q=torch.tensor([0, 9, LENGTH])),
        "cu_seq_lens_q is set: packed sequences are not a window.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "position_bias": (
        lambda: layer(rule(WHOLE), position_bias=torch.zeros(1)),
        "position_bias is set: nbattn adds no bias to scores.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "unknown_argument": (
        lambda: layer(rule(WHOLE), temperature=2.0),
        "temperature is set: nbattn does not know this argument.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "encoder_of_a_decoder": (
        lambda: layer(rule(masking_utils.causal_mask_function), is_causal=False),
        "is_causal=False contradicts the causal mask that the model made.\n"
        "  fix:   config.is_causal = False makes the model's masks bidirectional.",
    ),
    "no_mask": (
        lambda: layer(None),
        "a causal layer has no mask: the model did not call nbattn's mask function.\n"
        '  fix:   attn_implementation="eager".',
    ),
    "mask_of_other_lengths": (
        lambda: layer(rule(WHOLE, keys=7)),
        "the mask is for (batch, 1, queries, keys) = (2, 1, 4, 7), the layer has (2, 1, 4, 4).\n"
        '  fix:   attn_implementation="eager".',
    ),
    "mask_as_a_matrix": (
        lambda: rule(WHOLE) + torch.zeros(1),
        "the model calls add on its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   attn_implementation="eager".',
    ),
    "mask_of_another_dtype": (
        lambda: rule(WHOLE).to(torch.float16),
        "the model casts its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   attn_implementation="eager".',
    ),
    "mask_by_index": (
        lambda: rule(WHOLE)[:, :, :, :2],
        "the model indexes its attention mask, which nbattn stores as a window, not as a "
        'matrix.\n  fix:   attn_implementation="eager".',
    ),
    "chunks": (
        lambda: rule(masking_utils.chunked_causal_mask_function(3, torch.tensor([0, 2]))),
        "chunked attention: 4 keys do not fit into one chunk of 3. A chunk ends at a "
        "fixed border, which is not a window.\n"
        "  fix:   inputs of up to 3 tokens, or "
        'attn_implementation="sdpa", which takes any mask.',
    ),
    "chunks_by_positions": (
        lambda: rule(
            masking_utils.remap_positions_for_packed_sequence(
                masking_utils.chunked_causal_mask_function(8, torch.zeros(2).long()),
                torch.arange(5, 9)[None],
            )
        ),
        "chunked attention: 9 keys do not fit into one chunk of 8. A chunk ends at a "
        "fixed border, which is not a window.\n"
        "  fix:   inputs of up to 8 tokens, or "
        'attn_implementation="sdpa", which takes any mask.',
    ),
    "blocks": (
        lambda: parts(block_sequence_ids=torch.tensor([[-1, 0, 0, -1]] * BATCH)),
        "some tokens attend to their whole block (blockwise attention): not a window.\n"
        '  fix:   attn_implementation="sdpa", which takes any mask.',
    ),
    "own_function": (
        lambda: parts(and_mask_function=lambda batch, head, query, key: key > 2),
        "the model has a mask function of its own, <lambda>.<locals>.<lambda>, which nbattn "
        'does not know.\n  fix:   attn_implementation="sdpa", which takes any mask.',
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
        '  fix:   attn_implementation="sdpa", which takes any mask.',
    ),
    "newer_mask_argument": (
        lambda: rule(WHOLE, strides=2),
        "transformers passes strides= to mask functions, which nbattn does not know.\n"
        '  fix:   pip install "nbattn[transformers]"',
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
            '  fix:   letters, digits and "_", without "flash": register("nbattn").',
        )
        for name in ("paged|nbattn", "org/nbattn", "nbattn_flash", "", None)
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_in_words(case):
    act, text = REFUSED[case]
    with pytest.raises(InputError) as error:
        act()
    assert str(error.value) == text


@pytest.mark.usefixtures("float64")
def test_a_decoder_as_an_encoder(received):
    model, text = make("gemma2"), tokens(BATCH, LENGTH)
    wanted = model(text, is_causal=False, use_cache=False).logits
    model.set_attn_implementation("nbattn")
    found = model(text, is_causal=False, use_cache=False).logits
    assert [mask for mask, _ in received] == [Mask(AROUND), Mask(EVERY_KEY)]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_layer_that_says_it_is_not_causal_needs_no_mask():
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


def test_registering_twice_and_taking_it_back():
    assert registered_names() == (True, True)
    integration.register()
    integration.unregister()
    assert registered_names() == (False, False)
    integration.unregister()
    integration.unregister("sdpa")
    assert "sdpa" in transformers.AttentionInterface()
    with pytest.raises(ValueError, match="nbattn"):
        make("mistral").set_attn_implementation("nbattn")


def test_another_name(received):
    integration.register("window")
    model = make("mistral", torch.float32)
    model.set_attn_implementation("window")
    model(tokens(1, 8))
    assert [mask for mask, _ in received] == [Mask(SLIDING)] * 2
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
        '  fix:   pip install "nbattn[transformers]"'
    )


def test_a_release_without_a_part_is_refused(monkeypatch):
    monkeypatch.delattr(masking_utils, "blockwise_overlay")
    mask_functions._readers.cache_clear()
    with pytest.raises(InputError) as error:
        integration.register()
    assert str(error.value) == (
        f"transformers {transformers.__version__} has masks that nbattn does not know: "
        "module 'transformers.masking_utils' has no attribute 'blockwise_overlay'.\n"
        '  fix:   pip install "nbattn[transformers]"'
    )


def test_importing_the_integration_does_not_load_transformers():
    code = "import sys, nbattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0

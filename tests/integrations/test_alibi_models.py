"""Tests of transformers' models with ALiBi on nbattn: Bloom and MPT as they are without it, also
padded, cached and trained; refusals; other models.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from small_models import fill, make, padding, tokens
from torch import Tensor, nn
from transformers.models.bloom import modeling_bloom
from transformers.models.falcon import modeling_falcon
from transformers.models.mpt import modeling_mpt

from nbattn import InputError
from nbattn.integrations import alibi_models
from nbattn.integrations import transformers as integration
from nbattn.integrations.transformers import apply, restore

BATCH, LENGTH = 2, 13
IDS = tokens(BATCH, LENGTH)
_SPECIAL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def bloom(**changes: Any) -> Any:
    """Six heads: slopes of two sequences."""
    sizes = {"hidden_size": 36, "n_layer": 2, "n_head": 6}
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(**{**_SPECIAL, **sizes, **changes})
    )


def mpt(max_seq_len: int = 64, **attention: Any) -> Any:
    sizes = {"d_model": 36, "n_layers": 2, "n_heads": 6, "max_seq_len": max_seq_len}
    config = transformers.MptConfig(**_SPECIAL, **sizes, attn_config=attention)
    return transformers.MptForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "bloom": bloom,
    "bloom, eight heads": lambda: bloom(hidden_size=32, n_head=8),
    "bloom, residual after the norm": lambda: bloom(apply_residual_connection_post_layernorm=True),
    "bloom in slices": lambda: bloom(pretraining_tp=2, slow_but_exact=True),
    "mpt": mpt,
    "mpt, clipped, with a scale": lambda: mpt(clip_qkv=0.7, softmax_scale=0.9),
}


@pytest.fixture(autouse=True)
def unregistered_after() -> Iterator[None]:
    yield
    integration.unregister()


@pytest.fixture(params=["bloom", pytest.param("mpt", marks=pytest.mark.deep)])
def model(request: pytest.FixtureRequest) -> Any:
    return fill(MODELS[request.param]()).float()


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_transformers(name: str, side: str) -> None:
    """Of all tokens that are not padding."""
    model, mask = fill(MODELS[name]()).float(), padding(side, BATCH, LENGTH)
    valid = torch.ones(BATCH, LENGTH).bool() if mask is None else mask.bool()
    results = []
    for change in (restore, apply):
        change(model).zero_grad()
        logits = model(IDS, attention_mask=mask).logits[valid]
        logits.square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((logits, {name: grad.clone() for name, grad in grads.items()}))
    (wanted, theirs), (found, ours) = results
    assert type(model.transformer.get_submodule(attention(model))) in ALIBI
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert ours.keys() == theirs.keys()
    for parameter, grad in theirs.items():
        torch.testing.assert_close(ours[parameter], grad, rtol=1e-3, atol=1e-4, msg=parameter)


ALIBI = (alibi_models.BloomAttention, alibi_models.MptAttention)


def attention(model: Any) -> str:
    return "h.0.self_attention" if "bloom" in model.config.model_type else "blocks.0.attn"


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
)
@pytest.mark.parametrize("side", ["none", "left"])
def test_generated_tokens_are_those_of_transformers(model: Any, how: Any, side: str) -> None:
    def generate() -> Tensor:
        named = {"attention_mask": padding(side, BATCH, LENGTH), **how}
        return model.generate(IDS, max_new_tokens=9, do_sample=False, **named)

    wanted = generate()
    apply(model)
    assert len(set(wanted[:, LENGTH:].flatten().tolist())) > 3
    assert torch.equal(generate(), wanted)


def test_steps_on_a_cache_are_one_pass(model: Any) -> None:
    apply(model)
    whole = model(IDS, attention_mask=padding("left", BATCH, LENGTH)).logits
    mask, cache, parts = padding("left", BATCH, LENGTH), None, []
    for start, stop in ((0, 6), (6, 12), (12, LENGTH)):
        tokens_here, seen = IDS[:, start:stop], mask[:, :stop]
        out = model(tokens_here, attention_mask=seen, cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask.bool()], whole[mask.bool()])


def test_biases_differ_from_distances_by_one_number_per_query() -> None:
    """Whatever the padding: what a softmax over a query's keys does not show."""
    heads, length = 6, 11
    slopes = modeling_bloom._get_alibi_slopes(heads, torch.device("cpu"))
    at = torch.arange(length)
    linear = -slopes[:, None, None] * (at[:, None] - at).abs()
    valid = torch.stack([at >= 0, at >= 4, at < 7])
    theirs = modeling_bloom.build_alibi_tensor(valid.long(), heads, torch.float32)
    theirs = theirs.view(3, heads, 1, length)
    last = modeling_mpt.build_mpt_alibi_tensor(heads, length)
    own = last[:, 0, -2, None, None] * (at[:, None] - at).abs()
    for sample, run in enumerate(valid):
        reads = run & (at <= at[:, None])
        for biases, distances in ((theirs[sample], linear), (last, own)):
            difference = (biases - distances).masked_fill(~reads, float("nan"))
            spread = [d[~d.isnan()] for d in difference.flatten(0, 1)]
            assert all((row - row.mean()).abs().max() < 1e-5 for row in spread if len(row))


def test_halves_are_nearer_to_float32_than_those_of_transformers() -> None:
    """Bloom rounds biases and scores to its dtype; float32 has no such loss."""
    model = fill(bloom(hidden_size=32, n_head=4)).float()
    ids = tokens(1, 300)
    exact = model(ids).logits
    model.bfloat16()
    theirs, ours = (
        (change(model)(ids).logits.float() - exact).square().mean() for change in (restore, apply)
    )
    assert ours < theirs


def test_mpt_may_be_longer_than_its_bias() -> None:
    """transformers' own attention fails there."""
    short, long = (fill(mpt(length)) for length in (8, 64))
    long.load_state_dict(short.state_dict())
    with pytest.raises(RuntimeError, match="must match"):
        short(IDS)
    torch.testing.assert_close(apply(short)(IDS).logits, long(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_change_can_be_undone_and_goes_with_copies(model: Any) -> None:
    before = {name: type(part) for name, part in model.named_modules()}
    wanted, keys = model(IDS).logits, [*model.state_dict()]
    assert apply(apply(model)) is model
    assert [*model.state_dict()] == keys
    found = model(IDS).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IDS).logits, found)
        changed = [type(part) for part in twin.modules()]
        assert any(kind in ALIBI for kind in changed)
    assert type(model) is before[""]
    assert restore(restore(model)) is model
    assert {name: type(part) for name, part in model.named_modules()} == before
    assert torch.equal(model(IDS).logits, wanted)


def test_a_module_that_has_a_model_is_changed(model: Any) -> None:
    wrapped = nn.ModuleDict({"language": model})
    assert apply(wrapped) is wrapped
    assert any(type(part) in ALIBI for part in model.modules())


def test_hooks_of_accelerate_call_the_new_forward(model: Any) -> None:
    """They keep the old one as `_old_forward`, and their own on the module."""
    part: Any = model.transformer.get_submodule(attention(model))
    part._old_forward = part.forward
    part.forward = lambda *args, **named: part._old_forward(*args, **named)
    apply(model)
    assert part._old_forward.__func__ in {kind.forward for kind in ALIBI}
    model(IDS)
    restore(model)
    assert part._old_forward.__func__ not in {kind.forward for kind in ALIBI}


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_models_are_the_same(model: Any) -> None:
    apply(model)
    mask = padding("left", BATCH, LENGTH)
    wanted = model(IDS, attention_mask=mask).logits
    found = torch.compile(model, backend="aot_eager")(IDS, attention_mask=mask).logits
    torch.testing.assert_close(found, wanted)


# Refusals.

HOLES = torch.ones(BATCH, LENGTH).long()
HOLES[1, 4] = 0
MATRIX = torch.ones(BATCH, 1, LENGTH, LENGTH).tril().bool()
_FIX = "nbattn.integrations.transformers.restore(model)."
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "bloom's dropout": (
        lambda: apply(bloom(attention_dropout=0.1)).train()(IDS),
        "dropout=0.1 of attention weights, which nbattn does not support.",
        "model.eval(), or config.attention_dropout = 0.0 (the name differs between models), or "
        f"{_FIX}",
    ),
    "mpt's dropout": (
        lambda: dropping(apply(mpt())).train()(IDS),
        "dropout=0.1 of attention weights, which nbattn does not support.",
        "model.eval(), or config.attention_dropout = 0.0 (the name differs between models), or "
        f"{_FIX}",
    ),
    "bloom's weights": (
        lambda: apply(bloom())(IDS, output_attentions=True),
        "output_attentions is set: nbattn never computes the attention weights.",
        _FIX,
    ),
    "mpt's weights": (
        lambda: apply(mpt())(IDS, output_attentions=True),
        "output_attentions is set: nbattn never computes the attention weights.",
        _FIX,
    ),
    "heads switched off": (
        lambda: attention_of(apply(bloom())).forward(None, None, None, None, head_mask=IDS),
        "head_mask is set: nbattn cannot switch heads off.",
        _FIX,
    ),
    "a matrix": (
        lambda: apply(mpt())(IDS, attention_mask=MATRIX),
        "attention_mask is a Tensor [2, 1, 13, 13], made by the caller or by the model.",
        f"attention_mask=torch.ones(2, 13), with 0 for padding; or {_FIX}",
    ),
    "holes": (
        lambda: apply(bloom())(IDS, attention_mask=HOLES),
        "the padding of sample 1 has holes: its valid tokens are not one run.",
        'model.set_attn_implementation("sdpa"), after apply(model): restore(model), or padding '
        "on the left or on the right only.",
    ),
    "falcon": (
        lambda: apply(falcon(alibi=True)),
        "FalconModel rounds ALiBi's slopes and biases to bfloat16, whatever its dtype: by up to 9 "
        "at 2,048 tokens of 32 heads. nbattn's are exact, not those that it was trained with.",
        "",
    ),
    "falcon with rotations": (
        lambda: apply(falcon(alibi=False)),
        "FalconModel has attention classes of its own, FALCON_ATTENTION_CLASSES: 'eager', "
        "'flash_attention_2', 'sdpa'.",
        'attn_implementation="sdpa".',
    ),
    "a model with the interface": (
        lambda: apply(make("mistral")),
        "MistralForCausalLM uses transformers' attention interface: apply() is for Bloom and MPT.",
        'nbattn.integrations.transformers.register(); model.set_attn_implementation("nbattn").',
    ),
    "a model of its own kind": (
        lambda: apply(transformers.BigBirdModel(transformers.BigBirdConfig(**_SMALL))),
        "BigBirdModel has an attention that nbattn does not replace: neither Bloom nor MPT.",
        "",
    ),
    "another module": (
        lambda: apply(nn.Linear(2, 2)),
        "Linear is no Bloom and no MPT of transformers.",
        "",
    ),
    "a name": (
        lambda: apply("bigscience/bloom-560m"),
        "model is a str, not a model of transformers.",
        "nbattn.integrations.transformers.apply("
        'transformers.AutoModelForCausalLM.from_pretrained("bigscience/bloom-560m")).',
    ),
    "nothing to restore": (
        lambda: restore(None),
        "model is None, not the model that apply() was given.",
        "",
    ),
}
_SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def falcon(**changes: Any) -> Any:
    return transformers.FalconModel(transformers.FalconConfig(**_SMALL, **changes))


def dropping(model: Any) -> Any:
    """An MPT that drops a tenth of the weights: its configuration takes only 0 and 1."""
    for block in model.transformer.blocks:
        block.attn.attn_dropout_p = 0.1
    return model


def attention_of(model: Any) -> Any:
    return model.transformer.get_submodule(attention(model))


@pytest.mark.parametrize("name", REFUSED)
def test_message_of_everything_that_is_refused(name: str) -> None:
    call, problem, fix = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert (error.value.problem, error.value.fix) == (problem, fix)


def test_dropout_outside_of_training_and_of_other_parts_is_none_of_attention() -> None:
    for model in (bloom(attention_dropout=0.1), dropping(mpt())):
        apply(model).eval()(IDS)
    found = apply(bloom(hidden_dropout=0.5)).train()
    assert not torch.equal(found(IDS).logits, found(IDS).logits)


def test_falcon_rounds_its_biases() -> None:
    heads, length = 32, 2048
    slopes = modeling_bloom._get_alibi_slopes(heads, torch.device("cpu")).double()
    rounded = modeling_falcon.build_alibi_tensor(
        torch.ones(1, length).long(), heads, torch.float32
    ).view(heads, length)
    assert 9 < (rounded - slopes[:, None] * torch.arange(length)).abs().max() < 10

"""attn_implementation="nbattn": transformers' own eager attention is the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import MODELS, WINDOW, make, padding, tokens
from torch import Tensor

from nbattn import Axis, Mask
from nbattn.integrations import mask_functions
from nbattn.integrations import transformers as integration
from nbattn.integrations.mask_functions import Window

BATCH, LENGTH = 2, 19
SIDES = ["none", "left", "right"]
CAUSAL, SLIDING = Axis(None, 0, causal=True), Axis(WINDOW - 1, 0, causal=True)
RECEIVED = {
    "mistral": [SLIDING, SLIDING],
    "gemma2": [SLIDING, CAUSAL],
    "gemma3": [SLIDING, CAUSAL],
    "qwen3": [CAUSAL, SLIDING],
    "gpt_oss": [SLIDING, CAUSAL],
    "modernbert": [Axis(), Axis(WINDOW, WINDOW)],
    "vit": [Axis(), Axis()],
}
_softmax = torch.nn.functional.softmax


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention computes its softmax in float32, which for float64 is a loss: leave it out.

    It also turns a row without keys, all at float64's minimum, into NaN, which spreads.
    """

    def exact(scores: Tensor, dim: int | None = None, *_: Any, dtype: Any = None) -> Tensor:
        return _softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


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

"""Tests of apply() and restore() themselves: what they change, what they refuse, in words."""

from __future__ import annotations

import pytest
import torch
from integrations.diffusers.models import MODELS, output, window
from torch import nn

from nbattn import Mask
from nbattn.errors import InputError, NbattnError
from nbattn.integrations.diffusers import apply, restore, sliding_tile

FLUX = MODELS["flux"]


def test_the_model_itself_is_changed_and_returned():
    model = FLUX.model()
    parts, hooks = [type(part) for part in model.modules()], dict(model._forward_pre_hooks)
    assert apply(model, window(FLUX)) is model
    assert [type(part) for part in model.modules()] == parts
    assert len(model._forward_pre_hooks) == len(hooks) + 1
    assert restore(model) is model
    assert model._forward_pre_hooks == hooks


def test_the_last_mask_counts():
    given = FLUX.inputs(FLUX.sizes[0])
    model, mask = FLUX.model(), Mask.neighborhood((5, 5))
    twice = output(apply(apply(model, window(FLUX)), mask), given)
    assert torch.equal(twice, output(apply(FLUX.model(), mask), given))
    assert len(model._forward_pre_hooks) == 1
    restore(restore(model))
    assert torch.equal(output(model, given), output(FLUX.model(), given))


def test_what_is_refused_changes_nothing():
    model, given = FLUX.model(), FLUX.inputs(FLUX.sizes[0])
    expected = output(apply(model, window(FLUX)), given)
    for arguments, named in (
        ((), {}),
        ((Mask.full(3),), {}),
        (({"dobule": Mask.full(2)},), {}),
        ((Mask.full(2),), {"layers": "triple"}),
        ((Mask.full(2),), {"text": "none"}),
        ((Mask.full(2),), {"schedule": {(0, 1): None}}),
        ((), {"schedule": {(1, 0): None}}),
    ):
        with pytest.raises(NbattnError):
            apply(model, *arguments, **named)
    assert torch.equal(output(model, given), expected)


@pytest.mark.parametrize("other", [None, "flux", nn.Linear(2, 2), FLUX.make])
def test_other_models_are_refused(other: object):
    with pytest.raises(InputError, match="FluxTransformer2DModel"):
        apply(other, Mask.full(2))
    if not isinstance(other, nn.Module):
        with pytest.raises(InputError):
            restore(other)


def test_layers_leave_the_others_as_they_are():
    model = apply(FLUX.model(), window(FLUX), layers=["single", 0])
    windowed = {
        name
        for name, part in model.named_modules()
        if hasattr(getattr(part, "processor", 0), "layer")
    }
    singles = {name for name, kind in FLUX.layers.items() if kind == "single"}
    assert windowed == singles | {"transformer_blocks.0.attn"}


def test_a_recipe_is_a_mask_of_a_model():
    small = MODELS["hunyuan"]
    given = small.inputs(small.sizes[0])
    model = apply(small.model(), sliding_tile((1, 3, 1), (2, 2, 2)))
    same = Mask.neighborhood((2, 6, 2), stride=(2, 2, 2))
    assert torch.equal(output(model, given), output(apply(small.model(), same), given))

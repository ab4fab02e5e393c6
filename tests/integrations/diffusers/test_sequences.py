"""Reference images in the grid's sequence are as global as text; text that reads itself alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrations.diffusers.dense_windows import compare, windows, with_gradients
from integrations.diffusers.models import BATCH, MODELS, ids, output, random, window

from nbattn.errors import InputError
from nbattn.integrations.diffusers import apply

SIZE, REFERENCE = (5, 7), (3, 4)


def with_references(name: str, *, padded: bool = False) -> dict[str, Any]:
    """Arguments with a reference image behind the grid."""
    tokens = REFERENCE[0] * REFERENCE[1]
    given = MODELS[name].inputs(SIZE, padded=padded)
    given["hidden_states"] = torch.cat([given["hidden_states"], random(tokens, 8)], dim=1)
    if name == "qwen":
        given["img_shapes"] = [[(1, *SIZE), (1, *REFERENCE)]] * BATCH
        return given
    columns = given["img_ids"].shape[1]
    reference = ids(*REFERENCE, image=1 if name == "flux" else 10, columns=columns)
    return given | {"img_ids": torch.cat([given["img_ids"], reference])}


@pytest.mark.parametrize(("name", "padded"), [("flux", False), ("flux2", False), ("qwen", True)])
def test_reference_images_are_global(name: str, padded: bool):
    small = MODELS[name]
    model, same, mask = small.model(), small.model(), window(small)
    with windows(small, same, SIZE, dict.fromkeys(small.layers, mask.axes)):
        expected = with_gradients(same, with_references(name, padded=padded))
    compare(with_gradients(apply(model, mask), with_references(name, padded=padded)), expected)


def test_text_padded_on_the_left_beside_reference_images():
    model = apply(MODELS["qwen"].model(), window(MODELS["qwen"]))
    given = with_references("qwen", padded=True)
    given["encoder_hidden_states_mask"] = given["encoder_hidden_states_mask"].flip(1)
    with pytest.raises(InputError, match="padded on the left"):
        output(model, given)


@pytest.mark.parametrize("where", ["left", "right"])
def test_text_padded_on_either_side(where: str):
    small = MODELS["qwen"]
    model, same, mask = small.model(), small.model(), window(small)
    given = small.inputs(SIZE, padded=True)
    if where == "left":
        given["encoder_hidden_states_mask"] = given["encoder_hidden_states_mask"].flip(1)
    with windows(small, same, SIZE, dict.fromkeys(small.layers, mask.axes)):
        expected = output(same, given)
    torch.testing.assert_close(output(apply(model, mask), given), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan", "cogvideox", "mochi", "qwen"])
def test_text_as_keys_alone(name: str):
    small, size = MODELS[name], MODELS[name].sizes[1]
    model, same, mask = small.model(), small.model(), window(small)
    axes = dict.fromkeys(small.layers, mask.axes)
    with windows(small, same, size, axes, text="keys"):
        expected = output(same, small.inputs(size, padded=True))
    found = output(apply(model, mask, text="keys"), small.inputs(size, padded=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    joint = output(apply(model, mask), small.inputs(size, padded=True))
    assert (joint - found).abs().max() > 1e-4

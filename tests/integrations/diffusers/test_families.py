"""Every diffusion transformer: its own output with the full mask; with windows that of a model with
a dense mask, values and gradients; and one layer's gradient reaches its window and nothing else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from itertools import cycle, product
from typing import Any

import pytest
import torch
from integrations.diffusers.dense_windows import compare, pairs, windows, with_gradients
from integrations.diffusers.models import BATCH, MODELS, TEXT, Sizes, Small, kept, output
from torch import Tensor

from nbattn import Axis, Mask
from nbattn.integrations.diffusers import apply, restore

EXACT = {"rtol": 0.0, "atol": 1e-10}
IMAGE_MASKS = {
    "odd": Mask.neighborhood((3, 3)),
    "even": Mask.neighborhood((2, 4)),
    "dilated": Mask.neighborhood((3, 2), dilation=(1, 2)),
    "strided": Mask.neighborhood((3, 5), stride=(2, 3)),
    "clipped": Mask(Axis(2, 1), Axis(0, 1)),
    "causal": Mask.neighborhood((3, 3), is_causal=(True, False)),
}
VIDEO_MASKS = {
    "odd": Mask.neighborhood((3, 3, 3)),
    "even": Mask.neighborhood((2, 2, 4)),
    "dilated": Mask.neighborhood((2, 2, 2), dilation=(1, 2, 1)),
    "strided": Mask.neighborhood((2, 3, 3), stride=(1, 2, 3)),
    "clipped": Mask(Axis(1, 1), Axis(2, 1), Axis(0, 1)),
    "causal": Mask.neighborhood((2, 3, 3), is_causal=(True, False, False)),
}


def masks_for(small: Small) -> Mapping[str, Mask]:
    return IMAGE_MASKS if len(small.patches) == 2 else VIDEO_MASKS


def axes_by_layer(small: Small, table: Mapping[str, Mask | None]) -> dict[str, Any]:
    """A table by type or name, written out."""
    return {
        name: None if mask is None else mask.axes
        for name, kind in small.layers.items()
        for mask in [table.get(name, table.get(kind))]
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_full_mask_gives_the_models_own_output(name: str, cases):
    small = MODELS[name]
    model = small.model()
    for size, padded in product(small.sizes, (False, True) if small.padding else (False,)):
        restore(model)
        own = output(model, small.inputs(size, padded=padded))
        apply(model, Mask.full(len(small.patches)))
        found = output(model, small.inputs(size, padded=padded))
        torch.testing.assert_close(found, own, **EXACT)
        cases("full masks of diffusers' models", 1)


def check_windows(name: str, cases: Iterable[tuple[Sizes, Mask, bool]]) -> int:
    """Compares a model with windows with one that has dense masks; returns the number of cases."""
    small, number = MODELS[name], 0
    model, same = small.model(), small.model()
    for size, mask, padded in cases:
        own = output(same, small.inputs(size, padded=padded))
        with windows(
            small, same, size, axes_by_layer(small, dict.fromkeys(small.layers, mask))
        ) as w:
            expected = with_gradients(same, small.inputs(size, padded=padded))
        assert w.calls == len(small.layers) * (BATCH if name == "mochi" else 1)
        assert (expected["output"] - own).abs().max() > 1e-3
        found = with_gradients(apply(model, mask), small.inputs(size, padded=padded))
        compare(found, expected)
        number += 1
    return number


@pytest.mark.parametrize("name", MODELS)
def test_windows_are_a_dense_mask(name: str, cases):
    small = MODELS[name]
    masks = masks_for(small).values()
    sizes, padded = cycle(small.sizes), cycle((True, True, False, False))
    number = check_windows(name, zip(sizes, masks, padded, strict=False))
    cases("windows of diffusers' models", number)


@pytest.mark.deep
@pytest.mark.parametrize("name", MODELS)
def test_windows_are_a_dense_mask_all_cases(name: str, cases):
    small = MODELS[name]
    masks = masks_for(small).values()
    number = check_windows(name, product(small.sizes, masks, (False, True)))
    cases("windows of diffusers' models", number)


@pytest.mark.parametrize("name", MODELS)
def test_a_table_by_type_and_one_layer_alone(name: str):
    small = MODELS[name]
    model, same = small.model(), small.model()
    odd, causal = masks_for(small)["odd"], masks_for(small)["causal"]
    types = [*dict.fromkeys(small.layers.values())]
    first, *_, last = small.layers
    tables: list[tuple[Any, dict[str, Any], dict[str, Mask | None]]] = [
        ({types[0]: odd, types[-1]: causal}, {}, {types[0]: odd, types[-1]: causal}),
        (
            {types[-1]: odd, last: None, first: causal},
            {},
            {types[-1]: odd, last: None, first: causal},
        ),
        (odd, {"layers": [last]}, {last: odd}),
    ]
    size = small.sizes[1]
    for mask, options, table in tables:
        with windows(small, same, size, axes_by_layer(small, table)):
            expected = output(same, small.inputs(size, padded=True))
        found = output(apply(model, mask, **options), small.inputs(size, padded=True))
        torch.testing.assert_close(found, expected, **EXACT)


def layers_reach(small: Small, model: Any, layer: str, size: Sizes, places: list[int]) -> Tensor:
    """Which tokens of an attention layer's inputs some tokens of its output have a gradient of:
    bool [places, B, S] of the second sample's outputs, in the order grid, text.
    """
    found: list[Tensor] = []

    def watch(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        handle.remove()
        given = inspect.signature(module.forward).bind(*arguments, **named).arguments
        given |= given.pop("kwargs", {}) | given.pop("cross_attention_kwargs", {})
        names = [n for n in ("hidden_states", "encoder_hidden_states") if given.get(n) is not None]
        before = TEXT if len(names) == 1 and small.text == "first" else 0
        inputs = [given[name].detach().requires_grad_() for name in names]
        with torch.enable_grad():
            outs = module(**(given | dict(zip(names, inputs, strict=True))))
            outs = torch.cat(outs, dim=1) if isinstance(outs, tuple) else outs
            for place in places:
                out = outs[1].roll(-before, 0)[place].sum()
                grads = torch.autograd.grad(out, inputs, retain_graph=True)
                reached = torch.cat([(grad != 0).any(dim=-1) for grad in grads], dim=1)
                found.append(reached.roll(-before, 1))

    handle = model.get_submodule(layer).register_forward_pre_hook(watch, with_kwargs=True)
    output(model, small.inputs(size, padded=True))
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_a_tokens_gradient_reaches_its_window_and_nothing_else(name: str):
    small = MODELS[name]
    model, size = small.model(), small.sizes[1]
    mask = masks_for(small)["even"]
    apply(model, mask)
    grid = math.prod(small.grid(size))
    for kind, layer in {kind: layer for layer, kind in small.layers.items()}.items():
        text = 0 if kind == "self" else TEXT
        expected = pairs(mask.axes, small.grid(size), 0, grid + text)
        if small.padding and text:
            expected[:, grid:] &= kept(True)[1]
        places = [*range(0, grid, 4), *range(grid, grid + text, 2)]
        if text:
            places.remove(grid + TEXT - 1)  # Mochi leaves padding out altogether
        reach = layers_reach(small, model, layer, size, places)
        assert not reach[:, 0].any()
        assert torch.equal(reach[:, 1], expected[places])

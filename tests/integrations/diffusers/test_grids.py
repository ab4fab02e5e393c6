"""Grids that forward passes say: image positions, sizes of latents, shapes of images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integrations.diffusers.models import ids

from nbattn.errors import InputError
from nbattn.integrations.diffusers import grids

MODEL: Any = SimpleNamespace(config=SimpleNamespace(patch_size=2, patch_size_t=2))


def test_latents_that_patches_do_not_divide():
    latents = {"hidden_states": torch.zeros(1, 4, 5, 7, 11)}
    assert grids.OfLatents((2, 3, 4))(MODEL, latents) == ((2, 3, 5), 0)
    assert grids.OfLatents((2, 3, 4), fills_frames=True)(MODEL, latents) == ((3, 3, 5), 0)
    assert grids.OfLatents((3, 4))(MODEL, latents) == ((3, 5), 0)


def test_one_number_for_each_axis_of_a_patch():
    model: Any = SimpleNamespace(config=SimpleNamespace(patch_size=[1, 2, 3]))
    latents = {"hidden_states": torch.zeros(1, 4, 5, 7, 11)}
    assert grids.OfLatents((2, 3, 4))(model, latents) == ((5, 3, 3), 0)


@pytest.mark.parametrize("columns", [3, 4])
def test_positions_of_an_image_and_of_references(columns: int):
    references = [ids(2, 3, image=1, columns=columns), ids(4, 1, image=2, columns=columns)]
    positions = torch.cat([ids(5, 7, columns=columns), *references])
    assert grids.of_ids(MODEL, {"img_ids": positions}) == ((5, 7), 10)
    assert grids.of_ids(MODEL, {"img_ids": positions[None]}) == ((5, 7), 10)
    assert grids.of_ids(MODEL, {"img_ids": ids(1, 7, columns=columns)}) == ((1, 7), 0)
    assert grids.of_ids(MODEL, {"img_ids": ids(7, 1, columns=columns)}) == ((7, 1), 0)


def test_positions_that_bf16_rounds():
    for size in ((2, 300), (300, 2)):
        assert grids.of_ids(MODEL, {"img_ids": ids(*size).bfloat16()}) == (size, 0)


def test_positions_that_are_no_grid():
    shuffled = ids(5, 7)[torch.randperm(35)]
    for positions in (ids(5, 7)[:-1], ids(5, 7).flip(0), shuffled, torch.zeros(35, 3)):
        with pytest.raises(InputError, match="no grid with rows"):
            grids.of_ids(MODEL, {"img_ids": positions})


def test_shapes_of_images():
    model: Any = SimpleNamespace(config=SimpleNamespace(use_layer3d_rope=False))
    shapes = [[(1, 5, 7), (1, 2, 3), (1, 4, 4)]] * 2
    assert grids.of_shapes(model, {"img_shapes": shapes}) == ((5, 7), 22)
    assert grids.of_shapes(model, {"img_shapes": [(1, 5, 7)] * 2}) == ((5, 7), 0)
    with pytest.raises(InputError, match="differ between samples"):
        grids.of_shapes(model, {"img_shapes": [[(1, 5, 7)], [(1, 7, 5)]]})
    with pytest.raises(InputError, match="2 frames"):
        grids.of_shapes(model, {"img_shapes": [[(2, 5, 7)]]})


def test_sizes_that_are_not_all_of_the_tokens():
    given = {"hidden_states": torch.zeros(1, 24, 8), "num_frames": 2, "height": 3, "width": 4}
    assert grids.of_sizes(MODEL, given) == ((2, 3, 4), 0)
    with pytest.raises(InputError, match="has 24 tokens"):
        grids.of_sizes(MODEL, given | {"height": 2})
    with pytest.raises(InputError, match="are no grid"):
        grids.of_sizes(MODEL, given | {"height": None})


def test_positions_of_a_video_and_of_conditions():
    given = {"hidden_states": torch.zeros(2, 24, 8)}
    axes = torch.tensor([0.0, 0.04]), torch.arange(3) * 32.0, torch.arange(4) * 32.0
    positions = torch.cartesian_prod(*axes).T.expand(2, 3, 24)
    assert grids.of_sizes(MODEL, given | {"video_coords": positions}) == ((2, 3, 4), 0)
    frame = positions[..., :12]
    assert grids.of_sizes(MODEL, given | {"video_coords": frame}) == ((1, 3, 4), 0)
    condition = frame + torch.tensor([[0.5], [0.0], [0.0]])
    for others in (
        torch.cat([condition, positions], dim=2),
        torch.cat([positions, condition[..., :5]], dim=2),
        positions.flip(2),
        positions[:, [0, 2, 1]],
        torch.zeros(2, 3, 24),
    ):
        with pytest.raises(InputError, match="not the positions of one video"):
            grids.of_sizes(MODEL, given | {"video_coords": others})

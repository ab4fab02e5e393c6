"""Tests of the grids of models: against literal ones, diffusers' decoder, and misuse."""

from __future__ import annotations

import pytest

from nbattn import InputError
from nbattn.published import grids
from nbattn.published.models import MODELS

# Name, height and width, frames → the grid; the pipelines of diffusers make these latents.
GRIDS = {
    ("flux", (4096, 4096), 1): (256, 256),
    ("flux", (768, 1360), 1): (48, 85),
    ("sd3.5", (1024, 1024), 1): (64, 64),
    ("qwen_image", (928, 1664), 1): (58, 104),
    ("hunyuan_video", (720, 1280), 129): (33, 45, 80),  # 118,800 tokens, as published
    ("hunyuan_video", (768, 1280), 117): (30, 48, 80),
    ("wan", (720, 1280), 81): (21, 45, 80),  # 75,600
    ("wan", (768, 1280), 69): (18, 48, 80),
    ("wan_1.3b", (480, 832), 81): (21, 30, 52),  # 32,760
    ("cogvideox", (480, 720), 49): (13, 30, 45),  # 17,550
    ("mochi", (480, 848), 163): (28, 30, 53),  # 44,520
    ("ltx_video", (512, 704), 161): (21, 16, 22),
    ("cosmos", (704, 1280), 93): (24, 44, 80),
    ("cosmos_7b", (704, 1280), 121): (16, 44, 80),
}


@pytest.mark.parametrize(("name", "size", "frames"), GRIDS)
def test_grid_of_tokens(name: str, size: tuple[int, int], frames: int) -> None:
    given = None if len(GRIDS[name, size, frames]) == 2 else frames
    checked = grids.checked(name, size, given)
    assert checked == (size, frames)
    found = grids.of(MODELS[name], *checked)
    assert found == [GRIDS[name, size, frames]] * len(MODELS[name].layers)


@pytest.mark.parametrize("latents", [(3, 7, 7), (4, 8, 7), (6, 7, 9)])
def test_stages_of_the_decoder_are_those_of_diffusers(latents: tuple[int, int, int]) -> None:
    """A decoder with few channels runs; its attention is replaced by one that notes the grid."""
    diffusers = pytest.importorskip("diffusers")
    import torch

    decoder = diffusers.LTX2VideoDiffusionDecoderModel(
        latent_channels=4, decoder_head_dim=8, decoder_stage_channels=(64, 32, 16, 16, 8)
    )
    seen: dict[tuple[int, ...], None] = {}

    class Noted:
        def __call__(self, attn, hidden_states, block_mask=None):
            seen[tuple(hidden_states.shape[1:4])] = None
            return hidden_states

    decoder.set_attn_processor(Noted())
    with torch.no_grad():
        pixels = decoder.decode(torch.zeros(1, 4, *latents)).sample
    frames, *size = pixels.shape[2:]
    model = MODELS["ltx2_decoder"]
    assert grids.checked("ltx2_decoder", size, frames) == (tuple(size), frames)
    assert grids.of(model, tuple(size), frames) == list(seen)


def test_stages_of_a_clip() -> None:
    """121 frames of 512 x 768: stage 4 is the grid whose block mask diffusers measures."""
    found = grids.of(MODELS["ltx2_decoder"], (512, 768), 121)
    assert found == [(18, 16, 24), (18, 32, 48), (35, 32, 48), (69, 64, 96), (121, 128, 192)]


def test_the_least_size_of_the_decoder_is_one_window() -> None:
    model = MODELS["ltx2_decoder"]
    frames, height, width = model.least
    kernels = [(3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5), (11, 11, 11)]
    fits = [
        all(n >= k for n, k in zip(grid, kernel, strict=True))
        for grid, kernel in zip(grids.of(model, (height, width), frames), kernels, strict=True)
    ]
    assert all(fits)
    fewer = grids.of(model, (height, width), frames - model.stride)
    assert fewer[4][0] < kernels[4][0]
    narrower = grids.of(model, (height - model.pixels, width), frames)
    assert narrower[0][1] < kernels[0][1]


KNOWN = ", ".join(MODELS)
ERRORS = {
    ("flx", None, None): f"model='flx' is not known: one of {KNOWN}.\n  fix:   model=\"flux\"",
    ("Wan-1.3B", None, None): f"model='Wan-1.3B' is not known: one of {KNOWN}.\n"
    '  fix:   model="wan_1.3b"',
    ("hunyuan", None, None): f"model='hunyuan' is not known: one of {KNOWN}.\n"
    '  fix:   model="hunyuan_video"',
    ("flux", (1000, 1024), None): "size=(1000, 1024): 1000 is no multiple of 16, the pixels of a "
    "token of flux.\n  fix:   size=(992, 1024)",
    ("flux", (1024, 1030), None): "size=(1024, 1030): 1030 is no multiple of 16, the pixels of a "
    "token of flux.\n  fix:   size=(1024, 1024)",
    ("ltx_video", (5, 704), None): "size=(5, 704): 5 is no multiple of 32, the pixels of a token "
    "of ltx_video.\n  fix:   size=(32, 704)",
    ("ltx2_decoder", (192, 256), None): "size=(192, 256): 192 is below 224, which the windows of "
    "ltx2_decoder need.\n  fix:   size=(224, 256)",
    ("flux", 1024, None): "size=1024, an int, not a height and a width in pixels.\n"
    "  fix:   size=(1024, 1024)",
    ("flux", (0, 16), None): "size=(0, 16), a tuple, not a height and a width in pixels.\n"
    "  fix:   size=(1024, 1024)",
    ("flux", (1024, 1024), 1): "frames=1 is given, and flux makes images.\n  fix:   frames=None",
    ("wan", None, 80): "frames=80 is not 1 + a multiple of 4, which wan takes.\n  fix:   frames=81",
    ("wan", None, 0): "frames=0 is below 1.\n  fix:   frames=1",
    ("wan", None, 2.5): "frames=2.5, a float, not a whole number.\n  fix:   frames=1",
    ("wan", None, True): "frames=True, a bool, not a whole number.\n  fix:   frames=1",
    ("ltx2_decoder", None, 9): "frames=9 is below 17, which the windows of ltx2_decoder need.\n"
    "  fix:   frames=17",
}


@pytest.mark.parametrize("given", ERRORS, ids=str)
def test_errors(given: tuple) -> None:
    with pytest.raises(InputError) as caught:
        grids.checked(*given)
    assert str(caught.value) == ERRORS[given]


def test_every_default_is_legal() -> None:
    for name, model in MODELS.items():
        assert grids.checked(name, None, None) == (model.size, model.frames)
        frames = model.frames if model.stride else None
        assert grids.checked(name, model.size, frames) == (model.size, model.frames)

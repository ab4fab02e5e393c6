"""Tests of LTX-2.5's decoder on nbattn: small random ones against their own FlexAttention path, and
against attention with a dense mask, which is built here row by row.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import allocations
import diffusers
import pytest
import torch
from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from nbattn import Axis, InputError, Mask
from nbattn.integrations.diffusers import apply, ltx_decoder, restore
from nbattn.planner import planner

diffusers.utils.logging.set_verbosity_error()

CHANNELS = (32, 16, 16, 16, 8)
STAGES = ((3, 3, 2), (3, 2, 3), (2, 3, 3), (3, 4, 3))
STAGE5 = (3, 5, 4)
MASKS = {  # of each kernel, as axes
    (3, 3, 2): ((1, 1), (1, 1), (1, 0)),
    (3, 2, 3): ((1, 1), (1, 0), (1, 1)),
    (2, 3, 3): ((1, 0), (1, 1), (1, 1)),
    (3, 4, 3): ((1, 1), (2, 1), (1, 1)),
    (3, 5, 4): ((1, 1), (2, 2), (2, 1)),
}
SMALL: dict[str, Any] = {
    "latent_channels": 6,
    "patch_size": 2,
    "decoder_head_dim": 8,
    "decoder_stage_channels": CHANNELS,
    "decoder_stage_depths": (1, 2, 1, 1, 2),
    "decoder_stage_kernels": STAGES,
    "decoder_stage5_kernel": STAGE5,
    "decoder_upsample_strides": ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 2)),
    "decoder_upsample_channel_reductions": (2, 1, 1, 2),
    "decoder_t_emb_dim": 16,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
}
LATENTS = (1, 6, 2, 3, 5)


@pytest.fixture(autouse=True)
def traced_by_no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention runs as plain torch: tracing it anew for each grid takes a second a layer."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return ltx.LTX2VideoDiffusionDecoderModel(**{**SMALL, **options}).eval()


def latents(*shape: int) -> Tensor:
    return torch.randn(shape or LATENTS, generator=torch.Generator().manual_seed(1))


def decoded(model: Any, z: Tensor, steps: int | None = None) -> Tensor:
    """The video, from the same noise each time."""
    with torch.no_grad():
        noise = torch.Generator().manual_seed(2)
        return model(z, generator=noise, num_inference_steps=steps, return_dict=False)[0]


def processors(model: Any) -> list[Any]:
    return [part.processor for part in ltx_decoder.modules(model)]


def close(one: Tensor, other: Tensor) -> None:
    assert other.std() > 0.1  # there is something to see
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class DenseProcessor:
    """Attention with a boolean matrix: every window is written down, position by position."""

    def __call__(self, attn: Any, hidden_states: Tensor, block_mask: Any = None) -> Tensor:
        assert block_mask is None
        space = hidden_states.shape[1:4]
        parts = [part.flatten(1, 3).transpose(1, 2) for part in attn.project_qkv(hidden_states)]
        rows: list[Tensor] = []
        for place in product(*map(range, space)):
            row = torch.zeros(space, dtype=torch.bool)
            starts = [
                min(max(at - size // 2, 0), length - size)
                for at, size, length in zip(place, attn.kernel_size, space, strict=True)
            ]
            window = zip(starts, attn.kernel_size, strict=True)
            row[tuple(slice(start, start + size) for start, size in window)] = True
            rows.append(row.flatten())
        out = scaled_dot_product_attention(*parts, attn_mask=torch.stack(rows), scale=1.0)
        return attn.to_out[0](out.transpose(1, 2).flatten(2).reshape(hidden_states.shape))


@pytest.mark.parametrize(
    ("kind", "steps", "shape"),
    [
        ("x0", 1, LATENTS),
        ("x0", 3, LATENTS),
        ("v", 1, LATENTS),
        ("v", 2, LATENTS),
        ("x0", 1, (2, 6, 2, 4, 3)),
        ("v", 2, (2, 6, 3, 3, 3)),
        ("x0", 1, (1, 6, 3, 5, 7)),
        ("x0", 1, (1, 6, 2, 3, 3)),  # the kernel of stage 1 is as large as the map
    ],
)
def test_the_whole_decoder_is_its_own_flex_path(
    kind: str, steps: int, shape: tuple[int, ...]
) -> None:
    model, z = make(decoder_model_output_type=kind), latents(*shape)
    own = decoded(model, z, steps)
    assert own.shape == (shape[0], 3, 4 * shape[2] - 3, 4 * shape[3], 4 * shape[4])
    found = decoded(apply(model), z, steps)
    close(found, own)
    assert not torch.equal(found, own)  # another path has run


def test_stages_with_the_published_kernels() -> None:
    model = make(
        decoder_stage_kernels=((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5)),
        decoder_stage5_kernel=(11, 11, 11),
        decoder_upsample_strides=((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 2)),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        temporal_compression_ratio=8,
    )
    z = latents(1, 6, 3, 7, 7)
    own = decoded(model, z)
    assert own.shape[2:] == (17, 28, 28)
    close(decoded(apply(model), z), own)


TILES = {  # cells of stage 4 are 2 frames, 2 rows and 4 columns of the video
    "frames": ((1, 6, 5, 4, 3), {"num_frames": (8, 6)}),
    "frames, the last one merged": ((1, 6, 4, 4, 3), {"num_frames": (8, 6)}),
    "rows, the last one merged": ((1, 6, 2, 7, 3), {"height": (12, 10)}),
    "columns": ((2, 6, 2, 3, 9), {"width": (16, 12)}),
    "all": ((1, 6, 4, 7, 5), {"num_frames": (8, 6), "height": (14, 8), "width": (12, 8)}),
}
GRIDS = {  # that stage 4 sees: (frames, rows, columns), ghosts included
    "frames": {(4, 8, 3), (3 + 4, 8, 3)},
    "frames, the last one merged": {(4, 8, 3), (4 + 4, 8, 3)},
    "rows, the last one merged": {(3 + 4, 6, 3), (3 + 4, 9, 3)},
    "columns": {(3 + 4, 6, 4), (3 + 4, 6, 3)},
    "all": {(t, h, w) for t in (4, 4 + 4) for h in (7, 6) for w in (3,)},
}


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(("kind", "steps"), [("x0", 1), ("v", 2)])
def test_tiled_decoding(tiles: str, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, sizes = TILES[tiles]
    model, z = make(decoder_model_output_type=kind), latents(*shape)
    for name, (size, stride) in sizes.items():
        model.enable_tiling(
            **{f"tile_sample_min_{name}": size, f"tile_sample_stride_{name}": stride}
        )
    own = decoded(model, z, steps)
    seen: set[tuple[int, ...]] = set()
    stage4 = model.decoder.forward_stage_4

    def spy(features: Tensor, **options: Any) -> Tensor:
        seen.add(tuple(features.shape[1:4]))
        return stage4(features, **options)

    monkeypatch.setattr(model.decoder, "forward_stage_4", spy)
    close(decoded(apply(model), z, steps), own)
    assert seen == GRIDS[tiles]
    monkeypatch.undo()
    model.disable_tiling()
    assert not torch.allclose(decoded(model, z, steps), own, atol=1e-2)  # tiles do matter


def test_every_stage_has_the_windows_of_its_kernel() -> None:
    model = apply(make())
    parts = ltx_decoder.modules(model)
    assert len(parts) == sum(SMALL["decoder_stage_depths"])
    for part in parts:
        axes = [Axis(left, right, border="shift") for left, right in MASKS[part.kernel_size]]
        assert part.processor.mask == Mask(*axes)


def test_blocks_of_one_kernel_share_a_plan_that_later_calls_find() -> None:
    model, z = apply(make()), latents()
    planner.forget()
    decoded(model, z)
    kept = len(planner.KNOWN_CALLS)
    assert kept == 5  # a plan for each stage
    decoded(model, z)
    assert len(planner.KNOWN_CALLS) == kept


def test_the_inner_decoder_alone() -> None:
    model, z = make(), latents()
    with torch.no_grad():
        own = model.decoder(z, generator=torch.Generator().manual_seed(2))
        assert apply(model.decoder) is model.decoder
        found = model.decoder(z, generator=torch.Generator().manual_seed(2))
    close(found, own)
    close(decoded(model, z), own)


def test_a_stage_alone() -> None:
    """Modules inside of the decoder are models, too."""
    model = make()
    apply(model.decoder.diff_blocks)
    kinds = [isinstance(p, ltx_decoder.NeighborhoodProcessor) for p in processors(model)]
    assert kinds == [False] * 5 + [True] * 2
    z = latents()
    close(decoded(model, z), decoded(restore(model), z))


# The largest tensors have a number for every token of stage 4 and hidden channel of its MLP.
FACTOR = 4 * CHANNELS[3]


def test_nothing_grows_with_the_square_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    for columns in (4, 8, 16):
        z = latents(1, 6, 2, 3, columns)
        tokens = (3 + 4) * 6 * columns  # with the ghost frames
        if columns == 4:  # the instrument sees the own path's scores
            assert allocations.largest(lambda z=z: decoded(model, z)) >= 4 * tokens**2
            apply(model)
            monkeypatch.setattr(ltx, "_neighborhood_block_mask", None)
            monkeypatch.setattr(flex_attention, "create_block_mask", None)
        assert allocations.largest(lambda z=z: decoded(model, z)) <= 4 * FACTOR * tokens


def test_restore_brings_back_the_own_processors_bit_for_bit() -> None:
    model, z = make(), latents()
    before, own = processors(model), decoded(model, z)
    apply(apply(model))
    assert restore(model) is model
    assert all(one is other for one, other in zip(processors(model), before, strict=True))
    assert torch.equal(decoded(model, z), own)
    assert restore(model) is model


def test_a_processor_of_the_users_own_comes_back_and_one_set_later_stays() -> None:
    model = make()
    own, later = DenseProcessor(), ltx.LTX2VideoVaeNeighborhoodAttnProcessor()
    model.set_attn_processor(own)
    apply(model)
    ltx_decoder.modules(model)[0].set_processor(later)
    restore(model)
    assert processors(model) == [later] + [own] * 6


def test_the_state_dict_and_files_are_the_models_own(tmp_path: Path) -> None:
    model, z = make(), latents()
    names, own = [*model.state_dict()], decoded(model, z)
    apply(model)
    assert [*model.state_dict()] == names
    model.save_pretrained(tmp_path)
    fresh: Any = ltx.LTX2VideoDiffusionDecoderModel.from_pretrained(tmp_path)
    assert torch.equal(decoded(fresh, z), own)
    other = apply(make(decoder_timestep_scale_multiplier=1.0))
    other.load_state_dict(model.state_dict())
    close(decoded(apply(fresh), z), own)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(copied: Any) -> None:
    model, z = apply(make()), latents()
    found = decoded(model, z)
    other = copied(model)
    assert torch.equal(decoded(other, z), found)
    restore(model)
    assert torch.equal(decoded(other, z), found)
    own = decoded(model, z)
    assert torch.equal(decoded(restore(other), z), own)


def test_bfloat16() -> None:
    """As far from the float32 video as the model's own path in bfloat16."""
    model, z = make(), latents()
    exact = decoded(model, z)
    model.to(torch.bfloat16)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    errors: list[float] = []
    for chosen in (restore, apply):
        inner = chosen(model).decoder
        with torch.no_grad():
            context = inner.forward_stage_4(inner.forward_stages_1_to_3(z.bfloat16()))
            out = inner.denoise(context, noise.bfloat16(), 1)
        assert out.dtype == torch.bfloat16
        errors.append(float((out.float() - exact).square().mean().sqrt()))
    assert errors[1] <= 1.1 * errors[0]


def test_autocast() -> None:
    model, z = make(), latents()
    exact = decoded(model, z)
    with torch.autocast("cpu", torch.bfloat16):
        own = decoded(model, z).float() - exact
        found = decoded(apply(model), z).float() - exact
    assert found.square().mean() <= 1.2 * own.square().mean()


def test_one_graph_without_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = apply(make()), latents()
    expected = decoded(model, z)
    monkeypatch.setattr(ltx, "_neighborhood_block_mask", None)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled: Any = torch.compile(model.decoder, backend=counter, fullgraph=True)
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(ltx, "randn_tensor", lambda *_, **__: noise)
    with torch.no_grad():
        for _ in range(2):
            close(compiled(z), expected)
    assert counter.frame_count == 1


@pytest.mark.deep
def test_inductor() -> None:
    model, z = apply(make()), latents()
    block = model.decoder.diff_blocks[0].attn
    x = torch.randn(2, 5, 6, 8, 8)
    compiled: Any = torch.compile(block, fullgraph=True)
    for grid in (x, x[:, :4], x[..., :6, :]):
        torch.testing.assert_close(compiled(grid), block(grid))
    close(decoded(model, z), decoded(restore(model), z))


def test_gradients_are_those_of_a_dense_mask() -> None:
    model = make(decoder_stage_depths=(1, 1, 1, 1, 1)).double()
    z = latents(2, 6, 2, 3, 3).double().requires_grad_()
    leaves = [z, *(p for p in model.parameters())]
    found: list[list[Tensor | None]] = []
    for prepared in (lambda: model.set_attn_processor(DenseProcessor()), lambda: apply(model)):
        prepared()
        out = model(z, generator=torch.Generator().manual_seed(2)).sample
        grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
        found.append([out, *grads])
    assert sum(one is not None for one in found[0]) > 60
    for wanted, one in zip(*found, strict=True):
        assert (one is None) == (wanted is None)
        if one is not None:
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-9)


def test_grids_smaller_than_a_kernel_are_the_models_own_refusal() -> None:
    model, z = make(), latents(1, 6, 2, 2, 3)
    with pytest.raises(ValueError, match="requires each spatial dim to be at least") as own:
        decoded(model, z)
    with pytest.raises(ValueError, match="requires each spatial dim to be at least") as found:
        decoded(apply(model), z)
    assert str(found.value) == str(own.value)


def test_attention_backends_are_refused() -> None:
    model, z = apply(make()), latents()
    found = decoded(model, z)
    text = (
        "the decoder's attention is nbattn's, not 'flex'.\n"
        "  fix:   nbattn.integrations.diffusers.restore(model)."
    )
    for setting in (
        model.set_attention_backend,
        ltx_decoder.modules(model)[0].set_attention_backend,
    ):
        with pytest.raises(InputError) as caught:
            setting("flex")
        assert str(caught.value) == text
    model.reset_attention_backend()
    assert torch.equal(decoded(model, z), found)


def test_context_parallel_is_refused() -> None:
    model = make()
    text = "context parallel splits the grid between ranks; windows at a cut reach tokens of both."
    with pytest.raises(InputError, match=text):
        processors(apply(model))[0]._parallel_config = object()
    restore(model)
    processors(model)[0]._parallel_config = object()
    with pytest.raises(InputError, match=text):
        apply(model)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": Mask.neighborhood((3, 3, 3))},
        {"mask": {"self": Mask.neighborhood((3, 3, 3))}},
        {"layers": "self"},
        {"schedule": {(0, 1000): Mask.neighborhood((3, 3, 3))}},
    ],
)
def test_the_windows_are_not_the_users_choice(arguments: dict[str, Any]) -> None:
    model = make()
    before = processors(model)
    with pytest.raises(InputError) as caught:
        apply(model, **arguments)
    assert str(caught.value) == (
        "LTX2VideoDiffusionDecoderModel has windows of its own, for which it was trained.\n"
        "  fix:   nbattn.integrations.diffusers.apply(model)."
    )
    assert processors(model) == before


def test_a_pipeline_names_its_decoder() -> None:
    pipelines: Any = diffusers
    pipe = pipelines.LTX2VideoDiffusionDecodePipeline(make(), scheduler=None)
    with pytest.raises(InputError) as caught:
        apply(pipe)
    assert str(caught.value) == (
        "model is LTX2VideoDiffusionDecodePipeline, a pipeline.\n"
        "  fix:   nbattn.integrations.diffusers.apply(model.diffusion_decoder)."
    )
    apply(pipe.diffusion_decoder)

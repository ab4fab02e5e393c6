"""Small random diffusion transformers, without weights from anywhere: how to make each, and what to
call it with. The names of attention layers are written out here, as diffusers has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbattn import Mask

HEADS, CHANNELS, TEXT, BATCH = 2, 16, 5, 2
WIDTH = HEADS * CHANNELS
_HEADS = {"num_attention_heads": HEADS, "attention_head_dim": CHANNELS}
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Small:
    """One small model.

    Args:
        make: makes it.
        call: its arguments for latents of a size, and whether text is padded.
        layers: the names of its attention layers on the grid, and their types.
        sizes: two sizes of latents, of which the second does not fit the patches where it may.
        patches: sizes of a patch of latents.
        text: where text stands: "first", "last" or "apart".
        padding: the argument that says the padding of text, if there is one.
    """

    make: Callable[[], nn.Module]
    call: Callable[[Sizes, bool], dict[str, Any]]
    layers: Mapping[str, str]
    sizes: tuple[Sizes, Sizes]
    patches: Sizes
    text: str
    padding: str | None = None

    def grid(self, size: Sizes) -> Sizes:
        """The grid of latents of a size."""
        return tuple(n // patch for n, patch in zip(size, self.patches, strict=True))

    def model(self, seed: int = 0) -> Any:
        """A model in fp64, whose scores are large enough for a wrong window to matter."""
        torch.manual_seed(seed)
        model = self.make().double().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if any(part in name for part in ("to_q", "to_k", "add_q", "add_k", "qkv")):
                    weight.mul_(3)
                if name.endswith("attn.norm_q.weight"):
                    weight.add_(torch.rand_like(weight))
        return model

    def inputs(self, size: Sizes, *, padded: bool = False, seed: int = 1) -> dict[str, Any]:
        """Arguments of a forward pass, in fp64."""
        torch.manual_seed(seed)
        return self.call(size, padded)


def random(*sizes: int) -> Tensor:
    return torch.randn(BATCH, *sizes, dtype=torch.float64)


def ids(*sizes: int, image: int = 0, columns: int = 3) -> Tensor:
    """Positions of an image's tokens, as pipelines make them."""
    found = torch.zeros(*sizes, columns)
    found[..., 0] = image
    found[..., 1] = torch.arange(sizes[0])[:, None]
    found[..., 2] = torch.arange(sizes[1])
    return found.flatten(0, 1)


def kept(padded: bool) -> Tensor:
    """Which tokens of the text are no padding: samples have different lengths."""
    lengths = torch.tensor([TEXT, TEXT - 2] if padded else [TEXT, TEXT])
    return torch.arange(TEXT) < lengths[:, None]


def _named(**patterns: tuple[str, int]) -> dict[str, str]:
    return {
        pattern.replace("*", str(number)): kind
        for kind, (pattern, count) in patterns.items()
        for number in range(count)
    }


_STEPS = torch.tensor([400.0, 900.0], dtype=torch.float64)


def _flux(size: Sizes, _: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(size[0] * size[1], 8),
        "encoder_hidden_states": random(TEXT, 12),
        "pooled_projections": random(6),
        "timestep": _STEPS / 1000,
        "img_ids": ids(*size),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _flux2(size: Sizes, _: bool) -> dict[str, Any]:
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    return {
        "hidden_states": random(size[0] * size[1], 8),
        "encoder_hidden_states": random(TEXT, 12),
        "timestep": _STEPS / 1000,
        "guidance": torch.full((BATCH,), 4.0),
        "img_ids": ids(*size, columns=4),
        "txt_ids": text,
    }


def _sd3(size: Sizes, _: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(4, *size),
        "encoder_hidden_states": random(TEXT, 12),
        "pooled_projections": random(6),
        "timestep": _STEPS,
    }


def _hunyuan(size: Sizes, padded: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(4, *size),
        "timestep": _STEPS.long(),
        "encoder_hidden_states": random(TEXT, 12),
        "encoder_attention_mask": kept(padded).long(),
        "pooled_projections": random(6),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }


def _wan(size: Sizes, _: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(4, *size),
        "timestep": _STEPS.long(),
        "encoder_hidden_states": random(TEXT, 12),
    }


def _wan_of_images(size: Sizes, padded: bool) -> dict[str, Any]:
    return _wan(size, padded) | {"encoder_hidden_states_image": random(257, 10)}


def _cogvideox(size: Sizes, patches: int) -> dict[str, Any]:
    frames, height, width = size
    tokens = frames // patches * (height // 2) * (width // 2)
    angles = torch.rand(tokens, CHANNELS, dtype=torch.float64) * 6
    return {
        "hidden_states": random(frames, 4, height, width),
        "encoder_hidden_states": random(TEXT, 12),
        "timestep": _STEPS.long(),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _ltx(size: Sizes, padded: bool) -> dict[str, Any]:
    frames, height, width = size
    return {
        "hidden_states": random(frames * height * width, 8),
        "encoder_hidden_states": random(TEXT, 12),
        "timestep": _STEPS.long(),
        "encoder_attention_mask": kept(padded).long(),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def _cosmos(size: Sizes, _: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(4, *size),
        "timestep": _STEPS.long(),
        "encoder_hidden_states": random(TEXT, 12),
        "fps": 16,
    }


def _mochi(size: Sizes, padded: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(4, *size),
        "encoder_hidden_states": random(TEXT, 16),
        "timestep": _STEPS.long(),
        "encoder_attention_mask": kept(padded).long(),
    }


def _qwen(size: Sizes, padded: bool) -> dict[str, Any]:
    return {
        "hidden_states": random(size[0] * size[1], 8),
        "encoder_hidden_states": random(TEXT, 12),
        "encoder_hidden_states_mask": kept(True).long() if padded else None,
        "timestep": _STEPS / 1000,
        "img_shapes": [[(1, *size)]] * BATCH,
    }


_ROPE = {"axes_dims_rope": (4, 6, 6)}
_STREAMS = _named(
    double=("transformer_blocks.*.attn", 1), single=("single_transformer_blocks.*.attn", 2)
)
_COGVIDEOX = {
    **_HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12,
    "num_layers": 2, "use_rotary_positional_embeddings": True,
}  # fmt: skip
_WAN = {
    **_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 8, "ffn_dim": 24,
    "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
_WAN_LAYERS = _named(self=("blocks.*.attn1", 2))
_BLOCKS1 = ("transformer_blocks.*.attn1", 2)

MODELS: dict[str, Small] = {
    "flux": Small(
        lambda: diffusers.FluxTransformer2DModel(
            **_HEADS, **_ROPE, in_channels=8, num_layers=1, num_single_layers=2,
            joint_attention_dim=12, pooled_projection_dim=6,
        ),
        _flux, _STREAMS, ((5, 7), (8, 3)), (1, 1), "first",
    ),
    "flux2": Small(
        lambda: diffusers.Flux2Transformer2DModel(
            **_HEADS, axes_dims_rope=(4, 4, 4, 4), in_channels=8, num_layers=1, num_single_layers=2,
            joint_attention_dim=12, timestep_guidance_channels=8,
        ),
        _flux2, _STREAMS, ((5, 7), (8, 3)), (1, 1), "first",
    ),
    "sd3": Small(
        lambda: diffusers.SD3Transformer2DModel(
            **_HEADS, sample_size=16, in_channels=4, out_channels=4, num_layers=3,
            joint_attention_dim=12, caption_projection_dim=WIDTH, pooled_projection_dim=6,
            pos_embed_max_size=12, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        _sd3,
        _named(double=("transformer_blocks.*.attn", 3), self=("transformer_blocks.*.attn2", 1)),
        ((10, 14), (17, 7)), (2, 2), "last",
    ),
    "hunyuan": Small(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            **_HEADS, in_channels=4, out_channels=4, num_layers=1, num_single_layers=2,
            num_refiner_layers=1, text_embed_dim=12, pooled_projection_dim=6,
            rope_axes_dim=(4, 6, 6),
        ),
        _hunyuan, _STREAMS, ((3, 8, 10), (4, 11, 7)), (1, 2, 2), "last", "encoder_attention_mask",
    ),
    "wan": Small(
        lambda: diffusers.WanTransformer3DModel(**_WAN),
        _wan, _WAN_LAYERS, ((3, 8, 10), (4, 11, 7)), (1, 2, 2), "apart",
    ),
    "wan-of-images": Small(
        lambda: diffusers.WanTransformer3DModel(**_WAN, image_dim=10, added_kv_proj_dim=WIDTH),
        _wan_of_images, _WAN_LAYERS, ((3, 8, 10), (4, 11, 7)), (1, 2, 2), "apart",
    ),
    "cogvideox": Small(
        lambda: diffusers.CogVideoXTransformer3DModel(**_COGVIDEOX),
        lambda size, _: _cogvideox(size, 1), _named(single=_BLOCKS1),
        ((3, 8, 10), (4, 11, 7)), (1, 2, 2), "first",
    ),
    "cogvideox1.5": Small(
        lambda: diffusers.CogVideoXTransformer3DModel(
            **_COGVIDEOX, patch_size_t=2, patch_bias=False
        ),
        lambda size, _: _cogvideox(size, 2), _named(single=_BLOCKS1),
        ((6, 8, 10), (8, 6, 14)), (2, 2, 2), "first",
    ),
    "ltx": Small(
        lambda: diffusers.LTXVideoTransformer3DModel(
            **_HEADS, in_channels=8, out_channels=8, cross_attention_dim=WIDTH, num_layers=2,
            caption_channels=12,
        ),
        _ltx, _named(self=_BLOCKS1), ((3, 4, 5), (4, 5, 3)), (1, 1, 1), "apart",
        "encoder_attention_mask",
    ),
    "cosmos": Small(
        lambda: diffusers.CosmosTransformer3DModel(
            **_HEADS, in_channels=4, out_channels=4, num_layers=2, text_embed_dim=12,
            adaln_lora_dim=4, max_size=(8, 16, 16), concat_padding_mask=False,
        ),
        _cosmos, _named(self=_BLOCKS1), ((3, 8, 10), (4, 10, 6)), (1, 2, 2), "apart",
    ),
    "mochi": Small(
        lambda: diffusers.MochiTransformer3DModel(
            **_HEADS, in_channels=4, num_layers=3, pooled_projection_dim=WIDTH, text_embed_dim=16,
            time_embed_dim=8, max_sequence_length=TEXT,
        ),
        _mochi, _named(double=("transformer_blocks.*.attn1", 3)), ((3, 8, 10), (4, 10, 6)),
        (1, 2, 2), "last", "encoder_attention_mask",
    ),
    "qwen": Small(
        lambda: diffusers.QwenImageTransformer2DModel(
            **_HEADS, **_ROPE, in_channels=8, out_channels=8, num_layers=2, joint_attention_dim=12,
            patch_size=1,
        ),
        _qwen, _named(double=("transformer_blocks.*.attn", 2)), ((5, 7), (8, 3)), (1, 1), "first",
        "encoder_hidden_states_mask",
    ),
}  # fmt: skip


class _Double(TorchFunctionMode):
    """Models compute norms and rotations in fp32 whatever they get; here they do it in fp64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        is_wide = args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64
        if is_wide or (func is Tensor.to and args[0].is_floating_point()):
            args = tuple(torch.float64 if part is torch.float32 else part for part in args)
            if named.get("dtype") is torch.float32:
                named["dtype"] = torch.float64
        return func(*args, **named)


@contextmanager
def double() -> Iterator[None]:
    """Runs models in fp64 throughout."""
    with _Double():
        yield


def output(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """A model's output, in fp64 throughout."""
    with double():
        return model(**arguments, return_dict=False)[0]


def in_float32(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in fp32, for a model that becomes fp32."""
    model.float()

    def narrow(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(narrow, value))
        is_wide = isinstance(value, Tensor) and value.dtype is torch.float64
        return value.float() if is_wide else value

    return {name: narrow(value) for name, value in arguments.items()}


def window(small: Small, kernel: int = 3) -> Mask:
    """A mask for a model."""
    return Mask.neighborhood((kernel,) * len(small.patches))

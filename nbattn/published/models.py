"""The attention of published models as data: layers, heads, grids of tokens, text, and windows.

Sizes are facts of checkpoints. Where a source says diffusers, they are the defaults of its model
class and pipeline in version 0.42, which are those of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from nbattn.mask import Mask

DOUBLE, SINGLE, SELF = "double", "single", "self"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layers of a model that attend alike. All query heads have a key head of their own.

    Args:
        kind: "double" (image and text with projections of their own, attention over both),
            "single" (one stream of text and image), "self" (the grid alone), or the stage of a
            decoder.
        count: how many.
        heads, head_dim: of each.
        windows: "CONFIG/MASK", a mask of a configuration that comes with nbattn; the mask itself,
            where the model is trained with it; empty where no windows are published.
    """

    kind: str
    count: int
    heads: int
    head_dim: int
    windows: str | Mask = ""

    @property
    def dim(self) -> int:
        """The channels of a token."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The attention of a published model.

    Args:
        title: the checkpoint.
        source: where the sizes come from.
        layers: all of them, alike ones together.
        pixels: height and width of a token in pixels: the autoencoder's factor times the patch.
        stride: frames per latent frame after the first; 0 for models of images.
        text: tokens of text that attend together with the grid; 0 where text has cross attention.
        size, frames: what the windows were published for, else the pipeline's default.
        upsampling: of a decoder, the strides (frames, rows, columns) between its stages.
        ghosts: latent frames that a decoder appends, and removes before its last stage.
        least: the least (frames, height, width) that a decoder takes.
    """

    title: str
    source: str
    layers: tuple[Layers, ...]
    pixels: int
    stride: int
    text: int
    size: tuple[int, int]
    frames: int = 1
    upsampling: tuple[tuple[int, int, int], ...] = ()
    ghosts: int = 0
    least: tuple[int, int, int] = (1, 1, 1)

    @property
    def rank(self) -> int:
        """The axes of its grids: rows and columns, and frames of a video."""
        return 3 if self.stride else 2


def _layers(kind: str, heads: int, head_dim: int, **counts: int) -> tuple[Layers, ...]:
    """Layers of one kind by their windows in Cosmos-Predict2's configuration."""
    return tuple(
        Layers(
            kind=kind, count=n, heads=heads, head_dim=head_dim, windows=f"cosmos_predict2/{name}"
        )
        for name, n in counts.items()
    )


def _stages() -> tuple[Layers, ...]:
    """The five stages of LTX-2's decoder, whose heads have 64 channels."""
    kernels = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5), (11, 11, 11))
    channels, depths = (2048, 1024, 512, 512, 256), (4, 6, 4, 2, 8)
    return tuple(
        Layers(
            kind=f"stage {number}",
            count=depth,
            heads=dim // 64,
            head_dim=64,
            windows=Mask.neighborhood(kernel),
        )
        for number, (kernel, dim, depth) in enumerate(
            zip(kernels, channels, depths, strict=True), 1
        )
    )


_FLUX, _HUNYUAN, _WAN = "flux_4k/strided", "hunyuan_video/strided", "wan_sta/near"
MODELS: dict[str, Model] = {
    "flux": Model(
        title="FLUX.1-dev",
        source="diffusers, FluxTransformer2DModel; windows: arXiv 2504.16922, 4096 x 4096",
        layers=(
            Layers(kind=DOUBLE, count=19, heads=24, head_dim=128, windows=_FLUX),
            Layers(kind=SINGLE, count=38, heads=24, head_dim=128, windows=_FLUX),
        ),
        pixels=16,
        stride=0,
        text=512,
        size=(4096, 4096),
    ),
    "flux2": Model(
        title="FLUX.2-dev",
        source="diffusers, Flux2Transformer2DModel",
        layers=(
            Layers(kind=DOUBLE, count=8, heads=48, head_dim=128),
            Layers(kind=SINGLE, count=48, heads=48, head_dim=128),
        ),
        pixels=16,
        stride=0,
        text=512,
        size=(1024, 1024),
    ),
    "sd3.5": Model(
        title="Stable Diffusion 3.5 Medium",
        source="transformer/config.json of the checkpoint; text: 77 of CLIP and 256 of T5",
        layers=(
            Layers(kind=DOUBLE, count=24, heads=24, head_dim=64),
            Layers(kind=SELF, count=13, heads=24, head_dim=64),
        ),
        pixels=16,
        stride=0,
        text=333,
        size=(1024, 1024),
    ),
    "sd3.5_large": Model(
        title="Stable Diffusion 3.5 Large",
        source="transformer/config.json of the checkpoint; text: 77 of CLIP and 256 of T5",
        layers=(Layers(kind=DOUBLE, count=38, heads=38, head_dim=64),),
        pixels=16,
        stride=0,
        text=333,
        size=(1024, 1024),
    ),
    "qwen_image": Model(
        title="Qwen-Image",
        source="diffusers, QwenImageTransformer2DModel",
        layers=(Layers(kind=DOUBLE, count=60, heads=24, head_dim=128),),
        pixels=16,
        stride=0,
        text=512,
        size=(1024, 1024),
    ),
    "hunyuan_video": Model(
        title="HunyuanVideo",
        source="diffusers, HunyuanVideoTransformer3DModel; windows: arXiv 2504.16922, for "
        "30 x 48 x 80 tokens",
        layers=(
            Layers(kind=DOUBLE, count=20, heads=24, head_dim=128, windows=_HUNYUAN),
            Layers(kind=SINGLE, count=40, heads=24, head_dim=128, windows=_HUNYUAN),
        ),
        pixels=16,
        stride=4,
        text=256,
        size=(768, 1280),
        frames=117,
    ),
    "wan": Model(
        title="Wan 2.1 14B",
        source="diffusers, WanTransformer3DModel; windows: a kernel of FastVideo, arXiv "
        "2502.04507, for 18 x 48 x 80 tokens",
        layers=(Layers(kind=SELF, count=40, heads=40, head_dim=128, windows=_WAN),),
        pixels=16,
        stride=4,
        text=0,
        size=(768, 1280),
        frames=69,
    ),
    "wan_1.3b": Model(
        title="Wan 2.1 1.3B",
        source="configuration wan_t2v_1_3B of its repository; size: diffusers, WanPipeline",
        layers=(Layers(kind=SELF, count=30, heads=12, head_dim=128),),
        pixels=16,
        stride=4,
        text=0,
        size=(480, 832),
        frames=81,
    ),
    "cogvideox": Model(
        title="CogVideoX 5B",
        source="transformer/config.json of the checkpoint; text and size: diffusers",
        layers=(Layers(kind=SINGLE, count=42, heads=48, head_dim=64),),
        pixels=16,
        stride=4,
        text=226,
        size=(480, 720),
        frames=49,
    ),
    "cogvideox_2b": Model(
        title="CogVideoX 2B",
        source="diffusers, CogVideoXTransformer3DModel",
        layers=(Layers(kind=SINGLE, count=30, heads=30, head_dim=64),),
        pixels=16,
        stride=4,
        text=226,
        size=(480, 720),
        frames=49,
    ),
    "mochi": Model(
        title="Mochi 1",
        source="diffusers, MochiTransformer3DModel; frames: the checkpoint's model card",
        layers=(Layers(kind=DOUBLE, count=48, heads=24, head_dim=128),),
        pixels=16,
        stride=6,
        text=256,
        size=(480, 848),
        frames=163,
    ),
    "ltx_video": Model(
        title="LTX-Video 2B",
        source="diffusers, LTXVideoTransformer3DModel and LTXPipeline",
        layers=(Layers(kind=SELF, count=28, heads=32, head_dim=64),),
        pixels=32,
        stride=8,
        text=0,
        size=(512, 704),
        frames=161,
    ),
    "cosmos": Model(
        title="Cosmos-Predict2 2B Video2World",
        source="the published table of its NATTEN variant, configs/cosmos_predict2.toml; size: "
        "diffusers, Cosmos2VideoToWorldPipeline",
        layers=_layers("self", 16, 128, **{"global": 2}, wide=3, near=7, middle=15, far=1),
        pixels=16,
        stride=4,
        text=0,
        size=(704, 1280),
        frames=93,
    ),
    "cosmos_7b": Model(
        title="Cosmos 1.0 7B Text2World",
        source="diffusers, CosmosTransformer3DModel; windows: arXiv 2504.16922, for "
        "16 x 44 x 80 tokens",
        layers=(Layers(kind=SELF, count=28, heads=32, head_dim=128, windows="cosmos_7b/wide"),),
        pixels=16,
        stride=8,
        text=0,
        size=(704, 1280),
        frames=121,
    ),
    "ltx2_decoder": Model(
        title="LTX-2.5 diffusion decoder",
        source="diffusers, LTX2VideoDiffusionDecoderModel",
        layers=_stages(),
        pixels=32,
        stride=8,
        text=0,
        size=(512, 768),
        frames=121,
        upsampling=((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
        ghosts=2,
        least=(17, 224, 224),
    ),
}

"""Decode a clip with a small LTX-2.5 decoder both ways: its own FlexAttention, and nbattn.

Run it: `python examples/ltx_decoder.py [picture.png]`. It shows the plan of the last stage, the
difference of the videos, times and memory; with matplotlib, a picture of a frame both ways.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import nbattn
from nbattn.timing import extra_memory

OPTIONS: dict[str, Any] = {
    "latent_channels": 16,
    "patch_size": 2,
    "decoder_head_dim": 16,
    "decoder_stage_channels": (64, 32, 32, 32, 32),
    "decoder_stage_depths": (1, 1, 1, 1, 1),
    "decoder_stage_kernels": ((3, 3, 3),) * 4,
    "decoder_upsample_strides": ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 2)),
    "decoder_upsample_channel_reductions": (2, 1, 1, 1),
    "decoder_stage5_kernel": (5, 5, 5),
    "decoder_t_emb_dim": 32,
}


def decode(model: Any, latents: Tensor) -> Tensor:
    """Decode latents from the same noise each time."""
    with torch.no_grad():
        return model(latents, generator=torch.Generator().manual_seed(0)).sample


def measured(model: Any, latents: Tensor) -> tuple[Tensor, float, int | None]:
    """Return the video, seconds, and the extra memory in bytes; the first run compiles."""
    video = decode(model, latents)
    start = time.perf_counter()
    decode(model, latents)
    seconds = time.perf_counter() - start
    return video, seconds, extra_memory(lambda: decode(model, latents))


def picture(own: Tensor, found: Tensor, path: str) -> None:
    """Draw the last frame both ways, and the difference."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    frames = [video[0, :, -1].movedim(0, -1) for video in (own, found)]
    for axis, frame, name in zip(axes, frames, ("FlexAttention", "nbattn"), strict=False):
        axis.imshow((frame / 4 + 0.5).clamp(0, 1))
        axis.set_title(name)
    difference = (frames[0] - frames[1]).abs().amax(-1)
    pyplot.colorbar(axes[2].imshow(difference), ax=axes[2])
    axes[2].set_title("largest difference")
    for axis in axes:
        axis.set_axis_off()
    pyplot.savefig(path)
    print(f"picture: {path}")


def main(path: str | None = None) -> float:
    """Return the largest difference of the two videos."""
    if importlib.util.find_spec("diffusers") is None:
        sys.exit("This needs a package: pip install 'diffusers>=0.42,<1'")
    from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx

    from nbattn.integrations.diffusers import apply, restore

    torch.set_num_threads(1)  # times then depend less on other programs
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    mask = nbattn.Mask.neighborhood((5, 5, 5))
    print(nbattn.plan(mask, (1, 17, 16, 20, 2, 16), dtype="float32", device="cpu").explain())
    torch.manual_seed(0)
    model: Any = ltx.LTX2VideoDiffusionDecoderModel(**OPTIONS).eval()
    print("\n tokens  FlexAttention           nbattn         difference")
    worst = 0.0
    own = found = torch.empty(0)
    for height, width in ((4, 5), (6, 6)):
        latents = torch.randn(1, 16, 3, height, width)
        own, own_seconds, own_bytes = measured(restore(model), latents)
        found, seconds, size = measured(apply(model), latents)
        worst = max(worst, (own - found).abs().max().item())
        parts = (
            f"{taken:6.3f} s {'?' if used is None else f'{used / 2**20:6.0f}'} MiB"
            for taken, used in ((own_seconds, own_bytes), (seconds, size))
        )
        print(f"{17 * 4 * height * width:7}  {'    '.join(parts)}   {worst:.1e}")
    if path is not None:
        picture(own, found, path)
    return worst


if __name__ == "__main__":
    main(*sys.argv[1:])

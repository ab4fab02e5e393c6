"""The diffusion transformers of diffusers that nbattn knows: where their attention on a grid is,
and how a forward pass says the grid. One row for each model class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nbattn.errors import InputError
from nbattn.integrations.diffusers import grids, texts
from nbattn.integrations.diffusers.sequences import Tokens

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What nbattn has to know of one model class.

    Args:
        layers: the names of its attention layers, as patterns, by type: "double" (image and text
            with projections of their own), "single" (one stream of both), "self" (the grid alone).
        processors: the classes of processors whose attention nbattn can run.
        grid: reads the grid's sizes, and the number of tokens of further images behind it, from a
            model and the arguments of its forward pass.
        rank: axes of the grid: 2 for images, 3 for videos.
        text: where text stands in the sequence: "first", "last" or "apart" (cross attention).
        padding: reads which tokens of the text are read, `[B, 2]`, or None for all.
        drops_padding: whether the model leaves padding of text out of each sample's sequence.
        refused: arguments of the forward pass for which the attention is another one, and why.
    """

    layers: Mapping[str, str]
    processors: tuple[str, ...]
    grid: Callable[[nn.Module, Given], grids.Grid]
    rank: int
    text: str
    padding: Callable[[Given], Any] = texts.unpadded
    drops_padding: bool = False
    refused: Mapping[str, str] | None = None

    def read(self, model: nn.Module, given: Given) -> Tokens:
        """Reads what stands in the sequence of a forward pass, from its arguments."""
        for name, reason in (self.refused or {}).items():
            if given.get(name) is not None:
                raise InputError(f"{name} is set: {reason}.", RESTORE)
        sizes, further = self.grid(model, given)
        if self.text == "apart":
            return Tokens(sizes)
        valid = texts.behind(self.padding(given), further)
        return Tokens(sizes, given["encoder_hidden_states"].shape[1], further, valid)


RESTORE = "nbattn.integrations.diffusers.restore(model), for this call."
_BOTH_STREAMS = {
    "double": "transformer_blocks.*.attn",
    "single": "single_transformer_blocks.*.attn",
}
_SELF = {"self": "transformer_blocks.*.attn1"}

FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(
        layers=_BOTH_STREAMS,
        processors=("FluxAttnProcessor", "FluxIPAdapterAttnProcessor"),
        grid=grids.of_ids,
        rank=2,
        text="first",
    ),
    "Flux2Transformer2DModel": Family(
        layers=_BOTH_STREAMS,
        processors=(
            *("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor"),
            *("Flux2KVAttnProcessor", "Flux2KVParallelSelfAttnProcessor"),
        ),
        grid=grids.of_ids,
        rank=2,
        text="first",
        refused={"kv_cache_mode": "tokens of reference images are then apart from the others"},
    ),
    "SD3Transformer2DModel": Family(
        layers={"double": "transformer_blocks.*.attn", "self": "transformer_blocks.*.attn2"},
        processors=("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
        grid=grids.OfLatents((2, 3)),
        rank=2,
        text="last",
    ),
    "HunyuanVideoTransformer3DModel": Family(
        layers=_BOTH_STREAMS,
        processors=("HunyuanVideoAttnProcessor2_0",),
        grid=grids.OfLatents((2, 3, 4)),
        rank=3,
        text="last",
        padding=texts.counted,
    ),
    "WanTransformer3DModel": Family(
        layers={"self": "blocks.*.attn1"},
        processors=("WanAttnProcessor",),
        grid=grids.OfLatents((2, 3, 4)),
        rank=3,
        text="apart",
    ),
    "CogVideoXTransformer3DModel": Family(
        layers={"single": "transformer_blocks.*.attn1"},
        processors=("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0"),
        grid=grids.OfLatents((1, 3, 4), fills_frames=True),
        rank=3,
        text="first",
    ),
    "LTXVideoTransformer3DModel": Family(
        layers=_SELF,
        processors=("LTXVideoAttnProcessor",),
        grid=grids.of_sizes,
        rank=3,
        text="apart",
    ),
    "CosmosTransformer3DModel": Family(
        layers=_SELF,
        processors=("CosmosAttnProcessor2_0",),
        grid=grids.OfLatents((2, 3, 4)),
        rank=3,
        text="apart",
    ),
    "MochiTransformer3DModel": Family(
        layers={"double": "transformer_blocks.*.attn1"},
        processors=("MochiAttnProcessor2_0",),
        grid=grids.OfLatents((2, 3, 4)),
        rank=3,
        text="last",
        drops_padding=True,
    ),
    "QwenImageTransformer2DModel": Family(
        layers={"double": "transformer_blocks.*.attn"},
        processors=("QwenDoubleStreamAttnProcessor2_0",),
        grid=grids.of_shapes,
        rank=2,
        text="first",
        padding=texts.masked,
    ),
}

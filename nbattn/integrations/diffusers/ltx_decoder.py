"""Runs the neighborhood attention of LTX-2.5's video decoder, which has its windows in its weights'
configuration, on nbattn.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx
from torch import Tensor, nn

from nbattn.errors import InputError
from nbattn.functional import attention
from nbattn.mask import Mask


class NeighborhoodProcessor:
    """The decoder's attention processor. Stages make no block mask for it: that is quadratic."""

    def __init__(self, mask: Mask, own: Any) -> None:
        """Stores the windows, and the processor that `restore` brings back."""
        self.mask, self.own = mask, own
        self._parallel_config = getattr(own, "_parallel_config", None)

    def __call__(self, attn: Any, hidden_states: Tensor, block_mask: Any = None) -> Tensor:
        """Maps `[B, T, H, W, C]` to the same shape.

        Queries have their scale already.
        """
        query, key, value = attn.project_qkv(hidden_states)
        out = attention(query, key, value, self.mask, scale=1.0)
        return attn.to_out[0](out.flatten(-2))

    @property
    def _attention_backend(self) -> None:
        return None

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        if backend is not None:
            raise InputError(
                f"the decoder's attention is nbattn's, not {getattr(backend, 'value', backend)!r}.",
                "nbattn.integrations.diffusers.restore(model).",
            )

    @property
    def _parallel_config(self) -> None:
        return None

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        if config is not None:
            raise InputError(
                "context parallel splits the grid between ranks; windows at a cut reach tokens of "
                "both."
            )


def modules(model: nn.Module) -> list[Any]:
    """Returns the neighborhood attention modules of a model."""
    return [
        part for part in model.modules() if isinstance(part, ltx.LTX2VideoVaeNeighborhoodAttention)
    ]


def install(model: nn.Module) -> None:
    """Gives the modules nbattn's processor; those of one kernel share a mask and its plans."""
    masks: dict[tuple[int, ...], Mask] = {}
    for part in modules(model):
        if not isinstance(part.processor, NeighborhoodProcessor):
            mask = masks.setdefault(part.kernel_size, Mask.neighborhood(part.kernel_size))
            part.set_processor(NeighborhoodProcessor(mask, part.processor))


def remove(model: nn.Module) -> None:
    """Reverses `install`."""
    for part in modules(model):
        if isinstance(part.processor, NeighborhoodProcessor):
            part.set_processor(part.processor.own)

"""Makes diffusion transformers of diffusers attend to windows, and LTX-2.5's decoder to its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from nbattn.errors import InputError, kind
from nbattn.integrations.diffusers import forwards, ltx_decoder, processors, schedules, tables
from nbattn.integrations.diffusers.families import FAMILIES
from nbattn.recipes import sliding_tile

__all__ = ["apply", "restore", "sliding_tile"]


def apply(
    model: Any, mask: Any = None, *, layers: Any = None, text: str = "joint", schedule: Any = None
) -> Any:
    """Gives a model windows, in place.

    The model's own processors run as before: projections, norms, rotary embeddings, LoRA, quantised
    weights and the state dict do not change. Only attention between tokens of the grid is limited
    to the mask; tokens of text, and of reference images behind the grid, stay global.

    Args:
        model: a transformer of diffusers: Flux, Flux 2, Stable Diffusion 3, HunyuanVideo, Wan,
            CogVideoX, LTX-Video, Cosmos, Mochi or Qwen-Image; or LTX-2.5's decoder, whose windows
            are its own: it needs no mask.
        mask: a `nbattn.Mask` of (height, width), for videos of (frames, height, width); or a table
            `{name: mask}` by type of layer ("double", "single", "self"), number, name or pattern,
            in which None stands for the model's own attention, and of entries that fit one layer
            that with the fewest layers counts; or a configuration, whose layers are the table (in
            the model's order, if there are as many).
        layers: which attention layers change: types, numbers, names or patterns; None for all.
        text: "joint": text attends to everything, as in the model; "keys": to text only.
        schedule: `{(low, high): mask or table}` instead of `mask`: the mask of time steps
            low <= t < high, in the units of the model's `timestep` argument.

    Returns:
        The model.

    Raises:
        InputError, MaskError: another model, a mask of other rank, or a table that fits no layer. A
            call of the model: a grid that cannot be read, dropout, an attention mask of one's own,
            context parallel.

    >>> import torch, nbattn
    >>> from diffusers import WanTransformer3DModel
    >>> model = WanTransformer3DModel(
    ...     num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=8, ffn_dim=32,
    ...     num_layers=1)
    >>> model = apply(model, nbattn.Mask.neighborhood((3, 5, 5)))
    >>> latents = torch.randn(1, 16, 4, 16, 16)
    >>> model(latents, torch.tensor([500]), torch.randn(1, 7, 16)).sample.shape
    torch.Size([1, 16, 4, 16, 16])
    """
    if not isinstance(model, nn.Module):
        raise _no_model(model)
    if ltx_decoder.modules(model):
        if mask is not None or schedule is not None or layers is not None:
            raise InputError(
                f"{type(model).__name__} has windows of its own, for which it was trained.",
                "nbattn.integrations.diffusers.apply(model).",
            )
        ltx_decoder.install(model)
        return model
    family = FAMILIES.get(type(model).__name__)
    if family is None:
        raise _no_model(model)
    if text not in ("joint", "keys") or (text == "keys" and family.text == "apart"):
        reason = "'joint': the model reads its text by cross attention"
        known = "'joint' or 'keys'" if family.text != "apart" else reason
        raise InputError(f"text={text!r} is not {known}.", 'text="joint".')
    if (mask is None) == (schedule is None):
        given = "neither mask nor schedule is" if mask is None else "mask and schedule are both"
        raise InputError(f"{given} given.", tables.example(family.rank))
    steps, parts = (schedules.Schedule(), [mask])
    if schedule is not None:
        steps, parts = schedules.read(schedule)
    found = tables.selected(tables.layers_of(model, family), layers)
    masks = [tables.masks_of(found, part, family.rank) for part in parts]
    windowed = {
        name: tables.Layer(name, tuple(part[name] for part in masks), family, kind, text)
        for name, kind in found.items()
        if any(part[name] is not None for part in masks)
    }
    for name, layer in windowed.items():
        processors.check(model.get_submodule(name), layer)
    restore(model)
    for name, layer in windowed.items():
        processors.install(model.get_submodule(name), layer)
    forwards.hook(model, forwards.Reader(model, family, windowed, steps))
    return model


def restore(model: Any) -> Any:
    """Reverses `apply`; a model that it did not change stays. Returns the model."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {kind(model)}, not the model that apply() was given.")
    ltx_decoder.remove(model)
    for part in model.modules():  # of compiled models, too, which wrap the one that has the hooks
        processors.remove(part)
        forwards.unhook(part)
    return model


def _no_model(model: Any) -> InputError:
    """The answer to what is no model that nbattn knows."""
    known = ", ".join(FAMILIES)
    if not isinstance(model, nn.Module):
        for name, rest in (("transformer", ", mask"), ("diffusion_decoder", "")):
            if isinstance(getattr(model, name, None), nn.Module):
                return InputError(
                    f"model is {type(model).__name__}, a pipeline.",
                    f"nbattn.integrations.diffusers.apply(model.{name}{rest}).",
                )
        return InputError(f"model is {kind(model)}, not a model of diffusers: {known}.")
    for name, part in model.named_modules():
        if type(part).__name__ in FAMILIES:
            return InputError(
                f"model is {type(model).__name__}, around {type(part).__name__}.",
                f'nbattn.integrations.diffusers.apply(model.get_submodule("{name}"), mask).',
            )
    return InputError(
        f"{type(model).__name__} is no model whose grid nbattn can read. It knows {known}, and "
        "LTX-2.5's decoder."
    )

"""Which attention layer of a model gets which mask: from one mask, or from a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from nbattn.config import Config
from nbattn.errors import InputError, MaskError, kind
from nbattn.integrations.diffusers.families import Family
from nbattn.mask import Mask


def example(rank: int) -> str:
    """Returns a call of apply() with one mask, as code."""
    sizes = (7,) * rank
    return f"nbattn.integrations.diffusers.apply(model, nbattn.Mask.neighborhood({sizes}))."


@dataclass(frozen=True)
class Layer:
    """An attention layer that runs on nbattn.

    Args:
        name: of its module.
        masks: one for each part of the schedule; None: the model's own attention.
        family: what nbattn knows of its model.
        type: "double", "single" or "self".
        text: what tokens beside the grid attend to: "joint" or "keys".
    """

    name: str
    masks: tuple[Mask | None, ...]
    family: Family
    type: str
    text: str


def layers_of(model: nn.Module, family: Family) -> dict[str, str]:
    """Returns the names of a model's attention layers on the grid, in order, and their types."""
    modules: dict[str, Any] = dict(model.named_modules())
    return {
        name: kind
        for name, module in modules.items()
        if getattr(module, "processor", None) is not None
        for kind, pattern in family.layers.items()
        if fnmatchcase(name, pattern) and name.count(".") == pattern.count(".")
    }


def masks_of(layers: Mapping[str, str], given: Any, rank: int) -> dict[str, Mask | None]:
    """Returns the mask of each layer; None: the model's own attention.

    Args:
        layers: names and types.
        given: a mask for all, None, a table, or a configuration, whose layers are the table. Of
            entries of a table that fit one layer, the one that fits the fewest layers counts.
        rank: axes of the model's grid.

    Raises:
        InputError, MaskError: an entry is no mask of this rank, or fits no layer.
    """
    if given is None or isinstance(given, Mask):
        return dict.fromkeys(layers, _checked(given, rank))
    entries: list[tuple[list[str], Mask | None]] = []
    for name, mask in _table(given, layers, rank).items():
        chosen = matching(layers, name)
        if not chosen:
            raise _nothing(name, layers)
        entries.append((chosen, _checked(mask, rank)))
    found: dict[str, Mask | None] = dict.fromkeys(layers)
    for chosen, mask in sorted(entries, key=lambda entry: -len(entry[0])):
        found |= dict.fromkeys(chosen, mask)
    return found


def _table(given: Any, layers: Mapping[str, str], rank: int) -> Mapping[Any, Any]:
    """Returns a table, whatever it was given as."""
    if isinstance(given, Config):
        masks = [layer.mask for layer in given.layers.values()]
        if len(masks) == len(layers):
            return dict(zip(layers, masks, strict=True))
        if not all(matching(layers, name) for name in given.layers):
            first = next(iter(given.masks), "")
            raise InputError(
                f"the configuration has {len(masks)} layers ({', '.join(given.layers)}), the model "
                f"{len(layers)}, of type {_listed(layers)}.",
                f'nbattn.integrations.diffusers.apply(model, config.masks["{first}"]).',
            )
        given = dict(zip(given.layers, masks, strict=True))
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"mask is {kind(given)}, not a Mask, a table of masks or a configuration with layers.",
            '{"*": mask}.' if isinstance(given, Mapping) else example(rank),
        )
    return given


def matching(layers: Mapping[str, str], name: Any) -> list[str]:
    """Returns the layers that a type, a number, a name or a pattern means."""
    names = [*layers]
    if isinstance(name, int) and not isinstance(name, bool):
        return names[name : name + 1] if name >= 0 else []
    if not isinstance(name, str):
        return []
    return [
        layer
        for layer, kind in layers.items()
        if name == kind or fnmatchcase(layer, name) or fnmatchcase(layer.rpartition(".")[0], name)
    ]


def selected(layers: Mapping[str, str], only: Any) -> dict[str, str]:
    """Returns the layers that `layers=` selects: all for None."""
    if only is None:
        return dict(layers)
    if isinstance(only, str | int) or not isinstance(only, Iterable):
        only = [only]
    chosen: set[str] = set()
    for name in only:
        found = matching(layers, name)
        if not found:
            raise _nothing(name, layers)
        chosen |= {*found}
    if not chosen:
        raise _nothing([], layers)
    return {name: kind for name, kind in layers.items() if name in chosen}


def _listed(layers: Mapping[str, str]) -> str:
    """The types of layers, in words."""
    return " and ".join(map(repr, dict.fromkeys(layers.values())))


def _nothing(name: Any, layers: Mapping[str, str]) -> InputError:
    """The error for an entry that means no layer."""
    types = [*dict.fromkeys(layers.values())]
    known = [*types, *layers]
    near = get_close_matches(str(name), known, 1, cutoff=0.6)
    return InputError(
        f"{name!r} is no attention layer on the grid: there are {len(layers)}, of type "
        f"{_listed(layers)}, from {known[len(types)]!r} on.",
        f"{(near or types)[0]!r}.",
    )


def _checked(mask: Any, rank: int) -> Mask | None:
    """Checks one mask of a table."""
    if mask is None:
        return None
    if not isinstance(mask, Mask):
        raise InputError(f"a mask is {kind(mask)}, not a Mask.", example(rank))
    if mask.rank != rank:
        fix = ""
        if rank == 3 and mask.rank == 2:
            fix = "nbattn.Mask(nbattn.Axis(), *mask.axes), for all frames and windows within them."
        raise MaskError(
            f"the mask has {mask.rank} axes, the model's grid {rank}: "
            f"{'frames, ' if rank == 3 else ''}height, width.",
            fix or example(rank),
        )
    return mask

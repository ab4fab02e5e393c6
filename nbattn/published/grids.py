"""The grids of a model's tokens for a size in pixels and frames, and which sizes a model takes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from nbattn.errors import InputError, described, similar
from nbattn.published.models import MODELS, Model

Size = tuple[int, int]


def named(name: str) -> Model:
    """Returns a model by its name.

    Raises:
        InputError: there is no such model; the fix is the most similar one.

    >>> named("flux").title
    'FLUX.1-dev'
    """
    if name in MODELS:
        return MODELS[name]
    plain = str(name).lower().replace("-", "_").replace(" ", "_")
    meant = plain if plain in MODELS else similar(plain, MODELS, 0.4) or next(iter(MODELS))
    raise InputError(
        f"model={name!r} is not known: one of {', '.join(MODELS)}.", f'model="{meant}"'
    )


def checked(name: str, size: Any, frames: Any) -> tuple[Size, int]:
    """Returns height and width in pixels, and the number of frames; None is the model's own.

    Raises:
        InputError: the model takes no such size; the fix is the nearest one that it takes.
    """
    model = named(name)
    height, width = _pair(model.size if size is None else size)
    least = model.least
    fitting = tuple(
        max(least[1 + n], max(1, round(length / model.pixels)) * model.pixels)
        for n, length in enumerate((height, width))
    )
    if fitting != (height, width):
        bad = next(n for n, fit in zip((height, width), fitting, strict=True) if n != fit)
        why = f"is no multiple of {model.pixels}, the pixels of a token of {name}"
        if not bad % model.pixels:
            why = f"is below {max(least[1:])}, which the windows of {name} need"
        problem = f"size={height, width}: {bad} {why}."
        raise InputError(problem, f"size={fitting!r}")
    return (height, width), _frames(name, model, frames)


def _pair(size: Any) -> Size:
    """Height and width as ints."""
    try:
        height, width = (operator.index(length) for length in size)
        if min(height, width) < 1:
            raise ValueError
    except (TypeError, ValueError):
        problem = f"size={described(size, ',')}, not a height and a width in pixels."
        raise InputError(problem, "size=(1024, 1024)") from None
    return height, width


def _frames(name: str, model: Model, frames: Any) -> int:
    """The number of frames; 1 for an image."""
    if frames is None:
        return model.frames
    if not model.stride:
        problem = f"frames={frames!r} is given, and {name} makes images."
        raise InputError(problem, "frames=None")
    count = whole("frames", frames, 1)
    fitting = max(model.least[0], round((count - 1) / model.stride) * model.stride + 1)
    if count == fitting:
        return count
    why = f"is not 1 + a multiple of {model.stride}, which {name} takes"
    if count % model.stride == 1 % model.stride:
        why = f"is below {model.least[0]}, which the windows of {name} need"
    raise InputError(f"frames={count} {why}.", f"frames={fitting}")


def whole(name: str, value: Any, low: int) -> int:
    """Returns an argument as an int.

    Raises:
        InputError: it is no whole number, or below the lowest one.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        problem = f"{name}={described(value, ',')}, not a whole number."
        raise InputError(problem, f"{name}={low}") from None
    if number < low:
        raise InputError(f"{name}={number} is below {low}.", f"{name}={low}")
    return number


def of(model: Model, size: Size, frames: int) -> list[tuple[int, ...]]:
    """Returns the grid of every entry of the model's layers, in tokens.

    A decoder's stages have grids of their own. Its temporal strides drop the first frame that they
    would make, and the ghost frames, copies of the last latent frame, end before the last stage.

    >>> of(named("hunyuan_video"), (768, 1280), 117)[0]
    (30, 48, 80)
    >>> of(named("ltx2_decoder"), (512, 768), 121)[3:]
    [(69, 64, 96), (121, 128, 192)]
    """
    rows, columns = (length // model.pixels for length in size)
    if not model.stride:
        return [(rows, columns)] * len(model.layers)
    latents = (frames - 1) // model.stride + 1
    if not model.upsampling:
        return [(latents, rows, columns)] * len(model.layers)
    grids = [(latents + model.ghosts, rows, columns)]
    for strides in model.upsampling:
        grids.append(_upsampled(grids[-1], strides))
    time, *space = grids[-1]
    return [*grids[:-1], (time - model.ghosts * model.stride, *space)]


def _upsampled(grid: Sequence[int], strides: Sequence[int]) -> tuple[int, int, int]:
    time, rows, columns = (length * by for length, by in zip(grid, strides, strict=True))
    return time - (strides[0] > 1), rows, columns

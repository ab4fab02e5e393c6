"""Reads the grid of a forward pass: from sizes of latents, from positions, or from arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbattn.errors import InputError

Given = Mapping[str, Any]
Grid = tuple[tuple[int, ...], int]
"""Sizes of the grid, and how many tokens of further images stand behind it."""


@dataclass(frozen=True)
class OfLatents:
    """Reads grids that are latents in patches.

    Args:
        axes: the axes of `hidden_states` that are the grid's: frames, height, width.
        fills_frames: whether the last frames are filled up to a patch; else what is no whole patch
            is cut off.
    """

    axes: tuple[int, ...]
    fills_frames: bool = False

    def __call__(self, model: nn.Module, given: Given) -> Grid:
        """Reads the grid of a forward pass."""
        latents, patches = given["hidden_states"], _patches(model, len(self.axes))
        lengths = [latents.shape[at] for at in self.axes]
        if self.fills_frames:
            lengths[0] += patches[0] - 1
        return tuple(n // size for n, size in zip(lengths, patches, strict=True)), 0


def _patches(model: nn.Module, rank: int) -> tuple[int, ...]:
    """The size of a patch along each axis."""
    config: Any = model.config
    if isinstance(config.patch_size, (tuple, list)):
        return tuple(config.patch_size)
    frames = getattr(config, "patch_size_t", None) or 1
    return (frames, config.patch_size, config.patch_size)[3 - rank :]


def of_ids(_: nn.Module, given: Given) -> Grid:
    """Reads the grid from `img_ids`, `[S, 3 | 4]` with columns (image, row, column, …).

    Tokens behind the first image, with another number of the image, are reference images.
    """
    ids: Tensor = given["img_ids"]
    ids = (ids[0] if ids.dim() == 3 else ids).cpu()
    others = torch.cat([ids[:, :1], ids[:, 3:]], dim=1)
    tokens = _run((others == others[0]).all(dim=1))
    rows, columns = ids[:tokens, 1], ids[:tokens, 2]
    width = _run(rows == rows[0])
    height = tokens // width
    if height * width == tokens:
        rows, columns = rows.view(height, width), columns.view(height, width)
        is_grid = (
            (rows == rows[:, :1]).all()
            and (columns == columns[:1]).all()
            and _rises(rows[:, 0])
            and _rises(columns[0])
        )
        if is_grid:
            return (height, width), len(ids) - tokens
    last = ", torch.tensor([0])" * (ids.shape[1] - 3)
    raise InputError(
        f"img_ids {list(given['img_ids'].shape)} are not the rows and columns of one image, row by "
        f"row: the first {tokens} tokens are no grid with rows of {width}.",
        "img_ids = torch.cartesian_prod(torch.tensor([0]), torch.arange(height), "
        f"torch.arange(width){last}).",
    )


def _rises(positions: Tensor) -> bool:
    """Whether each position is above the one before; above 256 bf16 makes neighbors the same."""
    steps = positions.diff()
    return bool(((steps > 0) | ((steps == 0) & (positions[1:] >= 256))).all())


def _run(flags: Tensor) -> int:
    """How many flags at the start are True."""
    return int(flags.long().cumprod(0).sum())


def of_shapes(model: nn.Module, given: Given) -> Grid:
    """Reads the grid from `img_shapes`: (frames, height, width) of each image of each sample; all
    images but the first are references.
    """
    config: Any = model.config
    shapes = [tuple(s) if isinstance(s, list) else (s,) for s in given["img_shapes"]]
    first, *further = shapes[0]
    if config.use_layer3d_rope:
        raise InputError(
            "the model makes several layers of an image at once (use_layer3d_rope), which are no "
            "single grid."
        )
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(
            f"img_shapes differ between samples: {shapes[0]} and "
            f"{next(s for s in shapes if s != shapes[0])}. The model reads only the first: each "
            "shape needs a call of its own."
        )
    if first[0] != 1:
        raise InputError(f"img_shapes has {first[0]} frames in {first}, not one image.")
    return tuple(first[1:]), sum(math.prod(shape) for shape in further)


def of_sizes(_: nn.Module, given: Given) -> Grid:
    """Reads the grid from `num_frames`, `height` and `width`, in latents; without them from
    `video_coords`, as pipelines with conditions give them.
    """
    sizes: tuple[Any, ...] = tuple(map(given.get, ("num_frames", "height", "width")))
    tokens = given["hidden_states"].shape[1]
    if sizes == (None, None, None) and given.get("video_coords") is not None:
        return _of_coordinates(given["video_coords"]), 0
    if not all(isinstance(size, int | torch.SymInt) for size in sizes):
        shown = ", ".join("None" if size is None else str(size) for size in sizes)
        raise InputError(
            f"num_frames, height, width are {shown}: {tokens} tokens are no grid then.",
            "num_frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4], of the "
            "latents before they are packed.",
        )
    if math.prod(sizes) != tokens:
        raise InputError(
            f"hidden_states has {tokens} tokens, num_frames x height x width = "
            f"{' x '.join(map(str, sizes))} = {math.prod(sizes)}: the others are no part of the "
            "grid, and nbattn cannot tell where they are."
        )
    return sizes, 0


def _of_coordinates(given: Tensor) -> tuple[int, ...]:
    """Sizes of the grid whose tokens have these positions, `[B, 3, S]`."""
    frames, rows, columns = first = given[0].cpu()
    in_frame = _run(frames == frames[0])
    width = _run((frames == frames[0]) & (rows == rows[0]))
    sizes = len(frames) // in_frame, in_frame // width, width
    if math.prod(sizes) == len(frames):
        axes = frames[::in_frame], rows[:in_frame:width], columns[:width]
        is_rising = all(bool((axis.diff() > 0).all()) for axis in axes)
        if is_rising and torch.equal(torch.cartesian_prod(*axes).view(-1, 3).T, first):
            return sizes
    raise InputError(
        f"video_coords {list(given.shape)} are not the positions of one video, frame by frame: "
        "tokens of conditions at other frames are no part of the grid. A condition at frame 0 "
        "adds no tokens."
    )

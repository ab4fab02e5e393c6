"""Runs Swin's window attention: its table of relative positions as `relative_bias`, and its shifted
windows.

Swin's table counts steps from the key to the query, nbattn's from the query to the key: one is the
other flipped on every axis. Windows of W tokens side by side are NATTEN's blocked attention, whose
stride is its kernel size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nbattn import arguments
from nbattn.axis import nearest, whole
from nbattn.errors import InputError, MaskError, kind
from nbattn.functional import attention
from nbattn.mask import Mask

Sizes = int | Sequence[int]


def relative_bias_from(table: Tensor, window: Sizes) -> Tensor:
    """Returns Swin's table as `relative_bias`.

    Args:
        table: `[(2 W - 1) ** rank, H]`, the `relative_position_bias_table` of timm, torchvision and
            transformers (Swin, not Swin V2, which computes its table by a network).
        window: W per axis, or one for both axes of images.

    Returns:
        `[H, 2 W - 1 per axis]`, a view where the table allows it; differentiable.

    Raises:
        InputError: the table is not one of this window.

    >>> table = torch.randn(169, 3)
    >>> relative_bias_from(table, 7).shape
    torch.Size([3, 13, 13])
    >>> torch.equal(table_from(relative_bias_from(table, 7)), table)
    True
    """
    windows = _per_axis("window", window)
    sizes = [2 * size - 1 for size in windows]
    if not isinstance(table, Tensor) or table.dim() != 2 or table.shape[0] != math.prod(sizes):
        raise InputError(
            f"table is {_shown(table)}, not [{math.prod(sizes)}, H]: 2 W - 1 entries per axis of "
            f"window {windows}.",
            _fitting(table),
        )
    grid = table.unflatten(0, sizes).movedim(-1, 0)
    return grid.flip([*range(1, grid.dim())])


def table_from(relative_bias: Tensor) -> Tensor:
    """Returns a `relative_bias`, `[H, 2 W - 1 per axis]`, as Swin's table: the reverse of
    `relative_bias_from`.

    Raises:
        InputError: it is no table.
    """
    if not isinstance(relative_bias, Tensor) or relative_bias.dim() < 2:
        raise InputError(f"relative_bias is {_shown(relative_bias)}, not [H, 2 W - 1 per axis].")
    return relative_bias.flip([*range(1, relative_bias.dim())]).flatten(1).T


def mask(window: Sizes) -> Mask:
    """Returns the mask of windows side by side, for grids that the window divides.

    >>> mask(7)
    Mask(Axis(3, 3, stride=7, border='shift'), Axis(3, 3, stride=7, border='shift'))
    """
    sizes = _per_axis("window", window)
    return Mask.neighborhood(sizes, stride=sizes)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative_bias: Tensor | None = None,
    *,
    window: Sizes,
    shift: Sizes = 0,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes Swin's attention in windows side by side, or shifted.

    Tokens stay in their own order: nothing is rolled, since windows that a roll joins are apart in
    Swin's mask, where they are -100 and here no pairs. In float32 the two are the same while no
    score is more than 80 above the largest one of its own window.

    Args:
        query, key, value: `[B, *space, H, D | Dv]`; the window divides every length of the space.
        relative_bias: `[H, 2 W - 1 per axis]`, or None.
        window: W per axis, or one for both axes of images.
        shift: by how many tokens windows begin later, per axis or one for all: 0, or `W // 2` in
            every second block of Swin; less than W. Swin's own blocks have 0 where a window holds
            the whole grid.
        scale: factor of the scores; default `D ** -0.5`.
        backend: as in `nbattn.attention`.

    Returns:
        `[B, *space, H, Dv]`.

    Raises:
        InputError: the window does not divide the space, the shift is not less than it, or keys
            have another space than queries.

    >>> tokens = torch.randn(1, 14, 14, 3, 32)
    >>> window_attention(tokens, tokens, tokens, window=7, shift=3).shape
    torch.Size([1, 14, 14, 3, 32])
    """
    if not all(isinstance(given, Tensor) for given in (query, key, value)):
        arguments.check_tensors(query, {"key": key, "value": value})  # in its words
    space = query.shape[1:-2]
    sizes = _per_axis("window", window, len(space))
    shifts = _per_axis("shift", shift, len(space), low=None)
    _check(space, sizes, shifts)
    if not key.shape[1:-2] == value.shape[1:-2] == space:
        raise InputError(
            f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}: Swin's "
            "windows hold the queries and the keys of one grid."
        )
    blocks = mask(sizes)
    if not any(shifts):
        return attention(
            query, key, value, blocks, scale=scale, relative_bias=relative_bias, backend=backend
        )
    # keys before and behind the grid fill up the first and the last window; no query reads them
    before = [-moved % size for size, moved in zip(sizes, shifts, strict=True)]
    padding = [0, 0, 0, 0]
    for first, last in zip(reversed(before), reversed(shifts), strict=True):
        padding += [first, last]
    key, value = (torch.nn.functional.pad(t, padding) for t in (key, value))
    inside = [[first, first + length] for first, length in zip(before, space, strict=True)]
    return attention(
        query,
        key,
        value,
        Mask(*(replace(axis, align=at) for axis, at in zip(blocks.axes, before, strict=True))),
        scale=scale,
        relative_bias=relative_bias,
        key_range=torch.tensor(inside, dtype=torch.int32, device=key.device).expand(
            key.shape[0], -1, -1
        ),
        backend=backend,
    )


def _per_axis(name: str, sizes: Sizes, rank: int = 2, low: int | None = 1) -> tuple[int, ...]:
    """One whole number for each axis."""
    several = tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else ()
    try:
        return tuple(whole(name, size, low) for size in several or (sizes,) * rank)  # pyright: ignore
    except MaskError as error:
        fitting = f"{name}={tuple(nearest(size, low) for size in several)}."
        raise InputError(error.problem, fitting if several else error.fix) from None


def _check(space: Sequence[int], sizes: Sequence[int], shifts: Sequence[int]) -> None:
    """Checks that windows divide a space, and that shifts are less than a window."""
    if not len(space) == len(sizes) == len(shifts):
        raise InputError(
            f"window={tuple(sizes)} and shift={tuple(shifts)} for {len(space)} axes.",
            f"window={(*sizes, *[sizes[-1]] * len(space))[: len(space)]}, "
            f"shift={(*shifts, *[shifts[-1]] * len(space))[: len(space)]}.",
        )
    missing = [-length % size for length, size in zip(space, sizes, strict=True)]
    if any(missing):
        padding = [0, 0, *(side for count in reversed(missing) for side in (0, count))]
        raise InputError(
            f"windows of {tuple(sizes)} tokens do not divide the space {tuple(space)}.",
            f"x = torch.nn.functional.pad(x, {tuple(padding)}) before the projections: Swin's "
            "windows read this padding.",
        )
    if not all(0 <= moved < size for moved, size in zip(shifts, sizes, strict=True)):
        raise InputError(
            f"shift={tuple(shifts)} is not between 0 and the window {tuple(sizes)}.",
            f"shift={tuple(moved % size for moved, size in zip(shifts, sizes, strict=True))}.",
        )


def _shown(given: object) -> str:
    """The shape of a tensor, or what is there in the place of one."""
    if isinstance(given, Tensor):
        return str(list(given.shape))
    return "None" if given is None else kind(given)


def _fitting(table: object) -> str:
    """The window of a table for images, where its entries are those of a square one."""
    if not isinstance(table, Tensor) or table.dim() != 2:
        return ""
    side = math.isqrt(table.shape[0])
    return f"window={(side + 1) // 2}." if side % 2 and side**2 == table.shape[0] else ""

"""Answers to what is given as a mask and is none: matrices, lists, windows, axes, words."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from nbattn.axis import Axis, written
from nbattn.errors import InputError, kind
from nbattn.fixes.call_names import DENSE
from nbattn.mask import Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LARGEST = 1 << 22  # pairs of a matrix in which a mask is looked for


def refusal(mask: object, rank: int) -> InputError:
    """Makes the error of something that is no Mask.

    Args:
        mask: what was given.
        rank: the number of axes of the call's space.
    """
    if mask is None:
        return InputError(
            "mask is missing; every call needs an Mask.",
            f"mask=Mask.full(rank={rank}), in which every query attends to every key.",
        )
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(m, Mask) for m in mask):
        return InputError(
            f"mask is {kind(mask)} of {len(mask)} masks; a call has one mask for all heads.",
            _per_head("masks"),
        )
    return InputError(f"mask is {kind(mask)}, not an Mask.", _instead_of(mask, rank))


def _instead_of(mask: Any, rank: int) -> str:
    """The code of the mask that was probably meant."""
    if isinstance(mask, Axis):
        return f"mask={written((mask,) * rank)}."
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(axis, Axis) for axis in mask):
        return f"mask={written(mask)}."
    if isinstance(mask, str):
        full = mask.lower() in ("full", "none", "bidirectional", "dense", "all")
        return f"mask=Mask.full(rank={rank})." if full else 'mask=Mask.causal("top-left").'
    if isinstance(mask, int):
        return f"mask=Mask.neighborhood({(mask,) * rank!r}), with NATTEN's meaning."
    if isinstance(mask, (list, tuple)) and all(isinstance(n, (int, type(None))) for n in mask):
        return f"mask=Mask.from_flash({tuple(mask)!r}), with Flash's meaning."
    return _instead_of_matrix(mask) if hasattr(mask, "shape") else "mask=Mask.neighborhood(7)."


def _instead_of_matrix(matrix: Any) -> str:
    """The mask of a matrix, if it is one; else the call of torch that takes a matrix."""
    meant = found(matrix) if len(matrix.shape) >= 2 else None
    if meant is not None:
        return f"mask={meant!r}, which is this matrix."
    if len(matrix.shape) == 2 and matrix.shape[0] != matrix.shape[1]:
        padding = "key_range=nbattn.key_range_from(mask)"
        return f"{padding}, if it is padding [B, N]; or {DENSE.format('mask')}."
    return f"{DENSE.format('mask')}."


def found(matrix: Any) -> Mask | None:
    """The mask of one axis that a matrix [..., Nq, Nk] of bools, or of 0 and -inf, shows."""
    import numpy as np

    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(matrix, torch.Tensor):
        if matrix.device.type == "meta":
            return None
        matrix = (
            matrix.detach().cpu().float().numpy()
            if matrix.is_floating_point()
            else matrix.cpu().numpy()
        )
    if not isinstance(matrix, np.ndarray) or matrix.size > _LARGEST or 0 in matrix.shape:
        return None
    allowed = matrix if matrix.dtype == np.bool_ else matrix == 0
    if matrix.dtype != np.bool_ and not np.isneginf(matrix[~allowed]).all():
        return None
    flat = allowed.reshape(-1, *allowed.shape[-2:])
    if not (flat == flat[0]).all():
        return None
    return next(
        (m for m in _candidates(flat[0]) if (m.dense(*_lengths(flat[0])) == flat[0]).all()), None
    )


def _lengths(matrix: NDArray[np.bool_]) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def _candidates(matrix: NDArray[np.bool_]) -> list[Mask]:
    """Masks of one axis to compare with a matrix, from the extent of its rows."""
    import numpy as np

    queries, keys = _lengths(matrix)
    rows, columns = np.nonzero(matrix)
    masks = [Mask.full(), Mask.causal("top-left"), Mask.causal("bottom-right")]
    for align, start in (("top-left", 0), ("bottom-right", keys - queries)):
        distance = columns - rows - start
        left, right = (
            max(0, int(end)) for end in (-distance.min(initial=0), distance.max(initial=0))
        )
        sides = product((left, None), (right, None))
        masks += [Mask(Axis(*pair, align=align)) for pair in sides]  # pyright: ignore
    width = int(matrix.sum(axis=1).max())
    if queries == keys and width:
        sides = Axis(width // 2, (width - 1) // 2)
        masks += [Mask(replace(sides, border="shift")), Mask(replace(sides, border="wrap"))]
    if queries == keys:
        masks = [Mask(replace(mask.axes[0], align=None)) for mask in masks]
    return masks


def _per_head(name: str) -> str:
    """The code of one call per head, with grouped key heads."""
    return (
        "torch.cat([nbattn.attention(query[..., h : h + 1, :], key[..., g : g + 1, :], "
        f"value[..., g : g + 1, :], {name}[h]) for h in range(query.shape[-2]) "
        "for g in [h * key.shape[-2] // query.shape[-2]]], dim=-2)."
    )

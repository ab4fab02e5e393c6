"""Answers to what is given as a mask and is none: matrices, lists, windows, axes, words."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from nbattn.axis import MAX_RANK, Axis, written
from nbattn.errors import InputError, MaskError, kind
from nbattn.fixes import masks as repairs
from nbattn.fixes.code import DENSE
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
            "mask is missing; every call needs a Mask.",
            f"mask=Mask.full(rank={rank}), in which every query attends to every key.",
        )
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(m, Mask) for m in mask):
        return InputError(
            f"mask is {kind(mask)} of {len(mask)} masks; a call has one mask for all heads.",
            _per_head("masks"),
        )
    is_shape = isinstance(mask, tuple) and len(mask) > MAX_RANK
    fix = "nbattn.plan(mask, query.shape)." if is_shape else instead_of(mask, rank)
    return InputError(f"mask is {kind(mask)}, not a Mask.", fix)


def instead_of(mask: Any, rank: int, name: str = "mask") -> str:
    """The code of the mask that was probably meant by the value of an argument."""
    if isinstance(mask, Axis):
        return f"mask={written((mask,) * rank)}."
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(axis, Axis) for axis in mask):
        return f"mask={written((*mask,) * rank if len(mask) == 1 else mask)}."
    if isinstance(mask, (str, bool)):
        return _instead_of_word(mask, rank)
    if isinstance(mask, float):
        return f"mask=Mask.full(rank={rank}), scale={mask}, if it is the scale."
    if isinstance(mask, (int, list, tuple)):
        return repairs.windows(mask if isinstance(mask, (list, tuple)) else (mask,), rank)
    if mask is Mask:
        return f"mask=Mask.full(rank={rank})."
    if getattr(mask, "__self__", None) is Mask:  # a constructor without its call
        return f"mask={code}." if (code := _example(mask.__name__, rank)) else ""
    if callable(mask):  # FlexAttention's mask_mod
        return f"{DENSE.format(_matrix(name, mask))}."
    if callable(getattr(mask, "mask_mod", None)):  # its BlockMask
        return f"{DENSE.format(_matrix(f'{name}.mask_mod', mask.mask_mod))}."
    if isinstance(mask, dict):
        return _instead_of_table(mask, rank, name)
    return _instead_of_matrix(mask, rank, name) if hasattr(mask, "shape") else ""


# The matrix of a mask_mod (batch, head, query, key) of FlexAttention, which may be one bool.
_MATRIX = (
    "(lambda *at: torch.as_tensor({}(*at{})).expand(at[0].shape))(*torch.meshgrid("
    "*[torch.arange(n, device=query.device) for n in (query.shape[0], query.shape[-2], "
    "query[0, ..., 0, 0].numel(), key[0, ..., 0, 0].numel())], indexing='ij'))"
)
_FULL = ("full", "none", "bidirectional", "dense", "all", "no_mask")


def _matrix(name: str, function: Any) -> str:
    """The code of the matrix of a function of (batch, head, query, key), or of the last two."""
    try:
        places = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of a builtin
        places = 4
    return _MATRIX.format(name, "[2:]" if places == 2 else "")


def _example(constructor: str, rank: int) -> str:
    """The code of a constructor's call without arguments, on every axis, if it needs none."""
    try:
        axes = getattr(Mask, constructor)().axes
    except MaskError:
        return ""
    return f"Mask.{constructor}()" if rank == 1 else written(axes * rank)


def _instead_of_word(word: str | bool, rank: int) -> str:
    """The mask of a word, or of a bool in the place of is_causal."""
    name = str(word).lower().replace("-", "_")
    if name in _FULL or word is False:
        return f"mask=Mask.full(rank={rank})."
    if word is True or "causal" in name:
        is_last = "bottom" in name or "lower" in name
        return repairs.causal(rank, "bottom-right" if is_last else "top-left")
    return f"mask={code}." if (code := repairs.from_text(str(word))) else ""


def _instead_of_table(table: dict[Any, Any], rank: int, name: str) -> str:
    """The mask of a table of a config file, or of the arguments of an axis."""
    if set(table) <= set(Axis.__dataclass_fields__):
        return f"mask=Mask(*[Axis(**{name})] * {rank})."
    return f'mask=nbattn.load({{"masks": {{"mine": {name}}}}}).masks["mine"].'


def _instead_of_matrix(matrix: Any, rank: int, name: str) -> str:
    """The mask of a matrix, if it is one; padding; else the call of torch that takes a matrix."""
    shape, kinds = tuple(matrix.shape), str(matrix.dtype)
    source = name if type(matrix).__module__.startswith("torch") else f"torch.as_tensor({name})"
    real = f"({source} == 0)" if "float" in kinds else f"{source}.bool()"
    if "bool" in kinds:
        real = source
    if len(shape) == 4 and shape[1:3] == (1, 1):  # the same keys for every query
        return _padding(f"{real}[:, 0, 0]", rank)
    whole = DENSE.format(real if "int" in kinds else source)
    meant = found(matrix) if len(shape) >= 2 and shape[-2] > 1 else None
    if meant is not None and rank > 1:
        meant = Mask.full(rank) if meant == Mask.full() else None
    if len(shape) == 2 and shape[0] != shape[1]:
        other = whole if meant is None else f"mask={meant!r}, if it is [Nq, Nk]"
        return f"{_padding(real, rank)[:-1]}, if it is padding [B, N]; or {other}."
    return f"{whole}." if meant is None else f"mask={meant!r}, which is this matrix."


def _padding(real: str, rank: int) -> str:
    """The code of a call whose keys are padded, with True for every real token [B, N]."""
    grid = "" if rank == 1 else ".unflatten(1, key.shape[1:-2])"
    return f"mask=Mask.full(rank={rank}), key_range=nbattn.key_range_from({real}{grid})."


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

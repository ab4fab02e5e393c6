"""Attention weights in pictures: whether they fit the mask, their colours, and the bar that says
what colours mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn.errors import InputError
from nbattn.geometry import Axes
from nbattn.pictures import cells, queries, signs, style
from nbattn.pictures.cells import Spot
from nbattn.pictures.queries import Query
from nbattn.pictures.zoom import Scale

Weights = NDArray[np.float64]
LEVELS = 64  # colours of weights: cells of one colour are one shape in vector files
_NUMBER = "weights=numpy.nan_to_num(weights).clip(0)"


def checked(weights: Any, axes: Axes, query: Query | None, kind: str) -> Weights | None:
    """The weights as an array `[*key_space]`, or `[Nq, Nk]` for a matrix; None for None.

    Raises:
        InputError: the kind takes none, the query is missing, or the array has another shape, no
            numbers, negative ones or NaN, or weights of keys that are not attended to.
    """
    if weights is None:
        return None
    if kind == "axes":
        raise InputError('kind="axes" shows no weights.', 'kind="neighborhood"')
    if kind == "neighborhood" and query is None:
        middle = queries.middle(axes)
        raise InputError(
            "weights belong to one query, and query is missing.",
            f"query={middle[0] if middle and len(middle) == 1 else middle}",
        )
    found = _array(weights)
    spaces = [tuple(getattr(axis, side) for axis in axes) for side in ("queries", "keys")]
    _check_shape(found, spaces[0], spaces[1], kind)
    if kind == "matrix":
        found = found.reshape(math.prod(spaces[0]), math.prod(spaces[1]))
    if np.isnan(found).any() or (found < 0).any() or np.isinf(found).any():
        wrong = found[~((found >= 0) & np.isfinite(found))][0]
        raise InputError(
            f"weights has {wrong:g} among its {found.size} numbers, and weights are 0 or more.",
            _NUMBER,
        )
    if kind == "matrix":
        _check_matrix(found, axes)
    elif query is not None:
        _check_keys(found, axes, query)
    return found


def _array(weights: Any) -> Weights:
    """Weights as float64; tensors are detached and copied from their device."""
    try:
        if hasattr(weights, "detach"):
            copied = weights.detach().cpu()
            weights = (copied if copied.is_complex() else copied.double()).numpy()
        return np.asarray(weights).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"weights is of type {type(weights).__name__}, not an array of numbers.",
            "weights=None",
        ) from None


def _check_shape(
    found: Weights, queries_: tuple[int, ...], keys: tuple[int, ...], kind: str
) -> None:
    flat = (math.prod(queries_), math.prod(keys))
    legal = [keys] if kind == "neighborhood" else [flat, (*queries_, *keys)]
    if found.shape in legal:
        return
    want, tail = legal[-1], found.shape[found.ndim - len(legal[-1]) :]
    fix = f"weights={'numpy.zeros(' + str(want) + ')'}"
    if tail == want:
        fix = f"weights=weights[{', '.join(['0'] * (found.ndim - len(want)))}]"
    elif found.size == math.prod(want):
        fix = f"weights=weights.reshape({want})"
    raise InputError(
        f"weights has the shape {found.shape}, not {' or '.join(map(str, dict.fromkeys(legal)))}.",
        fix,
    )


def _check_keys(found: Weights, axes: Axes, query: Query) -> None:
    """Refuses weights of keys to which the query does not attend: another mask made them."""
    rest = found != 0
    attended = [np.zeros(axis.keys, bool) for axis in axes]
    for row, axis, place in zip(attended, axes, query, strict=True):
        d = axis.spec.dilation
        for start, count in axis.key_intervals(place):
            row[start : start + d * count : d] = True
    rest[np.ix_(*attended)] = False
    if rest.any():
        key = tuple(np.argwhere(rest)[0].tolist())
        raise InputError(
            f"weights has {found[key]:.3g} at key {_place(key)}, to which query {_place(query)} "
            "does not attend.",
            f"weights=nbattn.attention_weights(query, key, mask, at=[{_place(query)}])[0, 0, 0]",
        )


def _check_matrix(found: Weights, axes: Axes) -> None:
    attended = functools.reduce(np.kron, [axis.dense() for axis in axes])
    rest = (found != 0) & ~attended
    if rest.any():
        query, key = np.argwhere(rest)[0].tolist()
        spaces = [tuple(getattr(axis, side) for axis in axes) for side in ("queries", "keys")]
        raise InputError(
            f"weights has {found[query, key]:.3g} at query {query} and key {key}, and the query "
            "does not attend to it.",
            f"weights=numpy.where(mask.dense({spaces[0]}, {spaces[1]}), "
            f"weights.reshape({found.shape}), 0)",
        )


def _place(index: Sequence[int]) -> int | tuple[int, ...]:
    return tuple(index) if len(index) > 1 else index[0]


def most(shown: Iterable[Weights]) -> float:
    """The largest weight of all parts of a picture, which has the last colour; 1 without any."""
    return max((float(np.max(part, initial=0.0)) for part in shown), default=0.0) or 1.0


def draw(
    panel: style.Panel,
    weights: Weights,
    kinds: NDArray[np.int8],
    scales: tuple[Scale, Scale],
    largest: float,
    spot: Spot = cells.HERE,
) -> None:
    """Draws the weights of attended cells in place of their kinds, and the window's outline."""
    down, across = scales
    attended = kinds <= signs.LAST_ATTENDED
    plain = np.where(attended, signs.KINDS.index(signs.OUTSIDE), kinds)
    cells.draw(panel, plain.astype(np.int8), down, across, spot)
    found = np.minimum((weights / largest * LEVELS).astype(np.int64), LEVELS - 1)
    for level in np.unique(found[attended]).tolist():
        look = {"facecolor": colour(level), "edgecolor": "none", "linewidth": 0}
        name = f"weight {level}"
        cells.fill(panel, attended & (found == level), down, across, spot, look, name)
    cells.separate(panel, np.where(attended, kinds, plain).astype(np.int8), down, across, spot)
    outline = {"facecolor": "none", "edgecolor": style.INK, "linewidth": 0.8, "zorder": 4}
    cells.fill(panel, attended, down, across, spot, outline, "window")


def colour(level: int) -> Any:
    """The colour of a level."""
    return style.part_of_matplotlib().colormaps[style.MAP]((level + 0.5) / LEVELS)


def bar(panel: style.Panel, largest: float, margins: style.Margins) -> None:
    """Draws what colours of weights mean, in margins `style.with_bar`."""
    colours = [colour(level) for level in range(LEVELS)]
    style.scale_bar(panel, colours, margins, ("0", f"{largest:.2g}", "attention weight"))

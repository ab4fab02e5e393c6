"""The picture of a mask as a matrix: queries down, keys across, flat and row-major."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, Ints
from nbattn.pictures import cells, queries, repeats, signs, style, weighing, zoom
from nbattn.pictures.queries import Query
from nbattn.pictures.zoom import Scale

WHOLE, FLAT_WHOLE = 160, 640  # longer sides are shown in parts, on one axis and on several
_PART = 120  # cells of a side in parts, about
_BEYOND = 8  # columns before and after the axis
_SHORT = 48  # longer axes have no such columns


@dataclass(frozen=True)
class Matrix:
    """What is drawn: a kind for every pair that is shown, and the own positions among them.

    Args:
        kinds: index into `signs.KINDS`, `[shown queries, shown keys]`.
        own: whether the key is at the query's position, of the same shape.
        down, across: which queries and keys.
    """

    kinds: NDArray[np.int8]
    own: NDArray[np.bool_]
    down: Scale
    across: Scale


def matrix(axes: Axes, query: Query) -> Matrix:
    """The cells of a bound mask; long sides in parts at both ends and around a query's window."""
    down, across = scales(axes, query)
    spaces = [tuple(getattr(axis, side) for axis in axes) for side in ("queries", "keys")]
    rows = _unravelled(down.indices, spaces[0])
    columns = _unravelled(across.indices, spaces[1])
    parts: list[NDArray[np.int8]] = []
    own = np.ones((len(down.indices), len(across.indices)), dtype=bool)
    for axis, q, k in zip(axes, rows, columns, strict=True):
        (each_q, at_q), (each_k, at_k) = (np.unique(one, return_inverse=True) for one in (q, k))
        at = np.ix_(at_q, at_k)
        parts.append(signs.kinds(axis, each_q, each_k)[at])
        own &= signs.own_positions(axis, each_q, each_k)[at]
    return Matrix(signs.all_of(parts), own, down, across)


def _unravelled(flat: Ints, space: tuple[int, ...]) -> tuple[Ints, ...]:
    """Flat indices as one per axis; on one axis they may lie outside."""
    return (flat,) if len(space) == 1 else np.unravel_index(flat, space)


def scales(axes: Axes, query: Query) -> tuple[Scale, Scale]:
    """Which queries and keys are shown."""
    rows, columns = (math.prod(getattr(a, side) for a in axes) for side in ("queries", "keys"))
    limit = WHOLE if len(axes) == 1 else FLAT_WHOLE
    margin = _margin(axes) if len(axes) == 1 and max(rows, columns) <= _SHORT else (0, 0)
    row = _flat(query, tuple(axis.queries for axis in axes))
    places = _of_window(axes, query)
    down = zoom.whole(rows) if rows <= limit else None
    across = zoom.whole(columns, margin) if columns <= limit else None
    if down is None or across is None:
        size = _PART // (5 if len(places) > 1 and len(axes) == 1 else 3)
        step = axes[-1].keys if len(axes) > 1 and axes[-1].keys <= size else 1
        across = across or zoom.around(columns, places, size, step)
        step = axes[-1].queries if len(axes) > 1 and axes[-1].queries <= size else 1
        down = down or zoom.around(rows, [row], size, step)
    return down, across


def _margin(axes: Axes) -> tuple[int, int]:
    """Columns before and after a short axis that show what its border moves."""
    (axis,) = axes
    if axis.spec.border == "clip" or not axis.queries * axis.keys:
        return 0, 0
    before = np.arange(-_BEYOND, 0)
    after = np.arange(axis.keys, axis.keys + _BEYOND)
    every = np.arange(axis.queries)
    reached = [signs.kinds(axis, every, side) for side in (before, after)]
    hit = [(side == signs.KINDS.index(signs.BEYOND)).any(axis=0) for side in reached]
    return int(_BEYOND - np.argmax(hit[0])) if hit[0].any() else 0, int(
        np.flatnonzero(hit[1]).max(initial=-1) + 1
    )


def _flat(place: Query, space: tuple[int, ...]) -> int:
    """The row-major index of a place."""
    flat = 0
    for at, length in zip(place, space, strict=True):
        flat = flat * length + at
    return flat


def _of_window(axes: Axes, query: Query) -> list[int]:
    """Keys around which long sides are shown: the query's position, on one axis also the ends of
    its window.
    """
    space = tuple(axis.keys for axis in axes)
    own = queries.position(axes, query) or query
    inside = tuple(min(max(0, at), length - 1) for at, length in zip(own, space, strict=True))
    if not math.prod(space):
        return []
    if len(axes) > 1:
        return [_flat(inside, space)]
    ((axis, row),) = zip(axes, query, strict=True)
    runs, step = axis.key_intervals(row), axis.spec.dilation
    ends = [end for at, count in runs for end in (at, at + step * (count - 1))]
    return [inside[0], *ends]


def draw(
    axes: Axes,
    query: Query,
    *,
    is_marked: bool,
    into: Any = None,
    weights: weighing.Weights | None = None,
    figure: style.Maker = style.pyplot_figure,
) -> Any:
    """Draws the matrix of a bound mask; returns matplotlib's Axes.

    Args:
        query: around which a long matrix is shown.
        is_marked: whether its row is marked.
        weights: of all pairs, in place of the colours of attended ones.
    """
    made = matrix(axes, query)
    down, across = made.down, made.across
    margins = style.margins_for(down.indices[[0, -1]].tolist())
    margins = margins if weights is None else style.with_bar(margins)
    has_dots = max(made.kinds.shape) <= WHOLE + _PART  # of smaller cells no own positions are drawn
    words = cells.words(made.kinds, made.own & has_dots, is_weighed=weights is not None)
    size, stretch = (across.size, down.size), _stretch(down, across)
    panel = style.panel(into, size, margins, words, stretch=stretch, side="query", figure=figure)
    style.quiet(panel.axes)
    style.limits(panel.axes, across.ends, down.ends)
    is_whole = len(down.parts) == len(across.parts) == 1
    if weights is None and len(axes) > 1 and is_whole and max(made.kinds.shape) > WHOLE:
        repeats.draw(panel, axes)
    elif weights is None:
        cells.draw(panel, made.kinds, down, across)
    else:
        inside = np.clip(across.indices, 0, weights.shape[1] - 1)
        shown = weights[np.ix_(down.indices, inside)]
        largest = weighing.most([shown])
        weighing.draw(panel, shown, made.kinds, (down, across), largest)
        weighing.bar(panel, largest, margins)
    _grid(panel, axes, down, across)
    cells.frames(panel, down, across)
    dots = cells.own_dots(made.kinds, made.own & has_dots, down, across)
    cells.dots(panel, dots, panel.cell, ringed=weights is not None)
    if is_marked:
        _mark(panel, _flat(query, tuple(axis.queries for axis in axes)), down, across)
    steps = [getattr(axes[-1], side) if len(axes) > 1 else 1 for side in ("queries", "keys")]
    style.tick_sides(panel, down, across, *steps)
    style.name_sides(panel.axes, "key", "query")
    style.add_legend(panel, margins.bottom + 4.0)
    return panel.axes


def _stretch(down: Scale, across: Scale) -> float:
    """Cells of a few rows are higher than wide."""
    return max(1.0, min(8.0, 0.12 * across.size / down.size))


def _grid(panel: style.Panel, axes: Axes, down: Scale, across: Scale) -> None:
    """Draws lines where a row of the space ends, darker ones where a plane ends."""
    looks = ((1, "#9a9a9a", 0.3), (2, style.INK, 0.4))
    for depth, colour, width in looks[: len(axes) - 1]:
        rows, columns = (
            math.prod(getattr(axis, side) for axis in axes[-depth:]) for side in ("queries", "keys")
        )
        segments = [[(x, y), (x, end)] for x in _borders(across, columns) for y, end in down.frames]
        segments += [[(x, y), (end, y)] for y in _borders(down, rows) for x, end in across.frames]
        cells.strokes(panel, segments, color=colour, linewidth=width, zorder=3)


def _borders(scale: Scale, size: int) -> list[float]:
    """The places inside parts where a multiple of `size` begins; none for single positions."""
    if size < 2:
        return []
    return [
        at + (index - part.start) - 0.5
        for at, part in zip(scale.starts, scale.parts, strict=True)
        for index in range(-(-(part.start + 1) // size) * size, part.stop, size)
    ]


def _mark(panel: style.Panel, row: int, down: Scale, across: Scale) -> None:
    """Marks a query's row."""
    place = down.place(row)
    if place is None:
        return
    left, right = across.ends
    box = style.part_of_matplotlib("patches").Rectangle
    panel.axes.add_artist(
        box(
            (left, place - 0.5), right - left, 1.0,
            fill=False, edgecolor=style.INK, linewidth=1.0, zorder=6, label="_query", clip_on=False,
        )
    )  # fmt: skip

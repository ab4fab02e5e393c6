"""The picture of the keys of one query on the grid of keys: a strip on one axis, a grid on two,
slices of axis 0 on three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, BoundAxis
from nbattn.pictures import cells, queries, signs, style, weighing, zoom
from nbattn.pictures.cells import Spot
from nbattn.pictures.queries import Query
from nbattn.pictures.zoom import Scale

WHOLE = 96  # longer axes are shown in parts
_PART, _BEYOND, _SLICES = 24, 8, 6
_LINE = 3  # slices side by side
_GAP, _NAME = 7.0, 10.0  # between slices and above them, in points
_LOW = 26.0  # points of a grid that is so low that the names of both sides would meet


@dataclass(frozen=True)
class Slice:
    """One plane of keys, or one query's strip.

    Args:
        name: which one it is; empty for the only one.
        kinds: index into `signs.KINDS`, `[shown rows, shown columns]`.
        own: whether the key is at the query's position, of the same shape.
        down, across: which keys of the last two axes; a strip has one row.
    """

    name: str
    kinds: NDArray[np.int8]
    own: NDArray[np.bool_]
    down: Scale
    across: Scale


def slices(axes: Axes, query: Query) -> list[Slice]:
    """What is drawn of a query's keys."""
    place = queries.position(axes, query)
    lines: list[NDArray[np.int8]] = []
    own: list[NDArray[np.bool_]] = []
    scales = [scale(axis, i) for axis, i in zip(axes, query, strict=True)]
    if len(axes) == 3:
        parts = tuple(range(at, at + 1) for at in planes(axes[0], query[0]))
        scales[0] = Scale(parts, axes[0].keys)
    for axis, i, one in zip(axes, query, scales, strict=True):
        at = np.array([i])
        lines.append(signs.kinds(axis, at, one.indices)[0])
        own.append(signs.own_positions(axis, at, one.indices)[0] & (place is not None))
    if len(axes) == 1:
        return [Slice("", lines[0][None], own[0][None], zoom.whole(1), scales[0])]
    if len(axes) == 2:
        grid = signs.all_of([lines[0][:, None], lines[1][None]])
        return [Slice("", grid, own[0][:, None] & own[1][None], scales[0], scales[1])]
    found: list[Slice] = []
    for at, kind, is_own in zip(scales[0].indices.tolist(), lines[0], own[0], strict=True):
        grid = signs.all_of([np.array([[kind]]), lines[1][:, None], lines[2][None]])
        dots = is_own & own[1][:, None] & own[2][None]
        found.append(Slice(f"axis 0 = {at}", grid, dots, scales[1], scales[2]))
    return found


def scale(axis: BoundAxis, query: int) -> Scale:
    """The keys of one axis that are shown: all, or those at both ends and around the query's; and
    places outside the axis that its window reaches.
    """
    runs = axis.key_intervals(query)
    step = axis.spec.dilation
    ends = [end for at, count in runs for end in (at, at + step * (count - 1))]
    before, after = np.arange(-_BEYOND, 0), np.arange(axis.keys, axis.keys + _BEYOND)
    beyond = signs.KINDS.index(signs.BEYOND)
    hit = [signs.kinds(axis, np.array([query]), side)[0] == beyond for side in (before, after)]
    before = (_BEYOND - int(np.argmax(hit[0]))) * bool(hit[0].any())
    margin = before, int(np.flatnonzero(hit[1]).max(initial=-1)) + 1
    if axis.keys <= WHOLE:
        return zoom.whole(axis.keys, margin)
    own = min(max(0, query + axis.offset), axis.keys - 1)
    return zoom.around(axis.keys, [own, *ends], _PART, margin=margin)


def planes(axis: BoundAxis, query: int) -> list[int]:
    """Three or six keys of an axis: those that the query attends to, evenly taken, its own among
    them, and their nearest neighbours that it does not attend to.
    """
    if axis.keys <= _SLICES:
        return list(range(axis.keys))
    step, own = axis.spec.dilation, min(max(0, query + axis.offset), axis.keys - 1)
    runs = [range(at, at + step * count, step) for at, count in axis.key_intervals(query)]
    total = sum(map(len, runs))
    spread = np.linspace(0, total - 1, min(_SLICES - 1, total)).round().astype(int).tolist()
    chosen = sorted({_nth(runs, index) for index in spread})
    if any(own in run for run in runs) and own not in chosen:
        chosen.remove(min(chosen, key=lambda key: abs(key - own)))
        chosen.append(own)
    ends = [own, *(end for run in runs for end in (run[0], run[-1]))]
    near = {end + move for end in ends for move in range(-_SLICES, _SLICES + 1)}
    others = [k for k in near if 0 <= k < axis.keys and not any(k in run for run in runs)]
    others.sort(key=lambda key: (abs(key - own), key))
    lines = len(chosen) // _LINE + 1
    return sorted([*chosen, *others[: _LINE * lines - len(chosen)]])


def _nth(runs: list[range], index: int) -> int:
    """One of the numbers of several ranges, counted through all of them."""
    for run in runs:
        if index < len(run):
            return run[index]
        index -= len(run)
    raise IndexError(index)


def draw(
    axes: Axes,
    query: Query,
    *,
    into: Any = None,
    weights: weighing.Weights | None = None,
    figure: style.Maker = style.pyplot_figure,
) -> Any:
    """Draws the keys of one query; returns matplotlib's Axes.

    Args:
        weights: of all keys, in place of the colours of attended ones.
    """
    parts = slices(axes, query)
    panel, spots, margins = _opened(parts, len(axes), into, weights is not None, figure)
    dots: list[cells.Dot] = []
    shown = _shown(weights, axes, query, parts)
    largest = weighing.most(shown)
    for number, (part, spot) in enumerate(zip(parts, spots, strict=True)):
        if shown:
            scales = part.down, part.across
            weighing.draw(panel, shown[number], part.kinds, scales, largest, spot)
        else:
            cells.draw(panel, part.kinds, part.down, part.across, spot)
        cells.frames(panel, part.down, part.across, spot)
        if part.name:
            ((x, y),) = spot.points([(part.across.ends[0], part.down.ends[0])])
            look: dict[str, Any] = {"fontsize": style.SMALL, "color": style.ink(panel.axes)}
            panel.axes.text(x, y - 2.0, part.name, ha="left", va="bottom", **look)
        dots += cells.own_dots(part.kinds, part.own, part.down, part.across, spot)
    cells.dots(panel, dots, panel.cell * spots[0].wide, 2.5, ringed=bool(shown))
    _ticks(panel, parts, spots, has_rows=len(axes) > 1)
    style.name_sides(panel.axes, *_sides(len(axes)))
    if shown:
        weighing.bar(panel, largest, margins)
    style.add_legend(panel, margins.bottom + 4.0)
    return panel.axes


def _opened(
    parts: Sequence[Slice], rank: int, into: Any, is_weighed: bool, figure: style.Maker
) -> tuple[style.Panel, list[Spot], style.Margins]:
    """A panel for slices, where each one is on it, and the room around them."""
    across, down = parts[0].across, parts[0].down
    margins = style.margins_for(down.indices[-1:].tolist() if rank > 1 else [], rank > 1)
    margins = style.with_bar(margins) if is_weighed else margins
    kinds = np.concatenate([part.kinds.ravel() for part in parts])
    own = np.concatenate([part.own.ravel() for part in parts])
    words = cells.words(kinds, own, is_weighed=is_weighed)
    if rank < 3:
        spots, size = [cells.HERE], (across.size, down.size)
        most = max(style.LARGEST, _LOW / down.size) if rank == 2 else style.LARGEST
        ends = across.ends, down.ends
    else:  # the panel is in points
        spots, size = _placed(parts, style.WIDTH - margins.left - margins.right)
        most, ends = 1.0, ((0.0, size[0]), (0.0, size[1]))
    stretch = 1.0 if rank > 1 else max(1.0, min(6.0, 0.06 * across.size))
    given: dict[str, Any] = {"stretch": stretch, "largest": most, "side": _sides(rank)[1]}
    panel = style.panel(into, size, margins, words, **given, figure=figure)
    style.quiet(panel.axes)
    style.limits(panel.axes, *ends)
    return panel, spots, margins


def _sides(rank: int) -> tuple[str, str]:
    """The names of both sides of the picture."""
    return (f"key, axis {rank - 1}", f"key, axis {rank - 2}") if rank > 1 else ("key", "")


def _shown(
    weights: weighing.Weights | None, axes: Axes, query: Query, parts: Sequence[Slice]
) -> list[weighing.Weights]:
    """The weights of the cells of every slice; 0 for cells beyond the axes."""
    if weights is None:
        return []
    found: list[weighing.Weights] = []
    first = planes(axes[0], query[0]) if len(axes) == 3 else [0]
    for plane, part in zip(first, parts, strict=True):
        of_plane = weights[plane] if len(axes) == 3 else np.atleast_2d(weights)
        inside = [
            np.clip(scale.indices, 0, length - 1)
            for scale, length in zip((part.down, part.across), of_plane.shape, strict=True)
        ]
        found.append(of_plane[np.ix_(*inside)])
    return found


def _placed(parts: Sequence[Slice], room: float) -> tuple[list[Spot], tuple[float, float]]:
    """Slices side by side in points, and the size of all."""
    across, down = parts[0].across, parts[0].down
    columns = min(_LINE if across.size <= 2.5 * down.size else 2, len(parts))
    lines, above = -(-len(parts) // columns), _NAME + 4.0
    free = (room - _GAP * (columns - 1)) / columns, (style.TALLEST + 4.0) / lines - above
    cell = min(free[0] / across.size, free[1] / down.size)
    cell = min(style.LARGEST, cell if cell < 0.5 else int(8 * cell) / 8)
    names = style.widest([part.name for part in parts])
    wide, high = max(cell * across.size, names) + _GAP, cell * down.size + above
    (left, _), (top, _) = across.ends, down.ends
    spots = [
        Spot(n % columns * wide - cell * left, n // columns * high + _NAME - cell * top, cell, cell)
        for n in range(len(parts))
    ]
    return spots, (columns * wide - _GAP, lines * high - 4.0)


def _ticks(
    panel: style.Panel, parts: Sequence[Slice], spots: Sequence[Spot], *, has_rows: bool
) -> None:
    """Labels the rows of the first slices of a line, and the columns of the last slice of a column:
    as text where the line below is not full.
    """
    cell, high = panel.cell * spots[0].wide, panel.high * spots[0].high
    widest = style.widest(parts[0].across.indices[-1:].tolist())
    down: dict[float, str] = {}
    across: dict[float, str] = {}
    lowest = {spot.x: spot.y for spot in spots}
    for part, spot in zip(parts, spots, strict=True):
        if has_rows and spot.x == spots[0].x:
            for index in part.down.ticks((style.SMALL + 2.0) / high):
                down[spot.y + spot.high * (part.down.place(index) or 0.0)] = str(index)
        if lowest[spot.x] != spot.y:
            continue
        for index in part.across.ticks((widest + 4.0) / cell, is_boxed=len(parts) > 1):
            x = spot.x + spot.wide * (part.across.place(index) or 0.0)
            if spot.y == spots[-1].y:
                across[x] = str(index)
            else:
                y = spot.y + spot.high * part.down.ends[1] + 3.0
                look: dict[str, Any] = {"fontsize": style.SMALL, "color": style.ink(panel.axes)}
                panel.axes.text(x, y, str(index), ha="center", va="top", **look)
    panel.axes.yaxis.set_ticks(list(down), list(down.values()))
    panel.axes.xaxis.set_ticks(list(across), list(across.values()))

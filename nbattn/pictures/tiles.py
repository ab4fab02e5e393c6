"""The picture of a plan: the blocks that the chosen program computes, in the colour of the share of
their pairs that the mask allows.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from nbattn.geometry import Axes
from nbattn.pictures import cells, files, signs, style, zoom
from nbattn.pictures.shares import allowed_pairs
from nbattn.pictures.zoom import Scale
from nbattn.planner.plan import Plan
from nbattn.program.blocks import Block
from nbattn.program.request import Request

BLOCKS = 20_000  # of a longer schedule no picture is drawn
_WHOLE = 1_500  # rectangles of a picture of whole axes
_TILES, _CELLS = 4, 40  # of a part: so many blocks, or so many positions where blocks interleave
_LEVELS = 32
_LINED = 2.0  # blocks of so many points have lines between them
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Tile:
    """A block on the two axes of the picture.

    Args:
        rows: the queries, of several axes those on the axis before the last.
        columns: boxes of keys; of several axes the queries on the last axis.
        share: of its pairs, those that the mask allows; of several axes the pairs of all blocks
            with these queries.
    """

    rows: range
    columns: tuple[range, ...]
    share: float


@dataclass(frozen=True)
class Sheet:
    """What is drawn of a plan.

    Args:
        tiles: all blocks that have a place on the picture.
        shape: lengths of both axes of the picture.
        names: of both axes.
        words: which grid or plane it is; empty for the only one.
    """

    tiles: tuple[Tile, ...]
    shape: tuple[int, int]
    names: tuple[str, str]
    words: str = ""


def sheet(plan: Plan) -> Sheet | str:
    """The blocks of a plan, or the reason why they are not drawn."""
    if plan.request.grids is not None and not len(plan.request.grids.sizes.which):
        return "no blocks: there are no grids"
    request, grid, words = _one_grid(plan.request)
    axes = request.axes()
    visits = list(islice(plan.schedule(), BLOCKS + 1))
    if len(visits) > BLOCKS:
        return f"more than {BLOCKS} blocks, too many to draw"
    visits = [visit for visit in visits if visit.grid == grid and visit.keys]
    if len(axes) == 1:
        columns = ((visit, tuple(keys[0] for keys in visit.keys)) for visit in visits)
        tiles = tuple(Tile(v.queries[0], keys, share(axes, [v])) for v, keys in columns)
        return Sheet(tiles, (axes[0].queries, axes[0].keys), ("query", "key"), words)
    middle = axes[0].queries // 2
    shown = [visit for visit in visits if len(axes) == 2 or middle in visit.queries[0]]
    last = len(axes) - 1
    names = f"query, axis {last - 1}", f"query, axis {last}"
    if last == 2:
        words = "; ".join(filter(None, [words, f"axis 0 = {middle}"]))
    visited: dict[tuple[range, ...], list[Block]] = {}  # several blocks may have the same queries
    for visit in shown:
        visited.setdefault(visit.queries, []).append(visit)
    tiles = tuple(Tile(q[-2], q[-1:], share(axes, blocks)) for q, blocks in visited.items())
    return Sheet(tiles, (axes[-2].queries, axes[-1].queries), names, words)


def _one_grid(request: Request) -> tuple[Request, int, str]:
    """The request of one grid per sample; of packed grids that of the largest one, its number, and
    which one it is in words.
    """
    if request.grids is None:
        return request, 0, ""
    sizes, which = request.grids.sizes, request.grids.sizes.which
    number = int(np.argmax(sizes.query.prod(axis=1)))
    grid = int(np.flatnonzero(which == number)[0])
    size = " x ".join(map(str, sizes.query[number].tolist()))
    return request.of_size(number), grid, f"grid {grid} of {len(which)}: {size}"


def share(axes: Axes, blocks: Iterable[Block]) -> float:
    """The share of some blocks' pairs that the mask allows."""
    allowed = visited = 0
    for queries, keys in ((block.queries, box) for block in blocks for box in block.keys):
        parts = zip(axes, queries, keys, strict=True)
        allowed += math.prod(allowed_pairs(axis, q, k) for axis, q, k in parts)
        visited += math.prod(len(q) * len(k) for q, k in zip(queries, keys, strict=True))
    return allowed / max(visited, 1)


def draw(plan: Plan, into: Any = None, figure: style.Maker = style.pyplot_figure) -> Any:
    """Draws the blocks of a plan; returns matplotlib's Axes."""
    found = sheet(plan)
    if isinstance(found, str):
        return style.say(into, found, figure)
    if not found.tiles:
        return style.say(into, "no blocks: no query has a key", figure)
    down, across = scales(found)
    margins = style.margins_for(down.indices[[0, -1]].tolist())
    room = style.WIDTH - margins.left - margins.right
    title = [headline(plan)]
    if style.text_width(title[0], style.LABEL) > room:
        title = title[0].split(": ", 1)
    title += filter(None, [found.words])
    margins = style.with_bar(margins._replace(top=5.0 + 9.0 * len(title)))
    size, ratio = (across.size, down.size), across.size / down.size
    least = style.text_width(found.names[0], style.LABEL) + 4.0  # the name has room at the side
    largest = max(style.LARGEST, least / max(1.0, min(size)))
    stretch = max(least / room * ratio, min(1.0, 4.0 * ratio))
    panel = style.panel(into, size, margins, stretch=stretch, largest=largest, figure=figure)
    style.quiet(panel.axes)
    style.limits(panel.axes, across.ends, down.ends)
    _boxes(panel, found, down, across)
    cells.frames(panel, down, across)
    style.tick_sides(panel, down, across)
    style.name_sides(panel.axes, found.names[1], found.names[0])
    look: dict[str, Any] = {"fontsize": style.LABEL, "color": style.ink(panel.axes)}
    panel.axes.set_title("\n".join(title), loc="center", y=1.0, pad=4.0, **look)
    colours = [_colour(level) for level in range(_LEVELS)]
    words = "0%", "100%", "of a block's pairs attended"
    style.scale_bar(panel, colours, margins, words)
    return panel.axes


def svg(plan: Plan) -> str | None:
    """Returns the picture as SVG; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    return files.svg(draw(plan, figure=style.plain_figure).figure)


def headline(plan: Plan) -> str:
    """The chosen candidate, and how much of what it computes is attended, in words."""
    cost, name = plan.chosen.cost, plan.chosen.name
    if cost is None or not cost.computed_pairs:
        return name
    return (
        f"{name}: {100 * cost.useful_pairs / cost.computed_pairs:.3g}% of computed pairs attended"
    )


def scales(found: Sheet) -> tuple[Scale, Scale]:
    """All of both axes, or where that were too many rectangles, both ends and the middle."""
    every = zoom.whole(found.shape[0]), zoom.whole(found.shape[1])
    if sum(1 for _ in islice(_rectangles(found, *every), _WHOLE + 1)) <= _WHOLE:
        return every
    is_apart = any(part.step > 1 for tile in found.tiles for part in (tile.rows, *tile.columns))
    sizes = [
        _CELLS if is_apart else _TILES * max(len(span) for span in spans)
        for spans in ([t.rows for t in found.tiles], [c for t in found.tiles for c in t.columns])
    ]
    size = min(sizes) if found.names[1] == "key" else max(sizes)
    down, across = (
        zoom.around(length, [length // 2], size) if length > 3 * size else zoom.whole(length)
        for length in found.shape
    )
    return down, across


def _rectangles(found: Sheet, down: Scale, across: Scale) -> Iterator[tuple[int, Box]]:
    """Yields the rectangles of all tiles on two scales, each with the level of its share."""
    for tile in found.tiles:
        level = min(int(tile.share * _LEVELS), _LEVELS - 1)
        for top, bottom in spans(tile.rows, down):
            for columns in tile.columns:
                for left, right in spans(columns, across):
                    yield level, (left, top, right, bottom)


def spans(positions: range, scale: Scale) -> Iterable[tuple[float, float]]:
    """The edges of positions on a scale: one stretch in every part, or one per position that is
    apart from the next.
    """
    for at, part in zip(scale.starts, scale.parts, strict=True):
        first = max(part.start, positions.start)
        first += (positions.start - first) % positions.step
        inside = range(first, min(part.stop, positions.stop), positions.step)
        move = at - part.start - 0.5
        if len(inside) and positions.step == 1:
            yield inside.start + move, inside.stop + move
        else:
            yield from ((place + move, place + 1 + move) for place in inside)


def _boxes(panel: style.Panel, found: Sheet, down: Scale, across: Scale) -> None:
    """Draws all rectangles of a level as one patch, with thin lines between them."""
    of_level: dict[int, list[Box]] = {}
    for level, box in _rectangles(found, down, across):
        of_level.setdefault(level, []).append(box)
    path = style.part_of_matplotlib("path").Path
    patch = style.part_of_matplotlib("patches").PathPatch
    codes = [path.MOVETO, path.LINETO, path.LINETO, path.LINETO, path.CLOSEPOLY]
    background = [
        (left, top, right, bottom) for top, bottom in down.frames for left, right in across.frames
    ]
    looks = [(background, style.LOOKS[signs.NONE].face, "not computed")]
    looks += [(boxes, _colour(n), f"level {n}") for n, boxes in sorted(of_level.items())]
    least = min(
        min((c - a) * panel.cell, (d - b) * panel.high)
        for boxes in of_level.values()
        for a, b, c, d in boxes
    )
    line = {"linewidth": 0.3, "edgecolor": style.PAPER} if least >= _LINED else {"linewidth": 0.1}
    for boxes, face, name in looks:
        corners = [[(a, b), (c, b), (c, d), (a, d), (0.0, 0.0)] for a, b, c, d in boxes]
        made = path(np.array(corners).reshape(-1, 2), codes * len(boxes))
        look = {"facecolor": face, "edgecolor": face, **line, "label": f"_{name}", "zorder": 1}
        panel.axes.add_artist(patch(made, **look))


def _colour(level: int) -> Any:
    return style.part_of_matplotlib().colormaps[style.MAP]((level + 0.5) / _LEVELS)

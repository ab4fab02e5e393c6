"""Draws cells of several kinds on two scales: outlines of regions, lines between cells, frames of
parts, marks where a scale breaks, own positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.pictures import outlines, signs, style
from nbattn.pictures.zoom import Scale

LINED = 3.5  # cells of so many points have lines between them
_DOTS = 1.2  # smaller cells have no own positions
_MARK = 1.2, 2.4  # half the width and height of a mark of a break, in points
OUTSIDE = signs.KINDS.index(signs.OUTSIDE)
Dot = tuple[float, float, bool]  # x, y, whether it is attended to
OWN, OWN_UNREAD = "own position", "own position, not attended"


class Spot(NamedTuple):
    """Where scales are on a panel: index 0 is at (x, y), and a cell has these sides."""

    x: float = 0.0
    y: float = 0.0
    wide: float = 1.0
    high: float = 1.0

    def points(self, places: Any) -> NDArray[np.float64]:
        """Points on scales `[n, 2]` as points on the panel."""
        return np.asarray(places, dtype=float) * (self.wide, self.high) + (self.x, self.y)


HERE = Spot()


def words(
    kinds: NDArray[np.int8], own: NDArray[np.bool_], *, is_weighed: bool = False
) -> list[str]:
    """What the legend of some cells says; weights stand for all kinds of attended ones."""
    first = signs.LAST_ATTENDED + 1 if is_weighed else 0
    shown = [signs.KINDS[kind] for kind in np.unique(kinds) if first <= kind < OUTSIDE]
    attended = kinds[own] <= signs.LAST_ATTENDED
    dots = [OWN] * bool(attended.any()) + [OWN_UNREAD] * bool((~attended).any())
    return [style.LOOKS[kind].words for kind in shown] + dots


def draw(
    into: style.Panel, kinds: NDArray[np.int8], down: Scale, across: Scale, spot: Spot = HERE
) -> None:
    """Draws cells, an index into `signs.KINDS` each, with lines between them where they are large.

    Every kind is one patch of matplotlib, whose label is "_" and the kind's sign.
    """
    for index, kind in enumerate(signs.KINDS[:-1]):
        if fill(into, kinds == index, down, across, spot, style.patch_look(kind), kind):
            style.add_entry(into, kind)
    separate(into, kinds, down, across, spot)


def separate(
    into: style.Panel, kinds: NDArray[np.int8], down: Scale, across: Scale, spot: Spot = HERE
) -> None:
    """Draws lines between cells that are large enough for them."""
    if min(into.cell * spot.wide, into.high * spot.high) >= LINED:
        lines(into, kinds, down, across, spot)


def fill(
    into: style.Panel,
    chosen: NDArray[np.bool_],
    down: Scale,
    across: Scale,
    spot: Spot,
    look: dict[str, Any],
    name: str,
) -> bool:
    """Draws some cells as one patch; returns whether there are any."""
    path = outline(chosen, down, across, spot)
    if path is not None:
        patch = style.part_of_matplotlib("patches").PathPatch
        with style.hatches():
            made = patch(path, label=f"_{name}", **{"zorder": 1, **look})
        made.set_clip_on(False)
        into.axes.add_artist(made)
    return path is not None


def outline(chosen: NDArray[np.bool_], down: Scale, across: Scale, spot: Spot = HERE) -> Any | None:
    """The outlines of some cells as matplotlib's path; None without cells."""
    corners: list[Any] = []
    codes: list[Any] = []
    path = style.part_of_matplotlib("path").Path
    for block, x, y in _blocks(chosen, down, across):
        for loop in outlines.loops(block):
            places = loop + np.array([x - 0.5, y - 0.5])
            corners += [spot.points(places), [(0.0, 0.0)]]
            codes += [path.MOVETO, *[path.LINETO] * (len(loop) - 1), path.CLOSEPOLY]
    return path(np.concatenate(corners), codes) if corners else None


def _blocks(
    cells: NDArray[Any], down: Scale, across: Scale
) -> Iterator[tuple[NDArray[Any], float, float]]:
    """Yields the cells of every pair of parts, with the place of the first one."""
    row = 0
    for y, rows in zip(down.starts, down.parts, strict=True):
        column = 0
        for x, columns in zip(across.starts, across.parts, strict=True):
            yield cells[row : row + len(rows), column : column + len(columns)], x, y
            column += len(columns)
        row += len(rows)


def lines(
    into: style.Panel, kinds: NDArray[np.int8], down: Scale, across: Scale, spot: Spot = HERE
) -> None:
    """Draws thin lines between the cells that are not outside, as one path."""
    segments: list[Any] = []
    for block, x, y in _blocks(kinds != OUTSIDE, down, across):
        for turned in (False, True):
            cells = block.T if turned else block
            between = cells[:, 1:] & cells[:, :-1]
            for column, rows in enumerate(between.T, 1):
                for run in signs.ranges(np.flatnonzero(rows)):
                    ends = np.array([(column, run.start), (column, run.stop)], dtype=float)
                    segments.append((ends[:, ::-1] if turned else ends) + (x - 0.5, y - 0.5))
    width = min(0.6, 0.08 * into.cell * spot.wide)
    strokes(into, segments, spot, color="#FFFFFF", linewidth=width, zorder=2)


def strokes(into: style.Panel, segments: Sequence[Any], spot: Spot = HERE, **look: Any) -> None:
    """Draws segments as one path."""
    if len(segments):
        path = style.part_of_matplotlib("path").Path
        points = spot.points(np.array(segments, dtype=float).reshape(-1, 2))
        look = {"edgecolor": look.pop("color"), "facecolor": "none", "clip_on": False, **look}
        made = path(points, [path.MOVETO, path.LINETO] * (len(points) // 2))
        into.axes.add_artist(style.part_of_matplotlib("patches").PathPatch(made, **look))


def frames(into: style.Panel, down: Scale, across: Scale, spot: Spot = HERE) -> None:
    """Draws the outer edges of every pair of parts, and marks where a scale breaks."""
    upright, level = down.frames, across.frames
    if not upright or not level:
        return
    (left, right), (top, bottom) = (level[0][0], level[-1][1]), (upright[0][0], upright[-1][1])
    segments = [[(x, a), (x, b)] for x in (left, right) for a, b in upright]
    segments += [[(a, y), (b, y)] for y in (top, bottom) for a, b in level]
    look: dict[str, Any] = {"color": style.INK, "linewidth": style.LINE, "zorder": 4}
    strokes(into, segments, spot, capstyle="projecting", **look)
    x, y = _MARK[0] / into.cell / spot.wide, _MARK[1] / into.high / spot.high
    marks = [[(at - x, s + y), (at + x, s - y)]
             for a, b in _gaps(level) for at in (a, b) for s in (top, bottom)]  # fmt: skip
    x, y = _MARK[1] / into.cell / spot.wide, _MARK[0] / into.high / spot.high
    marks += [[(s - x, at + y), (s + x, at - y)]
              for a, b in _gaps(upright) for at in (a, b) for s in (left, right)]  # fmt: skip
    strokes(into, marks, spot, label="_break", **look)


def _gaps(parts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The gaps between parts."""
    return [(a[1], b[0]) for a, b in pairwise(parts)]


def own_dots(
    kinds: NDArray[np.int8], own: NDArray[np.bool_], down: Scale, across: Scale, spot: Spot = HERE
) -> list[Dot]:
    """The own positions of some cells on the panel."""
    rows, columns = np.nonzero(own)
    attended = kinds[rows, columns] <= signs.LAST_ATTENDED
    places = spot.points(np.stack([across.places[columns], down.places[rows]], axis=1))
    return [(x, y, flag) for (x, y), flag in zip(places.tolist(), attended.tolist(), strict=True)]


def dots(
    into: style.Panel,
    places: Sequence[Dot],
    cell: float,
    least: float = 0.0,
    *,
    ringed: bool = False,
) -> None:
    """Draws own positions (x, y, attended) on the panel, filled where they are attended to, else
    hollow.

    Args:
        cell: the side of a cell in points; own positions of very small ones are not drawn.
        least: the least size of a dot in points.
        ringed: whether filled dots have a white ring, for dark cells.
    """
    if max(cell, least) < _DOTS:
        return
    size = min(5.0, max(0.5 * cell, least))
    for filled in (True, False):
        points = [(x, y) for x, y, attended in places if attended is filled]
        if not points:
            continue
        words = OWN if filled else OWN_UNREAD
        xs, ys = zip(*points, strict=True)
        look: dict[str, Any] = {
            "linestyle": "",
            "marker": "o",
            "markersize": size,
            "label": f"_{words}",
        }
        look |= {"markerfacecolor": style.INK if filled else "none", "markeredgecolor": style.INK}
        look |= {"markeredgewidth": 0 if filled else min(0.7, 0.14 * size), "zorder": 5}
        if filled and ringed:
            look |= {"markeredgecolor": style.PAPER, "markeredgewidth": 0.5}
        into.axes.plot(xs, ys, clip_on=False, scalex=False, scaley=False, **look)
        style.add_dot_entry(into, words, filled=filled)

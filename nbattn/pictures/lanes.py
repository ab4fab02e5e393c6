"""The picture of each axis by itself: a lane with the query's position on the line of keys, its
neighbours on both sides, and what dilation, stride, border and prefix do.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn.axis import describe
from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.pictures import cells, neighborhood, signs, style, zoom
from nbattn.pictures.cells import Spot
from nbattn.pictures.queries import Query
from nbattn.pictures.zoom import Scale

HEAD, ARROW, STRIP, TICKS, BRACKET, APART = 10.0, 15.0, 11.0, 11.0, 12.0, 8.0  # heights in points
_LETTERS = 60  # of a line of words above a lane
_ARROW = "#A85A00"
Span = tuple[int, int]  # first and last place


@dataclass(frozen=True)
class Move:
    """What a border does to the places of a window that lie beyond one end of the axis.

    Args:
        beyond: these places, of those that are shown.
        keys: the keys that are read for them, of those that are shown; None if they are cut.
        words: what happens.
    """

    beyond: Span
    keys: Span | None
    words: str


@dataclass(frozen=True)
class Lane:
    """One axis and one query on it.

    Args:
        words: the axis and the query.
        kinds: index into `signs.KINDS` of every place that is shown.
        own: whether it is the query's position.
        across: which places are shown; some may lie beyond the axis.
        brackets: places with what they are: both sides of the window, and the queries that share it
            where a stride makes several.
        moves: what the border does.
    """

    words: str
    kinds: NDArray[np.int8]
    own: NDArray[np.bool_]
    across: Scale
    brackets: tuple[tuple[Span, str], ...]
    moves: tuple[Move, ...]

    @property
    def height(self) -> float:
        """Points from its top to its foot."""
        lines = self.words.count("\n") + 1
        rows = (len(self.brackets) > 0) + any("queries" in words for _, words in self.brackets)
        return HEAD * lines + ARROW * bool(self.moves) + STRIP + TICKS + BRACKET * rows


def lane(number: int, axis: BoundAxis, query: int) -> Lane:
    """What is drawn of one axis."""
    across = neighborhood.scale(axis, query)
    at = np.array([query])
    kinds = signs.kinds(axis, at, across.indices)[0]
    own = signs.own_positions(axis, at, across.indices)[0]
    words = textwrap.fill(f"axis {number}, query {query}: {describe(axis.spec)}", _LETTERS)
    brackets = tuple(_brackets(axis, query))
    return Lane(words, kinds, own, across, brackets, _moves(axis, query, kinds, across.indices))


def _brackets(axis: BoundAxis, query: int) -> list[tuple[Span, str]]:
    """The sides of the window that have a limit, and the group of queries that share it."""
    spec, d = axis.spec, axis.spec.dilation
    lo, hi, keys = (int(side[0]) for side in axis.windows(np.array([query])))
    u, residue = divmod(query + axis.offset, d)
    found: list[tuple[Span, str]] = []
    if not keys:
        return found
    leader = lo + spec.left if spec.left is not None else hi - 1 - (spec.right or 0)
    for side, span in (("left", (lo, leader)), ("right", (leader, hi - 1))):
        if getattr(spec, side):
            found.append(
                ((residue + d * span[0], residue + d * span[1]), f"{getattr(spec, side)} {side}")
            )
    if spec.stride > 1:
        first = u // spec.stride * spec.stride
        ends = residue + d * first, residue + d * (first + spec.stride - 1)
        found.append((ends, f"{spec.stride} queries, one window"))
    return found


def _moves(axis: BoundAxis, query: int, kinds: NDArray[np.int8], shown: Ints) -> tuple[Move, ...]:
    """What the border does at both ends."""
    beyond, moved = (kinds == signs.KINDS.index(kind) for kind in (signs.BEYOND, signs.MOVED))
    lo, hi, keys = (int(side[0]) for side in axis.windows(np.array([query])))
    found: list[Move] = []
    own = query + axis.offset
    ends = ((shown < 0, -lo, shown > own), (shown >= axis.keys, hi - keys, shown < own))
    for outside, count, opposite in ends:
        span = _span(shown[beyond & outside])
        if span is None:
            continue
        keys_read = None if axis.spec.border == "clip" else _span(shown[moved & opposite])
        words = {"clip": f"{min(count, hi - lo)} cut", "shift": "moved", "wrap": "wrapped"}
        found.append(Move(span, keys_read, words[axis.spec.border]))
    return tuple(found)


def _span(places: Ints) -> Span | None:
    return (int(places[0]), int(places[-1])) if len(places) else None


def telling(axes: Axes) -> Query:
    """The query in the middle of every axis; where a border moves or wraps windows, one of the
    first, whose window it moves.
    """
    return tuple(
        min(axis.queries - 1, (axis.spec.left or 0) // 2 * axis.spec.dilation)
        if axis.spec.border != "clip" and axis.spec.left and axis.spec.right is not None
        else axis.queries // 2
        for axis in axes
    )


def draw(
    axes: Axes, query: Query, *, into: Any = None, figure: style.Maker = style.pyplot_figure
) -> Any:
    """Draws a lane per axis; returns matplotlib's Axes, in points."""
    lanes = [lane(n, axis, i) for n, (axis, i) in enumerate(zip(axes, query, strict=True))]
    size = style.WIDTH - 16.0, sum(one.height + APART for one in lanes) - APART
    kinds, own = (
        np.concatenate([getattr(one, name) for one in lanes]) for name in ("kinds", "own")
    )
    margins = style.Margins(8.0, 5.0, 8.0, 4.0)
    words = cells.words(kinds, own)
    panel = style.panel(into, size, margins, words, largest=1.0, figure=figure)
    style.quiet(panel.axes)
    panel.axes.set_xticks([])
    panel.axes.set_yticks([])
    style.limits(panel.axes, (0.0, size[0]), (0.0, size[1]))
    top = 0.0
    for one in lanes:
        _lane(panel, one, top, size[0])
        top += one.height + APART
    style.add_legend(panel, 6.0)
    return panel.axes


def _lane(panel: style.Panel, one: Lane, top: float, width: float) -> None:
    """Draws one lane from its top on."""
    cell = min(style.LARGEST, width / one.across.size)
    above = HEAD * (one.words.count("\n") + 1) + ARROW * bool(one.moves)
    start = (width - cell * one.across.size) / 2 - cell * one.across.ends[0]
    spot = Spot(start, top + above + STRIP / 2, cell, STRIP)
    row = zoom.whole(1)
    _text(panel, 0.0, top, one.words, ha="left", va="top")
    cells.draw(panel, one.kinds[None], row, one.across, spot)
    cells.frames(panel, row, one.across, spot)
    cells.dots(
        panel, cells.own_dots(one.kinds[None], one.own[None], row, one.across, spot), cell, 3.0
    )
    foot = spot.y + STRIP / 2
    room = (style.widest(one.across.indices[-1:].tolist()) + 4.0) / cell
    for index in one.across.ticks(room):
        _text(panel, _x(one, spot, index), foot + 1.5, str(index), ha="center", va="top")
    for span, words in one.brackets:
        below = foot + TICKS + BRACKET * ("queries" in words and len(one.brackets) > 1)
        _bracket(panel, one, span, spot, below, words)
    for move in one.moves:
        _move(panel, one, move, spot)


def _text(panel: style.Panel, x: float, y: float, words: str, **where: Any) -> None:
    size = style.SMALL * min(1.0, panel.cell)  # a small panel of the caller has small words
    panel.axes.text(
        x, y, words, fontsize=size, color=style.ink(panel.axes), linespacing=1.1, **where
    )


def _x(one: Lane, spot: Spot, place: int) -> float:
    return spot.x + spot.wide * (one.across.place(place) or 0.0)


def _bracket(panel: style.Panel, one: Lane, span: Span, spot: Spot, y: float, words: str) -> None:
    """Draws a bracket under the places of a span that are shown, with words below it."""
    inside = [place for place in one.across.indices.tolist() if span[0] <= place <= span[1]]
    if not inside:
        return
    left, right = (_x(one, spot, end) for end in (inside[0], inside[-1]))
    is_side = "queries" not in words
    left, right = (left + 1.0, right - 1.0) if is_side and right > left + 4.0 else (left, right)
    ends = [
        [(left, y), (left, y + 2)],
        [(left, y + 2), (right, y + 2)],
        [(right, y + 2), (right, y)],
    ]
    cells.strokes(panel, ends, color=style.INK, linewidth=style.LINE, zorder=4)
    full = style.text_width(words)
    start = (left + right - full) / 2
    if is_side and full > right - left:  # away from the other side's words
        start = right - full - 1.5 if words.endswith("left") else left + 1.5
    before, behind = _beside(one, words)
    start = min(max(start, before), style.WIDTH - 16.0 - full - behind)
    _text(panel, start, y + 9.0, words, ha="left", va="baseline")


def _beside(one: Lane, words: str) -> tuple[float, float]:
    """Points that the words of the other side need before and behind those of one side."""
    left, right = (
        sum(style.text_width(other) + 3.0 for _, other in one.brackets if other.endswith(side))
        for side in (" left", " right")
    )
    return left * words.endswith(" right"), right * words.endswith(" left")


def _move(panel: style.Panel, one: Lane, move: Move, spot: Spot) -> None:
    """Draws an arrow from places beyond the axis to the keys that are read for them; without keys
    only words.
    """
    x, y = sum(_x(one, spot, end) for end in move.beyond) / 2, spot.y - STRIP / 2 - 1.0
    if move.keys is None:
        return _text(panel, x, y - 1.0, move.words, ha="center", va="bottom")
    to = sum(_x(one, spot, end) for end in move.keys) / 2
    step = 1 if to > x else -1
    points = [(x, y), (x + 8 * step, y - ARROW), (to - 8 * step, y - ARROW), (to, y)]
    path = style.part_of_matplotlib("path").Path
    curve = path(points, [path.MOVETO, *[path.CURVE4] * 3])
    arrow = style.part_of_matplotlib("patches").FancyArrowPatch
    look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 6, "linewidth": 0.7}
    look |= {"color": _ARROW, "clip_on": False, "zorder": 7}
    panel.axes.add_artist(arrow(path=curve, **look))
    middle = (x + to) / 2
    return _text(panel, middle, y - 0.7 * ARROW, move.words, ha="center", va="top")

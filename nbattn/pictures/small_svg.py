"""Draws axes of masks as small SVGs without matplotlib, for notebooks: queries down, keys across,
at an example length.

Colours are those of figures. Inside of HTML the paper is the notebook's; a whole mask has a paper
of its own, since notebooks show it as an image.
"""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING

from nbattn.axis import Axis, describe
from nbattn.mask import Mask

if TYPE_CHECKING:
    from nbattn.geometry import BoundAxis

EXACT = 64  # positions of an axis up to which every key is drawn
_ROWS = 48  # queries that are drawn of a longer one
_LONGEST = 1 << 30  # positions of an axis that is drawn
_SIDE = 96  # pixels of a picture
_READ, _MOVED, _PREFIX, _OWN = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
_WIDE, _TOP, _LINE, _LETTERS = 190, 14, 13, 34  # pixels of a column, and of its lines of words
_INK, _PAPER = "#1a1a1a", "#ffffff"
_WORDS = {
    _MOVED: "orange: moved or wrapped",
    _PREFIX: "green: prefix",
    _OWN: "light blue: own position",
}


def of_axis(axis: Axis, *, paper: str = "currentColor", x: int = 0, y: int = 0) -> str:
    """Returns an SVG of an axis: a line per query, a column per key; empty if it is too long."""
    from nbattn import geometry

    length = _length(axis)
    if length > _LONGEST:
        return ""
    (bound,) = geometry.bind(Mask(axis), length)
    rows = range(length) if length <= EXACT else range(0, length, -(-length // _ROWS))
    paths = _exact(bound) if length <= EXACT else _sampled(bound, rows)
    shown = {colour: path for colour, path in paths.items() if path}
    words = "; ".join(["blue: attended", *(_WORDS[c] for c in shown if c in _WORDS)])
    place = f'x="{x}" y="{y}" ' * bool(x or y)
    size = f'width="{_SIDE}" height="{_SIDE}" viewBox="0 0 {length} {len(rows)}"'
    drawn = "".join(f'<path d="{path}" stroke="{colour}"/>' for colour, path in shown.items())
    return (
        f'<svg {place}{size} preserveAspectRatio="none" shape-rendering="crispEdges">'
        f"<title>{length} queries, {length} keys; {words}</title>"
        f'<rect width="{length}" height="{len(rows)}" fill="{paper}" fill-opacity="0.1"/>'
        f"{drawn}</svg>"
    )


def of_mask(mask: Mask) -> str:
    """Returns an SVG of all axes of a mask, side by side, each with its description."""
    heads = [
        textwrap.wrap(f"axis {n}: {describe(axis)}", _LETTERS) for n, axis in enumerate(mask.axes)
    ]
    top = _TOP + _LINE * max(map(len, heads))
    width, height = _WIDE * mask.rank, top + _SIDE + 2 * _LINE
    parts: list[str] = []
    for number, (axis, head) in enumerate(zip(mask.axes, heads, strict=True)):
        left = 8 + _WIDE * number
        for row, line in enumerate(head):
            parts.append(_text(left, _TOP + _LINE * row, line))
        parts.append(of_axis(axis, paper=_INK, x=left, y=top - _LINE + 6))
    parts.append(_text(8, height - 8, "an example: queries ↓, keys →"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="{_INK}">'
        f"<title>{html.escape(repr(mask))}</title>"
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>{"".join(parts)}</svg>'
    )


def _text(x: int, y: int, words: str) -> str:
    return f'<text x="{x}" y="{y}">{html.escape(words)}</text>'


def _length(axis: Axis) -> int:
    """Returns a length at which borders, dilation, stride and prefix can be seen."""
    window = (axis.left or 0) + (axis.right or 0) + 1
    steps = max(8, 2 * window + axis.prefix, 3 * axis.stride)
    return axis.dilation * axis.stride * -(-steps // axis.stride) + abs(axis.offset)


def _exact(bound: BoundAxis) -> dict[str, str]:
    """Returns the path of every colour for a short axis: a stroke per run of keys."""
    import numpy as np

    from nbattn.pictures import signs

    every = np.arange(bound.queries)
    kinds = signs.kinds(bound, every, every)
    own = signs.own_positions(bound, every, every) & (kinds <= signs.LAST_ATTENDED)
    colours = ((_READ, signs.READ), (_MOVED, signs.MOVED), (_PREFIX, signs.PREFIX))
    cells = {colour: kinds == signs.KINDS.index(kind) for colour, kind in colours} | {_OWN: own}
    return {
        colour: "".join(
            f"M{run.start} {row + 0.5:g}h{len(run)}"
            for row, line in enumerate(chosen)
            for run in signs.ranges(np.flatnonzero(line))
        )
        for colour, chosen in cells.items()
    }


def _sampled(bound: BoundAxis, rows: range) -> dict[str, str]:
    """Returns the paths of some queries of a long axis: the reach of each run of keys."""
    keys, own = "", ""
    for y, row in enumerate(rows):
        step = bound.spec.dilation
        runs = [range(at, at + step * count, step) for at, count in bound.key_intervals(row)]
        position = row + bound.offset
        keys += "".join(f"M{run.start} {y + 0.5:g}h{run[-1] + 1 - run.start}" for run in runs)
        if bound.is_placed and any(position in run for run in runs):
            own += f"M{position} {y + 0.5:g}h{rows.step}"
    return {_READ: keys, _OWN: own}

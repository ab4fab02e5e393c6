"""Shows masks and plans as HTML in notebooks: small tables, and one picture per
axis.

All text is escaped. Nothing is loaded from elsewhere, and colours follow the notebook's theme.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbattn.axis import Axis, describe
from nbattn.mask import Mask

if TYPE_CHECKING:
    from nbattn.geometry import BoundAxis
    from nbattn.planner.plan import Plan

_EXACT = 64  # positions of an axis up to which every key is drawn
_ROWS = 48  # queries that are drawn of a longer one
_ENTRIES = 20  # of a section that are listed
_LONGEST = 1 << 30  # positions of an axis that is drawn
_SIDE = 96  # pixels of a picture
_KEYS, _OWN, _PAPER = "#0072B2", "#E69F00", "currentColor"
_CELL = 'style="text-align:left;vertical-align:top"'


def of_mask(mask: Mask) -> str:
    """Returns a table of the axes, each with its description and a picture of an example."""
    rows = [
        [str(number), text(describe(axis)), _picture(axis)] for number, axis in enumerate(mask.axes)
    ]
    columns = ["axis", "keys of a query", "example: queries ↓, keys →"]
    return table(columns, rows, f"<code>{text(repr(mask))}</code>")


def of_plan(plan: Plan) -> str:
    """Returns the choice, how to get a faster plan, and a table of the candidates with their costs
    or the reasons against them.
    """
    from nbattn.planner import explain

    rows: list[list[str]] = []
    for line in explain.candidate_lines(plan, every=False):
        name = f"<b>{text(line.name)}</b>" if line.state == "chosen" else text(line.name)
        ratio = f"{line.ratio:.3g}×" if line.ratio else ""
        what = "<br>".join(map(text, line.reasons))
        rows.append([text(line.state), name, text(line.cost), ratio, what])
    request, chosen = plan.request, plan.chosen
    head = (
        f"<b>{text(chosen.name)}</b>: {text(explain.cost_of(chosen))}; {text(chosen.work())}"
        f"<br><code>{text(repr(request.mask))}</code> {text(request.summary())}"
        f"<br>faster: {text(explain.faster(plan))}"
    )
    columns = ["", "candidate", "cost", "times", "what it does, or why not"]
    return table(columns, rows, head) + f"<small>{text(plan.decided_by())}</small>"


def text(value: object) -> str:
    """Returns a value as text that HTML shows as it is."""
    return html.escape(str(value))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Returns a table of cells that are HTML; long ones are cut."""
    head = "".join(f"<th {_CELL}>{text(column)}</th>" for column in columns)
    body = ["".join(f"<td {_CELL}>{cell}</td>" for cell in row) for row in rows[:_ENTRIES]]
    if len(rows) > _ENTRIES:
        body.append(f'<td {_CELL} colspan="{len(columns)}">… {len(rows)} in all</td>')
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    above = f"<div>{caption}</div>" if caption else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _picture(axis: Axis) -> str:
    """Returns an SVG of the axis at an example length: a line per query, a column per key; empty
    if the axis is too long.
    """
    from nbattn import geometry

    length = _length(axis)
    if length > _LONGEST:
        return ""
    (bound,) = geometry.bind(Mask(axis), length)
    exact = length <= _EXACT
    rows = range(length) if exact else range(0, length, -(-length // _ROWS))
    keys, own = "", ""
    for y, row in enumerate(rows):
        runs, position = _runs(bound, row), row + bound.offset
        for run in runs:
            apart = exact and run.step > 1
            parts = [range(key, key + 1) for key in run] if apart else [run]
            keys += "".join(f"M{p.start} {y + 0.5:g}h{p[-1] + 1 - p.start}" for p in parts)
        if bound.is_placed and any(position in run for run in runs):
            own += f"M{position} {y + 0.5:g}h{rows.step}"
    size = f'width="{_SIDE}" height="{_SIDE}" viewBox="0 0 {length} {len(rows)}"'
    return (
        f'<svg {size} preserveAspectRatio="none" shape-rendering="crispEdges">'
        f"<title>{length} queries, {length} keys; orange: own position</title>"
        f'<rect width="{length}" height="{len(rows)}" fill="{_PAPER}" fill-opacity="0.1"/>'
        f'<path d="{keys}" stroke="{_KEYS}"/><path d="{own}" stroke="{_OWN}"/></svg>'
    )


def _length(axis: Axis) -> int:
    """Returns a length at which borders, dilation, stride and prefix can be seen."""
    window = (axis.left or 0) + (axis.right or 0) + 1
    steps = max(8, 2 * window + axis.prefix, 3 * axis.stride)
    return axis.dilation * axis.stride * -(-steps // axis.stride) + abs(axis.offset)


def _runs(bound: BoundAxis, row: int) -> list[range]:
    """Returns the keys of a query: those of a prefix, and those of its window."""
    step = bound.spec.dilation
    (first,), ((low,), (lo,), (hi,)) = bound.query_rows(row, row + 1)
    ends = ((first, first + step * low), (first + step * lo, first + step * hi))
    return [range(int(start), int(stop), step) for start, stop in ends if start < stop]

"""Shows masks and plans as HTML in notebooks: small tables, and one picture per
axis.

All text is escaped. Nothing is loaded from elsewhere, and colours follow the notebook's theme.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbattn.axis import describe
from nbattn.mask import Mask
from nbattn.pictures import small_svg

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

_ENTRIES = 20  # of a section that are listed
_CELL = 'style="text-align:left;vertical-align:top"'


def of_mask(mask: Mask) -> str:
    """Returns a table of the axes, each with its description and a picture of an example."""
    rows = [
        [str(number), text(describe(axis)), small_svg.of_axis(axis)]
        for number, axis in enumerate(mask.axes)
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

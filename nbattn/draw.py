"""Text pictures of masks: one matrix per axis, long axes by tiles."""

from __future__ import annotations

from nbattn import geometry
from nbattn.geometry import BoundAxis
from nbattn.mask import Mask, Space

CELLS = 48
READ, PART, NONE = "■", "◧", "⬚"


def picture(mask: Mask, query_space: Space, key_space: Space | None = None) -> str:
    """Every axis of a mask as a matrix of cells: ■ all read, ⬚ none, ◧ some of the pairs in the
    cell's tile.
    """
    lines = geometry.bind(mask, query_space, key_space)
    return "\n\n".join(_axis(number, line) for number, line in enumerate(lines))


def _axis(number: int, line: BoundAxis) -> str:
    """One axis: a title and its rows."""
    rows, columns = (max(1, -(-length // CELLS)) for length in (line.queries, line.keys))
    scale = "" if rows == columns == 1 else f", a cell is {rows} x {columns} pairs"
    total = line.queries * line.keys
    share = f"{line.pairs()} of {total} pairs{scale}"
    title = f"axis {number}: {line.queries} queries, {line.keys} keys, {share}"
    counts = line.coverage(rows, columns)
    width = len(str(max(line.queries - 1, 0)))
    text = [title]
    for index, row in enumerate(counts.tolist()):
        first = index * rows
        height = min(rows, line.queries - first)
        areas = [height * min(columns, line.keys - at) for at in range(0, line.keys, columns)]
        cells = [_cell(count, area) for count, area in zip(row, areas, strict=True)]
        text.append(f"{first:>{width}} {' '.join(cells)}".rstrip())
    return "\n".join(text)


def _cell(count: int, area: int) -> str:
    return NONE if count == 0 else READ if count == area else PART

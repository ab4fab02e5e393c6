"""Draws masks as text: one matrix per axis, with the effect of borders and alignment; long axes by
tiles.
"""

from __future__ import annotations

import math

import numpy as np

from nbattn import geometry
from nbattn.axis import describe
from nbattn.geometry import BoundAxis
from nbattn.mask import Mask, Space
from nbattn.pictures.signs import (
    NONE,
    PART,
    READ,
    SIGNS,
    check_lengths,
    clipped_windows,
    keys_read,
    signs,
)

CELLS = 48


def picture(
    mask: Mask,
    query_space: Space,
    key_space: Space | None = None,
    *,
    cells: int = CELLS,
    gap: str = " ",
) -> str:
    """Draws every axis of a mask as a matrix of at most `cells` x `cells`, with a legend.

    `gap` stands between the cells of a row.

    Raises:
        MaskError: the mask does not fit the lengths, or an axis is longer than 2^21.
    """
    axes = geometry.bind(mask, query_space, key_space)
    check_lengths(axes)
    parts = [_axis(number, axis, cells, gap) for number, axis in enumerate(axes)]
    if len(axes) > 1:
        total = math.prod(axis.queries * axis.keys for axis in axes)
        parts.insert(0, f"{geometry.pairs(axes)} of {total} pairs; {keys_read(axes)}")
    drawn = "".join(row for part in parts for row in part.splitlines()[3:])
    legend = [
        f"{sign} {words}" for sign, words in SIGNS.items() if any(map(drawn.count, sign.split()))
    ]
    return "\n\n".join([*parts, *filter(None, ["   ".join(legend)])])


def _axis(number: int, axis: BoundAxis, cells: int, gap: str) -> str:
    """Draws one axis: its description, its key numbers, its rows."""
    rows, columns = (max(1, -(-length // cells)) for length in (axis.queries, axis.keys))
    short = rows == columns == 1
    share = f"{axis.pairs()} of {axis.queries * axis.keys} pairs"
    share += "" if short else f", a cell is {rows} x {columns} pairs"
    step = 1 if axis.keys <= 10 else 5 if gap else 10
    ruler = "".join(
        f"{key:<{(1 + len(gap)) * step}}" for key in range(0, axis.keys, columns * step)
    )
    width = len(str(max(axis.queries - 1, 0)))
    text = [f"axis {number}: {axis.queries} queries, {axis.keys} keys, {share}"]
    text += [describe(axis.spec), keys_read([axis]), *[f"{'':{width}} {ruler}"] * (axis.keys > 0)]
    for index, row in enumerate(_pairs(axis, gap) if short else _tiles(axis, rows, columns, gap)):
        text.append(f"{index * rows:>{width}}{row}")
    return "\n".join(row.rstrip() for row in text)


def _pairs(axis: BoundAxis, gap: str) -> list[str]:
    """Rows of a short axis; marks cut windows and positions p outside the keys."""
    rows = zip(
        signs(axis).tolist(), *(ends.tolist() for ends in clipped_windows(axis)), strict=True
    )
    return [
        " ‹"[a] + gap.join(row) + " ›"[b] + f" p={p}" * (axis.is_placed and not 0 <= p < axis.keys)
        for p, (row, a, b) in enumerate(rows, axis.offset)
    ]


def _tiles(axis: BoundAxis, rows: int, columns: int, gap: str) -> list[str]:
    """Rows of a long axis: every cell is a tile of pairs."""
    counts = axis.coverage(rows, columns)
    sides = (rows, axis.queries), (columns, axis.keys)
    high, wide = (np.minimum(tile, size - np.arange(0, size, tile)) for tile, size in sides)
    rules = [counts == 0, counts == high[:, None] * wide]
    return [f" {gap.join(row)}" for row in np.select(rules, [NONE, READ], PART).tolist()]

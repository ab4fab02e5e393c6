"""Traces the outlines of regions of cells, which vector formats keep small and without seams."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Loop = NDArray[np.int64]  # corners [n, 2] as (column, row), clockwise with rows down; holes counter


def loops(cells: NDArray[np.bool_]) -> list[Loop]:
    """The outlines of all cells `[rows, columns]` that are True; cell (y, x) covers x to x + 1.

    Filled by the nonzero rule they are exactly these cells. An edge is traced once, so that
    neighbouring cells have no seam between them.
    """
    padded = np.pad(cells.astype(np.int8), 1)
    above_left, above, left, here = (
        padded[:-1, :-1],
        padded[:-1, 1:],
        padded[1:, :-1],
        padded[1:, 1:],
    )
    total = above_left + above + left + here
    is_corner = (total == 1) | (total == 3)
    crosses = (total == 2) & (above_left == here)  # two cells that touch in a corner: two corners
    ys, xs = np.nonzero(is_corner | crosses)
    copies = np.where(crosses[ys, xs], 2, 1)
    ys, xs = np.repeat(ys, copies), np.repeat(xs, copies)
    # corners of a row are joined in pairs, and so are those of a column
    by_column = np.lexsort((ys, xs))
    partner = np.empty(len(ys), dtype=np.int64)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    is_top = here[ys, xs].astype(bool) & (above[ys, xs] == 0)
    return _walk(np.stack([xs, ys], axis=1), partner.tolist(), is_top.tolist())


def _walk(corners: Loop, partner: list[int], is_top: list[bool]) -> list[Loop]:
    """Follows edges from corner to corner, horizontal and vertical ones in turn."""
    seen = [False] * len(corners)
    found: list[Loop] = []
    for left in range(0, len(corners), 2):
        if seen[left]:
            continue
        at = left if is_top[left] else left + 1  # east along a top edge, west along a bottom edge
        loop: list[int] = []
        while not seen[at]:
            across = at ^ 1
            seen[at] = seen[across] = True
            loop += [at, across]
            at = partner[across]
        found.append(corners[loop])
    return found

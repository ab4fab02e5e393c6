"""Tests of outlines: filled they are exactly their cells, with no edge inside a region."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from drawn_cells import winding
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path

from nbattn.pictures import outlines

CELLS = st.tuples(st.integers(0, 7), st.integers(0, 7)).flatmap(lambda shape: arrays(bool, shape))


def filled(cells: np.ndarray) -> np.ndarray:
    """How often the outlines go around every cell."""
    points = np.argwhere(np.ones_like(cells))[:, ::-1] + 0.5
    around = np.zeros(len(points), dtype=int)
    for loop in outlines.loops(cells):
        around += winding(Path(loop, closed=False), points)
    return around.reshape(cells.shape)


@given(CELLS)
@settings(max_examples=80)
def test_filled_outlines_are_the_cells(cases: Callable[[str, int], None], cells) -> None:
    np.testing.assert_array_equal(filled(cells), cells.astype(int))
    cases("outlines", 1)


@given(CELLS)
@settings(max_examples=80)
def test_edges_are_those_between_unlike_cells(cells) -> None:
    """So that no line is between two cells of a region, and none is drawn twice."""
    edges = sum(
        int(np.abs(np.diff(loop, axis=0, append=loop[:1])).sum()) for loop in outlines.loops(cells)
    )
    padded = np.pad(cells.astype(int), 1)
    assert edges == sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))


def test_corners_only() -> None:
    (loop,) = outlines.loops(np.ones((3, 5), dtype=bool))
    assert loop.tolist() == [[0, 0], [5, 0], [5, 3], [0, 3]]
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert [len(one) for one in outlines.loops(ring)] == [4, 4]

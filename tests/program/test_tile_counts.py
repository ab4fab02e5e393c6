"""Tests of the numbers of tiles of rows, against the tiles of traversals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import bound_axes

from nbattn import Axis, Mask
from nbattn.geometry import bind
from nbattn.grids import PackedGrids, grids_of
from nbattn.program import tile_counts
from nbattn.program.tile_traversal import Traversal

Count = Callable[[str, int], None]


@pytest.mark.parametrize("inverse", [False, True])
@given(bound=bound_axes(24), rows=st.sampled_from((1, 2, 4, 16)))
def test_every_class_has_as_many_tiles_as_the_longest(
    cases: Count, bound: tuple[Axis, int, int], rows: int, inverse: bool
) -> None:
    """Shorter classes may have a tile without rows."""
    axis = bind(Mask(bound[0]), *bound[1:])[0]
    by_class: dict[int, int] = {}
    for tile in Traversal(axis, inverse).tiles(rows, 1):
        residue = int(tile.positions[0]) % bound[0].dilation
        by_class[residue] = by_class.get(residue, 0) + 1
    length = axis.keys if inverse else axis.queries
    longest = -(-length // bound[0].dilation)
    most = max(by_class.values(), default=math.ceil(longest / rows))
    count = tile_counts.row_tiles(axis, rows, inverse=inverse)
    assert count == min(bound[0].dilation, length) * most
    cases("tile counts", 1)


def test_packed_grids_are_counted_one_by_one() -> None:
    mask = Mask(Axis(1, 1, dilation=3, align="top-left"), Axis(2, 0, align="top-left"))
    query, key = [(7, 5), (2, 16), (1, 1), (30, 9)], [(9, 5), (3, 20), (1, 4), (30, 2)]
    grids = PackedGrids(grids_of(query), grids_of(key))
    for inverse, sizes in ((False, query), (True, key)):
        found = tile_counts.row_tiles_of(mask, grids, (1, 2, 4), inverse=inverse)
        wanted = [
            tile_counts.row_tiles(bind(mask, *both)[0], 2, inverse=inverse) * -(-sizes[n][1] // 4)
            for n, both in enumerate(zip(query, key, strict=True))
        ]
        assert found.tolist() == wanted


def test_a_mask_has_the_last_of_three_axes() -> None:
    assert tile_counts.placed((8,), (2,)) == (1, 1, 8)
    assert tile_counts.placed((8, 16), (0, 2)) == (8, 1, 16)
    axes = bind(Mask.neighborhood((3, 5)), (8, 9))
    assert tile_counts.padded(axes) == (tile_counts.TRIVIAL, *axes)
    assert tile_counts.TRIVIAL.dense().tolist() == [[True]]

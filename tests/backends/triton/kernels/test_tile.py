"""Tests of the Triton kernels' tiles in the interpreter: what rows visit, and which of these pairs
are computed, against the enumerator and tile traversals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import few_examples
import numpy as np
import pytest
import torch
import triton_interpreter
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from oracle import axis_matrix, is_legal, masks, matrix
from short_axes import few, specimens

from nbattn import Axis, Mask
from nbattn.backends.triton.kernels import numbers
from nbattn.geometry import Axes, Held, bind
from nbattn.kernels import layout
from nbattn.program.limits import LARGEST, LARGEST_DILATION
from nbattn.program.tile_counts import padded, row_tiles
from nbattn.program.tile_traversal import Traversal

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)

Count = Callable[[str, int], None]
Extents = tuple[int, int, int]
# Extents of rows and columns.
TILES: tuple[tuple[Extents, Extents], ...] = (
    ((1, 1, 4), (1, 1, 4)),
    ((1, 1, 2), (1, 1, 8)),
)
# For masks of more axes: few tiles, because each visit takes milliseconds.
LARGER: tuple[tuple[Extents, Extents], ...] = (
    ((2, 2, 4), (2, 4, 4)),
    ((4, 2, 2), (1, 4, 4)),
    ((1, 4, 4), (4, 4, 2)),
)
MOST = 60  # visits of an example


class Found(NamedTuple):
    """Of all tiles of rows: how often each pair is computed, `[queries, keys]`; visits, and how
    many of them are not masked.
    """

    times: np.ndarray
    visits: int
    full: int


def numbers_of(axes: Axes) -> tuple[numbers.Axis, ...]:
    """Three axes as the kernels take them."""
    return tuple(
        numbers.Axis(*layout.axis_numbers(axis), *layout.held_numbers(axis))
        for axis in padded(axes)
    )


def variant_of(axes: Axes, rows: Extents, columns: Extents) -> numbers.Variant:
    specs = [axis.spec for axis in axes]
    return numbers.Variant(
        len(axes),
        rows,
        columns,
        16,
        16,
        two_runs=any(spec.prefix for spec in specs),
        circle=any(spec.border == "wrap" for spec in specs),
    )


def flat(sides: Any, space: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of rows or columns in their space, and which of them are there."""
    at = [triton_interpreter.taken(side.position).astype(np.int64) for side in sides]
    there = np.logical_and.reduce([triton_interpreter.taken(side.inside) for side in sides])
    for axis, length in zip(at, space, strict=True):
        assert ((axis >= 0) & (axis < length))[there].all()
    number = (at[0] * space[1] + at[1]) * space[2] + at[2]
    return number, there


def walk(
    axes: Axes,
    tiles: tuple[Extents, Extents],
    *,
    inverse: bool,
    key_range: Any = None,
    overflow: bool = False,
) -> Found:
    """Runs all tiles of rows, as the kernels do."""
    tile: Any = SimpleNamespace(**triton_interpreter.kernels()["tile"])
    variant, three = variant_of(axes, *tiles), padded(axes)
    queries, keys = (tuple(getattr(axis, n) for axis in three) for n in ("queries", "keys"))
    of_rows, of_columns = (keys, queries) if inverse else (queries, keys)
    times = np.zeros((math.prod(of_rows), math.prod(of_columns)), dtype=np.int64)
    visited, full = 0, 0
    parts_of = tile.key_parts if inverse else tile.query_parts
    extents = zip(three, tiles[0], strict=True)
    count = math.prod(row_tiles(axis, rows, inverse=inverse) for axis, rows in extents)
    with triton_interpreter.language(overflow=overflow):
        ranges = triton_interpreter.given(key_range)
        for number in range(count):
            place = numbers.Place(number, 0, 0, 0, 0, numbers_of(axes))
            place = triton_interpreter.given(place)
            parts = parts_of(place, ranges, variant)
            rows = tile.rows_of(parts, place.axes, inverse, variant)
            row, inside = flat(rows, of_rows)
            for visit in range(int(triton_interpreter.taken(tile.visits(parts)))):
                columns = tile.columns_of(parts, triton_interpreter.given(visit), variant)
                column, there = flat(columns, of_columns)
                read = triton_interpreter.taken(tile.pairs_of(rows, columns, variant))
                visited += 1
                if triton_interpreter.taken(tile.is_full(columns)):
                    assert there.all()
                    read, full = inside[:, None] & there[None, :], full + 1
                assert not (read & ~(inside[:, None] & there[None, :])).any()
                at = np.nonzero(read)
                np.add.at(times, (row[at[0]], column[at[1]]), 1)
    return Found(times.T if inverse else times, visited, full)


def fitted(tiles: tuple[Extents, Extents], rank: int) -> tuple[Extents, Extents]:
    """The tiles with one row and column on axes that a mask lacks."""
    rows, columns = ((1,) * (3 - rank) + side[3 - rank :] for side in tiles)
    return rows, columns


def visits_of(axes: Axes, tiles: tuple[Extents, Extents]) -> int:
    """An upper bound of visits."""
    three = padded(axes)
    return math.prod(
        max(row_tiles(axis, n, inverse=False) * row_tiles(axis, m, inverse=True), 1)
        for axis, n, m in zip(three, *tiles, strict=True)
    )


def check(
    axes: Axes, wanted: np.ndarray, tiles: tuple[Extents, Extents], key_range: Any = None
) -> None:
    """Every pair once, in the order of queries and of keys; as many visits as geometry counts."""
    for inverse in (False, True):
        found = walk(axes, tiles, inverse=inverse, key_range=key_range)
        assert np.array_equal(found.times, wanted), (axes, tiles, inverse)
        # a circle's classes of which the tensors hold no columns are visited, for nothing
        nothing = any(axis.held is not None and axis.spec.border == "wrap" for axis in axes)
        if key_range is None and wanted.size and not nothing:
            sides = [
                (Traversal(axis, inverse, uncut=True), rows, columns)
                for axis, rows, columns in zip(padded(axes), *tiles, strict=True)
            ]
            assert found.visits == math.prod(side.tile_pairs(n, m) for side, n, m in sides)
            assert found.full == math.prod(
                sum(visit.full for tile in side.tiles(n, m) for visit in tile.columns)
                for side, n, m in sides
            ), (axes, tiles, inverse)


def check_line(fields: dict[str, Any], queries: int, keys: int, number: int) -> None:
    """An axis, and a part of it."""
    axes = bind(Mask(Axis(**fields)), queries, keys)
    wanted = axis_matrix(axes[0].spec, queries, keys)
    check(axes, wanted, TILES[number % 2])
    row, last_row = sorted((number % (queries + 1), number // 3 % (queries + 1)))
    key, last_key = sorted((number // 5 % (keys + 1), number // 7 % (keys + 1)))
    held = Held(row, queries, key, keys)
    axes = bind(Mask(Axis(**fields)), last_row - row, last_key - key, [held])
    check(axes, wanted[row:last_row, key:last_key], TILES[number // 2 % 2])


def test_small_axes_are_walked_as_geometry_says(cases: Count) -> None:
    for number, specimen in enumerate(few(7, 13001, 9)):
        check_line(*specimen, number * 31)
        cases("Triton tiles, axes", 2)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(4))
def test_many_small_axes_are_walked_as_geometry_says(first: int, cases: Count) -> None:
    for number, specimen in enumerate(specimens(first * 17, 199)):
        if is_legal(*specimen):
            check_line(*specimen, number * 31)
            cases("Triton tiles, axes", 2)


@pytest.mark.parametrize("sides", [(9, 9), (0, 13), (17, 2)], ids=str)
def test_tiles_that_need_no_mask_are_found_on_both_sides_of_a_seam(sides: tuple[int, int]) -> None:
    """Masking them would be right, and slow."""
    axes = bind(Mask(Axis(*sides, border="wrap")), 41, 41)
    found = walk(axes, TILES[0], inverse=False)
    assert np.array_equal(found.times, axis_matrix(axes[0].spec, 41, 41))
    line = walk(bind(Mask(Axis(*sides)), 41, 41), TILES[0], inverse=False)
    assert found.full > line.full


BELOW = {
    "columns of a circle": (Axis(2, 1, prefix=4), Axis(5, 2, border="wrap")),
    "queries before the first key": (Axis(0, 9, prefix=1, align="top-left", offset=-9),),
}


@pytest.mark.parametrize("name", BELOW)
def test_columns_below_0_are_not_those_of_a_prefix(name: str) -> None:
    """A visit of them only needs masks, though it ends before every prefix."""
    mask = Mask(*BELOW[name])
    lengths = (4, 8)[-mask.rank :] if mask.rank > 1 else (12,)
    axes, wanted = bind(mask, lengths, lengths), matrix(mask.axes, lengths, lengths)
    check(axes, wanted, fitted(((1, 4, 4), (1, 4, 4)), mask.rank))


@pytest.mark.parametrize("offset", [LARGEST, 3, -LARGEST])
def test_positions_of_the_largest_dilation_fit_32_bits(offset: int) -> None:
    """Those past the end of a tile, too: integers that leave their type are errors."""
    axis = Axis(5, 5, dilation=LARGEST_DILATION, offset=offset, align="top-left")
    axes, tiles = bind(Mask(axis), 3, 3), ((1, 1, 64), (1, 1, 64))
    for inverse in (False, True):
        found = walk(axes, tiles, inverse=inverse, overflow=True)
        assert np.array_equal(found.times, axes[0].dense())


def ranges(data: Any, keys: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """Ranges of valid keys, as `key_range` has them, and the keys inside them."""
    ends = [data.draw(st.tuples(st.integers(-1, n + 1), st.integers(-1, n + 1))) for n in keys]
    valid = np.ones(1, dtype=bool)
    for n, (a, b) in zip(keys, ends, strict=True):
        valid = np.kron(valid, (np.arange(n) >= a) & (np.arange(n) < b))
    return torch.tensor([ends], dtype=torch.int32), valid


def quick(examples: int) -> settings:
    """Without shrinking, which takes minutes."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(few_examples.quick(examples), phases=phases)


@quick(20)
@given(masks(), st.sampled_from(LARGER), st.data())
def test_masks_of_any_rank_are_walked(cases: Count, drawn: Any, tiles: Any, data: Any) -> None:
    """Against the enumerator, without and with ranges of valid keys."""
    mask, queries, keys = drawn
    axes, wanted = bind(mask, queries, keys), matrix(mask.axes, queries, keys)
    tiles = fitted(tiles, mask.rank)
    assume(visits_of(axes, tiles) <= MOST)
    check(axes, wanted, tiles)
    key_range, valid = ranges(data, keys)
    check(axes, wanted & valid, tiles, key_range)
    cases("Triton tiles, masks", 1)


@quick(40)
@given(masks(), st.sampled_from(LARGER), st.data())
def test_parts_of_axes_are_walked(cases: Count, drawn: Any, tiles: Any, data: Any) -> None:
    """Tensors that hold a part of every axis: the part has the pairs of the whole mask."""
    mask, queries, keys = drawn
    wanted, held, lengths = np.ones((1, 1), dtype=bool), list[Held](), list[tuple[int, int]]()
    for axis, n, m in zip(mask.axes, queries, keys, strict=True):
        row, last_row = sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))
        key, last_key = sorted(data.draw(st.tuples(*[st.integers(0, m)] * 2)))
        wanted = np.kron(wanted, axis_matrix(axis, n, m)[row:last_row, key:last_key])
        held.append(Held(row, n, key, m))
        lengths.append((last_row - row, last_key - key))
    some_queries, some_keys = (tuple(side) for side in zip(*lengths, strict=True))
    axes, tiles = bind(mask, some_queries, some_keys, held), fitted(tiles, mask.rank)
    assume(visits_of(axes, tiles) <= MOST)
    check(axes, wanted, tiles)
    key_range, valid = ranges(data, some_keys)
    check(axes, wanted & valid, tiles, key_range)
    cases("Triton tiles, parts of masks", 1)

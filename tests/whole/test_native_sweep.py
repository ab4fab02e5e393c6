"""Tests of the native kernels' traversal (`cpu/tiles.h`, `cpu/visit.h`, the groups and boxes of
`cpu/kernels.cpp`), compiled without arithmetic: which rows meet which columns, each pair once, and
how many columns are copied and computed, against geometry and the enumerator.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import native_sweep
import numpy as np
import pytest
from dense_attention import inside
from native_library import needs_library
from native_problems import drawn_axis, drawn_part, drawn_ranges, drawn_slab
from native_sweep import BATCH, COPIES, meet
from oracle import axis_matrix, box, is_legal
from short_axes import specimens

from nbattn import Axis, Mask
from nbattn.backends.native.costs import LANES
from nbattn.backends.native.tiles import RANK, Tiles
from nbattn.geometry import Axes, Held, bind
from nbattn.program.tile_traversal import Traversal

pytestmark = needs_library
Count = Callable[[str, int], None]
STEP = 1597  # `make deep` tries more of them


def cut(random: Random, rank: int, heads: int) -> Tiles:
    """Sixteen rows on some axes, and any number of neighbouring tiles."""
    axes = [*range(1 + RANK - rank, 1 + RANK)] + [0] * (heads > 1)
    tile, group = [1] * 4, [1] * 4
    for _ in range(4):
        tile[random.choice(axes)] *= 2
    for axis in axes:
        group[axis] = random.randint(1, 3)
    return Tiles(tuple(tile), tuple(group))  # pyright: ignore


def check(axes: Axes, wanted: np.ndarray, number: int, key_range: Any = None) -> None:
    """All kernels; `wanted` are pairs `[queries, keys]`, or `[B, queries, keys]`."""
    random = Random(number)
    group = random.choice((1, 1, 2, 3))
    present = np.broadcast_to(wanted, (BATCH, *wanted.shape[-2:]))
    for kernel in ("forward", "grad_key", "grad_all"):
        inverse = kernel == "grad_key"
        tiles = cut(random, len(axes), 1 if inverse else group)
        if kernel == "grad_all":
            tiles = drawn_slab(random, axes, tiles)
        capacity = random.choice((1, 2, 3, 7, 50))
        found = meet(
            axes, tiles, kernel=kernel, capacity=capacity, group=group, key_range=key_range,
            double=bool(number % 2),
        )  # fmt: skip
        pairs = found.times.swapaxes(-1, -2) if inverse else found.times
        assert np.array_equal(pairs, np.broadcast_to(present[:, None], pairs.shape)), number
        if not inverse or key_range is None:
            assert (found.written == 1).all()
        if key_range is None and all(axis.held is None for axis in axes):
            check_sums(axes, tiles, found, inverse, group, capacity)


def check_sums(
    axes: Axes, tiles: Tiles, found: native_sweep.Found, inverse: bool, group: int, capacity: int
) -> None:
    """What is computed, copied and left unmasked is what the cost model counts in closed form."""
    heads = (1, 1) if inverse else (tiles.tile[0], tiles.tile[0] * tiles.group[0])
    times = [COPIES * (group if inverse else -(-group // n)) for n in heads]
    computed, copied, full = times[0], times[1], times[0]
    for axis, rows, more in zip(
        axes, tiles.tile[-len(axes) :], tiles.group[-len(axes) :], strict=True
    ):
        walk = Traversal(axis, inverse)
        computed *= walk.tile_pairs(rows, 1)
        copied *= walk.tile_pairs(rows * more, 1)
        full *= sum(visit.full for tile in walk.tiles(rows, 1) for visit in tile.columns)
    if any(axis.spec.stride > 1 for axis in axes[:-1]):  # lines between windows are left out
        assert found.computed <= computed
    else:
        assert found.computed == computed
    simple = ((axis.spec.stride, axis.spec.border) in ((1, "clip"), (1, "shift")) for axis in axes)
    if all(simple) and not any(axis.spec.prefix for axis in axes):
        assert found.summed == summed(axes, tiles, inverse) * times[0]
    else:
        assert found.summed <= LANES * computed
    assert found.copied == copied
    assert found.full == full if capacity == 1 else found.full <= full


def summed(axes: Axes, tiles: Tiles, inverse: bool) -> int:
    """Columns of all lanes of one head: of four neighbouring lanes, those between the first and the
    last one that any attends to on each axis but the last, where they are the tile's.
    """
    places = np.array(list(np.ndindex(*tiles.tile)))[:4].T
    extents = [len(set(coordinates)) for coordinates in places.tolist()]
    lanes, first = 4, len(extents) - len(axes)
    for number, axis in enumerate(axes, first):
        walk, last = Traversal(axis, inverse), number == len(extents) - 1
        lanes *= walk.tile_pairs(tiles.tile[number] if last else extents[number], 1)
    return lanes * (tiles.tile[-1] // extents[-1]) * (tiles.tile[0] // extents[0])


def of_specimen(fields: dict[str, Any], queries: int, keys: int, number: int) -> None:
    """An axis by itself, and a part of it that tensors hold."""
    axis = Axis(**fields)
    (whole,) = bind(Mask(axis), queries, keys)
    check((whole,), whole.dense(), number)
    if number % 3:
        return
    random = Random(number)
    row, column = (
        slice(*sorted((random.randint(0, n), random.randint(0, n)))) for n in (queries, keys)
    )
    held = Held(row.start, queries, column.start, keys)
    (part,) = bind(Mask(axis), row.stop - row.start, column.stop - column.start, [held])
    check((part,), whole.dense()[row, column], number + 1)


def test_every_pair_of_small_axes_is_met_once(cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(specimens(0, STEP)):
        if is_legal(fields, queries, keys):
            of_specimen(fields, queries, keys, number)
            cases("native traversal, sampled product", 1)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(16))
def test_every_pair_of_many_small_axes_is_met_once(first: int, cases: Count) -> None:
    for number, (fields, queries, keys) in enumerate(specimens(first, 16 * 7)):
        if is_legal(fields, queries, keys):
            of_specimen(fields, queries, keys, number)
            cases("native traversal, larger sample", 1)


@pytest.mark.parametrize("sides", [(9, 9), (0, 13), (17, 2), (30, 30)], ids=str)
def test_both_sides_of_a_seam(sides: tuple[int, int]) -> None:
    axes = bind(Mask(Axis(*sides, border="wrap")), 41, 41)
    for number in range(8):
        check(axes, axes[0].dense(), number)


def of_random(seed: int) -> None:
    """A mask of any rank, of which tensors hold all or a part, with valid keys per sample."""
    random = Random(seed)
    rank = random.choice((1, 2, 2, 3))
    drawn = [drawn_axis(random, (24, 7, 5)[rank - 1], table=False) for _ in range(rank)]
    rows, columns = ([slice(0, one[side]) for one in drawn] for side in (1, 2))
    held = None
    if random.random() < 0.3:
        rows, columns = ([drawn_part(random, one[side]) for one in drawn] for side in (1, 2))
        parts = zip(drawn, rows, columns, strict=True)
        held = [Held(row.start, n, column.start, m) for (_, n, m), row, column in parts]
    own = [tuple(part.stop - part.start for part in side) for side in (rows, columns)]
    axes = bind(Mask(*(one[0] for one in drawn)), *own, held)
    parts = zip(drawn, rows, columns, strict=True)
    wanted = box([axis_matrix(*one)[row, column] for one, row, column in parts])
    key_range = None
    if random.random() < 0.4 and all(own[1]):
        key_range = drawn_ranges(random, BATCH, own[1])
        wanted = wanted & inside(key_range, own[1]).numpy()[:, None]
    check(axes, wanted, seed, key_range)


def test_every_pair_of_masks_of_any_rank_is_met_once(cases: Count) -> None:
    """Against the enumerator: tensors hold all of the axes or a part, and keys may be invalid."""
    for seed in range(300):
        of_random(seed)
    cases("native traversal, masks", 300)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(10))
def test_every_pair_of_many_masks_is_met_once(part: int, cases: Count) -> None:
    for seed in range(2000 * (part + 1), 2000 * (part + 2)):
        of_random(seed)
    cases("native traversal, masks", 2000)

"""Owns the text pictures of masks: their exact cells, tiles of long axes, and their cost."""

import time
import tracemalloc
from collections.abc import Callable
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes

from nbattn import Axis, Mask

Count = Callable[[str, int], None]

# fmt: off
PICTURES = [
("causal", Mask.causal(), (4,), None, """
    axis 0: 4 queries, 4 keys, 10 of 16 pairs
    0 ■ ⬚ ⬚ ⬚
    1 ■ ■ ⬚ ⬚
    2 ■ ■ ■ ⬚
    3 ■ ■ ■ ■"""),
("causal, bottom-right, wide", Mask.causal("bottom-right"), (2,), (5,), """
    axis 0: 2 queries, 5 keys, 9 of 10 pairs
    0 ■ ■ ■ ■ ⬚
    1 ■ ■ ■ ■ ■"""),
("causal, bottom-right, tall", Mask.causal("bottom-right"), (5,), (2,), """
    axis 0: 5 queries, 2 keys, 3 of 10 pairs
    0 ⬚ ⬚
    1 ⬚ ⬚
    2 ⬚ ⬚
    3 ■ ⬚
    4 ■ ■"""),
("neighborhood", Mask.neighborhood(3), (5,), None, """
    axis 0: 5 queries, 5 keys, 15 of 25 pairs
    0 ■ ■ ■ ⬚ ⬚
    1 ■ ■ ■ ⬚ ⬚
    2 ⬚ ■ ■ ■ ⬚
    3 ⬚ ⬚ ■ ■ ■
    4 ⬚ ⬚ ■ ■ ■"""),
("wrap", Mask(Axis(1, 1, border="wrap")), (5,), None, """
    axis 0: 5 queries, 5 keys, 15 of 25 pairs
    0 ■ ■ ⬚ ⬚ ■
    1 ■ ■ ■ ⬚ ⬚
    2 ⬚ ■ ■ ■ ⬚
    3 ⬚ ⬚ ■ ■ ■
    4 ■ ⬚ ⬚ ■ ■"""),
("dilated", Mask(Axis(1, 0, dilation=2)), (5,), None, """
    axis 0: 5 queries, 5 keys, 8 of 25 pairs
    0 ■ ⬚ ⬚ ⬚ ⬚
    1 ⬚ ■ ⬚ ⬚ ⬚
    2 ■ ⬚ ■ ⬚ ⬚
    3 ⬚ ■ ⬚ ■ ⬚
    4 ⬚ ⬚ ■ ⬚ ■"""),
("stride with rows without keys", Mask(Axis(0, causal=True, stride=2)), (4,), None, """
    axis 0: 4 queries, 4 keys, 2 of 16 pairs
    0 ⬚ ⬚ ⬚ ⬚
    1 ⬚ ■ ⬚ ⬚
    2 ⬚ ⬚ ⬚ ⬚
    3 ⬚ ⬚ ⬚ ■"""),
("prefix", Mask(Axis(1, causal=True, prefix=1)), (5,), None, """
    axis 0: 5 queries, 5 keys, 12 of 25 pairs
    0 ■ ⬚ ⬚ ⬚ ⬚
    1 ■ ■ ⬚ ⬚ ⬚
    2 ■ ■ ■ ⬚ ⬚
    3 ■ ⬚ ■ ■ ⬚
    4 ■ ⬚ ⬚ ■ ■"""),
("two axes", Mask(Axis(causal=True), Axis(1, 1)), (2, 3), (3, 3), """
    axis 0: 2 queries, 3 keys, 3 of 6 pairs
    0 ■ ⬚ ⬚
    1 ■ ■ ⬚

    axis 1: 3 queries, 3 keys, 7 of 9 pairs
    0 ■ ■ ⬚
    1 ■ ■ ■
    2 ⬚ ■ ■"""),
("numbers are aligned", Mask(Axis(0, 0)), (11,), (2,), """
    axis 0: 11 queries, 2 keys, 2 of 22 pairs
     0 ■ ⬚
     1 ⬚ ■
     2 ⬚ ⬚
     3 ⬚ ⬚
     4 ⬚ ⬚
     5 ⬚ ⬚
     6 ⬚ ⬚
     7 ⬚ ⬚
     8 ⬚ ⬚
     9 ⬚ ⬚
    10 ⬚ ⬚"""),
("no keys", Mask.full(), (2,), (0,), """
    axis 0: 2 queries, 0 keys, 0 of 0 pairs
    0
    1"""),
("no queries", Mask.full(), (0,), (2,), """
    axis 0: 0 queries, 2 keys, 0 of 0 pairs"""),
("nothing", Mask.full(), (0,), None, """
    axis 0: 0 queries, 0 keys, 0 of 0 pairs"""),
("long keys", Mask.sliding_window(200, 10), (2,), (98,), """
    axis 0: 2 queries, 98 keys, 23 of 196 pairs, a cell is 1 x 3 pairs
    0 ■ ■ ■ ◧ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚
    1 ■ ■ ■ ■ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚"""),
("long queries", Mask.causal(), (200,), (3,), """
    axis 0: 200 queries, 3 keys, 597 of 600 pairs, a cell is 5 x 1 pairs
      0 ■ ◧ ◧
""" + "\n".join(f"    {5 * n:>3} ■ ■ ■" for n in range(1, 40))),
]
# fmt: on


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "text"), [row[1:] for row in PICTURES], ids=[p[0] for p in PICTURES]
)
def test_a_picture(
    mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...] | None, text: str
) -> None:
    assert mask.draw(queries, keys) == dedent(text).strip("\n")
    if mask.rank == 1:
        assert mask.draw(queries[0], keys and keys[0]) == dedent(text).strip("\n")


def cells(picture: str) -> list[list[str]]:
    """The cells of a picture of one axis, row by row."""
    return [line.split()[1:] for line in picture.splitlines()[1:]]


@given(bound_axes(longest=48))
def test_short_axes_are_drawn_pair_by_pair(cases: Count, chosen: tuple[Axis, int, int]) -> None:
    axis, queries, keys = chosen
    picture = Mask(axis).draw(queries, keys)
    want = axis_matrix(*chosen)
    assert cells(picture) == [["■" if read else "⬚" for read in row] for row in want]
    total = f"{want.sum()} of {want.size} pairs"
    assert picture.splitlines()[0] == f"axis 0: {queries} queries, {keys} keys, {total}"
    assert "◧" not in picture
    cases("draw, short axes", 1)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 90), st.integers(0, 90))
def test_long_axes_are_drawn_by_tiles(
    cases: Count, queries: int, keys: int, left: int, right: int
) -> None:
    axis = Axis(left, right)
    picture = Mask(axis).draw(queries, keys)
    want = axis_matrix(axis, queries, keys)
    rows, columns = -(-queries // 48), -(-keys // 48)
    found = cells(picture)
    for y in range(0, queries, rows):
        for x in range(0, keys, columns):
            tile = want[y : y + rows, x : x + columns]
            sign = "■" if tile.all() else "◧" if tile.any() else "⬚"
            assert found[y // rows][x // columns] == sign
    scale = "" if rows == columns == 1 else f", a cell is {rows} x {columns} pairs"
    assert picture.splitlines()[0].endswith(f"pairs{scale}")
    assert [line.split()[0] for line in picture.splitlines()[1:]] == [
        str(first) for first in range(0, queries, rows)
    ]
    cases("draw, tiles", 1)


@pytest.mark.parametrize("length", [48, 49, 95, 96, 97, 1000, 4097, 10**6])
def test_any_axis_fits_a_screen(length: int) -> None:
    for mask in (Mask.causal(), Mask.neighborhood(7), Mask(Axis(3, 3, border="wrap"))):
        lines = mask.draw(length).splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines[1:])) <= 7 + 2 * 48
        assert all(line == line.rstrip() for line in lines)
    assert len(Mask(Axis(3, 3), Axis(3, 3)).draw((length, length)).splitlines()) <= 120


@pytest.mark.parametrize(
    "axis",
    [
        Axis(causal=True),
        Axis(1000, 1000, border="shift", stride=8),
        Axis(1000, 1000, border="wrap", dilation=4),
        Axis(10, causal=True, prefix=4),
    ],
    ids=repr,
)
def test_a_million_by_a_million_is_drawn_at_once(axis: Axis) -> None:
    mask = Mask(axis)
    mask.draw(100)
    tracemalloc.start()
    start = time.process_time()
    picture = mask.draw(10**6)
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(picture.splitlines()) <= 60
    assert "a cell is 20834 x 20834 pairs" in picture
    assert took <= 5
    assert peak <= 500e6

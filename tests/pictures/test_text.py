"""Tests of the text pictures of masks: their exact cells, tiles of long axes, and their cost."""

import re
from collections.abc import Callable
from dataclasses import replace
from textwrap import dedent

import few_examples
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    INFINITE,
    attends,
    axis_matrix,
    bound_axes,
    box,
    coordinate,
    leader_of,
    masks,
    position,
)
from work import lines, work

from nbattn import Axis, Mask, MaskError, geometry
from nbattn.pictures import signs

Count = Callable[[str, int], None]
Space = tuple[int, ...]

# fmt: off
PICTURES = [
("causal", Mask.causal(), (4,), None, """
    axis 0: 4 queries, 4 keys, 10 of 16 pairs
    all left, itself; causal
    1–4 keys per query
      0 1 2 3
    0 ◆ ⬚ ⬚ ⬚
    1 ■ ◆ ⬚ ⬚
    2 ■ ■ ◆ ⬚
    3 ■ ■ ■ ◆

    ■ attended   ◆ attended, own position   ⬚ not attended"""),
("causal, bottom-right, wide", Mask.causal("bottom-right"), (2,), (5,), """
    axis 0: 2 queries, 5 keys, 9 of 10 pairs
    all left, itself; causal, bottom-right
    4–5 keys per query
      0 1 2 3 4
    0 ■ ■ ■ ◆ ⬚
    1 ■ ■ ■ ■ ◆

    ■ attended   ◆ attended, own position   ⬚ not attended"""),
("causal, bottom-right, tall", Mask.causal("bottom-right"), (5,), (2,), """
    axis 0: 5 queries, 2 keys, 3 of 10 pairs
    all left, itself; causal, bottom-right
    0–2 keys per query; 3 queries have no keys
      0 1
    0 ⬚ ⬚  p=-3
    1 ⬚ ⬚  p=-2
    2 ⬚ ⬚  p=-1
    3 ◆ ⬚
    4 ■ ◆

    ■ attended   ◆ attended, own position   ⬚ not attended   p= own position, off axis"""),
("neighborhood", Mask.neighborhood(3), (5,), None, """
    axis 0: 5 queries, 5 keys, 15 of 25 pairs
    1 left, itself, 1 right; shift
    3 keys per query
      0 1 2 3 4
    0 ◆ ■ ▣ ⬚ ⬚
    1 ■ ◆ ■ ⬚ ⬚
    2 ⬚ ■ ◆ ■ ⬚
    3 ⬚ ⬚ ■ ◆ ■
    4 ⬚ ⬚ ▣ ■ ◆

    ■ attended   ◆ attended, own position   ▣ attended, moved or wrapped   ⬚ not attended"""),
("wrap", Mask(Axis(1, 1, border="wrap")), (5,), None, """
    axis 0: 5 queries, 5 keys, 15 of 25 pairs
    1 left, itself, 1 right; wrap
    3 keys per query
      0 1 2 3 4
    0 ◆ ■ ⬚ ⬚ ▣
    1 ■ ◆ ■ ⬚ ⬚
    2 ⬚ ■ ◆ ■ ⬚
    3 ⬚ ⬚ ■ ◆ ■
    4 ▣ ⬚ ⬚ ■ ◆

    ■ attended   ◆ attended, own position   ▣ attended, moved or wrapped   ⬚ not attended"""),
("dilated", Mask(Axis(1, 0, dilation=2)), (5,), None, """
    axis 0: 5 queries, 5 keys, 8 of 25 pairs
    1 left, itself; dilation 2
    1–2 keys per query
      0 1 2 3 4
    0‹◆ · ⬚ · ⬚
    1‹· ◆ · ⬚ ·
    2 ■ · ◆ · ⬚
    3 · ■ · ◆ ·
    4 ⬚ · ■ · ◆

    ■ attended   ◆ attended, own position   ⬚ not attended\
   · not on this query's dilation grid   ‹ › window cut"""),
("stride with rows without keys", Mask(Axis(0, causal=True, stride=2)), (4,), None, """
    axis 0: 4 queries, 4 keys, 2 of 16 pairs
    itself; stride 2, causal, rows without keys: stride > left + 1
    0–1 keys per query; 2 queries have no keys
      0 1 2 3
    0 ◇ ⬚ ⬚ ⬚
    1 ⬚ ◆ ⬚ ⬚
    2 ⬚ ⬚ ◇ ⬚
    3 ⬚ ⬚ ⬚ ◆

    ◆ attended, own position   ◇ own position, not attended   ⬚ not attended"""),
("prefix", Mask(Axis(1, causal=True, prefix=1)), (5,), None, """
    axis 0: 5 queries, 5 keys, 12 of 25 pairs
    1 left, itself; causal, prefix 1
    1–3 keys per query
      0 1 2 3 4
    0‹◆ ⬚ ⬚ ⬚ ⬚
    1 ■ ◆ ⬚ ⬚ ⬚
    2 ▤ ■ ◆ ⬚ ⬚
    3 ▤ ⬚ ■ ◆ ⬚
    4 ▤ ⬚ ⬚ ■ ◆

    ■ attended   ◆ attended, own position   ▤ attended, prefix   ⬚ not attended\
   ‹ › window cut"""),
("two axes", Mask(Axis(causal=True, align="top-left"), Axis(1, 1)), (2, 3), (3, 3), """
    21 of 54 pairs; 2–6 keys per query

    axis 0: 2 queries, 3 keys, 3 of 6 pairs
    all left, itself; causal, top-left
    1–2 keys per query
      0 1 2
    0 ◆ ⬚ ⬚
    1 ■ ◆ ⬚

    axis 1: 3 queries, 3 keys, 7 of 9 pairs
    1 left, itself, 1 right
    2–3 keys per query
      0 1 2
    0‹◆ ■ ⬚
    1 ■ ◆ ■
    2 ⬚ ■ ◆›

    ■ attended   ◆ attended, own position   ⬚ not attended   ‹ › window cut"""),
("numbers are aligned", Mask(Axis(0, 0, align="top-left")), (11,), (2,), """
    axis 0: 11 queries, 2 keys, 2 of 22 pairs
    itself; top-left
    0–1 keys per query; 9 queries have no keys
       0 1
     0 ◆ ⬚
     1 ⬚ ◆
     2 ⬚ ⬚  p=2
     3 ⬚ ⬚  p=3
     4 ⬚ ⬚  p=4
     5 ⬚ ⬚  p=5
     6 ⬚ ⬚  p=6
     7 ⬚ ⬚  p=7
     8 ⬚ ⬚  p=8
     9 ⬚ ⬚  p=9
    10 ⬚ ⬚  p=10

    ◆ attended, own position   ⬚ not attended   p= own position, off axis"""),
("no keys", Mask.full(), (2,), (0,), """
    axis 0: 2 queries, 0 keys, 0 of 0 pairs
    every key
    0 keys per query; 2 queries have no keys
    0
    1"""),
("all keys, wherever queries are", Mask.full(), (2,), (3,), """
    axis 0: 2 queries, 3 keys, 6 of 6 pairs
    every key
    3 keys per query
      0 1 2
    0 ■ ■ ■
    1 ■ ■ ■

    ■ attended"""),
("no queries", Mask.full(), (0,), (2,), """
    axis 0: 0 queries, 2 keys, 0 of 0 pairs
    every key
    0 keys per query
      0 1"""),
("nothing", Mask.full(), (0,), None, """
    axis 0: 0 queries, 0 keys, 0 of 0 pairs
    every key
    0 keys per query"""),
("long keys", Mask.sliding_window(200, 10, align="top-left"), (2,), (98,), """
    axis 0: 2 queries, 98 keys, 23 of 196 pairs, a cell is 1 x 3 pairs
    200 left, itself, 10 right; top-left
    11–12 keys per query
      0         15        30        45        60        75        90
    0 ■ ■ ■ ◧ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚
    1 ■ ■ ■ ■ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚ ⬚

    ■ attended   ◧ some of the cell's pairs   ⬚ not attended"""),
("long queries", Mask.causal("top-left"), (200,), (3,), """
    axis 0: 200 queries, 3 keys, 597 of 600 pairs, a cell is 5 x 1 pairs
    all left, itself; causal, top-left
    1–3 keys per query
        0 1 2
      0 ■ ◧ ◧
""" + "\n".join(f"    {5 * n:>3} ■ ■ ■" for n in range(1, 40)) + """

    ■ attended   ◧ some of the cell's pairs"""),
("shift with dilation", Mask(Axis(1, 1, dilation=2, border="shift")), (7,), None, """
    axis 0: 7 queries, 7 keys, 21 of 49 pairs
    1 left, itself, 1 right; dilation 2, shift
    3 keys per query
      0 1 2 3 4 5 6
    0 ◆ · ■ · ▣ · ⬚
    1 · ◆ · ■ · ▣ ·
    2 ■ · ◆ · ■ · ⬚
    3 · ■ · ◆ · ■ ·
    4 ⬚ · ■ · ◆ · ■
    5 · ▣ · ■ · ◆ ·
    6 ⬚ · ▣ · ■ · ◆

    ■ attended   ◆ attended, own position   ▣ attended, moved or wrapped   ⬚ not attended\
   · not on this query's dilation grid"""),
("queries beyond the keys", Mask(Axis(2, 1, align="top-left")), (5,), (3,), """
    axis 0: 5 queries, 3 keys, 11 of 15 pairs
    2 left, itself, 1 right; top-left
    1–3 keys per query
      0 1 2
    0‹◆ ■ ⬚
    1‹■ ◆ ■
    2 ■ ■ ◆›
    3 ⬚ ■ ■› p=3
    4 ⬚ ⬚ ■› p=4

    ■ attended   ◆ attended, own position   ⬚ not attended   ‹ › window cut\
   p= own position, off axis"""),
("no key of its class", Mask(Axis(None, 0, dilation=2, offset=1)), (1,), None, """
    axis 0: 1 queries, 1 keys, 0 of 1 pairs
    all left, itself; dilation 2, offset +1
    0 keys per query; 1 query has no keys
      0
    0 ·  p=1

    · not on this query's dilation grid   p= own position, off axis"""),
("cut by stride group", Mask(Axis(2, causal=True, stride=2)), (4,), None, """
    axis 0: 4 queries, 4 keys, 8 of 16 pairs
    2 left, itself; stride 2, causal
    1–3 keys per query
      0 1 2 3
    0‹◆ ⬚ ⬚ ⬚
    1‹■ ◆ ⬚ ⬚
    2 ⬚ ■ ◆ ⬚
    3 ⬚ ■ ■ ◆

    ■ attended   ◆ attended, own position   ⬚ not attended   ‹ › window cut"""),
]
# fmt: on


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "text"), [row[1:] for row in PICTURES], ids=[p[0] for p in PICTURES]
)
def test_text_of_every_picture(
    mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...] | None, text: str
) -> None:
    assert mask.draw(queries, keys) == dedent(text).strip("\n")
    if mask.rank == 1:
        assert mask.draw(queries[0], keys and keys[0]) == dedent(text).strip("\n")


def rows(picture: str) -> list[str]:
    """The rows of a picture of one axis, without its head and its legend."""
    return picture.split("\n\n")[0].splitlines()[4:]


def cells(picture: str) -> list[list[str]]:
    """The cells of a picture of one axis, row by row."""
    found = [re.sub(r"^ *[0-9]+|p=-?[0-9]+$", "", row) for row in rows(picture)]
    return [row.replace("‹", " ").replace("›", " ").split() for row in found]


def sign(axis: Axis, i: int, j: int, queries: int, keys: int) -> str:
    """The sign of a pair, found step by step, not by the package's arithmetic."""
    attended = attends(axis, i, j, queries, keys)
    at = position(axis, i, queries, keys)
    if at == j and is_placed(axis, queries, keys):
        return "◆" if attended else "◇"
    residue, own = coordinate(at, axis.dilation)
    if j % axis.dilation != residue:
        return "·"
    if not attended:
        return "⬚"
    if not attends(replace(axis, prefix=0), i, j, queries, keys):
        return "▤"
    leader = leader_of(axis, own, len(range(residue, keys, axis.dilation)))
    steps = (j - (residue + axis.dilation * leader)) // axis.dilation
    near = -(INFINITE if axis.left is None else axis.left) <= steps
    near = near and steps <= (INFINITE if axis.right is None else axis.right)
    return "■" if near else "▣"


def is_placed(axis: Axis, queries: int, keys: int) -> bool:
    """Whether queries have a position among the keys: on a full axis they need none."""
    return queries == keys or axis.align in ("top-left", "bottom-right")


def cut(axis: Axis, i: int, queries: int, keys: int) -> tuple[bool, bool]:
    """Whether the window crosses the first key of its class, and the last."""
    residue, own = coordinate(position(axis, i, queries, keys), axis.dilation)
    members = len(range(residue, keys, axis.dilation))
    leader = leader_of(axis, own, members)
    left = 0 if axis.left is None else axis.left
    right = 0 if axis.right is None else axis.right
    first, last = leader - left, leader + right
    first = min(first, 0) if axis.left is None else first
    last = max(last, members - 1) if axis.right is None else last
    touches = axis.border == "clip" and any(first <= t <= last for t in range(members))
    return (
        touches and axis.left is not None and first < 0,
        touches and axis.right is not None and last >= members,
    )


@few_examples.quick(100)
@given(bound_axes(longest=48))
def test_short_axes_are_drawn_pair_by_pair(cases: Count, chosen: tuple[Axis, int, int]) -> None:
    axis, queries, keys = chosen
    picture = Mask(axis).draw(queries, keys)
    want = axis_matrix(*chosen)
    total = f"{want.sum()} of {want.size} pairs"
    assert picture.splitlines()[0] == f"axis 0: {queries} queries, {keys} keys, {total}"
    if keys and queries:
        signs = [[sign(axis, i, j, queries, keys) for j in range(keys)] for i in range(queries)]
        assert cells(picture) == signs
        for i, row in enumerate(rows(picture)):
            at = position(axis, i, queries, keys)
            assert ("‹" in row, "›" in row) == cut(axis, i, queries, keys)
            off = is_placed(axis, queries, keys) and not 0 <= at < keys
            assert (" p=" in row, row.endswith(f" p={at}")) == (off, off)
        counts = want.sum(axis=1)
        low, high, none = counts.min(), counts.max(), int((counts == 0).sum())
        text = f"{low if low == high else f'{low}–{high}'} keys"
        text += " per query"
        text += f"; {none} quer{'y has' if none == 1 else 'ies have'} no keys" * (none > 0)
        assert text == picture.splitlines()[2]
    cases("draw, short axes", 1)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 90), st.integers(0, 90))
def test_long_axes_are_drawn_by_tiles(
    cases: Count, queries: int, keys: int, left: int, right: int
) -> None:
    axis = Axis(left, right, align="top-left")
    picture = Mask(axis).draw(queries, keys)
    want = axis_matrix(axis, queries, keys)
    height, width = -(-queries // 48), -(-keys // 48)
    if height == width == 1:
        return
    found = cells(picture)
    for y in range(0, queries, height):
        for x in range(0, keys, width):
            tile = want[y : y + height, x : x + width]
            expected = "■" if tile.all() else "◧" if tile.any() else "⬚"
            assert found[y // height][x // width] == expected
    scale = f", a cell is {height} x {width} pairs"
    assert picture.splitlines()[0].endswith(f"pairs{scale}")
    assert [int(row.split()[0]) for row in rows(picture)] == [*range(0, queries, height)]
    cases("draw, tiles", 1)


@given(masks())
def test_keys_per_query_of_a_whole_mask(cases: Count, drawn: tuple[Mask, Space, Space]) -> None:
    mask, queries, keys = drawn
    lines = geometry.bind(mask, queries, keys)
    parts = [axis_matrix(*one) for one in zip(mask.axes, queries, keys, strict=True)]
    counts = box(parts).sum(axis=1)
    want = (counts.min(), counts.max(), (counts == 0).sum()) if len(counts) else (0, 0, 0)
    assert signs.key_counts(lines) == want
    cases("draw, keys per query", 1)


def test_a_longer_axis_than_a_picture_is_refused() -> None:
    with pytest.raises(MaskError) as caught:
        Mask(Axis(3, 3), Axis()).draw((5, 2**31), (5, 7))
    assert (
        str(caught.value)
        == dedent("""
        axis 1 has 2147483648 queries and 7 keys; pictures go up to 2097152.
          fix:   mask.draw((5, 1024), (5, 7)), which shows the same rules.""").strip()
    )


@pytest.mark.parametrize("length", [48, 49, 95, 96, 97, 1000, 4097, 10**5])
def test_any_axis_fits_a_screen(length: int) -> None:
    for mask in (Mask.causal(), Mask.neighborhood(7), Mask(Axis(3, 3, border="wrap"))):
        lines = mask.draw(length).splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines[3:])) <= 7 + 2 * 48
        assert all(line == line.rstrip() for line in lines)
    assert len(Mask(Axis(3, 3), Axis(3, 3)).draw((length, length)).splitlines()) <= 120


@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(Axis(causal=True), marks=pytest.mark.deep),
        pytest.param(Axis(1000, 1000, border="shift", stride=8), marks=pytest.mark.deep),
        pytest.param(Axis(1000, 1000, border="wrap", dilation=4), marks=pytest.mark.deep),
        Axis(10, causal=True, prefix=4),
    ],
    ids=repr,
)
def test_a_million_by_a_million_is_drawn_at_once(axis: Axis) -> None:
    mask = Mask(axis)
    drawn: list[str] = []
    shorter = lines(lambda: mask.draw(10**4))
    found = work(lambda: drawn.append(mask.draw(10**6)))
    assert len(drawn[0].splitlines()) <= 60
    assert "a cell is 20834 x 20834 pairs" in drawn[0]
    assert found.lines <= min(12_000, 1.05 * shorter)
    assert found.peak <= 200e6  # a few numbers a row, never a matrix

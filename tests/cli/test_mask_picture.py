"""Tests of the picture of one query's keys against the dense mask."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from oracle import masks

from nbattn import Axis, InputError, Mask, geometry
from nbattn.cli import mask_picture


def drawn(text: str) -> dict[tuple[int, int], str]:
    """The signs by row and column of the picture, whose first column is that of the ruler."""
    lines = text.split("\n\n")[1].splitlines()[1:]
    start = lines[0].rfind(" ") + 1
    return {(int(line[:start]), x): sign for line in lines for x, sign in enumerate(line[start:])}


@settings(max_examples=60)
@given(masks())
def test_every_key_of_the_query_is_drawn(cases, case: tuple[Mask, tuple, tuple]) -> None:
    mask, query_space, key_space = case
    if mask.rank == 1 or not all((*query_space, *key_space)):
        return
    axes = geometry.bind(mask, query_space, key_space)
    query = mask_picture.middle(query_space)
    row = mask.dense(query_space, key_space).reshape(*query_space, *key_space)[query]
    text = mask_picture.picture(axes, query, 80)
    assert text.startswith(f"query {', '.join(map(str, query))} attends to {row.sum()} key")
    plane = row.any(axis=0) if mask.rank == 3 else row
    signs = drawn(text)
    assert len(signs) == plane.size
    for (y, x), sign in signs.items():
        if plane[y, x] or row.any():
            assert sign in "■◆◇" if plane[y, x] else sign in ".◇"
    cases("pictures of a query", 1)


def test_slices_of_three_axes_are_one_picture() -> None:
    mask = Mask(Axis(2, 0, causal=True), Axis(1, 1), Axis(0, 1, border="wrap"))
    axes = geometry.bind(mask, (5, 4, 6))
    assert mask_picture.picture(axes, (3, 0, 5), 80) == (
        "query 3, 0, 5 attends to 12 keys, the same in the slices 1–3 of axis 0; its own slice is "
        "3:\n\n"
        "  0\n"
        "0 ■....◆\n"
        "1 ■....■\n"
        "2 ......\n"
        "3 ......\n\n"
        "■ attended   ◆ attended, own position   . not attended"
    )


@pytest.mark.parametrize(("keys", "is_whole"), [(76, True), (77, True), (78, False)])
def test_seventy_six_cells_fit_eighty_columns(keys: int, is_whole: bool) -> None:
    axes = geometry.bind(Mask(Axis(1, 1), Axis()), (20, keys))
    text = mask_picture.picture(axes, (10, keys // 2), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert ("drawn: columns" not in text) == is_whole


def test_what_is_left_out_is_said() -> None:
    axes = geometry.bind(Mask(Axis(1, 1), Axis()), (200, 300))
    text = mask_picture.picture(axes, (199, 0), 80)
    last = "drawn: rows 136–199 of 200 and columns 0–75 of 300; 448 keys of the query lie outside"
    assert text.splitlines()[-1] == last


def test_a_query_that_is_not_on_the_grid() -> None:
    for query in ((9, 1), (1,), (1, 8)):
        with pytest.raises(InputError, match="not on the grid") as caught:
            mask_picture.check_query(query, (9, 8))
        assert caught.value.fix == "--at 4,4"

"""Tests of the enumerator and the package against pictures written by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from oracle import matrix, natten_matrix
from pictures import PICTURES

import nbattn
from nbattn import Axis, Mask

CAUSAL = Axis(causal=True)
SELF = Axis(0, 0)

# fmt: off
BOXES = [
("causal on two axes is no raster order", Mask(CAUSAL, CAUSAL), (2, 3), (2, 3), """
    ■.. ...
    ■■. ...
    ■■■ ...
    ■.. ■..
    ■■. ■■.
    ■■■ ■■■"""),
("a window inside each row", Mask(SELF, Axis(1, 1)), (2, 3), (2, 3), """
    ■■. ...
    ■■■ ...
    .■■ ...
    ... ■■.
    ... ■■■
    ... .■■"""),
("a window inside each column", Mask(Axis(1, 1), SELF), (3, 2), (3, 2), """
    ■. ■. ..
    .■ .■ ..
    ■. ■. ■.
    .■ .■ .■
    .. ■. ■.
    .. .■ .■"""),
("shift by wrap", Mask(Axis(1, 0, border="shift"), Axis(1, 0, border="wrap")), (3, 3), (3, 3), """
    ■.■ ■.■ ...
    ■■. ■■. ...
    .■■ .■■ ...
    ■.■ ■.■ ...
    ■■. ■■. ...
    .■■ .■■ ...
    ... ■.■ ■.■
    ... ■■. ■■.
    ... .■■ .■■"""),
("one new row", Mask(Axis(1, causal=True, align="bottom-right"), SELF), (1, 2), (3, 2), """
    .. ■. ■.
    .. .■ .■"""),
("queries and keys of other widths", Mask(SELF, Axis(1, 0, align=0)), (2, 2), (2, 3), """
    ■.. ...
    ■■. ...
    ... ■..
    ... ■■."""),
("an axis of size 1", Mask(CAUSAL, Axis(5, 5), Axis(0, 1)), (2, 1, 2), (2, 1, 2), """
    ■■ ..
    .■ ..
    ■■ ■■
    .■ .■"""),
("an axis of size 1 that misses its key", Mask(SELF, Axis(0, 0, offset=1)), (2, 1), (2, 1), """
    ..
    .."""),
("dilation on one axis", Mask(Axis(dilation=2), SELF), (3, 2), (3, 2), """
    ■. .. ■.
    .■ .. .■
    .. ■. ..
    .. .■ ..
    ■. .. ■.
    .■ .. .■"""),
("a prefix on one axis", Mask(Axis(0, 0, prefix=1), SELF), (3, 2), (3, 2), """
    ■. .. ..
    .■ .. ..
    ■. ■. ..
    .■ .■ ..
    ■. .. ■.
    .■ .. .■"""),
("causal on three axes", Mask(CAUSAL, CAUSAL, CAUSAL), (2, 2, 2), (2, 2, 2), """
    ■. .. .. ..
    ■■ .. .. ..
    ■. ■. .. ..
    ■■ ■■ .. ..
    ■. .. ■. ..
    ■■ .. ■■ ..
    ■. ■. ■. ■.
    ■■ ■■ ■■ ■■"""),
]
# fmt: on

# L, K, stride, dilation, causal, and the keys of each query: from NATTEN's own mask.
NATTEN_VECTORS = [
    (8, 4, 1, 1, False, "0-3 0-3 0-3 1-4 2-5 3-6 4-7 4-7"),
    (8, 5, 2, 1, False, "0-4 0-4 1-5 1-5 3-7 3-7 3-7 3-7"),
    (8, 3, 3, 1, False, "0-2 0-2 0-2 3-5 3-5 3-5 5-7 5-7"),
    (9, 4, 4, 1, False, "0-3 0-3 0-3 0-3 4-7 4-7 4-7 4-7 5-8"),
    (8, 4, 1, 1, True, "0 0-1 0-2 0-3 1-4 2-5 3-6 4-7"),
    (8, 4, 2, 1, True, "0 0-1 0-2 0-3 2-4 2-5 4-6 4-7"),
    (7, 3, 1, 2, False, "0,2,4 1,3,5 0,2,4 1,3,5 2,4,6 1,3,5 2,4,6"),
]


def parse(picture: str) -> np.ndarray:
    """bool [queries, keys] of a picture."""
    rows = [line.replace(" ", "") for line in picture.strip().splitlines()]
    assert {*"".join(rows)} <= {"■", "."}
    assert len({len(row) for row in rows}) == 1
    return np.array([[mark == "■" for mark in row] for row in rows])


def parse_keys(text: str, keys: int) -> np.ndarray:
    """bool [queries, keys] of one "first-last" or "a,b,c" per query."""
    rows = []
    for part in text.split():
        first, _, last = part.partition("-")
        rows.append(range(int(first), int(last) + 1) if last else [*map(int, part.split(","))])
    return np.array([[key in row for key in range(keys)] for row in rows])


@pytest.mark.parametrize(
    ("axis", "picture"), [p[1:] for p in PICTURES], ids=[p[0] for p in PICTURES]
)
def test_picture_of_one_axis(axis: Axis, picture: str) -> None:
    want = parse(picture)
    queries, keys = want.shape
    assert np.array_equal(matrix([axis], (queries,), (keys,)), want)
    assert np.array_equal(Mask(axis).dense((queries,), (keys,)), want)


@pytest.mark.parametrize(
    ("mask", "query_space", "key_space", "picture"),
    [b[1:] for b in BOXES],
    ids=[b[0] for b in BOXES],
)
def test_picture_of_several_axes(
    mask: Mask, query_space: tuple[int, ...], key_space: tuple[int, ...], picture: str
) -> None:
    want = parse(picture)
    assert np.array_equal(matrix(mask.axes, query_space, key_space), want)
    assert np.array_equal(mask.dense(query_space, key_space), want)


@pytest.mark.parametrize(("n", "kernel", "stride", "dilation", "causal", "text"), NATTEN_VECTORS)
def test_vectors_of_natten(
    n: int, kernel: int, stride: int, dilation: int, causal: bool, text: str
) -> None:
    want = parse_keys(text, n)
    window = (kernel - 1, 0) if causal else (kernel // 2, (kernel - 1) // 2)
    border = "clip" if causal else "shift"
    axis = Axis(*window, dilation=dilation, stride=stride, causal=causal, border=border)
    named = Mask.neighborhood(kernel, dilation=dilation, stride=stride, is_causal=causal)
    assert np.array_equal(natten_matrix((n,), kernel, stride, dilation, causal), want)
    assert np.array_equal(matrix([axis], (n,), (n,)), want)
    assert np.array_equal(Mask(axis).dense(n), want)
    assert np.array_equal(named.dense(n), want)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize(
    "axis",
    [
        Axis(),
        Axis(1, 1, align="top-left"),
        Axis(1, causal=True, stride=2, align="top-left"),
        Axis(1, 1, border="shift", align="top-left"),
        Axis(2, 2, dilation=3, align="bottom-right"),
        Axis(0, 0, prefix=2, align="top-left"),
    ],
)
def test_axis_without_queries_or_keys(axis: Axis, queries: int, keys: int) -> None:
    want = np.zeros((queries, keys), dtype=bool)
    assert np.array_equal(matrix([axis], (queries,), (keys,)), want)
    assert np.array_equal(Mask(axis).dense((queries,), (keys,)), want)


def test_wrap_on_an_empty_circle() -> None:
    axis = Axis(1, 1, border="wrap", stride=2, dilation=3)
    assert matrix([axis], (0,), (0,)).shape == (0, 0)
    assert Mask(axis).dense(0).shape == (0, 0)


def test_one_empty_axis_empties_the_box() -> None:
    mask = Mask(Axis(1, 1, align="bottom-right"), Axis(causal=True, align="top-left"))
    assert mask.dense((2, 3), (4, 0)).shape == (6, 0)
    assert mask.dense((0, 3), (2, 2)).shape == (0, 4)
    assert not mask.dense((1, 2), (1, 2)).all()


def test_dense_accepts_an_int_and_copies_the_query_space() -> None:
    mask = Mask(Axis(2, 1))
    for given in (mask.dense(5), mask.dense((5,)), mask.dense(5, 5), mask.dense((5,), (5,))):
        assert given.dtype == np.bool_
        assert np.array_equal(given, parse(PICTURES[1][2]))


def test_dense_wants_one_size_per_axis() -> None:
    for query_space, key_space in [((3, 3), None), ((3,), (3, 3)), ((), None)]:
        with pytest.raises(nbattn.MaskError):
            Mask(Axis(1, 1)).dense(query_space, key_space)


def test_literals_are_many_and_distinct(cases: Callable[[str, int], None]) -> None:
    total = len(PICTURES) + len(BOXES) + len(NATTEN_VECTORS)
    masks = {(axis, parse(picture).shape) for _, axis, picture in PICTURES}
    assert len(masks) == len(PICTURES) >= 30
    cases("literal masks", total)

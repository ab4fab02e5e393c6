"""Tests of alignments: none is guessed, and the suggested fix is the mask with one."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import axis_matrix

from nbattn import Axis, Mask, MaskError
from nbattn.geometry import bind

UNSAID = [Axis(1, 1), Axis(causal=True), Axis(dilation=2), Axis(1), Axis(None, 1), Axis(1, 0)]
UNSAID += [Axis(1, 1, border="shift"), Axis(1, 1, prefix=2), Axis(1, 1, offset=3)]
UNSAID += [Axis(9, 9), Axis(9, causal=True), Axis(1, 1, stride=2)]


@pytest.mark.parametrize("axis", UNSAID, ids=repr)
@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (40, 1), (28, 14), (5, 6), (0, 3), (3, 0)])
def test_an_alignment_is_never_guessed(axis: Axis, queries: int, keys: int) -> None:
    for mask, spaces in (
        (Mask(axis), ((queries,), (keys,))),
        (Mask(Axis(3, 3), axis), ((4, queries), (4, keys))),
        (Mask(Axis(), Axis(3, 3, align="top-left"), axis), ((2, 4, queries), (3, 5, keys))),
    ):
        for use in (mask.dense, mask.draw, lambda *given, mask=mask: bind(mask, *given)):
            with pytest.raises(MaskError, match=f"^axis {mask.rank - 1} .* align=None") as error:
                use(*spaces)
            assert error.value.where == repr(mask)
    for align in ("top-left", "bottom-right", 2):
        aligned = replace(axis, align=align, offset=0 if align == 2 else axis.offset)
        assert np.array_equal(
            Mask(aligned).dense(queries, keys), axis_matrix(aligned, queries, keys)
        ), align
    assert np.array_equal(Mask(axis).dense(7), axis_matrix(axis, 7, 7))


def test_an_offset_needs_no_alignment_where_lengths_are_equal() -> None:
    assert np.array_equal(Mask(Axis(0, 0, offset=1)).dense(3), np.eye(3, k=1, dtype=bool))


@pytest.mark.parametrize("axis", [Axis(), Axis(stride=3), Axis(prefix=2), Axis(offset=5)], ids=repr)
def test_an_unlimited_axis_takes_any_lengths(axis: Axis) -> None:
    for queries, keys in ((1, 40), (28, 14), (0, 3), (3, 0), (5, 5)):
        assert Mask(axis).dense(queries, keys).shape == (queries, keys)
        assert Mask(axis).dense(queries, keys).all()
        assert Mask(axis).draw(queries, keys)


def test_wrap_needs_equal_lengths_with_or_without_an_alignment() -> None:
    for axis in (Axis(1, 1, border="wrap"), Axis(1, 1, border="wrap", align="top-left")):
        assert np.array_equal(Mask(axis).dense(5), axis_matrix(axis, 5, 5))
        with pytest.raises(MaskError, match="needs as many queries as keys"):
            Mask(axis).dense(4, 5)


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "first"),
    [
        (Mask.sliding_window(15), (1,), (40,), "bottom-right"),
        (Mask.causal(), (40,), (7,), "top-left"),
        (Mask(Axis(3, 3), Axis(3, 3)), (28, 28), (14, 14), "top-left"),
        (Mask.neighborhood((3, 3), is_causal=(True, False)), (8, 5), (9, 5), "bottom-right"),
        (Mask(Axis(0, causal=True, stride=2), Axis()), (4, 2), (5, 1), "bottom-right"),
        (Mask(Axis(1, 1, offset=2), Axis(1, 1, align="top-left")), (3, 2), (2, 3), "top-left"),
    ],
)
def test_the_fix_is_the_mask_with_its_alignment(
    mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...], first: str
) -> None:
    with pytest.raises(MaskError) as error:
        mask.dense(queries, keys)
    codes = [part.split(" puts ")[0] for part in error.value.fix.split("; or ")]
    other = {"top-left": "bottom-right", "bottom-right": "top-left"}[first]
    for code, align in zip(codes, (first, other), strict=True):
        fixed = eval(code, {"Mask": Mask, "Axis": Axis})
        for axis, was, nq, nk in zip(fixed.axes, mask.axes, queries, keys, strict=True):
            free = was.align is None and nq != nk and was != Axis()
            assert axis == (replace(was, align=align) if free else was)
        assert fixed.dense(queries, keys).shape == (np.prod(queries), np.prod(keys))

"""Tests of Axis as a value: its rules, defaults and text."""

import dataclasses
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from oracle import axes, axis_matrix

from nbattn import Axis, Mask, MaskError
from nbattn.axis import describe

# Axis: rules


REFUSED = [
    ({"left": -1}, "left=-1 is below 0"),
    ({"left": 1, "right": -2}, "right=-2 is below 0"),
    ({"left": True}, "left=True is a bool"),
    ({"left": np.True_}, "left=np.True_ is a numpy.bool"),
    ({"left": 1.0}, "left=1.0 is a float"),
    ({"left": float("nan")}, "left=nan is a float"),
    ({"left": float("inf")}, "left=inf is a float"),
    ({"left": np.float64(3)}, "left=np.float64"),
    ({"left": 1j}, "left=1j is a complex"),
    ({"left": "7"}, "left='7' is a str"),
    ({"left": (7,)}, "left=(7,) is a tuple"),
    ({"left": np.array([1, 2])}, "left=array([1, 2]) is"),
    ({"left": 2**31}, "left=2147483648 is beyond 2147483647"),
    ({"left": 10**30}, "is beyond 2147483647"),
    ({"right": 2**31}, "right=2147483648 is beyond 2147483647"),
    ({"dilation": 0}, "dilation=0 is below 1"),
    ({"dilation": -1}, "dilation=-1 is below 1"),
    ({"dilation": None}, "dilation=None is a NoneType"),
    ({"dilation": 2.0}, "dilation=2.0 is a float"),
    ({"dilation": True}, "dilation=True is a bool"),
    ({"dilation": 2**31}, "dilation=2147483648 is beyond"),
    ({"stride": 0}, "stride=0 is below 1"),
    ({"stride": False}, "stride=False is a bool"),
    ({"stride": 2**31}, "stride=2147483648 is beyond"),
    ({"prefix": -1}, "prefix=-1 is below 0"),
    ({"prefix": None}, "prefix=None is a NoneType"),
    ({"prefix": True}, "prefix=True is a bool"),
    ({"offset": 0.5}, "offset=0.5 is a float"),
    ({"offset": None}, "offset=None is a NoneType"),
    ({"offset": 2**31}, "offset=2147483648 is beyond"),
    ({"offset": -(2**31)}, "offset=-2147483648 is beyond"),
    ({"causal": 1}, "causal=1 is"),
    ({"causal": None}, "causal=None is"),
    ({"causal": "yes"}, "causal='yes' is"),
    ({"causal": np.True_}, "causal=np.True_ is"),
    ({"align": "center"}, "align='center' is not one of"),
    ({"align": ""}, "align='' is not one of"),
    ({"align": 1.5}, "align=1.5 is a float"),
    ({"align": True}, "align=True is a bool"),
    ({"align": ("top-left",)}, "align=('top-left',) is a tuple"),
    ({"align": 2**31}, "align=2147483648 is beyond 2147483647"),
    ({"align": 3, "offset": -1}, "align=3 and offset=-1 both set the position of query 0"),
    ({"align": 0, "offset": 2}, "align=0 and offset=2 both set the position of query 0"),
    ({"border": "reflect"}, "border='reflect' is not one of"),
    ({"border": 0}, "border=0 is not one of"),
    ({"right": 1, "causal": True}, "causal=True allows no keys to the right, but right=1"),
    ({"left": 1, "border": "shift"}, "needs two finite sides, but left=1, right=None"),
    ({"right": 1, "border": "shift"}, "needs two finite sides, but left=None, right=1"),
    ({"causal": True, "border": "shift"}, "needs two finite sides, but left=None, right=0"),
    ({"border": "wrap", "causal": True}, "does not support causal=True"),
    ({"border": "wrap", "align": "bottom-right"}, "does not support align='bottom-right'"),
    ({"border": "wrap", "offset": -1}, "does not support offset=-1"),
    ({"border": "wrap", "align": 2}, "does not support offset=2"),
    ({"prefix": 2, "dilation": 3}, "prefix=2 and dilation=3 cannot be combined"),
    ({"prefix": 2, "border": "wrap"}, 'prefix=2 and border="wrap" cannot be combined'),
]


@pytest.mark.parametrize(("fields", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_an_axis_that_breaks_a_rule_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MaskError) as error:
        Axis(**fields)
    assert text in error.value.problem
    assert error.value.fix
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "fields",
    [
        {"left": 2**31 - 1, "right": 2**31 - 1},
        {"offset": 2**31 - 1},
        {"offset": -(2**31 - 1)},
        {"dilation": 2**31 - 1, "stride": 2**31 - 1},
        {"left": 0, "right": 0, "border": "shift"},
        {"left": 3, "causal": True, "border": "shift"},
        {"causal": True, "right": 0},
        {"causal": True, "prefix": 3, "border": "clip", "align": "bottom-right", "offset": -3},
        {"border": "wrap"},
        {"border": "wrap", "align": None},
        {"border": "wrap", "align": "top-left"},
        {"left": 3, "right": 3, "align": None, "offset": -2},
        {"border": "wrap", "left": 3, "dilation": 2, "stride": 2},
        {"left": 3, "right": 3, "border": "shift", "prefix": 2, "align": "bottom-right"},
    ],
)
def test_the_last_legal_axis_is_taken(fields: dict[str, Any]) -> None:
    axis = Axis(**fields)
    assert {name: getattr(axis, name) for name in fields} == fields


def test_the_signature_has_the_fields() -> None:
    """Editors, help() and the command line read it; the class has its own `__new__`."""
    signature = inspect.signature(Axis)
    fields = {field.name: field.default for field in dataclasses.fields(Axis)}
    assert {name: one.default for name, one in signature.parameters.items()} == fields
    assert [*signature.bind(1, 2, border="wrap").arguments] == ["left", "right", "border"]
    assert Axis(3, 1) == replace(Axis(2, 1), left=3)


def test_only_the_sides_are_positional() -> None:
    with pytest.raises(MaskError, match="takes left and right by place, not 3"):
        Axis(1, 1, 2)
    with pytest.raises(MaskError):
        Axis(size=3)


@pytest.mark.parametrize("kind", [int, np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_integers_of_numpy_are_integers(kind: type) -> None:
    axis = Axis(kind(3), kind(2), dilation=kind(1), stride=kind(4), offset=kind(5), prefix=kind(6))
    assert axis == Axis(3, 2, dilation=1, stride=4, offset=5, prefix=6)
    numbers = (axis.left, axis.right, axis.dilation, axis.stride, axis.offset, axis.prefix)
    assert {type(number) for number in numbers} == {int}
    assert "np." not in repr(axis)


@pytest.mark.parametrize("offset", [8, 0, -3, np.int64(8), 2**31 - 1, -(2**31 - 1)])
def test_an_integer_alignment_is_an_offset_from_the_top_left(offset: int) -> None:
    axis = Axis(3, 0, align=offset)
    assert axis == Axis(3, 0, align="top-left", offset=int(offset))
    assert (axis.align, axis.offset, type(axis.offset)) == ("top-left", offset, int)
    assert replace(axis, left=4) == Axis(4, 0, align=offset)


def test_alignments_are_different_values() -> None:
    several = [Axis(1, 0, align=align) for align in (None, "top-left", "bottom-right", 1)]
    assert len({*several}) == len({tuple(Mask(axis).code()) for axis in several}) == 4
    assert len({repr(axis) for axis in several}) == len({describe(axis) for axis in several}) == 4
    assert Axis(1, 0, align=0) == Axis(1, 0, align="top-left")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bottom_right", "bottom-right"),
        ("Bottom Right", "bottom-right"),
        ("bottomright", "bottom-right"),
        ("botom-right", "bottom-right"),
        ("BOTTOM-RIGHT", "bottom-right"),
        ("lower_right", "bottom-right"),
        ("causal_lower_right", "bottom-right"),
        ("end", "bottom-right"),
        ("top_left", "top-left"),
        ("topleft", "top-left"),
        ("upper-left", "top-left"),
        ("START", "top-left"),
    ],
)
def test_a_misspelt_alignment_suggests_what_was_meant(name: str, near: str) -> None:
    with pytest.raises(MaskError) as error:
        Axis(3, 3, align=name)
    assert error.value.fix == f"align={near!r}."


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("circular", "wrap"),
        ("periodic", "wrap"),
        ("cyclic", "wrap"),
        ("Wrap", "wrap"),
        ("wrapped", "wrap"),
        ("torus", "wrap"),
        ("shifted", "shift"),
        ("SHIFT", "shift"),
        ("natten", "shift"),
        ("clipped", "clip"),
        ("crop", "clip"),
    ],
)
def test_a_misspelt_border_suggests_what_was_meant(name: str, near: str) -> None:
    with pytest.raises(MaskError) as error:
        Axis(3, 3, border=name)
    assert error.value.fix == f"border={near!r}."


def test_default_axis_has_no_limits() -> None:
    axis = Axis()
    assert dataclasses.asdict(axis) == {
        "left": None,
        "right": None,
        "dilation": 1,
        "stride": 1,
        "causal": False,
        "align": None,
        "offset": 0,
        "border": "clip",
        "prefix": 0,
    }
    assert axis.is_full


def test_causal_is_right_zero() -> None:
    assert Axis(7, causal=True) == Axis(7, 0, causal=True)
    assert hash(Axis(7, causal=True)) == hash(Axis(7, 0, causal=True))
    assert Axis(causal=True).right == 0
    assert Axis(7, causal=True) != Axis(7, 0)


@pytest.mark.parametrize(
    ("axis", "full"),
    [
        (Axis(), True),
        (Axis(align="top-left"), True),
        (Axis(stride=3, prefix=2, offset=9, align="bottom-right"), True),
        (Axis(border="wrap"), True),
        (Axis(dilation=2, align=0), False),
        (Axis(causal=True, align=0), False),
        (Axis(9, align=0), False),
        (Axis(None, 9, align=0), False),
    ],
)
def test_is_full_is_attention_to_every_key(axis: Axis, full: bool) -> None:
    assert axis.is_full is full
    lengths = [(4, 4)] if axis.border == "wrap" else [(4, 4), (13, 4), (4, 13), (12, 12), (1, 0)]
    if full:
        assert all(axis_matrix(axis, *both).all() for both in lengths)
    else:
        assert not all(axis_matrix(axis, *both).all() for both in lengths)


GAPS = Axis(1, causal=True, stride=3)


def test_text_shows_that_rows_have_no_keys() -> None:
    mask = Mask(Axis(3, 3), GAPS, Axis(0, causal=True, stride=2))
    assert repr(mask) == (
        "Mask(Axis(3, 3), Axis(1, 0, stride=3, causal=True), Axis(0, 0, stride=2, causal=True))"
        "  # rows without keys: axis 1: stride 3 > left + 1 = 2; axis 2: stride 2 > left + 1 = 1"
    )
    assert str(mask) == (
        "Mask of 3 axes\n"
        "  axis 0  3 left, itself, 3 right\n"
        "  axis 1  1 left, itself; stride 3, causal, rows without keys: stride > left + 1\n"
        "  axis 2  itself; stride 2, causal, rows without keys: stride > left + 1"
    )
    assert eval(repr(mask), {"Mask": Mask, "Axis": Axis}) == mask
    for plain in (Axis(2, causal=True, stride=3), replace(GAPS, prefix=1), Axis(1, 0, stride=3)):
        assert "rows without keys" not in repr(Mask(plain)) + str(Mask(plain))


@given(axes(("clip", "shift")))
def test_has_causal_gaps_matches_the_mask(axis: Axis) -> None:
    """On an axis whose every query lies on it, as the repr has no lengths to look at."""
    axis = replace(axis, offset=0, align="top-left")
    n = 2 * axis.dilation * axis.stride
    assert axis.has_causal_gaps is (axis.causal and not axis_matrix(axis, n, n).any(axis=1).all())


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        (Axis(), "every key"),
        (Axis(stride=2), "every key; stride 2"),
        (Axis(0, 0), "itself"),
        (Axis(3, 0), "3 left, itself"),
        (Axis(0, 3), "itself, 3 right"),
        (Axis(3), "3 left, itself, all right"),
        (Axis(None, 3), "all left, itself, 3 right"),
        (Axis(dilation=2), "all left, itself, all right; dilation 2"),
        (Axis(3, causal=True), "3 left, itself; causal"),
        (Axis(1, 1, border="wrap"), "1 left, itself, 1 right; wrap"),
        (Axis(3, 0, align="top-left"), "3 left, itself; top-left"),
        (Axis(3, 0, align=2), "3 left, itself; top-left, offset +2"),
        (
            Axis(2, 2, align="bottom-right", offset=-3),
            "2 left, itself, 2 right; bottom-right, offset -3",
        ),
        (
            Axis(3, 2, stride=2, offset=4, border="shift", prefix=1),
            "3 left, itself, 2 right; stride 2, offset +4, shift, prefix 1",
        ),
    ],
)
def test_description_of_an_axis(axis: Axis, words: str) -> None:
    assert describe(axis) == words
    assert str(Mask(axis)) == f"Mask of 1 axis\n  axis 0  {words}"

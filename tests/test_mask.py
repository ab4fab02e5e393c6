"""Owns the check of Axis and Mask as values, and of each converter against its library's words."""

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import axes, axis_matrix, flash_matrix, masks, natten_axis, sides
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from nbattn import Axis, Mask, MaskError
from nbattn.axis import describe
from nbattn.geometry import bind
from nbattn.mask import from_code

Count = Callable[[str, int], None]
Formula = Callable[[int, int, int, int], bool]  # i, j, queries, keys
SHORT = range(7)


def matrix_of(formula: Formula, queries: int, keys: int) -> np.ndarray:
    """bool [queries, keys] of a formula, pair by pair."""
    matrix = np.zeros((queries, keys), dtype=bool)
    for i in range(queries):
        for j in range(keys):
            matrix[i, j] = formula(i, j, queries, keys)
    return matrix


# Axis: rules

REFUSED = [
    ({"left": -1}, "left=-1 is below 0"),
    ({"left": 1, "right": -2}, "right=-2 is below 0"),
    ({"left": True}, "left=True is a bool"),
    ({"left": np.True_}, "left=np.True_ is a bool"),
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


def test_only_the_sides_are_positional() -> None:
    with pytest.raises(TypeError):
        Axis(1, 1, 2)
    with pytest.raises(TypeError):
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


def test_defaults_are_everything_read() -> None:
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
def test_a_full_axis_reads_everything(axis: Axis, full: bool) -> None:
    assert axis.is_full is full
    lengths = [(4, 4)] if axis.border == "wrap" else [(4, 4), (13, 4), (4, 13), (12, 12), (1, 0)]
    if full:
        assert all(axis_matrix(axis, *both).all() for both in lengths)
    else:
        assert not all(axis_matrix(axis, *both).all() for both in lengths)


# Mask: rules and values


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "a mask has 1 to 3 axes, not 0."),
        ((Axis(),) * 4, "a mask has 1 to 3 axes, not 4."),
        (([Axis()],), "axis 0 is [Axis()], a list, not an Axis."),
        ((Axis(), (3, 3)), "axis 1 is (3, 3), a tuple, not an Axis."),
        ((Axis(), None), "axis 1 is None, a NoneType, not an Axis."),
        ((Mask(Axis()),), "axis 0 is Mask(Axis()), a Mask, not an Axis."),
    ],
)
def test_a_mask_of_anything_but_one_to_three_axes_is_refused(given: tuple, text: str) -> None:
    with pytest.raises(MaskError) as error:
        Mask(*given)
    assert error.value.problem == text


def test_masks_are_values() -> None:
    one, same = Mask(Axis(3, 1), Axis()), Mask(Axis(np.int64(3), 1), Axis())
    assert one == same
    assert hash(one) == hash(same)
    assert {one: "found"}[same] == "found"
    assert one != Mask(Axis(), Axis(3, 1))
    assert one != (Axis(3, 1), Axis())
    assert (one.rank, one.axes) == (2, (Axis(3, 1), Axis()))


@given(masks(), masks())
def test_equality_is_equality_of_fields(first: tuple, second: tuple) -> None:
    one, other = first[0], second[0]
    fields = [[dataclasses.astuple(axis) for axis in mask.axes] for mask in (one, other)]
    assert (one == other) is (fields[0] == fields[1])
    if one == other:
        assert hash(one) == hash(other)


@given(masks())
def test_copies_and_pickles_are_equal(chosen: tuple) -> None:
    mask = chosen[0]
    copies = [copy.copy(mask), copy.deepcopy(mask)]
    copies += [pickle.loads(pickle.dumps(mask, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in copies:
        assert other == mask
        assert hash(other) == hash(mask)
        assert repr(other) == repr(mask)


@pytest.mark.parametrize("value", [Axis(3, 1), Mask(Axis(3, 1))], ids=["axis", "mask"])
def test_values_are_frozen_and_hold_nothing_else(value: Any) -> None:
    for field in dataclasses.fields(value):
        if field.name != "_":
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, 1)
            with pytest.raises(FrozenInstanceError):
                delattr(value, field.name)
    with pytest.raises((AttributeError, TypeError)):
        value.note = 1
    assert not hasattr(value, "__dict__")
    assert not hasattr(value, "__weakref__")


def test_replace_checks_again() -> None:
    assert replace(Axis(3, 1), left=4) == Axis(4, 1)
    assert replace(Axis(3, causal=True), stride=2) == Axis(3, 0, causal=True, stride=2)
    with pytest.raises(MaskError):
        replace(Axis(3, 1), causal=True)


def test_errors_keep_their_parts_when_pickled() -> None:
    with pytest.raises(MaskError) as error:
        Mask(Axis(1, 1)).to_flash()
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is MaskError
    assert str(again) == str(error.value)
    assert (again.problem, again.fix, again.where) == (
        error.value.problem,
        error.value.fix,
        error.value.where,
    )


# Text


@given(masks())
def test_a_repr_evaluates_to_the_mask(cases: Count, chosen: tuple) -> None:
    mask = chosen[0]
    assert eval(repr(mask), {"Mask": Mask, "Axis": Axis}) == mask
    for axis in mask.axes:
        assert eval(repr(axis), {"Axis": Axis}) == axis
    cases("mask, repr", 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Axis(), "Axis()"),
        (Axis(3), "Axis(3, None)"),
        (Axis(None, 3), "Axis(None, 3)"),
        (Axis(0, 0), "Axis(0, 0)"),
        (Axis(dilation=2), "Axis(dilation=2)"),
        (Axis(3, causal=True), "Axis(3, 0, causal=True)"),
        (
            Axis(3, 1, dilation=2, stride=3, align="bottom-right", offset=-4),
            "Axis(3, 1, dilation=2, stride=3, align='bottom-right', offset=-4)",
        ),
        (Axis(3, 1, border="shift", prefix=2), "Axis(3, 1, border='shift', prefix=2)"),
        (Axis(3, 1, align="top-left"), "Axis(3, 1, align='top-left')"),
        (Axis(3, 1, align=8), "Axis(3, 1, align='top-left', offset=8)"),
        (Mask(Axis(), Axis(1, 1)), "Mask(Axis(), Axis(1, 1))"),
    ],
)
def test_a_repr_shows_what_is_not_default(value: Any, text: str) -> None:
    assert repr(value) == text


GAPS = Axis(1, causal=True, stride=3)


def test_text_says_that_rows_have_no_keys() -> None:
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
def test_gaps_are_told_where_they_are(axis: Axis) -> None:
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
def test_an_axis_in_words(axis: Axis, words: str) -> None:
    assert describe(axis) == words
    assert str(Mask(axis)) == f"Mask of 1 axis\n  axis 0  {words}"


# Integers


@given(masks())
def test_codes_are_plain_integers_and_lead_back(cases: Count, chosen: tuple) -> None:
    mask = chosen[0]
    code = mask.code()
    assert isinstance(code, list)
    assert {type(number) for number in code} == {int}
    assert len(code) == 9 * mask.rank
    assert from_code(code) == mask
    assert from_code(tuple(code)) == mask
    cases("mask, code", 1)


@given(masks(), masks())
def test_equal_codes_are_equal_masks(first: tuple, second: tuple) -> None:
    assert (first[0].code() == second[0].code()) is (first[0] == second[0])


def test_a_code_is_pinned() -> None:
    axis = Axis(None, 3, dilation=2, stride=4, align="bottom-right", offset=-5)
    assert Mask(axis).code() == [-(2**62), 3, 2, 4, 0, 1, -5, 0, 0]
    wrapped = Axis(1, None, border="wrap")
    assert Mask(wrapped).code() == [1, -(2**62), 1, 1, 0, -1, 0, 2, 0]
    causal = Axis(1, causal=True, border="shift", prefix=6)
    assert Mask(causal).code() == [1, 0, 1, 1, 1, -1, 0, 1, 6]
    assert Mask(replace(causal, align=7)).code() == [1, 0, 1, 1, 1, 0, 7, 1, 6]


# Converters against the documented meaning of each library, one formula a row

# fmt: off
DIALECTS: list[tuple[str, Mask, Formula]] = [
    ("everything", Mask.full(), lambda i, j, nq, nk: True),
    ("torch SDPA is_causal", Mask.causal("top-left"), lambda i, j, nq, nk: j <= i),
    ("torch causal_lower_right", Mask.causal("bottom-right"),
     lambda i, j, nq, nk: j <= i + nk - nq),
    ("causal behind a static cache of 3", Mask.causal(3), lambda i, j, nq, nk: j <= i + 3),
    ("causal, negative offset", Mask.causal(-2), lambda i, j, nq, nk: j <= i - 2),
    ("sliding window, left only", Mask.sliding_window(2, align="top-left"),
     lambda i, j, nq, nk: i - 2 <= j <= i),
    ("sliding window, both", Mask.sliding_window(1, 2, align="top-left"),
     lambda i, j, nq, nk: i - 1 <= j <= i + 2),
    ("sliding window, no left limit", Mask.sliding_window(None, 1, align="top-left"),
     lambda i, j, nq, nk: j <= i + 1),
    ("sliding window, no right limit", Mask.sliding_window(1, None, align="top-left"),
     lambda i, j, nq, nk: j >= i - 1),
    ("flash-attn 2 and 3, aten, torch varlen", Mask.from_flash((2, 1)),
     lambda i, j, nq, nk: i + nk - nq - 2 <= j <= i + nk - nq + 1),
    ("flash-attn, left unlimited by -1", Mask.from_flash((-1, 1)),
     lambda i, j, nq, nk: j <= i + nk - nq + 1),
    ("flash-attn, right unlimited by -7", Mask.from_flash((1, -7)),
     lambda i, j, nq, nk: j >= i + nk - nq - 1),
    ("flash-attn 4, left unlimited by None", Mask.from_flash((None, 0)),
     lambda i, j, nq, nk: j <= i + nk - nq),
    ("flash-attn, no window", Mask.from_flash(), lambda i, j, nq, nk: True),
    ("flash-attn causal", Mask.from_flash(causal=True), lambda i, j, nq, nk: j <= i + nk - nq),
    ("flash-attn causal, right is overridden", Mask.from_flash((3, 5), causal=True),
     lambda i, j, nq, nk: i + nk - nq - 3 <= j <= i + nk - nq),
    ("xformers LocalAttentionFromBottomRight(1, 2)", Mask.from_flash((1, 2)),
     lambda i, j, nq, nk: i + nk - nq - 1 <= j <= i + nk - nq + 2),
    ("FlashInfer window_left=2", Mask.from_flash((2, -1)),
     lambda i, j, nq, nk: j >= i + nk - nq - 2),
    ("FlashInfer window_left=2, causal", Mask.from_flash((2, -1), causal=True),
     lambda i, j, nq, nk: i + nk - nq - 2 <= j <= i + nk - nq),
    ("splash LocalMask((2, 1), offset=3)", Mask.from_flash((2, 1), align=3),
     lambda i, j, nq, nk: i + 3 - 2 <= j <= i + 3 + 1),
    ("splash LocalMask((None, 1), offset=0)", Mask.from_flash((None, 1), align="top-left"),
     lambda i, j, nq, nk: j <= i + 1),
    ("mem-efficient window_size=3, type 1", Mask.from_transformers(3, offset=0),
     lambda i, j, nq, nk: i - 3 < j <= i),
    ("mem-efficient window_size=3, type 2", Mask.from_transformers(3),
     lambda i, j, nq, nk: i + nk - nq - 3 < j <= i + nk - nq),
    ("cuDNN left_bound=3, right_bound=1", Mask.from_cudnn(3, 1),
     lambda i, j, nq, nk: i - 3 < j <= i + 1),
    ("cuDNN left_bound=1, only itself", Mask.from_cudnn(1, 0), lambda i, j, nq, nk: i == j),
    ("cuDNN right_bound=0, bottom-right", Mask.from_cudnn(None, 0, align="bottom-right"),
     lambda i, j, nq, nk: j <= i + nk - nq),
    ("cuDNN left_bound=2, bottom-right", Mask.from_cudnn(2, align="bottom-right"),
     lambda i, j, nq, nk: j > i + nk - nq - 2),
    ("Transformer Engine causal", Mask.from_flash((2, 0), causal=True, align="top-left"),
     lambda i, j, nq, nk: i - 2 <= j <= i),
    ("transformers sliding_window=3, causal, no cache", Mask.from_transformers(3, offset=0),
     lambda i, j, nq, nk: j <= i and j > i - 3),
    ("transformers sliding_window=3, causal, behind 4", Mask.from_transformers(3, offset=4),
     lambda i, j, nq, nk: j <= i + 4 and j > i + 4 - 3),
    ("transformers sliding_window=3, causal, growing cache", Mask.from_transformers(3),
     lambda i, j, nq, nk: j <= i + nk - nq and j > i + nk - nq - 3),
    ("transformers sliding_window=1", Mask.from_transformers(1, offset=0),
     lambda i, j, nq, nk: i == j),
    ("transformers, causal, no window", Mask.from_transformers(),
     lambda i, j, nq, nk: j <= i + nk - nq),
    ("transformers sliding_window=2, bidirectional",
     Mask.from_transformers(2, causal=False, offset=0), lambda i, j, nq, nk: abs(i - j) <= 2),
    ("transformers bidirectional, no window", Mask.from_transformers(causal=False),
     lambda i, j, nq, nk: True),
    ("attention-gym sliding window 2", Mask.sliding_window(2, align="top-left"),
     lambda i, j, nq, nk: i - 2 <= j <= i),
    ("attention-gym dilated window 5 in positions, by 2",
     Mask.sliding_window(5 // 2, 5 // 2, dilation=2, align="top-left"),
     lambda i, j, nq, nk: abs(i - j) <= 5 and (i - j) % 2 == 0),
    ("dilated, behind 1", Mask.sliding_window(1, dilation=3, align=1),
     lambda i, j, nq, nk: i + 1 - j in (0, 3)),
    ("dilated, bottom-right", Mask.sliding_window(1, 1, dilation=2, align="bottom-right"),
     lambda i, j, nq, nk: i + nk - nq - j in (-2, 0, 2)),
]
# fmt: on


@pytest.mark.parametrize(
    ("mask", "formula"), [row[1:] for row in DIALECTS], ids=[row[0] for row in DIALECTS]
)
def test_a_converter_means_what_the_library_says(
    cases: Count, mask: Mask, formula: Formula
) -> None:
    for queries in (*SHORT, 11):
        for keys in (*SHORT, 11):
            want = matrix_of(formula, queries, keys)
            assert np.array_equal(mask.dense(queries, keys), want), (queries, keys)
            cases("mask, dialects", 1)


@pytest.mark.parametrize("keys", range(1, 7))
@pytest.mark.parametrize("queries", range(1, 7))
def test_causal_equals_the_biases_of_torch(queries: int, keys: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of rows without keys, which are meant here
        upper, lower = (bias(queries, keys) for bias in (causal_upper_left, causal_lower_right))
    assert np.array_equal(
        Mask.causal("top-left").dense(queries, keys), upper._materialize().numpy()
    )
    assert np.array_equal(
        Mask.causal("bottom-right").dense(queries, keys), lower._materialize().numpy()
    )


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 6), (6, 3)])
def test_causal_equals_is_causal_as_it_runs(queries: int, keys: int) -> None:
    scores = torch.randn(queries, 4, dtype=torch.float64)
    kept = torch.from_numpy(Mask.causal("top-left").dense(queries, keys))
    key, value = torch.randn(2, 1, 1, keys, 4, dtype=torch.float64)
    run = torch.nn.functional.scaled_dot_product_attention
    query = scores[None, None]
    wanted = run(query, key[None], value[None], is_causal=True)
    torch.testing.assert_close(run(query, key[None], value[None], attn_mask=kept), wanted)


@given(sides(7), sides(7), st.booleans(), st.sampled_from(SHORT), st.sampled_from(SHORT))
def test_flash_windows_at_any_size(
    cases: Count, left: int | None, right: int | None, causal: bool, queries: int, keys: int
) -> None:
    want = flash_matrix(queries, keys, left, 0 if causal else right)
    mask = Mask.from_flash((left, right), causal)
    assert np.array_equal(mask.dense(queries, keys), want)
    cases("mask, flash", 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", range(1, 6))
def test_neighborhood_equals_natten(kernel: int, causal: bool) -> None:
    for dilation in (1, 2):
        for stride in range(1, kernel + 1):
            for n in range(kernel * dilation, 12):
                mask = Mask.neighborhood(kernel, dilation=dilation, stride=stride, is_causal=causal)
                want = natten_axis(n, kernel, stride, dilation, causal)
                assert np.array_equal(mask.dense(n), want)


NEIGHBORHOODS = [
    ((7,), {}, [(3, 3)]),
    ((8,), {}, [(4, 3)]),
    ((1,), {}, [(0, 0)]),
    (((3, 5),), {}, [(1, 1), (2, 2)]),
    ((3,), {"dilation": (1, 2)}, [(1, 1), (1, 1)]),
    ((3,), {"is_causal": (True, False, False)}, [(2, 0), (1, 1), (1, 1)]),
    (((3, 4),), {"stride": [2, 1], "is_causal": True}, [(2, 0), (3, 0)]),
    ((np.int64(7),), {"stride": np.int32(2)}, [(3, 3)]),
]


@pytest.mark.parametrize(("given", "named", "windows"), NEIGHBORHOODS)
def test_neighborhood_takes_one_value_or_one_per_axis(
    given: tuple, named: dict[str, Any], windows: list[tuple[int, int]]
) -> None:
    mask = Mask.neighborhood(*given, **named)
    assert [(axis.left, axis.right) for axis in mask.axes] == windows
    for number, axis in enumerate(mask.axes):
        for name, field in (
            ("dilation", "dilation"),
            ("stride", "stride"),
            ("is_causal", "causal"),
        ):
            value = named.get(name, getattr(Axis(), field))
            wanted = value[number] if isinstance(value, list | tuple) else value
            assert getattr(axis, field) == wanted
        assert axis.border == ("clip" if axis.causal else "shift")


CONVERTERS_REFUSE = [
    ("Mask.neighborhood(0)", "kernel_size=0 is below 1"),
    ("Mask.neighborhood(7.0)", "kernel_size=7.0 is a float"),
    ("Mask.neighborhood(True)", "kernel_size=True is a bool"),
    ("Mask.neighborhood(3, stride=4)", "stride=4 is larger than kernel_size=3"),
    ("Mask.neighborhood((5, 3), stride=4)", "stride=4 is larger than kernel_size=3"),
    ("Mask.neighborhood(3, dilation=0)", "dilation=0 is below 1"),
    ("Mask.neighborhood((3, 3), dilation=(1, 1, 1))", "different lengths"),
    ("Mask.neighborhood(())", "1 to 3 axes, not 0"),
    ("Mask.neighborhood((3,) * 4)", "1 to 3 axes, not 4"),
    ("Mask.neighborhood(3, is_causal=1)", "causal=1 is"),
    ("Mask.from_flash((1, 2, 3))", "is not a pair"),
    ("Mask.from_flash((True, 0))", "left=True is a bool"),
    ("Mask.from_flash((0, 0.5))", "right=0.5 is a float"),
    ("Mask.from_flash((2**31, 0))", "left=2147483648 is beyond"),
    ('Mask.from_flash((1, 1), align="left")', "align='left' is not one of"),
    ("Mask.from_flash((1, 1), causal=1)", "causal=1 is"),
    ("Mask.from_transformers(0)", "sliding_window=0 is below 1"),
    ("Mask.from_transformers(-1)", "sliding_window=-1 is below 1"),
    ("Mask.from_transformers(4.0)", "sliding_window=4.0 is a float"),
    ("Mask.from_transformers(4, offset=True)", "offset=True is a bool"),
    ("Mask.from_transformers(4, causal=1)", "causal=1 is"),
    ('Mask.from_transformers(4, causal="")', "causal='' is"),
    ("Mask.sliding_window(-1)", "left=-1 is below 0"),
    ("Mask.sliding_window(1, dilation=0)", "dilation=0 is below 1"),
    ('Mask.causal("bottom")', "align='bottom' is not one of"),
    ("Mask.causal(1.5)", "align=1.5 is a float"),
    ("Mask.full(0)", "rank=0 is below 1"),
    ("Mask.full(4)", "1 to 3 axes, not 4"),
    ("Mask.full(True)", "rank=True is a bool"),
]


@pytest.mark.parametrize(("code", "text"), CONVERTERS_REFUSE, ids=[c for c, _ in CONVERTERS_REFUSE])
def test_a_converter_refuses_what_its_library_does_not_say(code: str, text: str) -> None:
    with pytest.raises(MaskError) as error:
        eval(code, {"Mask": Mask})
    assert text in error.value.problem


def test_alignments_default_to_the_library() -> None:
    unsaid = [Mask.full(), Mask.causal(), Mask.sliding_window(1), Mask.neighborhood(3)]
    unsaid += [Mask.neighborhood(3, is_causal=True)]
    assert {mask.axes[0].align for mask in unsaid} == {None}
    assert Mask.from_cudnn(4).axes[0].align == "top-left"
    bottom = [Mask.from_flash((1, 1)), Mask.from_transformers(4)]
    assert {mask.axes[0].align for mask in bottom} == {"bottom-right"}
    builders = [
        Mask.causal,
        lambda align: Mask.sliding_window(1, align=align),
        lambda align: Mask.from_flash((1, 0), align=align),
        lambda align: Mask.from_cudnn(1, 0, align=align),
    ]
    for build in builders:
        assert build(align=None).axes[0].align is None
        assert (build(align=5).axes[0].align, build(align=5).axes[0].offset) == ("top-left", 5)
        assert build(align="top-left").axes[0].align == "top-left"
        assert build(align="bottom-right").axes[0].align == "bottom-right"
    static = Mask.from_transformers(4, offset=5).axes[0]
    assert (static.align, static.offset) == ("top-left", 5)


# to_flash

BOTTOM: dict[str, Any] = {"align": "bottom-right"}
SAYABLE = [
    (Mask(Axis()), (-1, -1)),
    (Mask(Axis(align="top-left")), (-1, -1)),
    (Mask(Axis(align="bottom-right", offset=4, stride=3, prefix=2)), (-1, -1)),
    (Mask(Axis(border="wrap")), (-1, -1)),
    (Mask(Axis(511, 0, **BOTTOM)), (511, 0)),
    (Mask(Axis(511, causal=True, **BOTTOM)), (511, 0)),
    (Mask(Axis(causal=True, **BOTTOM)), (-1, 0)),
    (Mask(Axis(None, 3, **BOTTOM)), (-1, 3)),
    (Mask(Axis(3, **BOTTOM)), (3, -1)),
    (Mask(Axis(5, 5, offset=-3, **BOTTOM)), (8, 2)),
    (Mask(Axis(5, 5, offset=3, **BOTTOM)), (2, 8)),
    (Mask(Axis(5, 5, offset=5, **BOTTOM)), (0, 10)),
    (Mask(Axis(None, 5, offset=2, **BOTTOM)), (-1, 7)),
]
UNSAYABLE = [
    (Mask(Axis(), Axis()), "it has 2 axes, Flash supports one."),
    (Mask(Axis(1, 1, dilation=2, **BOTTOM)), "dilation=2; Flash supports dilation=1 only."),
    (Mask(Axis(dilation=2, **BOTTOM)), "dilation=2; Flash supports dilation=1 only."),
    (Mask(Axis(1, 1, stride=3, **BOTTOM)), "stride=3; Flash supports stride=1 only."),
    (
        Mask(Axis(1, 1, border="shift", **BOTTOM)),
        "border='shift'; Flash supports border='clip' only.",
    ),
    (Mask(Axis(1, 1, border="wrap")), "border='wrap'; Flash supports border='clip' only."),
    (Mask(Axis(1, 0, prefix=2, **BOTTOM)), "prefix=2; Flash supports prefix=0 only."),
    (
        Mask(Axis(1, 1, align="top-left")),
        "align='top-left'; Flash aligns bottom-right, which differs if lengths differ.",
    ),
    (
        Mask.causal(),
        "align=None; Flash aligns bottom-right, which differs if lengths differ.",
    ),
    (
        Mask(Axis(1, 1, offset=2, **BOTTOM)),
        "left=1 with offset=2 is the window -1; Flash takes a negative number as unlimited.",
    ),
    (
        Mask(Axis(1, 1, offset=-2, **BOTTOM)),
        "right=1 with offset=-2 is the window -1; Flash takes a negative number as unlimited.",
    ),
    (
        Mask(Axis(causal=True, offset=-1, **BOTTOM)),
        "right=0 with offset=-1 is the window -1; Flash takes a negative number as unlimited.",
    ),
]


@pytest.mark.parametrize(("mask", "window"), SAYABLE, ids=[repr(m) for m, _ in SAYABLE])
def test_to_flash_gives_the_window(mask: Mask, window: tuple[int, int]) -> None:
    found = mask.to_flash()
    assert found == window
    assert isinstance(found, tuple)


@pytest.mark.parametrize(("mask", "reason"), UNSAYABLE, ids=[repr(m) for m, _ in UNSAYABLE])
def test_to_flash_says_why_not(mask: Mask, reason: str) -> None:
    with pytest.raises(MaskError) as error:
        mask.to_flash()
    assert error.value.problem == f"Flash has no window_size for this mask: {reason}"
    assert error.value.where == repr(mask)


def plain_bottom_right(axis: Axis) -> Axis:
    return replace(axis, dilation=1, stride=1, prefix=0, align="bottom-right")


def shows_the_same(mask: Mask, left: int, right: int) -> bool:
    """Whether Flash's documented window is the mask at all lengths up to six."""
    lengths = [(nq, nk) for nq in SHORT for nk in SHORT]
    if mask.axes[0].border == "wrap":
        lengths = [(n, n) for n in SHORT if n % mask.axes[0].stride == 0]
    return all(
        np.array_equal(axis_matrix(mask.axes[0], *both), flash_matrix(*both, left, right))
        for both in lengths
    )


@given(st.one_of(axes(most=5), st.builds(plain_bottom_right, axes(("clip",), most=5))))
def test_to_flash_is_exact_or_refuses(cases: Count, axis: Axis) -> None:
    mask = Mask(axis)
    try:
        window = mask.to_flash()
    except MaskError:
        return
    assert shows_the_same(mask, *window)
    again = Mask.from_flash(window)
    for queries in SHORT:
        for keys in SHORT:
            if axis.border != "wrap" or (queries == keys and not keys % axis.stride):
                assert np.array_equal(again.dense(queries, keys), mask.dense(queries, keys))
    cases("mask, to_flash", 1)


@given(sides(6), sides(6), st.integers(-4, 4), st.booleans())
def test_to_flash_finds_every_plain_window(
    left: int | None, right: int | None, offset: int, causal: bool
) -> None:
    """Of stride-1, undilated, clipped, bottom-right masks it refuses only those with no window."""
    axis = Axis(left, None if causal else right, causal=causal, offset=offset, **BOTTOM)
    windows = [(a, b) for a in range(-1, 11) for b in range(-1, 11)]
    if not axis.is_full and any(side is None for side in (axis.left, axis.right)):
        windows = [w for w in windows if -1 in w]
    sayable = any(shows_the_same(Mask(axis), *window) for window in windows)
    try:
        Mask(axis).to_flash()
    except MaskError:
        assert not sayable
    else:
        assert sayable


@given(sides(9), sides(9))
def test_a_flash_window_survives_the_round_trip(left: int | None, right: int | None) -> None:
    plain = tuple(-1 if side is None else side for side in (left, right))
    assert Mask.from_flash((left, right)).to_flash() == plain
    assert Mask.from_flash(plain) == Mask.from_flash((left, right))


# decodes

REASONS = [
    (Axis(8, 8, **BOTTOM), "right=8 attends to keys that come later; right=0 does not"),
    (Axis(8, **BOTTOM), "right=None attends to keys that come later; right=0 does not"),
    (
        Axis(8, causal=True, stride=2, **BOTTOM),
        "stride=2 makes windows depend on later queries; stride=1 does not",
    ),
    (
        Axis(8, 0, border="shift", **BOTTOM),
        'border="shift" moves windows as keys grow; border="clip" does not',
    ),
    (
        Axis(8, 0, border="wrap"),
        'border="wrap" moves windows as keys grow; border="clip" does not',
    ),
    (
        Axis(8, 0, prefix=4, **BOTTOM),
        "prefix=4 attends to keys that come later; causal=True does not",
    ),
    (
        Axis(8, 0),
        'align=None gives a decoded query no key position; "bottom-right" does',
    ),
    (
        Axis(8, 0, align="top-left"),
        'align="top-left" puts a decoded query on key 0; "bottom-right" does not',
    ),
    (
        Axis(8, causal=True, offset=2, **BOTTOM),
        "offset=2 attends to keys that come later; offset=0 does not",
    ),
]


@pytest.mark.parametrize(("axis", "reason"), REASONS, ids=[repr(axis) for axis, _ in REASONS])
def test_decodes_says_why_not(axis: Axis, reason: str) -> None:
    assert Mask(axis).decodes() == reason
    assert Mask(axis, Axis(1, 1)).decodes() == reason


@pytest.mark.parametrize(
    "mask",
    [
        Mask.from_transformers(4),
        Mask.from_flash((3, 0)),
        Mask.causal("bottom-right"),
        Mask(Axis(2, causal=True, dilation=3, **BOTTOM)),
        Mask(Axis(2, causal=True, border="shift", **BOTTOM)),
        Mask(Axis(2, causal=True, prefix=2, **BOTTOM)),
        Mask(Axis(2, causal=True, offset=-1, **BOTTOM)),
        Mask(Axis(4, causal=True, **BOTTOM), Axis(3, 3, border="shift"), Axis(2, 2, border="wrap")),
    ],
)
def test_what_decodes(mask: Mask) -> None:
    assert mask.decodes() is None


def grows_into_itself(axis: Axis, longest: int = 9) -> bool:
    """Whether chunks of newest queries, each against the keys so far, are the rows of one pass."""
    whole = axis_matrix(axis, longest, longest)
    for keys in range(1, longest + 1):
        for queries in range(1, keys + 1):
            chunk = axis_matrix(axis, queries, keys)
            if not np.array_equal(chunk, whole[keys - queries : keys, :keys]):
                return False
        if whole[keys - 1, keys:].any():
            return False
    return True


def forward_only(axis: Axis) -> Axis:
    return replace(axis, right=0, stride=1, offset=min(axis.offset, 0), align="bottom-right")


@given(st.one_of(axes(most=6), st.builds(forward_only, axes(("clip", "shift"), most=6))))
def test_what_decodes_equals_one_pass(cases: Count, axis: Axis) -> None:
    reason = Mask(axis).decodes()
    if reason is None:
        assert grows_into_itself(axis)
        cases("mask, decodes", 1)
    else:
        name = reason.split("=")[0]
        assert getattr(axis, name) != getattr(Axis(None, 0, align="bottom-right"), name)


@pytest.mark.parametrize(
    "axis",
    [axis for axis, _ in REASONS if axis.border != "wrap" and axis.align],
    ids=lambda axis: repr(axis),
)
def test_what_does_not_decode_differs_from_one_pass(axis: Axis) -> None:
    assert not grows_into_itself(axis, longest=12)


# dense


@pytest.mark.parametrize("space", [(), (3, 3), (3, 3, 3)])
def test_dense_wants_one_length_per_axis(space: tuple[int, ...]) -> None:
    with pytest.raises(MaskError):
        Mask(Axis()).dense(space)


def test_dense_takes_lengths_as_they_come() -> None:
    mask = Mask(Axis(1, 1, align="top-left"))
    want = mask.dense((4,), (5,))
    for queries, keys in [(4, 5), ([4], [5]), (np.int64(4), np.int32(5)), (torch.Size([4]), (5,))]:
        assert np.array_equal(mask.dense(queries, keys), want)
    assert np.array_equal(mask.dense((np.int64(4),)), mask.dense(4))


@pytest.mark.parametrize("length", [-1, 3.0, "3", True, None, (None,), ("3",), (-1,), (2.5,)])
def test_dense_refuses_what_is_no_length(length: Any) -> None:
    with pytest.raises(MaskError):
        Mask(Axis(1, 1)).dense(length)
    if length is not None:
        with pytest.raises(MaskError):
            Mask(Axis(1, 1)).dense(3, length)


def test_dense_stops_before_memory_does() -> None:
    assert Mask(Axis(0, 0)).dense(1 << 13, 1 << 13).sum() == 1 << 13
    with pytest.raises(MaskError, match="over the limit of 268435456"):
        Mask(Axis(0, 0, align="top-left")).dense((1 << 14) + 1, 1 << 14)
    with pytest.raises(MaskError, match="over the limit"):
        Mask(Axis(), Axis()).dense((1 << 20, 1 << 20))
    assert Mask(Axis()).dense(0, 1 << 20).shape == (0, 1 << 20)


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
        said = replace(axis, align=align, offset=0 if align == 2 else axis.offset)
        assert np.array_equal(Mask(said).dense(queries, keys), axis_matrix(said, queries, keys)), (
            align
        )
    assert np.array_equal(Mask(axis).dense(7), axis_matrix(axis, 7, 7))


def test_an_offset_counts_where_lengths_are_equal() -> None:
    assert np.array_equal(Mask(Axis(0, 0, offset=1)).dense(3), np.eye(3, k=1, dtype=bool))


@pytest.mark.parametrize("axis", [Axis(), Axis(stride=3), Axis(prefix=2), Axis(offset=5)], ids=repr)
def test_an_axis_that_reads_everything_takes_any_lengths(axis: Axis) -> None:
    for queries, keys in ((1, 40), (28, 14), (0, 3), (3, 0), (5, 5)):
        assert Mask(axis).dense(queries, keys).shape == (queries, keys)
        assert Mask(axis).dense(queries, keys).all()
        assert Mask(axis).draw(queries, keys)


def test_a_circle_needs_one_length_with_or_without_an_alignment() -> None:
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


@pytest.mark.parametrize(
    ("axis", "queries", "keys", "text"),
    [
        (Axis(1, 1, border="wrap"), 4, 5, "needs as many queries as keys"),
        (Axis(1, 1, border="wrap", dilation=2), 5, 5, "= 2 divides, but 5 leaves 1"),
        (Axis(1, 1, border="wrap", stride=3), 5, 5, "= 3 divides, but 5 leaves 2"),
        (Axis(1, 1, border="wrap", dilation=2, stride=3), 10, 10, "= 6 divides, but 10 leaves 4"),
    ],
)
def test_rules_of_the_lengths(axis: Axis, queries: int, keys: int, text: str) -> None:
    mask = Mask(Axis(), axis)
    for use in (mask.dense, mask.draw, lambda *spaces: bind(mask, *spaces)):
        with pytest.raises(MaskError) as error:
            use((3, queries), (3, keys))
        assert f"axis 1 ({queries} queries, {keys} keys)" in error.value.problem
        assert text in error.value.problem

"""Tests of masks as values: rules, text, integer codes, decoding and dense matrices."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import axes, axis_matrix, masks

from nbattn import Axis, Mask, MaskError
from nbattn.geometry import bind
from nbattn.mask import from_code

Count = Callable[[str, int], None]
FEW = 60  # examples, of what one value of a field breaks as well as another


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


@settings(max_examples=FEW)
@given(masks(), masks())
def test_equality_is_equality_of_fields(first: tuple, second: tuple) -> None:
    one, other = first[0], second[0]
    fields = [[dataclasses.astuple(axis) for axis in mask.axes] for mask in (one, other)]
    assert (one == other) is (fields[0] == fields[1])
    if one == other:
        assert hash(one) == hash(other)


@settings(max_examples=FEW)
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


# Text


@settings(max_examples=FEW)
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


# Integers


@settings(max_examples=FEW)
@given(masks())
def test_codes_are_integers_and_give_the_mask_back(cases: Count, chosen: tuple) -> None:
    mask = chosen[0]
    code = mask.code()
    assert isinstance(code, list)
    assert {type(number) for number in code} == {int}
    assert len(code) == 9 * mask.rank
    assert from_code(code) == mask
    assert from_code(tuple(code)) == mask
    cases("mask, code", 1)


@settings(max_examples=FEW)
@given(masks(), masks())
def test_equal_codes_are_equal_masks(first: tuple, second: tuple) -> None:
    assert (first[0].code() == second[0].code()) is (first[0] == second[0])


def test_mask_codes_are_unchanged() -> None:
    axis = Axis(None, 3, dilation=2, stride=4, align="bottom-right", offset=-5)
    assert Mask(axis).code() == [-(2**62), 3, 2, 4, 0, 1, -5, 0, 0]
    wrapped = Axis(1, None, border="wrap")
    assert Mask(wrapped).code() == [1, -(2**62), 1, 1, 0, -1, 0, 2, 0]
    causal = Axis(1, causal=True, border="shift", prefix=6)
    assert Mask(causal).code() == [1, 0, 1, 1, 1, -1, 0, 1, 6]
    assert Mask(replace(causal, align=7)).code() == [1, 0, 1, 1, 1, 0, 7, 1, 6]


# to_flash


BOTTOM: dict[str, Any] = {"align": "bottom-right"}

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
def test_decodes_returns_the_reason_against(axis: Axis, reason: str) -> None:
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
def test_masks_that_can_be_decoded(mask: Mask) -> None:
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
def test_masks_that_decode_equal_one_pass(cases: Count, axis: Axis) -> None:
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
def test_masks_that_do_not_decode_differ_from_one_pass(axis: Axis) -> None:
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
    assert Mask(Axis(0, 0)).dense(1 << 11, 1 << 11).sum() == 1 << 11
    with pytest.raises(MaskError, match="over the limit of 268435456"):
        Mask(Axis(0, 0, align="top-left")).dense((1 << 14) + 1, 1 << 14)
    with pytest.raises(MaskError, match="over the limit"):
        Mask(Axis(), Axis()).dense((1 << 20, 1 << 20))
    assert Mask(Axis()).dense(0, 1 << 20).shape == (0, 1 << 20)


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

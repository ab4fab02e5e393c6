"""Tests of converters between masks and the windows of other libraries."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import axes, axis_matrix, flash_matrix, natten_axis, sides
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from nbattn import Axis, Mask, MaskError

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
def test_converters_match_the_formula_of_their_library(
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
    causal_matrix = torch.from_numpy(Mask.causal("top-left").dense(queries, keys))
    key, value = torch.randn(2, 1, 1, keys, 4, dtype=torch.float64)
    run = torch.nn.functional.scaled_dot_product_attention
    query = scores[None, None]
    wanted = run(query, key[None], value[None], is_causal=True)
    torch.testing.assert_close(run(query, key[None], value[None], attn_mask=causal_matrix), wanted)


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
def test_converters_refuse_what_the_library_cannot_express(code: str, text: str) -> None:
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
TO_FLASH = [
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
NOT_TO_FLASH = [
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


@pytest.mark.parametrize(("mask", "window"), TO_FLASH, ids=[repr(m) for m, _ in TO_FLASH])
def test_to_flash_gives_the_window(mask: Mask, window: tuple[int, int]) -> None:
    found = mask.to_flash()
    assert found == window
    assert isinstance(found, tuple)


@pytest.mark.parametrize(("mask", "reason"), NOT_TO_FLASH, ids=[repr(m) for m, _ in NOT_TO_FLASH])
def test_to_flash_refusals_have_a_reason(mask: Mask, reason: str) -> None:
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

"""Tests of properties that relate one mask to another, for which two dense masks are enough."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import axes, bound_axes, flash_matrix, masks

from nbattn import Axis, Mask
from nbattn.geometry import bind

Count = Callable[[str, int], None]
Bound = tuple[Axis, int, int]
Spaces = tuple[Mask, tuple[int, ...], tuple[int, ...]]
STRAIGHT = ("clip", "shift")


def dense(axis: Axis, queries: int, keys: int) -> np.ndarray:
    return Mask(axis).dense((queries,), (keys,))


def subset(small: np.ndarray, large: np.ndarray) -> bool:
    return not (small & ~large).any()


def origin(axis: Axis, queries: int, keys: int) -> int:
    """The position of query 0."""
    return axis.offset + (keys - queries if axis.align == "bottom-right" else 0)


def placed(axis: Axis, at: int) -> Axis:
    """The same window with query 0 at a given position."""
    return axis if axis.border == "wrap" else replace(axis, align="top-left", offset=at)


@given(bound_axes())
def test_flipping_an_axis_swaps_left_and_right(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    assume(not axis.causal)
    axis = replace(axis, stride=1, prefix=0)
    flipped = replace(axis, left=axis.right, right=axis.left)
    if axis.border != "wrap":
        other = {None: None, "top-left": "bottom-right", "bottom-right": "top-left"}
        align = other[axis.align]
        flipped = replace(flipped, align=align, offset=-axis.offset)
    assert np.array_equal(dense(axis, queries, keys)[::-1, ::-1], dense(flipped, queries, keys))
    cases("mask properties, flip", 1)


@given(axes(STRAIGHT, most=3), st.integers(20, 40), st.integers(20, 40))
def test_shifting_by_a_period_changes_nothing_away_from_borders(
    cases: Count, axis: Axis, queries: int, keys: int
) -> None:
    axis = replace(axis, left=axis.left or 0, right=axis.right or 0, prefix=0)
    keys = queries if axis.align is None else keys
    period = axis.dilation * axis.stride
    reach = axis.dilation * (max(axis.left, axis.right) + axis.stride)
    first = origin(axis, queries, keys)
    mask, compared = dense(axis, queries, keys), 0
    for i in range(queries - period):
        if first + i - reach < 0 or first + i + period + reach >= keys:
            continue
        assert np.array_equal(mask[i, : keys - period], mask[i + period, period:])
        assert not mask[i, keys - period :].any()
        assert not mask[i + period, :period].any()
        compared += 1
    cases("mask properties, equal rows away from borders", compared)


@given(bound_axes(borders=("wrap",)))
def test_wrap_commutes_with_turning_the_circle(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    period = axis.dilation * axis.stride
    mask = dense(axis, queries, keys)
    assert np.array_equal(np.roll(mask, (period, period), axis=(0, 1)), mask)
    cases("mask properties, wrap", 1)


@given(bound_axes())
def test_dilation_is_that_many_smaller_problems(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    step, first = axis.dilation, origin(axis, queries, keys)
    mask = dense(axis, queries, keys)
    pairs = 0
    for residue in range(step):
        start = (residue - first) % step
        part = mask[start::step, residue::step]
        alone = replace(placed(axis, (start + first) // step), dilation=1)
        assert np.array_equal(part, dense(alone, *part.shape))
        pairs += part.sum()
    assert pairs == mask.sum()
    cases("mask properties, dilation", 1)


@given(masks(max_rank=2), axes(), st.data())
def test_an_axis_of_size_one_drops_or_empties(
    cases: Count, chosen: Spaces, single: Axis, data: st.DataObject
) -> None:
    mask, query_space, key_space = chosen
    if single.border == "wrap":
        single = replace(single, dilation=1, stride=1)
    place = data.draw(st.integers(0, mask.rank))
    spread = Mask(*mask.axes[:place], single, *mask.axes[place:])
    given_spaces = [(*s[:place], 1, *s[place:]) for s in (query_space, key_space)]
    reads = dense(single, 1, 1).item()
    want = mask.dense(query_space, key_space) & reads
    assert np.array_equal(spread.dense(*given_spaces), want)
    cases(f"mask properties, size-1 axis {'with' if reads else 'without'} its key", 1)


@given(masks())
def test_swapping_axes_commutes(cases: Count, chosen: Spaces) -> None:
    mask, query_space, key_space = chosen
    rank = mask.rank
    whole = mask.dense(query_space, key_space).reshape(*query_space, *key_space)
    for order in permutations(range(rank)):
        swapped = Mask(*(mask.axes[a] for a in order))
        spaces = [tuple(space[a] for a in order) for space in (query_space, key_space)]
        want = whole.transpose(*order, *(rank + a for a in order))
        assert np.array_equal(swapped.dense(*spaces).reshape(want.shape), want)
    cases("mask properties, swapped axes", 1)


@given(bound_axes(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_larger_window_has_a_larger_support(
    cases: Count, chosen: Bound, left: int, right: int, prefix: int
) -> None:
    axis, queries, keys = chosen
    wider = replace(axis, left=None if axis.left is None else axis.left + left)
    if not axis.causal:
        wider = replace(wider, right=None if axis.right is None else axis.right + right)
    if axis.dilation == 1 and axis.border != "wrap":
        wider = replace(wider, prefix=axis.prefix + prefix)
    small = dense(axis, queries, keys)
    assert subset(small, dense(wider, queries, keys))
    if axis.border != "shift":
        unlimited = replace(wider, left=None, right=0 if axis.causal else None)
        assert subset(small, dense(unlimited, queries, keys))
    cases("mask properties, wider window", 1)


@given(bound_axes())
def test_every_window_lies_inside_the_unlimited_one(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    mask = dense(axis, queries, keys)
    classes = placed(Axis(dilation=axis.dilation), origin(axis, queries, keys))
    assert subset(mask, dense(classes, queries, keys))
    if axis.causal:
        past = replace(classes, causal=True, right=0)
        assert subset(mask, dense(past, queries, keys))
    cases("mask properties, inside the unlimited", 1)


@given(bound_axes(borders=("shift", "wrap")))
def test_shift_and_wrap_give_a_full_window_or_the_whole_class(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    assume(not axis.causal)
    axis = replace(axis, prefix=0)
    first = origin(axis, queries, keys)
    sides = (axis.left, axis.right)
    window = keys if None in sides else sum(sides) + 1
    for i, row in enumerate(dense(axis, queries, keys)):
        residue = (first + i) % axis.dilation
        assert row.sum() == min(window, len(range(residue, keys, axis.dilation)))
    cases("mask properties, keys per query", 1)


@given(masks())
def test_a_mask_is_the_and_of_its_axes(cases: Count, chosen: Spaces) -> None:
    mask, query_space, key_space = chosen
    whole = mask.dense(query_space, key_space).reshape(*query_space, *key_space)
    want = np.ones(whole.shape, dtype=bool)
    for a, axis in enumerate(mask.axes):
        shape = [1] * (2 * mask.rank)
        shape[a], shape[mask.rank + a] = query_space[a], key_space[a]
        want &= dense(axis, query_space[a], key_space[a]).reshape(shape)
    assert np.array_equal(whole, want)
    cases("mask properties, and of axes", 1)


@given(bound_axes())
def test_windows_of_keys_are_the_transpose(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    (only,) = bind(Mask(axis), (queries,), (keys,))
    forward = {
        (i, start + axis.dilation * t)
        for i in range(queries)
        for start, count in only.key_intervals(i)
        for t in range(count)
    }
    backward = {
        (start + axis.dilation * t, j)
        for j in range(keys)
        for start, count in only.query_intervals(j)
        for t in range(count)
    }
    assert forward == backward
    assert len(forward) == only.pairs()
    cases("mask properties, transpose", 1)


def natten_inverse(n: int, kernel: int, stride: int, causal: bool, j: int) -> tuple[int, int]:
    """First query that attends to key j and the one after the last, as published for NATTEN."""
    if causal:
        last = (j + kernel) // stride + (j + kernel >= n)
        return j, min(last * stride, n)
    left, right = kernel // 2, (kernel - 1) // 2
    slack = stride - stride // 2 - 1
    start = 0 if j < kernel else (j - right + slack) // stride * stride
    end = n if j >= n - kernel else (j + left + slack + 1) // stride * stride
    return start, end


@pytest.mark.parametrize("causal", [False, True])
def test_windows_of_keys_equal_the_published_inverse(causal: bool, cases: Count) -> None:
    for n in range(2, 15):
        for kernel in range(2, n + 1):
            for stride in range(1, kernel + 1):
                mask = Mask.neighborhood(kernel, stride=stride, is_causal=causal)
                (only,) = bind(mask, (n,), (n,))
                for j in range(n):
                    start, end = natten_inverse(n, kernel, stride, causal, j)
                    want = ((start, end - start),) if end > start else ()
                    assert only.query_intervals(j) == want
                cases("mask properties, published inverse", 1)


@given(bound_axes(borders=STRAIGHT), st.data())
def test_rows_depend_on_position_and_keys_only(
    cases: Count, chosen: Bound, data: st.DataObject
) -> None:
    axis, queries, keys = chosen
    start = data.draw(st.integers(0, queries))
    stop = data.draw(st.integers(start, queries))
    rows = dense(axis, queries, keys)[start:stop]
    part = placed(axis, origin(axis, queries, keys) + start)
    assert np.array_equal(rows, dense(part, stop - start, keys))
    same_align = replace(part, align="bottom-right", offset=part.offset - keys + stop - start)
    assert np.array_equal(rows, dense(same_align, stop - start, keys))
    cases("rows of a slice", 1)


@given(bound_axes())
def test_a_prefix_adds_its_keys_and_no_other(cases: Count, chosen: Bound) -> None:
    axis, queries, keys = chosen
    bare = replace(axis, prefix=0)
    sinks = np.arange(keys)[None, :] < axis.prefix
    if axis.causal:
        positions = np.arange(queries)[:, None] + origin(axis, queries, keys)
        sinks = sinks & (np.arange(keys)[None, :] <= positions)
    assert np.array_equal(dense(axis, queries, keys), dense(bare, queries, keys) | sinks)
    cases("prefix", 1)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(-3, 14), st.integers(-3, 14))
def test_flash_windows_are_bottom_right_axes(
    cases: Count, queries: int, keys: int, left: int, right: int
) -> None:
    want = flash_matrix(queries, keys, left, right)
    sides = (None if side < 0 else side for side in (left, right))
    assert np.array_equal(dense(Axis(*sides, align="bottom-right"), queries, keys), want)
    named = Mask.from_flash(window_size=(left, right), causal=False)
    assert np.array_equal(named.dense((queries,), (keys,)), want)
    causal = Mask.from_flash(window_size=(left, right), causal=True)
    assert np.array_equal(causal.dense((queries,), (keys,)), flash_matrix(queries, keys, left, 0))
    cases("flash windows", 1)


@st.composite
def growing(draw: st.DrawFn) -> Mask:
    """Masks near the border of what decodes: each rule broken now and then, seldom two."""
    causal = draw(st.booleans())
    border = draw(st.sampled_from(("clip", "clip", "clip", "shift")))
    right = 0 if causal else draw(st.sampled_from((0, 0, 0, 1, None)))
    dilation = draw(st.sampled_from((1, 1, 2, 3)))
    axis = Axis(
        draw(st.integers(0, 9))
        if border == "shift"
        else draw(st.one_of(st.none(), st.integers(0, 9))),
        right if border == "clip" or causal else right or 0,
        dilation=dilation,
        stride=draw(st.sampled_from((1, 1, 1, 2))),
        causal=causal,
        align=draw(st.sampled_from(("bottom-right",) * 5 + ("top-left", None))),
        offset=draw(st.sampled_from((0, 0, 0, -2, 1))),
        border=border,
        prefix=draw(st.integers(0, 3)) if dilation == 1 else 0,
    )
    others = [Axis(1, 1, border="wrap"), Axis(1, 1, border="shift"), Axis(2, causal=True)]
    return Mask(axis, *draw(st.lists(st.sampled_from(others), max_size=1)))


@given(growing(), st.integers(0, 6), st.integers(1, 6))
def test_decoding_equals_one_pass(cases: Count, mask: Mask, prefill: int, steps: int) -> None:
    """One mask for all calls; axis 0 grows, the other axes are there from the start."""
    reason = mask.decodes()
    if reason is not None:
        assert isinstance(reason, str)
        cases("decode, refused", 1)
        return
    rest = (3,) * (mask.rank - 1)
    width = 3 ** len(rest)
    total = prefill + steps
    whole = mask.dense((total, *rest))
    for done in (prefill, *range(prefill + 1, total + 1)):
        fresh = prefill if done == prefill else 1
        rows = slice((done - fresh) * width, done * width)
        part = mask.dense((fresh, *rest), (done, *rest))
        assert np.array_equal(whole[rows, : done * width], part)
        assert not whole[rows, done * width :].any()
    cases("decode, equal", 1)


@pytest.mark.parametrize(
    "axis",
    [
        Axis(causal=True, align="bottom-right"),
        Axis(7, 0, align="bottom-right"),
        Axis(7, causal=True, border="shift", align="bottom-right"),
        Axis(3, causal=True, dilation=2, align="bottom-right"),
        Axis(3, causal=True, prefix=2, align="bottom-right"),
    ],
)
def test_plain_causal_windows_decode(axis: Axis) -> None:
    assert Mask(axis).decodes() is None


@pytest.mark.parametrize(
    "axis",
    [
        Axis(align="bottom-right"),
        Axis(7, 1, align="bottom-right"),
        Axis(7, 0, border="shift", align="bottom-right"),
        Axis(7, 0, border="wrap"),
        Axis(7, causal=True, stride=2, align="bottom-right"),
        Axis(7, causal=True, align="top-left"),  # a single new query would be at key 0
        Axis(7, causal=True),  # and without an alignment nowhere
        Axis(7, causal=True, align="bottom-right", offset=1),
        Axis(7, 0, prefix=4, align="bottom-right"),
    ],
)
def test_masks_that_look_ahead_or_move_do_not_decode(axis: Axis) -> None:
    assert Mask(axis).decodes()

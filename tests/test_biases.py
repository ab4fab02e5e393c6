"""Tests of the table of relative positions: which masks have one, and what each pair reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from oracle import bias_entries, masks, matrix, natten_axis

import nbattn
from nbattn import Axis, Mask, MaskError, biases, geometry
from nbattn.geometry import Held

Space = tuple[int, ...]
Count = Callable[[str, int], None]


def finite(mask: Mask, queries: Space, keys: Space) -> Mask:
    """The mask with small finite sides, without prefixes; circles hold their windows."""
    axes = []
    for axis, n in zip(mask.axes, keys, strict=True):
        most = n // axis.dilation - 1 if axis.border == "wrap" else 12
        left = min(3 if axis.left is None else axis.left, max(most, 0))
        right = min(2 if axis.right is None else axis.right, max(most - left, 0))
        axes.append(replace(axis, left=left, right=0 if axis.causal else right, prefix=0))
    return Mask(*axes)


@given(masks())
def test_entries_of_every_pair(cases: Count, drawn: tuple[Mask, Space, Space]) -> None:
    """Every pair of the mask reads the entry of its step, found step by step."""
    mask, queries, keys = finite(*drawn), *drawn[1:]
    axes = geometry.bind(mask, queries, keys)
    allowed = matrix(mask.axes, queries, keys)
    try:
        biases.check_table(mask, axes)
    except MaskError:
        cases("tables, refused", 1)
        return
    found = biases.entries(axes)
    assert np.array_equal(found[allowed], bias_entries(mask.axes, queries, keys)[allowed])
    assert found.min(initial=0) >= 0
    cases("tables, entries", 1)


@given(masks())
def test_what_is_refused_has_no_table_or_moved_windows(
    cases: Count, drawn: tuple[Mask, Space, Space]
) -> None:
    """A step as long as the window is only found where the mask is refused."""
    mask, queries, keys = finite(*drawn), *drawn[1:]
    for axis, n, m in zip(mask.axes, queries, keys, strict=True):
        one = Mask(axis)
        try:
            biases.check_table(one, geometry.bind(one, (n,), (m,)))
        except MaskError:
            continue
        size = axis.left + axis.right
        found = bias_entries([axis], (n,), (m,)) - size
        assert (abs(found) <= size).all()
        cases("tables, accepted", 1)


@given(masks())
def test_the_same_mask_with_a_table_is_the_same(
    cases: Count, drawn: tuple[Mask, Space, Space]
) -> None:
    mask, queries, keys = drawn
    axes = geometry.bind(mask, queries, keys)
    if not all(axis.is_placed for axis in axes):
        return
    specs, others = biases._repaired(axes)
    if not others:
        repaired = Mask(*specs)
        assert np.array_equal(
            matrix(repaired.axes, queries, keys), matrix(mask.axes, queries, keys)
        )
        cases("tables, the same mask", 1)
    biases.check_table(Mask(*specs), geometry.bind(Mask(*specs), queries, keys))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_natten_adds_the_same_entries(kernel: int, dilation: int) -> None:
    """NATTEN's published rule, for dilated neighbours too: rpb[h, j - i + K - 1], in steps."""
    length, heads = 16, 2
    mask = Mask.neighborhood(kernel, dilation=dilation)
    table = torch.randn(heads, 2 * kernel - 1, dtype=torch.float64)
    allowed = natten_axis(length, kernel, 1, dilation, False)
    scores = torch.full((heads, length, length), float("-inf"), dtype=torch.float64)
    for i, j in np.argwhere(allowed):
        scores[:, i, j] = table[:, (j - i) // dilation + kernel - 1]
    query = torch.zeros(1, length, heads, 4, dtype=torch.float64)
    value = torch.randn(1, length, heads, 4, dtype=torch.float64)
    wanted = torch.einsum("hij,bjhd->bihd", scores.softmax(-1), value)
    for backend in ("reference", "tiled"):
        found = nbattn.attention(query, query, value, mask, relative_bias=table, backend=backend)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_swin_adds_the_flipped_table(window: int) -> None:
    """Swin's index is that of the query minus the key; windows divide the grid."""
    heads, space = 3, (2 * window, 3 * window)
    coordinates = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
    steps = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0) + window - 1
    relative_position_index = steps[..., 0] * (2 * window - 1) + steps[..., 1]
    relative_position_bias_table = torch.randn((2 * window - 1) ** 2, heads)
    bias = relative_position_bias_table[relative_position_index].permute(2, 0, 1)
    query, key, value = torch.randn(3, 1, *space, heads, 8)

    def windows(t: torch.Tensor) -> torch.Tensor:
        split = t.view(2, window, 3, window, heads, 8)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(6, heads, window**2, 8)

    wanted = torch.nn.functional.scaled_dot_product_attention(
        *map(windows, (query, key, value)), attn_mask=bias
    )
    mask = Mask(*[Axis(window // 2, (window - 1) // 2, stride=window)] * 2)
    sizes = (2 * window - 1, 2 * window - 1, heads)
    table = relative_position_bias_table.view(sizes).flip(0, 1).permute(2, 0, 1)
    for backend in ("reference", "tiled"):
        found = nbattn.attention(query, key, value, mask, relative_bias=table, backend=backend)
        torch.testing.assert_close(windows(found), wanted, rtol=1e-5, atol=1e-5)


def test_entries_of_a_part_are_those_of_the_whole() -> None:
    for axis in (Axis(3, 2, dilation=2, border="shift"), Axis(2, 1, border="wrap", dilation=2)):
        (whole,) = geometry.bind(Mask(axis), (24,), (24,))
        for first_query, first_key in product((0, 5, 11), (0, 4, 9)):
            held = Held(first_query, 24, first_key, 24)
            part = replace(whole, queries=8, keys=12, held=held)
            rows, columns = slice(first_query, first_query + 8), slice(first_key, first_key + 12)
            inside = whole.dense()[rows, columns]
            assert np.array_equal(
                biases.steps(part)[inside], biases.steps(whole)[rows, columns][inside]
            )


@pytest.mark.parametrize(
    ("axis", "queries", "keys", "text"),
    [
        (
            Axis(3),
            8,
            8,
            "axis 0 has an unlimited side, for which a table has no size: Axis(3, None",
        ),
        (Axis(3, 0, prefix=2), 8, 8, "axis 0 has prefix=2, keys at any distance."),
        (Axis(4, 4, border="wrap", dilation=2), 8, 8, "axis 0 has a circle of 4 keys, fewer than"),
        (Axis(1, 1, stride=4), 8, 8, "axis 0 has stride=4: queries of a group would lie outside"),
        (
            Axis(1, 1, border="shift", align="top-left"),
            9,
            8,
            "moves windows, and its queries, from position 0 on, are not all among its 8 keys.",
        ),
    ],
)
def test_masks_without_a_table(axis: Axis, queries: int, keys: int, text: str) -> None:
    with pytest.raises(MaskError) as raised:
        biases.check_table(Mask(axis), geometry.bind(Mask(axis), (queries,), (keys,)))
    assert text in str(raised.value)


def test_the_widest_groups_that_have_a_table() -> None:
    """One more query in a group would lie outside, for all sides."""
    for left, right in product(range(4), range(4)):
        axis = Axis(left, right, stride=12)
        (bound,) = geometry.bind(Mask(axis), (24,), (24,))
        most = biases._narrower(bound).stride
        for stride in range(1, 12):
            try:
                one = Mask(replace(axis, stride=stride))
                biases.check_table(one, geometry.bind(one, (24,), (24,)))
            except MaskError:
                assert stride > most
            else:
                assert stride <= most


def test_positions_need_an_alignment() -> None:
    """A full mask takes any lengths, but the distances of its pairs depend on the alignment."""
    query, key = torch.zeros(1, 3, 1, 4), torch.zeros(1, 5, 1, 4)
    for added in ({"alibi_slopes": torch.ones(1)}, {"relative_bias": torch.zeros(1, 9)}):
        with pytest.raises(MaskError) as raised:
            nbattn.attention(query, key, key, Mask.full(), **added)
        assert "axis 0 (3 queries, 5 keys) has no alignment, so its queries have no" in str(
            raised.value
        )
        assert "align='bottom-right')) puts the last query on the last key." in str(raised.value)


def test_slopes_need_one_line() -> None:
    for mask, space, text in (
        (Mask.neighborhood((3, 3)), (6, 6), "the mask has 2 axes, and ALiBi is a distance on one."),
        (Mask(Axis(2, 2, border="wrap")), (8,), 'border="wrap" has no distance along a line.'),
    ):
        with pytest.raises(MaskError, match="alibi_slopes") as raised:
            biases.check_slopes(mask, geometry.bind(mask, space, space))
        assert text in str(raised.value)

"""Tests of numbers of allowed pairs against the independent enumerator, pair by pair."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import axis_matrix, bound_axes

from nbattn import Axis
from nbattn.geometry import BoundAxis
from nbattn.pictures.shares import allowed_pairs


@given(bound_axes(longest=24), st.data())
@settings(max_examples=100)
def test_pairs_of_two_ranges_are_counted_one_by_one(bound, data: st.DataObject) -> None:
    axis, queries, keys = bound
    rows, columns = (
        range(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))),
              data.draw(st.integers(1, 6) | st.just(axis.dilation)))
        for n in (queries, keys)
    )  # fmt: skip
    matrix = axis_matrix(axis, queries, keys)
    want = sum(matrix[i, j] for i in rows for j in columns)
    assert allowed_pairs(BoundAxis(axis, queries, keys), rows, columns) == want


def test_pairs_of_a_residue_class_are_not_those_of_others() -> None:
    axis = Axis(2, 1, dilation=3)
    matrix = axis_matrix(axis, 20, 20)
    for start in range(3):
        found = allowed_pairs(BoundAxis(axis, 20, 20), range(20), range(start, 17, 3))
        assert found == matrix[:, start:17:3].sum()


def test_pairs_of_two_ranges_whose_steps_have_no_common_divisor() -> None:
    axis = Axis(3, 3, dilation=2)
    matrix = axis_matrix(axis, 30, 30)
    for first in range(5):
        found = allowed_pairs(BoundAxis(axis, 30, 30), range(30), range(first, 30, 5))
        assert found == matrix[:, first::5].sum()

"""Tests of runs with signs, and of the queries of keys, against the independent enumerator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from nbattn import Axis
from nbattn.explorer import runs
from nbattn.geometry import BoundAxis, Held

READ, MOVED, PREFIX = range(3)


def keys_of(flat: list[int], step: int) -> dict[int, int]:
    """The keys of a row and the kind of each; none twice."""
    found = [
        (start + step * n, kind)
        for kind, start, count in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        for n in range(count)
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def expected(axis: Any, query: int, queries: int, keys: int) -> dict[int, int]:
    """The keys of a query by the enumerator, each with the first rule that explains it."""
    window = replace(axis, prefix=0)
    unmoved = replace(window, border="clip")
    own, plain = (oracle.attended_keys(a, query, queries, keys) for a in (window, unmoved))
    return {
        key: PREFIX if key not in own else MOVED if key not in plain else READ
        for key in oracle.attended_keys(axis, query, queries, keys)
    }


@settings(max_examples=100)
@given(oracle.bound_axes())
def test_rows_are_those_of_the_enumerator_with_their_signs(cases, bound):
    axis, queries, keys = bound
    found = runs.of_queries(BoundAxis(axis, queries, keys), range(queries))
    wanted = [expected(axis, query, queries, keys) for query in range(queries)]
    assert [keys_of(row, axis.dilation) for row in found] == wanted
    cases("explorer: axes", 1)


@settings(max_examples=100)
@given(oracle.bound_axes())
def test_readers_are_those_of_the_enumerator(bound):
    axis, queries, keys = bound
    matrix = oracle.axis_matrix(axis, queries, keys)
    for key, flat in enumerate(runs.of_keys(BoundAxis(axis, queries, keys), range(keys))):
        assert oracle.runs(matrix[:, key].nonzero()[0].tolist(), axis.dilation) == list(
            zip(flat[::2], flat[1::2], strict=True)
        )


def test_the_moved_keys_of_a_part_that_begins_later():
    part = BoundAxis(Axis(2, 2, border="shift"), 2, 9, Held(10, 12, 3, 12))
    assert runs.of_queries(part, range(2)) == [[MOVED, 4, 1, READ, 5, 4], [MOVED, 4, 2, READ, 6, 3]]


@settings(max_examples=100)
@given(oracle.bound_axes(longest=14), st.data())
def test_a_part_of_an_axis_has_its_part_of_the_rows(bound, data):
    axis, queries, keys = bound
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in (queries, keys)]
    (first, stop), (first_key, stop_key) = ends
    part = BoundAxis(
        axis, stop - first, stop_key - first_key, Held(first, queries, first_key, keys)
    )
    found = runs.of_queries(part, range(stop - first))
    for query, row in enumerate(found, first):
        whole = expected(axis, query, queries, keys)
        kept = {k - first_key: kind for k, kind in whole.items() if first_key <= k < stop_key}
        assert keys_of(row, axis.dilation) == kept


@settings(max_examples=100)
@given(oracle.bound_axes(longest=20))
def test_the_dilation_grid_of_a_query_is_that_of_its_position(bound):
    axis, queries, keys = bound
    found = runs.first_keys(BoundAxis(axis, queries, keys), range(queries))
    for query, first in enumerate(found):
        at = oracle.position(axis, query, queries, keys) if axis.dilation > 1 else 0
        assert first == oracle.coordinate(at, axis.dilation)[0]


def test_rows_in_steps_are_every_other_row():
    axis = BoundAxis(Axis(2, 1, border="shift", prefix=1), 30, 30)
    every = runs.of_queries(axis, range(30))
    assert runs.of_queries(axis, range(0, 30, 7)) == every[::7]

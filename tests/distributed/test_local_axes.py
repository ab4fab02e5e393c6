"""Tests of parts of axes as axes of their own: the same pairs, and no keys that are not needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbattn import Axis, Mask, geometry
from nbattn.distributed.chunks import Span
from nbattn.distributed.local_axes import (
    LocalAxis,
    Run,
    keys_stand_alone,
    local_axis,
    local_keys,
    whole_axis,
)

Count = Callable[[str, int], None]
Bound = tuple[Axis, int, int]


def on_the_axis(local: LocalAxis, queries: int, keys: int) -> np.ndarray:
    """int `[queries, keys]`: how often the local axis computes each pair of the whole one."""
    place = np.full(local.keys, -1)
    for start, stop, at in local.runs:
        assert (place[at : at + stop - start] < 0).all()
        place[at : at + stop - start] = range(start, stop)
    found = np.zeros((queries, keys), dtype=int)
    for row, column in np.argwhere(
        oracle.axis_matrix(local.spec, local.queries.length, local.keys)
    ):
        assert place[column] >= 0
        found[local.queries.start + row, place[column]] += 1
    return found


@given(oracle.bound_axes(longest=30), st.data(), st.booleans())
@settings(max_examples=800)
def test_some_queries_as_an_axis_of_their_own(
    cases: Count, problem: Bound, data: st.DataObject, table: bool
) -> None:
    spec, queries, keys = problem
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, queries)] * 2)))
    (bound,) = geometry.bind(Mask(spec), queries, keys)
    local = local_axis(bound, Span(start, stop), table=table)
    rows = np.zeros((queries, keys), dtype=int)
    rows[start:stop] = oracle.axis_matrix(spec, queries, keys)[start:stop]
    np.testing.assert_array_equal(on_the_axis(local, queries, keys), rows)
    needed = {key for run in local.runs for key in range(*run.span)}
    attended = {*np.flatnonzero(rows.any(axis=0)).tolist()}
    if spec.border == "wrap":
        assert needed >= attended
    elif spec.dilation == spec.stride == 1:
        assert needed == attended
    elif needed:  # and keys between them
        assert {min(needed), max(needed)} <= attended <= needed
    if not attended:
        assert not needed
    positions = [*range(*local.reach)]
    if bound.spec.border != "wrap" and local.runs:
        assert (positions[0], positions[-1]) == (min(needed), max(needed))
    elif local.runs:
        assert {position % keys for position in positions} == needed
    assert local.bound().pairs() == rows.sum()
    cases("local axes", 1)


@given(oracle.bound_axes(longest=30, borders=("clip",)), st.data())
@settings(max_examples=300)
def test_all_queries_against_some_keys(cases: Count, problem: Bound, data: st.DataObject) -> None:
    spec, queries, keys = problem
    spec = replace(spec, stride=1)
    assert keys_stand_alone(spec)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, keys)] * 2)))
    (bound,) = geometry.bind(Mask(spec), queries, keys)
    local = local_keys(bound, Span(start, stop))
    columns = np.zeros((queries, keys), dtype=int)
    columns[:, start:stop] = oracle.axis_matrix(spec, queries, keys)[:, start:stop]
    np.testing.assert_array_equal(on_the_axis(local, queries, keys), columns)
    cases("local keys", 1)


def test_masks_whose_keys_stand_alone() -> None:
    assert keys_stand_alone(Axis(3, 0, dilation=2, prefix=0))
    assert not keys_stand_alone(Axis(3, 0, stride=2))
    assert not keys_stand_alone(Axis(3, 3, border="shift"))
    assert not keys_stand_alone(Axis(3, 3, border="wrap"))


def part(spec: Axis, length: int, start: int, stop: int) -> LocalAxis:
    (bound,) = geometry.bind(Mask(spec), length)
    return local_axis(bound, Span(start, stop))


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        (Axis(2, 1), (Run(8, 16, 0),)),
        (Axis(2, 0, causal=True, prefix=3), (Run(0, 3, 0), Run(8, 15, 3))),
        (Axis(2, 1, dilation=2), (Run(6, 17, 0),)),
        (Axis(2, 2, stride=4), (Run(8, 17, 0),)),
        (Axis(12, 12, border="shift"), (Run(0, 27, 0),)),
        (Axis(11, 0, border="wrap"), (Run(39, 40, 0), Run(0, 15, 1))),
        (Axis(30, 30, border="wrap"), (Run(0, 40, 0),)),
    ],
)
def test_the_keys_of_five_queries_of_40(spec: Axis, runs: tuple[Run, ...]) -> None:
    assert part(spec, 40, 10, 15).runs == runs


def test_laps_of_a_circle_ascend() -> None:
    local = part(Axis(11, 0, border="wrap"), 40, 10, 15)
    assert local.laps() == ((Run(39, 40, 0),), (Run(0, 15, 1),))
    assert part(Axis(2, 0, causal=True, prefix=3), 40, 10, 15).laps() == (
        (Run(0, 3, 0), Run(8, 15, 3)),
    )


def test_a_far_prefix_is_put_beside_the_windows() -> None:
    """A rank of a long document has the first tokens and its window, and nothing between."""
    local = part(Axis(99, 0, causal=True, prefix=4), 10**9, 10**8, 10**8 + 1000)
    assert local.keys == 4 + 99 + 1000
    assert local.spec == Axis(99, 0, causal=True, prefix=4, align="top-left", offset=103)


@pytest.mark.parametrize("prefix", [2, 3])
def test_queries_whose_windows_begin_behind_them_keep_their_prefix(prefix: int) -> None:
    """Of a causal group of four with a window of one key, only the last query has that key."""
    spec = Axis(0, causal=True, stride=4, prefix=prefix)
    (bound,) = geometry.bind(Mask(spec), 16)
    matrix = oracle.axis_matrix(spec, 16, 16).astype(int)
    for start in range(16):
        for stop in range(start + 1, 17):
            found = on_the_axis(local_axis(bound, Span(start, stop)), 16, 16)
            np.testing.assert_array_equal(found[start:stop], matrix[start:stop])


def test_an_axis_that_is_not_cut() -> None:
    (bound,) = geometry.bind(Mask(Axis(2, 2)), 9)
    assert whole_axis(bound).bound() == bound
    assert whole_axis(bound).runs == (Run(0, 9, 0),)

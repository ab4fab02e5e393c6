"""Tests of who needs which keys of whom, on up to 4,096 ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import row_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import chunk

from nbattn import Axis, Mask, geometry
from nbattn.distributed import shards
from nbattn.distributed.chunks import Span
from nbattn.distributed.shards import ShardedAxis

Count = Callable[[str, int], None]
Bound = tuple[Axis, int, int]


@given(oracle.bound_axes(longest=30))
@settings(max_examples=200)
def test_both_oracles_agree(problem: Bound) -> None:
    spec, queries, keys = problem
    found = np.zeros((queries, keys), dtype=int)
    np.add.at(found, row_oracle.pairs(spec, queries, keys), 1)
    np.testing.assert_array_equal(found, oracle.axis_matrix(spec, queries, keys).astype(int))


LONG = {
    "sliding window": (Axis(40, 0, causal=True), 20_000, 20_000, 4096),
    "shift": (Axis(9, 8, dilation=3, stride=4, border="shift"), 9_000, 9_000, 4096),
    "circle": (Axis(20, 20, dilation=2, stride=2, border="wrap"), 8_192, 8_192, 4096),
    "prefix": (Axis(7, 0, causal=True, prefix=9, align="bottom-right"), 5_000, 6_000, 1000),
    "as many positions as ranks": (Axis(3, 2), 4096, 4096, 4096),
    "fewer positions than ranks": (Axis(3, 3, border="shift"), 700, 700, 1024),
    "unlimited": (Axis(None, 0, causal=True, align="top-left"), 600, 900, 257),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_thousands_of_parts_compute_every_pair_once(name: str, cases: Count) -> None:
    """On several axes the pairs of a rank are the product of those of its parts."""
    check_pairs(*LONG[name], cases)


@given(oracle.axes(most=40), st.integers(1, 1000), st.integers(0, 1000), st.integers(2, 4096))
@settings(max_examples=40)
def test_random_axes_in_up_to_4096_parts(
    cases: Count, spec: Axis, queries: int, keys: int, parts: int
) -> None:
    if spec.border == "wrap":
        circle = spec.dilation * spec.stride
        queries = keys = -(-queries // circle) * circle
    elif spec.align is None:
        keys = queries
    check_pairs(spec, queries, keys, parts, cases)


def check_pairs(spec: Axis, queries: int, keys: int, parts: int, cases: Count) -> None:
    """Compares the pairs of all parts with those of the whole axis, one by one."""
    axis = ShardedAxis(geometry.bind(Mask(spec), queries, keys)[0], parts)
    found: list[np.ndarray] = []
    for part in range(parts):
        local = axis.local(part)
        place = np.full(local.keys, -1)
        for start, stop, at in local.runs:
            place[at : at + stop - start] = np.arange(start, stop)
        row, column = row_oracle.pairs(local.spec, local.queries.length, local.keys)
        assert (place[column] >= 0).all()
        found.append((local.queries.start + row) * keys + place[column])
    every = row_oracle.codes(*row_oracle.pairs(spec, queries, keys), keys)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), every)
    cases("ranks, parts of long axes", parts)
    cases("ranks, pairs of long axes", len(every))


@pytest.mark.parametrize("name", LONG)
def test_pieces_are_the_keys_that_travel(name: str) -> None:
    """Each key is in one piece of a part at most, and of the rank that has it; senders and
    receivers list the same.
    """
    spec, queries, keys, parts = LONG[name]
    axis = ShardedAxis(geometry.bind(Mask(spec), queries, keys)[0], parts)
    size = -(-keys // parts)
    row, column = row_oracle.pairs(spec, queries, keys)
    order = np.argsort(row, kind="stable")
    attended = np.split(column[order], np.searchsorted(row[order], np.arange(1, queries)))
    readers: list[list[int]] = [[] for _ in range(parts)]
    for part in range(parts):
        pieces = axis.pieces(part)
        needed = [key for piece in pieces for key in range(piece.start, piece.stop)]
        assert len(set(needed)) == len(needed)
        assert [key // size for key in needed] == [
            piece.owner for piece in pieces for _ in range(piece.start, piece.stop)
        ]
        mine = chunk(queries, parts, part)
        wanted = {*np.concatenate([attended[i] for i in mine] or [mine]).tolist()}
        assert wanted <= {*needed}
        if spec.dilation == spec.stride == 1:
            assert wanted == {*needed}
        for owner in sorted({piece.owner for piece in pieces}):
            readers[owner].append(part)
    assert [axis.readers(part) for part in range(parts)] == [*map(tuple, readers)]


@given(oracle.bound_axes(longest=24), st.integers(1, 6))
@settings(max_examples=300)
def test_inner_queries_need_no_keys_of_others(cases: Count, problem: Bound, parts: int) -> None:
    spec, queries, keys = problem
    axis = ShardedAxis(geometry.bind(Mask(spec), queries, keys)[0], parts)
    matrix = oracle.axis_matrix(spec, queries, keys)
    for part in range(parts):
        rows, own = chunk(queries, parts, part), chunk(keys, parts, part)
        inner = axis.inner(part)
        assert inner.of(axis.queries(part)) == inner or not inner.length
        outside = np.delete(matrix, own, axis=1).any(axis=1)
        assert not outside[inner.start : inner.stop].any() or parts == 1
        plain = spec.border == "clip" and spec.stride == spec.dilation == 1 and not spec.prefix
        if plain and matrix[rows].any(axis=1).all():
            stays = [int(row) for row in rows if not outside[row]]
            assert inner.length == len(stays)
        cases("inner queries", 1)


def test_needed_blocks_of_two_axes() -> None:
    bound = geometry.bind(Mask.neighborhood((3, 3)), (8, 8))
    axes = [ShardedAxis(axis, 2) for axis in bound]
    assert shards.owners_of(axes, (0, 1)) == shards.readers_of(axes, (0, 1)) == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    (block,) = shards.needed_from(axes, (0, 1), (1, 0))
    assert block == ((1, 0), (Span(4, 5), Span(3, 4)))
    assert block.tokens == 1
    unit = shards.unit_of(axes, (0, 1), [Span(0, 2), Span(6, 8)])
    assert [local.keys for local in unit.axes] == [3, 3]
    assert unit.shares == (((0, 0, 3, 0),), ((1, 1, 3, 0),))


def test_whole_queries_attend_to_their_own_keys() -> None:
    (bound,) = geometry.bind(Mask.sliding_window(30, 0, align="bottom-right"), 1, 100)
    axis = ShardedAxis(bound, 4, queries_are_whole=True)
    assert axis.queries(2) == axis.inner(2) == (0, 1)
    assert [axis.pieces(part) for part in range(4)] == [(), (), ((2, 69, 75),), ((3, 75, 100),)]


def test_keys_that_no_query_of_an_uncut_axis_reads_do_not_travel() -> None:
    mask = Mask(Axis(3, 3), Axis(2, 0, align="top-left"))
    rows, columns = geometry.bind(mask, (8, 4), (8, 400))
    axes = [ShardedAxis(rows, 4), ShardedAxis(columns, 1)]
    blocks = [*shards.needed_from(axes, (1, 0), (0, 0))]
    assert [block.spans for block in blocks] == [((0, 2), (0, 4))]
    assert columns.dense()[:, 4:].sum() == 0


@pytest.mark.parametrize(
    "spec", [Axis(2, 2, border="wrap"), Axis(1, 0, causal=True, prefix=2), Axis(), Axis(4, 4)]
)
def test_other_uncut_axes_stay_as_they_are(spec: Axis) -> None:
    (bound,) = geometry.bind(Mask(spec), 12)
    local = ShardedAxis(bound, 1).local(0)
    assert (local.spec, local.keys, local.reach) == (spec, 12, (0, 12))

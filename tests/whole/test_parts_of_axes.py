"""Tests of tensors that hold a part of an axis: the part has the mask's own pairs.

A part is judged by the dense matrix of the whole axis, of which it is a block of rows and columns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_library import NAMES

from nbattn import Axis, Mask, MaskError
from nbattn.backends.families import runner
from nbattn.backends.inputs import Inputs
from nbattn.geometry import BoundAxis, Held, bind
from nbattn.planner import planner
from nbattn.program.band_pieces import band_pieces
from nbattn.program.dense_pieces import dense_pieces
from nbattn.program.device import named
from nbattn.program.request import request_of

Case = tuple[Axis, int, int, Held, int, int]


def axes() -> st.SearchStrategy[Axis]:
    sides = st.integers(0, 6)
    plain = {"dilation": st.integers(1, 3), "stride": st.integers(1, 4)}
    placed = {**plain, "align": st.sampled_from(["top-left", "bottom-right", 3, -2])}
    return st.one_of(
        st.builds(Axis, st.none() | sides, st.none() | sides, **placed),
        st.builds(Axis, st.none() | sides, causal=st.just(True), **placed),
        st.builds(Axis, sides, sides, border=st.just("shift"), **placed),
        st.builds(Axis, sides, sides, border=st.just("wrap"), **plain),
        st.builds(Axis, sides, sides, prefix=st.integers(1, 5), align=st.just("top-left")),
        st.builds(Axis, sides, causal=st.just(True), prefix=st.integers(1, 5)),
    )


@st.composite
def parts(draw: st.DrawFn) -> Case:
    """An axis, how many of its queries and keys are held, and which."""
    axis = draw(axes())
    if axis.border == "wrap":
        queries = keys = axis.dilation * axis.stride * draw(st.integers(1, 6))
    else:
        queries = draw(st.integers(1, 24))
        keys = queries if axis.align is None else draw(st.integers(1, 24))
    row, row_stop = sorted(draw(st.tuples(*[st.integers(0, queries)] * 2)))
    key, key_stop = sorted(draw(st.tuples(*[st.integers(0, keys)] * 2)))
    return axis, row_stop - row, key_stop - key, Held(row, queries, key, keys), row, key


def bound(case: Case) -> tuple[BoundAxis, np.ndarray]:
    """The part of an axis, and the block of the whole axis's matrix that it should be."""
    spec, queries, keys, held, row, key = case
    (axis,) = bind(Mask(spec), queries, keys, (held,))
    whole = bind(Mask(spec), held.query_length, held.key_length)[0].dense()
    return axis, whole[row : row + queries, key : key + keys]


@given(parts())
def test_a_part_is_a_block_of_the_whole(cases: Callable[[str, int], None], case: Case) -> None:
    axis, wanted = bound(case)
    np.testing.assert_array_equal(axis.dense(), wanted)
    assert axis.pairs() == wanted.sum()
    assert axis.empty_queries() == (~wanted.any(axis=1)).sum()
    for query, row in enumerate(wanted):
        reads = np.zeros(axis.keys, dtype=bool)
        for start, count in axis.key_intervals(query):
            reads[start : start + axis.spec.dilation * count : axis.spec.dilation] = True
        np.testing.assert_array_equal(reads, row)
    for key, column in enumerate(wanted.T):
        readers = np.zeros(axis.queries, dtype=bool)
        for start, count in axis.query_intervals(key):
            readers[start : start + axis.spec.dilation * count : axis.spec.dilation] = True
        np.testing.assert_array_equal(readers, column)
    cases("parts of axes", 1)


@given(parts(), st.integers(1, 9))
def test_tiles_of_a_part(case: Case, size: int) -> None:
    axis, wanted = bound(case)
    found, step = np.zeros_like(wanted), axis.spec.dilation
    tiles = list(axis.tiles(size))
    for tile in tiles:
        rows = tile.queries[0] + step * np.arange(tile.queries[1])
        columns = [start + step * np.arange(count) for start, count in tile.keys]
        if columns:
            found[np.ix_(rows, np.concatenate(columns))] = tile.allowed()
    np.testing.assert_array_equal(found, wanted)
    totals = axis.tile_totals(size)
    widths = [tile.width for tile in tiles]
    assert totals.tiles == len(tiles)
    assert totals.rows == axis.queries
    assert totals.keys == sum(widths)
    assert axis.coverage(3, 4).sum() == wanted.sum()


def test_long_parts_are_counted_in_closed_form() -> None:
    """Pairs of a part of a long axis are those of all parts of it together."""
    draw = random.Random(5)
    for spec in (
        Axis(700, 300, dilation=3, stride=5),
        Axis(400, 400, border="shift", dilation=2),
        Axis(100, 250, border="wrap", stride=4),
        Axis(999, causal=True, prefix=50),
    ):
        length = 12000
        whole = bind(Mask(spec), length)[0].pairs()
        cuts = [0, *sorted(draw.sample(range(1, length), 3)), length]
        total = 0
        for row, row_stop in pairwise(cuts):
            for key, key_stop in pairwise(cuts):
                held = Held(row, length, key, length)
                total += bind(Mask(spec), row_stop - row, key_stop - key, (held,))[0].pairs()
        assert total == whole


def test_rules_of_lengths_are_those_of_the_axis() -> None:
    """A part of a circular axis is no shorter circle, and a part needs no alignment of its own."""
    held = Held(4, 12, 0, 12)
    assert bind(Mask(Axis(2, 2, border="wrap")), 4, 12, (held,))[0].pairs() == 20
    assert bind(Mask(Axis(2, 2)), 4, 12, (held,))[0].pairs() == 20
    with pytest.raises(MaskError, match="12 queries, 13 keys"):
        bind(Mask(Axis(2, 2)), 4, 12, (replace_held(held, key_length=13),))


def replace_held(held: Held, **changes: int) -> Held:
    return held._replace(**changes)


def test_pieces_refuse_a_part_with_a_reason() -> None:
    (axis,) = bind(Mask(Axis(2, 2)), 4, 12, (Held(4, 12, 0, 12),))
    for pieces in (dense_pieces, band_pieces):
        assert pieces(axis) == "the tensors hold a part of the axis"
    assert replace(axis, held=None).held is None


@given(parts(), st.sampled_from([1, 3]))
def test_a_plan_of_a_part_is_proved_and_runs(case: Case, heads: int) -> None:
    spec, queries, keys, held, *_ = case
    request = request_of(
        Mask(spec),
        (2, queries, heads, 8),
        (2, keys, 1, 8),
        value_dim=8,
        dtype="float64",
        device=named("cpu"),
        held=(held,),
    )
    _, wanted = bound(case)
    plan = planner.make(request)
    np.testing.assert_array_equal(plan.support(), wanted)
    assert plan.verify()
    by_name = {
        candidate.name: [r.limit for r in candidate.reasons] for candidate in plan.candidates
    }
    assert "held" in by_name["reference/dense"]
    assert by_name["tiled/tile"] == []
    assert by_name["native/window"] == ([] if NAMES else ["package"])
    query, key = torch.randn(2, queries, heads, 8).double(), torch.randn(2, keys, 1, 8).double()
    inputs = Inputs(query, key, key, None, None, None, None, 1.0, None)
    scores = torch.einsum("bihd,bjd->bhij", query, key[:, :, 0])
    scores = scores.masked_fill(~torch.from_numpy(wanted.copy()), -torch.inf)
    want = scores.softmax(-1).nan_to_num(0) @ key.movedim(2, 1)
    sums = scores.logsumexp(-1)
    for backend in ("tiled", *NAMES):
        chosen = planner.make(replace(request, backend=backend)).chosen
        found = runner(backend).forward(chosen.program, inputs, return_lse=True)
        for one, exact in zip(found, (want, sums), strict=True):
            torch.testing.assert_close(one, exact.transpose(1, 2), rtol=1e-10, atol=1e-10)


def test_summary_and_data_show_a_part() -> None:
    shape = (1, 4, 1, 8), (1, 12, 1, 8)
    named_ = {"value_dim": 8, "dtype": "float32", "device": named("cpu")}
    part = request_of(Mask(Axis(2, 2)), *shape, **named_, held=(Held(4, 12, 0, 12),))
    assert part.summary().endswith("cpu part (4, 12, 0, 12)")
    assert part.to_dict()["held"] == [(4, 12, 0, 12)]
    whole = request_of(Mask.full(), *shape, **named_)
    assert "held" not in whole.to_dict()

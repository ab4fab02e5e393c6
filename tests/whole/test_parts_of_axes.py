"""Tests of tensors that hold a part of an axis: the part has the mask's own pairs.

A part is judged by the dense matrix of the whole axis, of which it is a block of rows and columns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import few_examples
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_library import NAMES
from parts_of_axes import Case, bound, parts

from nbattn import Axis, Mask, MaskError
from nbattn.backends.families import runner
from nbattn.backends.inputs import Inputs
from nbattn.geometry import Held, bind
from nbattn.planner import planner
from nbattn.program.band_pieces import band_pieces
from nbattn.program.dense_pieces import dense_pieces
from nbattn.program.device import named
from nbattn.program.request import request_of
from nbattn.program.tile_traversal import Traversal


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


@settings(max_examples=100)
@given(parts(), st.integers(1, 9), st.sampled_from([0, 1, 4]), st.booleans())
def test_traversals_of_a_part(
    cases: Callable[[str, int], None], case: Case, rows: int, columns: int, inverse: bool
) -> None:
    """Tile by tile, by the runs of rows, and counted in closed form."""
    axis, wanted = bound(case)
    wanted = wanted.T if inverse else wanted
    traversal, step = Traversal(axis, inverse), axis.spec.dilation
    found, by_runs = np.zeros(wanted.shape, dtype=int), np.zeros(wanted.shape, dtype=int)
    visits = widths = 0
    for tile in traversal.tiles(rows, columns):
        for part in tile.columns:
            found[np.ix_(tile.positions, part.positions)] += part.reads
            assert part.reads.all() or not part.full
            visits, widths = visits + 1, widths + len(part.positions)
    for row, runs in enumerate(zip(*traversal.reads(rows, max(columns, 1)), strict=True)):
        for start, count in zip(*runs, strict=True):
            by_runs[row, start : start + step * count : step] += 1
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(by_runs, wanted)
    assert traversal.tile_pairs(rows, 1) == widths
    assert not columns or traversal.tile_pairs(rows, columns) == visits
    cases("parts of axes, traversals", 1)


def test_traversals_of_long_parts_are_counted_in_closed_form() -> None:
    draw = random.Random(6)
    for spec in (
        Axis(700, 300, dilation=3, stride=5),
        Axis(400, 400, border="shift", dilation=2),
        Axis(100, 250, border="wrap", stride=4),
        Axis(999, causal=True, prefix=50),
        Axis(3, 3, stride=7),
    ):
        length = 11200
        for inverse in (False, True):
            row, row_stop, key, key_stop = (draw.randrange(length) for _ in range(4))
            (row, row_stop), (key, key_stop) = sorted((row, row_stop)), sorted((key, key_stop))
            held = Held(row, length, key, length)
            (axis,) = bind(Mask(spec), row_stop - row, key_stop - key, (held,))
            traversal = Traversal(axis, inverse)
            tiles = traversal.tiles(16, 0)
            widths = sum(len(part.positions) for tile in tiles for part in tile.columns)
            assert traversal.tile_pairs(16, 1) == widths


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


@few_examples.quick(100)
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
    inputs = Inputs(query, key, key, scale=1.0)
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

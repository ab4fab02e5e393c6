"""Tests of measured tiles: which one wins, which count, and that none changes what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import triton_plans
from triton_plans import arguments

from nbattn import Axis, Mask
from nbattn.backends.triton import choice, meaning, measured_tiles
from nbattn.backends.triton.meaning import FIELDS
from nbattn.backends.triton.tiles import Tiles
from nbattn.grids import PackedGrids, grids_of
from nbattn.planner.plan import Plan

MASK, SHAPE = Mask(Axis(3, 3, border="shift"), Axis(6, 6)), (1, 12, 24, 1, 64)
USUAL = {"training": True, "relative_bias": True, "extra_keys": 40}  # all kernels


def plan(**named: Any) -> Plan:
    return triton_plans.planned(MASK, SHAPE, **{**USUAL, **named})


def retiled(planned: Plan, times: Mapping[str, float]) -> Plan:
    request = planned.request
    chosen = measured_tiles.retiled(planned.chosen, request, request.axes(), times)
    return replace(planned, chosen=chosen, candidates=(chosen,))


def tiles_of(planned: Plan) -> dict[str, Tiles | None]:
    known = arguments(planned)
    return {kernel: getattr(known, name) for kernel, name in FIELDS.items()}


def ranked(kernel: str, planned: Plan) -> list[Tiles]:
    request = planned.request
    found = measured_tiles.ranked(kernel, request, request.axes(), arguments(planned).build)
    return [one.tiles for one in found]


def slowest_first(planned: Plan) -> dict[str, float]:
    """Times that reverse the order of the estimates."""
    return {
        measured_tiles.name(kernel, tiles): 1e-3 / (1 + place)
        for kernel in FIELDS
        for place, tiles in enumerate(ranked(kernel, planned))
    }


def test_names_hold_all_of_a_tile() -> None:
    one = Tiles((1, 8, 8), (1, 4, 16), 4, 2)
    others = [
        replace(one, **changed)
        for changed in ({"rows": (1, 4, 16)}, {"columns": (1, 8, 8)}, {"warps": 8}, {"stages": 3})
    ]
    names = {measured_tiles.name(kernel, t) for kernel in FIELDS for t in (one, *others)}
    assert len(names) == 5 * len(FIELDS)
    assert measured_tiles.name("dkdv", one) == "dkdv 1x8x8/1x4x16 4w2s"


def test_the_first_of_the_ranked_tiles_is_the_candidates() -> None:
    planned = plan()
    assert {kernel: ranked(kernel, planned)[0] for kernel in FIELDS} == tiles_of(planned)


def test_the_tile_measured_fastest_wins() -> None:
    before = plan()
    last = {kernel: ranked(kernel, before)[-1] for kernel in FIELDS}
    assert all(last[kernel] != tiles for kernel, tiles in tiles_of(before).items())
    after = retiled(before, slowest_first(before))
    assert tiles_of(after) == last
    forward = plan(training=False)
    assert tiles_of(retiled(forward, slowest_first(before)))["fwd"] == last["fwd"]
    assert after.verify()
    assert np.array_equal(after.support(), before.support())
    costs = before.chosen.cost, after.chosen.cost
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0].estimate < costs[1].estimate
    assert costs[0].useful_pairs == costs[1].useful_pairs
    assert after.chosen.note == before.chosen.note


def test_a_kernel_without_measured_tiles_keeps_its_own() -> None:
    before = plan()
    times = {n: s for n, s in slowest_first(before).items() if n.startswith("dq ")}
    kept = tiles_of(retiled(before, times))
    assert kept == {**tiles_of(before), "dq": ranked("dq", before)[-1]}


def test_only_legal_tiles_count() -> None:
    """A name that is no legal tile's, of whatever time."""
    before = plan()
    huge = measured_tiles.name("fwd", Tiles((1, 512, 64), (1, 64, 64), 4, 2))
    times = {huge: 1e-9, "fwd": 1e-9, "": 1e-9, "dkdv 1x1x1/1x1x1 1w1s": 1e-9}
    assert retiled(before, times).chosen is before.chosen


def test_tiles_over_the_grid_are_not_measured(monkeypatch: Any) -> None:
    before = plan()
    request = before.request
    found = choice.of_request("fwd", request, request.axes(), arguments(before).build)
    counts = sorted(choice.programs("fwd", one, request) for one in found)
    assert counts[0] < counts[-1]
    monkeypatch.setattr(meaning, "GRID", counts[0])
    kept = measured_tiles.ranked("fwd", request, request.axes(), arguments(before).build)
    assert {choice.programs("fwd", one, request) for one in kept} == {counts[0]}


def test_packed_grids_keep_their_tiles() -> None:
    grids = PackedGrids(*2 * [grids_of([(3, 4), (5, 6)])])
    named = {"grids": grids, "training": True}
    planned = triton_plans.planned(MASK, (42, 1, 64), **named)
    times = {f"fwd {n}": 1e-9 for n in ("1x4x4/1x4x4 4w2s", "1x8x8/1x8x8 4w2s")}
    chosen = measured_tiles.retiled(planned.chosen, planned.request, (), times)
    assert chosen is planned.chosen

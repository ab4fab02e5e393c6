"""Tests of a page's data: rows against the independent enumerator, bounds, and every kind of
plan.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import oracle
import pytest
from hypothesis import given, settings
from work import work

import nbattn
from nbattn import Axis, Mask
from nbattn.explorer import data, page
from nbattn.geometry import BoundAxis


def planned(mask: Mask, query: tuple[int, ...], key: Any = None, **options: Any) -> nbattn.Plan:
    shape, other = (1, *query, 2, 32), None if key is None else (1, *key, 2, 32)
    return nbattn.plan(mask, shape, other, dtype="float32", device="cpu", **options)


def keys_in(found: dict[str, Any], query: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The keys of a query as a page looks them up."""
    places: list[list[int]] = []
    for number, at in zip(found["views"][0]["axes"], query, strict=True):
        axis = found["axes"][number]
        (flat,) = [
            part["runs"][at - part["first"]]
            for part in axis["rows"]
            if part["first"] <= at < part["first"] + len(part["runs"])
        ]
        runs = zip(flat[1::3], flat[2::3], strict=True)
        places.append([start + axis["step"] * n for start, count in runs for n in range(count)])
    return set(itertools.product(*places))


@settings(max_examples=60)
@given(oracle.masks().filter(lambda drawn: 0 not in (*drawn[1], *drawn[2])))
def test_rows_of_random_masks_are_those_of_the_enumerator(cases, drawn):
    mask, query, key = drawn
    found = data.of_plans({"plan": planned(mask, query, key)})
    view = found["views"][0]
    matrix = oracle.matrix(mask.axes, query, key)
    assert (view["pairs"], view["all_pairs"]) == (matrix.sum(), matrix.size)
    assert view["without_keys"] == (~matrix.any(axis=1)).sum()
    every = list(itertools.product(*map(range, query)))
    keys = list(itertools.product(*map(range, key)))
    for number in range(0, len(every), max(1, len(every) // 8)):
        wanted = {keys[at] for at in matrix[number].nonzero()[0]}
        assert keys_in(found, every[number]) == wanted
    assert found["plans"][0]["proof"]["exact"] is True
    cases("explorer: masks", 1)


def test_own_positions_follow_the_alignment():
    axes = [
        data.of_plans({"p": planned(mask, (4,), (12,))})["axes"][0]
        for mask in (Mask.causal("bottom-right"), Mask.causal("top-left"), Mask.full())
    ]
    assert [axis["own"] for axis in axes] == [8, 0, None]


def test_candidates_have_costs_or_reasons():
    plan = planned(Mask.neighborhood((3, 3)), (8, 8))
    (found,) = data.of_plans({"p": plan})["plans"]
    assert [c["name"] for c in found["candidates"]] == [c.name for c in plan.candidates]
    assert found["candidates"][0]["state"] == "chosen"
    for shown, candidate in zip(found["candidates"], plan.candidates, strict=True):
        assert bool(shown["cost"]) == (not candidate.reasons)
        if candidate.reasons:
            assert shown["reasons"][0] == candidate.reasons[0].text
    assert dict(found["request"])["query"] == "[1, 8, 8, 2, 32]"
    assert found["explain"] == plan.explain()


def test_a_wrong_program_is_shown_as_wrong(monkeypatch: pytest.MonkeyPatch):
    def verify(_: nbattn.Plan) -> bool:
        raise AssertionError("axis 0: query 3 attends to other keys")

    monkeypatch.setattr(nbattn.Plan, "verify", verify)
    (found,) = data.of_plans({"p": planned(Mask.causal(), (8,))})["plans"]
    assert found["proof"] == {"exact": False, "words": "axis 0: query 3 attends to other keys"}


def test_a_joint_plan_has_both_parts():
    options = {"extra_keys": 5, "extra_queries": True}
    found = data.of_plans({"image": planned(Mask.neighborhood((3, 3)), (8, 8), **options)})
    names = [view["name"] for view in found["views"]]
    assert names == ["image", "image, extra tokens as queries"]
    assert [view["plan"] for view in found["views"]] == [0, 1]
    assert found["views"][1]["queries"] == 5


def test_packed_grids_have_a_view_for_each_size():
    grids = [(4, 4), (8, 6), (4, 4)]
    mask = Mask.neighborhood((3, 3))
    plan = nbattn.plan(mask, (80, 2, 32), dtype="float32", device="cpu", grids=grids)
    found = data.of_plans({"p": plan})
    assert [view["name"] for view in found["views"]] == ["p, grids of 4×4", "p, grids of 8×6"]
    assert [view["queries"] for view in found["views"]] == [16, 48]
    assert dict(found["plans"][0]["request"])["grids"] == "3 grids of 2 sizes"


def test_no_grids_have_a_view_without_queries():
    plan = nbattn.plan(
        Mask.full(2), (0, 2, 32), dtype="float32", device="cpu", grids=[], backend="tiled"
    )
    (view,) = data.of_plans({"p": plan})["views"]
    assert (view["name"], view["pairs"], view["tiles"]) == (
        "p, no grids",
        0,
        {"tiles": 0, "groups": []},
    )


def test_equal_plans_give_the_same_bytes():
    first, second = (planned(Mask.neighborhood((3, 3)), (8, 8)) for _ in range(2))
    assert page.of_plan(first) == page.of_plan(second)


def axis_of(length: int) -> BoundAxis:
    return BoundAxis(Axis(511, 3, border="shift", prefix=4, align="top-left"), length, length)


def test_the_work_of_a_long_axis_does_not_grow():
    small, large = (
        work(lambda length=length: data._axis(axis_of(length), 300)) for length in (10**5, 10**9)
    )
    assert large.lines <= 1.02 * small.lines
    assert large.peak <= 1.1 * small.peak


def test_a_long_axis_has_both_ends_and_the_middle():
    axis = axis_of(10**6)
    found = data._axis(axis, 30)
    assert [part["first"] for part in found["rows"]] == [0, 499_995, 999_990]
    assert [len(part["runs"]) for part in found["readers"]] == [10, 10, 10]
    # its prefix, and 512 + 3 keys of which the last window is moved by 3
    assert found["rows"][2]["runs"][9] == [2, 0, 4, 1, 999_485, 3, 0, 999_488, 512]
    assert len(found["samples"]) == 64


def test_the_largest_page_stays_below_its_limit():
    sides = [{"left": 100, "right": 30 + n, "border": "shift", "prefix": 90} for n in range(3)]
    axes = [BoundAxis(Axis(**side), data.ROWS, data.ROWS) for side in sides]
    rows = sum(len(json.dumps(data._axis(axis, data.ROWS))) for axis in axes)
    tiles = 2000 * 110
    assert rows + tiles + 100_000 < 1_500_000

"""Gathers what the explorer shows of plans as plain data: axes, numbers, tiles, candidates, proof.

The page computes nothing of a mask: it looks rows up and draws them. Axes longer than a page can
hold have the rows of both ends and of the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nbattn import geometry
from nbattn.axis import describe
from nbattn.explorer import runs, tiles
from nbattn.geometry import Axes, BoundAxis
from nbattn.pictures import signs
from nbattn.planner import explain
from nbattn.planner.joint_plan import JointPlan
from nbattn.planner.plan import Plan

FORMAT = 1
ROWS = 4096  # of an axis that is on the page as a whole
_ALL_ROWS = 12_288  # of all axes of a page: what keeps it below 1.5 MB
_SAMPLES = 64  # rows of the small picture of a long axis
_SIZES = 6  # sizes of packed grids that a page shows
_PROVED = 1 << 21  # positions of an axis up to which the page has the proof
_MOVED = {
    "clip": "attended",  # no key is moved
    "shift": "attended, moved inward by the border",
    "wrap": "attended, wrapped around the end",
}
_EXACT = (
    "every query attends to exactly the keys of the mask, each of them once, and to no other key. "
    "plan.verify() compared the keys of each query, axis by axis, and the number of all pairs."
)
_UNPROVED = "not run for this page, which proves axes of up to {most:,}: call plan.verify()."


class View(NamedTuple):
    """One picture of a page: the axes of a plan, or of one size of its packed grids."""

    name: str
    number: int  # of the plan
    plan: Plan
    axes: Axes
    grid: int = 0


def of_plans(plans: Mapping[str, Plan]) -> dict[str, Any]:
    """What a page shows of plans by name, as plain data that JSON takes; the same for equal plans.

    >>> import nbattn
    >>> plan = nbattn.plan(nbattn.Mask.causal(), (1, 4, 2, 32), dtype="float32", device="cpu")
    >>> found = of_plans({"plan": plan})
    >>> found["axes"][0]["rows"][0]["runs"][1], found["views"][0]["pairs"]
    ([0, 0, 2], 10)
    """
    parts = dict(_parts(plans))
    numbered = enumerate(parts.items())
    views = [view for number, (name, plan) in numbered for view in _views(number, name, plan)]
    axes = list(dict.fromkeys(axis for view in views for axis in view.axes))
    rows = min(ROWS, _ALL_ROWS // max(len(axes), 1))
    most = tiles.MOST // max(len(views), 1)
    return {
        "format": FORMAT,
        "kinds": _kinds(),
        "views": [_view(view, axes, most) for view in views],
        "plans": [_plan(name, plan) for name, plan in parts.items()],
        "axes": [_axis(axis, rows) for axis in axes],
    }


def _parts(plans: Mapping[str, Plan]) -> Iterator[tuple[str, Plan]]:
    """Plans by name; a joint plan is two."""
    for name, plan in plans.items():
        if isinstance(plan, JointPlan):
            grid, extras = plan.parts()
            yield name, grid
            yield f"{name}, extra tokens as queries", extras
        else:
            yield name, plan


def _views(number: int, name: str, plan: Plan) -> Iterator[View]:
    packed = plan.request.grids
    if packed is None:
        yield View(name, number, plan, plan.request.axes())
        return
    if not len(packed.sizes.first):
        mask = plan.request.mask
        yield View(f"{name}, no grids", number, plan, geometry.bind(mask, (0,) * mask.rank))
    for at, grid in enumerate(packed.sizes.first.tolist()[:_SIZES]):
        request = plan.request.of_size(at)
        size = "×".join(map(str, request.query_space))
        yield View(f"{name}, grids of {size}", number, plan, request.axes(), grid)


def _view(view: View, axes: list[BoundAxis], most: int) -> dict[str, Any]:
    total = math.prod(axis.queries * axis.keys for axis in view.axes)
    queries = math.prod(axis.queries for axis in view.axes)
    with_keys = math.prod(axis.queries - axis.empty_queries() for axis in view.axes)
    return {
        "name": view.name,
        "plan": view.number,
        "axes": [axes.index(axis) for axis in view.axes],
        "pairs": geometry.pairs(view.axes),
        "all_pairs": total,
        "queries": queries,
        "without_keys": queries - with_keys,
        "tiles": tiles.of_plan(view.plan, view.axes, grid=view.grid, most=most),
    }


def _kinds() -> list[dict[str, str]]:
    names = ("read", "moved", "prefix")
    return [
        {"name": name, "sign": kind, "words": signs.SIGNS[kind]}
        for name, kind in zip(names, runs.KINDS, strict=True)
    ]


def _axis(axis: BoundAxis, limit: int) -> dict[str, Any]:
    """The rows of an axis in both directions."""
    rows: list[dict[str, Any]] = []
    for part in windows(axis.queries, limit):
        row: dict[str, Any] = {"first": part.start, "runs": runs.of_queries(axis, part)}
        if axis.spec.dilation > 1:
            row["classes"] = runs.first_keys(axis, part)
        rows.append(row)
    readers = [
        {"first": part.start, "runs": runs.of_keys(axis, part)}
        for part in windows(axis.keys, limit)
    ]
    every = max(1, -(-axis.queries // _SAMPLES))
    return {
        "axis": repr(axis.spec),
        "words": describe(axis.spec),
        "queries": axis.queries,
        "keys": axis.keys,
        "step": axis.spec.dilation,
        "own": axis.offset - axis.first_key if axis.is_placed else None,
        "moved": _MOVED[axis.spec.border],
        "pairs": axis.pairs(),
        "rows": rows,
        "readers": readers,
        "every": every,
        "samples": runs.of_queries(axis, range(0, axis.queries, every)) if every > 1 else [],
    }


def windows(length: int, limit: int) -> list[range]:
    """The positions whose rows a page has: all of a short axis, or both ends and the middle.

    >>> windows(100, 100), windows(100, 30)
    ([range(0, 100)], [range(0, 10), range(45, 55), range(90, 100)])
    """
    if length <= limit:
        return [range(length)]
    part = limit // 3
    starts = (0, (length - part) // 2, length - part)
    return [range(start, start + part) for start in starts]


def _plan(name: str, plan: Plan) -> dict[str, Any]:
    lines = list(explain.candidate_lines(plan, every=True))
    candidates = [
        {
            "state": line.state,
            "name": line.name,
            "backend": line.name.partition("/")[0].partition(":")[0],
            "cost": line.cost,
            "times": round(line.ratio, 3),
            "reasons": list(line.reasons),
        }
        for line in lines
    ]
    return {
        "name": name,
        "chosen": plan.chosen.name,
        "cost": explain.cost_of(plan.chosen),
        "work": plan.chosen.work(),
        "faster": explain.faster(plan),
        "mask": repr(plan.request.mask),
        "request": _request(plan),
        "candidates": candidates,
        "decided_by": plan.decided_by(),
        "proof": _proof(plan),
        "explain": plan.explain(),
    }


def _request(plan: Plan) -> list[list[str]]:
    """The request as names and values, in the order of a reader's questions."""
    request = plan.request
    batch = [request.batch] * (request.grids is None)
    shapes = {
        "query": [*batch, *request.query_space, request.heads, request.head_dim],
        "key": [*batch, *request.key_space, request.kv_heads, request.head_dim],
    }
    given = {"mask": repr(request.mask), **shapes, **request.to_dict()}
    hidden = ("batch", "query_space", "key_space", "heads", "kv_heads", "head_dim", "device")
    packed = ("grids", "key_grids") * (request.grids is not None)
    shown = {k: v for k, v in given.items() if k not in (*hidden, *packed) and v not in ([], False)}
    if request.grids is not None:
        shown["grids"] = request.grids.summary()
    shown["device"] = request.device.name
    return [[name.replace("_", " "), _word(value)] for name, value in shown.items()]


def _word(value: object) -> str:
    return "yes" if value is True else str(value)


def _proof(plan: Plan) -> dict[str, Any]:
    """The result of `plan.verify()` and what it says."""
    axes = () if plan.request.grids is not None else plan.request.axes()
    longest = max((max(axis.queries, axis.keys) for axis in axes), default=0)
    if longest > _PROVED:
        return {"exact": None, "words": _UNPROVED.format(most=_PROVED)}
    try:
        plan.verify()
    except AssertionError as error:
        return {"exact": False, "words": str(error)}
    return {"exact": True, "words": _EXACT}

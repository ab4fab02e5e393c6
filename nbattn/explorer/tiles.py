"""Lists the tiles that a plan visits, with the share of their pairs that the mask allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

from nbattn.geometry import Axes
from nbattn.pictures.shares import allowed_pairs
from nbattn.planner.plan import Plan
from nbattn.program.blocks import Block

LONGEST = 1 << 16  # queries of an axis up to which the tiles are listed
MOST = 2000  # tiles of a page
_SEEN = 20_000  # blocks of all grids among which those of one are looked for

Ranges = tuple[range, ...]


def of_plan(plan: Plan, axes: Axes, *, grid: int = 0, most: int = MOST) -> dict[str, Any]:
    """The tiles of one grid of a plan: `{"groups": […]}`, or `{"reason": …}` where there are too
    many to draw.

    A group has the tiles with the same queries: `[queries, share, [[share, boxes], …]]`. Queries
    and boxes of keys are lists of `[start, count, step]`, one for each axis; shares are per mille
    of the visited pairs, null of none.
    """
    longest = max((axis.queries for axis in axes), default=0)
    if longest > LONGEST:
        return {"reason": f"an axis has {longest:,} queries; tiles are shown up to {LONGEST:,}"}
    blocks = list(islice(plan.schedule(), _SEEN))
    own = [block for block in blocks if block.grid == grid]
    if len(own) > most or len(blocks) == _SEEN:
        return {"reason": f"the plan visits more than {most:,} tiles, too many to draw"}
    groups: dict[Ranges, list[Block]] = {}
    for block in own:
        groups.setdefault(block.queries, []).append(block)
    counted = cache(allowed_pairs)
    found = [_group(axes, queries, tiles, counted) for queries, tiles in groups.items()]
    return {"tiles": len(own), "groups": found}


def _group(axes: Axes, queries: Ranges, blocks: Sequence[Block], counted: Any) -> list[Any]:
    """One group of tiles as plain data."""
    tiles: list[list[Any]] = []
    allowed = visited = 0
    for block in blocks:
        wanted = sum(_pairs(axes, queries, box, counted) for box in block.keys)
        done = sum(math.prod(map(len, (*queries, *box))) for box in block.keys)
        tiles.append([_share(wanted, done), [_plain(box) for box in block.keys]])
        allowed, visited = allowed + wanted, visited + done
    return [_plain(queries), _share(allowed, visited), tiles]


def _pairs(axes: Axes, queries: Ranges, keys: Ranges, counted: Any) -> int:
    return math.prod(counted(*axis) for axis in zip(axes, queries, keys, strict=True))


def _share(wanted: int, done: int) -> int | None:
    return round(1000 * wanted / done) if done else None


def _plain(ranges: Ranges) -> list[list[int]]:
    return [[part.start, len(part), part.step] for part in ranges]

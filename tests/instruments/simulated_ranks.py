"""All ranks of one attention without processes: what each plans to send, receive and compute is
done with the numbers of queries and keys in the place of their values.

Masks are enumerated by `oracle`, chunks are those of `torch.chunk`; only the plan of each rank is
the package's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import oracle
import torch
from numpy.typing import NDArray

from nbattn import Mask, geometry
from nbattn.distributed.rank_plan import RankPlan, plan_of_rank
from nbattn.distributed.shards import ShardedAxis

Ints = NDArray[np.int64]
Place = tuple[int, ...]


@dataclass
class Simulation:
    """What happened.

    Args:
        pairs: int `[Nq, Nk]`, how often each pair was computed.
        received: for every pair of ranks, receiver first, the numbers of the keys that travelled.
        computed: how many pairs every rank computed.
        own: how many keys every rank has.
    """

    pairs: Ints
    received: dict[tuple[Place, Place], list[int]]
    computed: dict[Place, int]
    own: dict[Place, int]


def chunk(length: int, parts: int, part: int) -> Ints:
    """The positions of a part, as torch cuts."""
    chunks = _chunks(length, parts)
    return chunks[part] if part < len(chunks) else np.arange(0)


@lru_cache(64)
def _chunks(length: int, parts: int) -> list[Ints]:
    return [chunk.numpy() for chunk in torch.arange(length).chunk(parts)]


def held(space: Sequence[int], parts: Sequence[int], place: Place) -> Ints:
    """The numbers of a rank's positions `[*its space]`."""
    numbers = np.arange(math.prod(space)).reshape(tuple(space))
    cuts = zip(space, parts, place, strict=True)
    return numbers[np.ix_(*(chunk(length, n, part) for length, n, part in cuts))]


def simulated(
    mask: Mask,
    space: Sequence[int],
    key_space: Sequence[int],
    parts: Sequence[int],
    whole: Sequence[bool] | None = None,
    table: bool = False,
) -> Simulation:
    """Runs every rank's plan; asserts that senders and receivers agree, and that no unknown key is
    attended to.
    """
    whole = whole or [False] * mask.rank
    bound = geometry.bind(mask, space, key_space)
    axes = tuple(ShardedAxis(*one, table) for one in zip(bound, parts, whole, strict=True))
    cut = tuple(axis for axis, number in enumerate(parts) if number > 1)
    places = list(product(*map(range, parts)))
    keys = {place: held(key_space, parts, place) for place in places}
    query_parts = [1 if all_of_them else n for n, all_of_them in zip(parts, whole, strict=True)]
    queries = {
        place: held(space, query_parts, tuple(map(min, place, (n - 1 for n in query_parts))))
        for place in places
    }
    plans = {place: plan_of_rank(axes, cut, place, "") for place in places}
    received: dict[tuple[Place, Place], list[int]] = {}
    blocks: dict[Place, list[Ints]] = {place: [] for place in places}
    for (to, receiver), (of, sender) in product(enumerate(places), repeat=2):
        sent = [keys[sender][block] for block in plans[sender].route.sent[to]]
        assert tuple(block.shape for block in sent) == plans[receiver].route.received[of]
        assert not sent or plans[sender].travels
        blocks[receiver] += sent
        if sent:
            travelled = np.concatenate([block.ravel() for block in sent])
            received[receiver, sender] = travelled.tolist()
    assert len({plan.travels for plan in plans.values()}) == 1  # all take part, or none
    pairs = np.zeros((math.prod(space), math.prod(key_space)), dtype=np.int64)
    computed = {
        place: _run(plans[place], queries[place], keys[place], blocks[place], pairs)
        for place in places
    }
    return Simulation(pairs, received, computed, {place: keys[place].size for place in places})


def _run(plan: RankPlan, queries: Ints, own: Ints, blocks: list[Ints], pairs: Ints) -> int:
    """Adds the pairs of a rank's tasks; returns how many."""
    done = 0
    for task, rows in zip(plan.tasks, _cut(queries, plan), strict=True):
        columns = own[task.own] if task.own is not None else _boxed(task.box, own, blocks)
        found = oracle.matrix(task.mask.axes, rows.shape, columns.shape)
        row, column = np.nonzero(found)
        known = columns.ravel()[column]
        assert (known >= 0).all()
        np.add.at(pairs, (rows.ravel()[row], known), 1)
        done += len(row)
    return done


def _boxed(box: Any, own: Ints, blocks: list[Ints]) -> Ints:
    """The keys of a task; -1 where none is."""
    keys = np.full(box.space, -1)
    for copy in box.copies:
        source = own if copy.block < 0 else blocks[copy.block]
        assert (keys[copy.target] < 0).all()
        keys[copy.target] = source[copy.source]
    return keys


def _cut(queries: Ints, plan: RankPlan) -> list[Ints]:
    """The queries of every task, in the order of the plan."""
    before: list[Ints] = []
    after: list[Ints] = []
    for axis, (first, inner, _) in plan.cuts:
        start, queries, stop = np.split(queries, [first, first + inner], axis)
        before.append(start)
        after.append(stop)
    return [*before, queries, *reversed(after)]

"""Tests of plans of ranks: together they compute every pair of the mask once, and no other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import held, simulated

from nbattn import Axis, Mask, geometry
from nbattn.distributed.local_axes import keys_stand_alone
from nbattn.distributed.rank_plan import needs_others, plan_of_rank
from nbattn.distributed.shards import ShardedAxis

Count = Callable[[str, int], None]
Problem = tuple[Mask, tuple[int, ...], tuple[int, ...]]


def meshes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Parts of every axis: more than a chunk has positions among them."""
    most = {1: 9, 2: 4, 3: 3}[rank]
    return st.tuples(*[st.integers(1, most)] * rank)


@given(oracle.masks(), st.data(), st.booleans())
@settings(max_examples=400)
def test_every_pair_is_computed_once_and_each_key_travels_once(
    cases: Count, problem: Problem, data: st.DataObject, table: bool
) -> None:
    mask, space, keys = problem
    parts = data.draw(meshes(mask.rank))
    found = simulated(mask, space, keys, parts, table=table)
    np.testing.assert_array_equal(found.pairs, oracle.matrix(mask.axes, space, keys).astype(int))
    for place in found.own:
        arrived = [k for (to, _), some in found.received.items() if to == place for k in some]
        assert len(set(arrived)) == len(arrived)
        assert not set(arrived) & set(held(keys, parts, place).ravel().tolist())
    cases("ranks, masks", 1)
    cases("ranks, planned", math.prod(parts))


@given(oracle.masks(borders=("clip",)), st.data())
@settings(max_examples=100)
def test_replicated_queries_attend_to_each_rank_s_own_keys(
    cases: Count, problem: Problem, data: st.DataObject
) -> None:
    mask, space, keys = problem
    parts = data.draw(meshes(mask.rank))
    whole = [data.draw(st.booleans()) and keys_stand_alone(axis) for axis in mask.axes]
    found = simulated(mask, space, keys, parts, whole)
    np.testing.assert_array_equal(found.pairs, oracle.matrix(mask.axes, space, keys).astype(int))
    if all(whole):
        assert not found.received
    cases("ranks, replicated", 1)


def test_queries_without_a_halo_are_a_task_of_their_own() -> None:
    bound = geometry.bind(Mask.neighborhood((3, 3)), (16, 16))
    axes = tuple(ShardedAxis(axis, 2) for axis in bound)
    plan = plan_of_rank(axes, (0, 1), (0, 0), "")
    assert plan.cuts == ((0, (0, 7, 1)), (1, (0, 7, 1)))
    counts = [math.prod(span.length for span in task.queries) for task in plan.tasks]
    assert counts == [0, 0, 49, 7, 8]
    assert [task.own is not None for task in plan.tasks[2:]] == [True, False, False]


def test_few_inner_queries_are_not_worth_more_calls() -> None:
    (bound,) = geometry.bind(Mask(Axis(4, 4)), 32)
    plan = plan_of_rank((ShardedAxis(bound, 4),), (0,), (1,), "")
    assert plan.cuts == ()
    (task,) = plan.tasks
    assert task.box.space == (16,)


def test_masks_without_a_halo_send_nothing() -> None:
    bound = geometry.bind(Mask(Axis(0, 0), Axis()), (8, 8))
    axes = ShardedAxis(bound[0], 4), ShardedAxis(bound[1], 1)
    for part in range(4):
        assert not needs_others(axes, (part, 0))
        plan = plan_of_rank(axes, (0,), (part, 0), "")
        assert not plan.travels
        assert [task.own for task in plan.tasks] == [(slice(0, 2), slice(0, 8))]
    assert needs_others((ShardedAxis(bound[0], 4), ShardedAxis(bound[1], 2)), (0, 0))

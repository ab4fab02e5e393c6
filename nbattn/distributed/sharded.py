"""The public function attention() on local shards: queries and keys of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nbattn import arguments, functional, key_ranges
from nbattn.distributed import exchange, given, local_calls, merging
from nbattn.distributed.meshes import Place, place_of
from nbattn.distributed.rank_plan import RankPlan, plan_of_rank
from nbattn.distributed.shards import ShardedAxis
from nbattn.geometry import bind
from nbattn.mask import Mask

_ONCE = ("sink", "extra_key", "extra_value", "extra_range")  # among results that are merged


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None = None,
    query_shard: Sequence[str | None] | str | None = None,
    **options: Any,
) -> Any:
    arguments.check_mask(mask)
    place = place_of(mesh, *given.sharding(mask, mesh, shard, query_shard, space, key_space))
    query, named = functional.autocast(query, {"key": key, "value": value})
    key, value = named["key"], named["value"]
    place.check_shapes(query, key, value)
    return attend(query, key, value, mask, place, options)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, place: Place, options: dict[str, Any]
) -> Any:
    """Attention of this rank's queries, where its place in the space is known and fits.

    Args:
        query, key, value: local shards.
        mask: of the whole space.
        place: the rank's place.
        options: other arguments of `nbattn.attention`.
    """
    plan = _planned(place, mask, options.get("relative_bias") is not None)
    options = dict(options)
    ranges = options.pop("key_range", None)
    if ranges is not None:
        ranges = key_ranges.standard(ranges, query)
    dropped: list[Tensor] = []
    if place.merged is not None and not place.is_first_of_merged:
        given = [options.pop(name, None) for name in _ONCE]
        dropped = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
    wants_lse = options.pop("return_lse", False)
    call = local_calls.Call(ranges, options, wants_lse or place.merged is not None)
    found = _computed(query, key, value, plan, call)
    if place.merged is not None:
        found = merging.merged(found[0], found[1], place.merged)
    if dropped:  # their gradients are zeros: a sum over ranks waits for all
        found = exchange.tied(found, *dropped)
    return tuple(found) if wants_lse else found[0]


@lru_cache(1024)
def _planned(place: Place, mask: Mask, table: bool) -> RankPlan:
    axes = tuple(
        ShardedAxis(axis, parts, whole, table)
        for axis, parts, whole in zip(
            bind(mask, place.space, place.key_space), place.parts, place.whole, strict=True
        )
    )
    group = "" if place.group is None else place.group.name
    return plan_of_rank(axes, place.mesh_axes, place.coordinates, group)


def _computed(
    query: Tensor, key: Tensor, value: Tensor, plan: RankPlan, call: local_calls.Call
) -> list[Tensor]:
    """The output of the rank's queries, and the logsumexp if the call wants it: those that need no
    other rank's keys are computed while these travel.
    """
    queries = _cut(query, plan)
    received = ticket = key.new_empty(0)
    if plan.travels:
        received, ticket = exchange.start(key, value, plan.route)
    found: list[list[Tensor]] = [[] for _ in plan.tasks]
    boxed = [number for number, task in enumerate(plan.tasks) if task.own is None]
    for number, task in enumerate(plan.tasks):
        if task.own is not None:
            own = (slice(None), *task.own)
            found[number] = call.run(queries[number], key[own], value[own], task)
    if plan.travels:
        sizes = plan.route.sizes(key, value)
        received = exchange.wait(received, ticket, plan.route, sizes)
    if boxed:
        wanted = [plan.tasks[number].box for number in boxed]
        boxes = exchange.boxes(key, value, received, plan.route, wanted)
        for number, (keys, values) in zip(boxed, boxes, strict=True):
            found[number] = call.run(queries[number], keys, values, plan.tasks[number])
    results = [_joined(parts, plan) for parts in zip(*found, strict=True)]
    return results if boxed or not plan.travels else exchange.tied(results, received)


def _cut(query: Tensor, plan: RankPlan) -> list[Tensor]:
    """The queries of every task."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    for axis, sizes in plan.cuts:
        first, query, last = query.split(sizes, axis + 1)
        before.append(first)
        after.append(last)
    return [*before, query, *reversed(after)]


def _joined(parts: Sequence[Tensor], plan: RankPlan) -> Tensor:
    """The results of all tasks in one tensor: the inverse of `_cut`."""
    count = len(plan.cuts)
    whole = parts[count]
    ends = zip(reversed(plan.cuts), reversed(parts[:count]), parts[count + 1 :], strict=True)
    for (axis, _), first, last in ends:
        whole = torch.cat([first, whole, last], axis + 1)
    return whole

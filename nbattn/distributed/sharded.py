"""The public function attention() on local shards: queries and keys of one rank."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, distributed
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
    """Computes attention of this rank's queries over the keys that the mask allows, wherever they
    are: every rank receives the keys that its own queries attend to, and no others.

    Args:
        query: `[B, *chunk, H, D]`, this rank's queries.
        key, value: `[B, *key_chunk, Hk, D]`, `[B, *key_chunk, Hk, Dv]`, this rank's keys.
        mask: which keys of the whole space each query attends to.
        mesh: the ranks, with names of its dimensions.
        shard: for every axis of the space the mesh dimension along which it is cut into chunks, as
            `torch.chunk` cuts it, or None: every rank has all of it. A string for one axis.
        space, key_space: lengths of the whole axes; of the keys, if they are others.
        query_shard: as `shard`, for the queries alone: where it is None and `shard` is not, every
            rank has all queries and its chunk of the keys, as in decoding with a sharded cache.
            Results are then merged, and the same on all of these ranks.
        **options: as in `nbattn.attention`. `key_range` is in positions of the whole space.

    Returns:
        As `nbattn.attention`, for this rank's queries.

    Raises:
        InputError, MaskError, BackendError: as `nbattn.attention`; or tensors that are not the
            rank's chunks.
    """
    arguments.check_mask(mask)
    table = options.get("relative_bias") is not None
    place, plan = _PLANS[_plan_number(mesh, mask, shard, query_shard, space, key_space, table)]
    query, named = functional.autocast(query, {"key": key, "value": value})
    key, value = named["key"], named["value"]
    place.check_shapes(query, key, value)
    options = dict(options)
    ranges = options.pop("key_range", None)
    if ranges is not None:
        ranges = key_ranges.standard(ranges, query)
    if place.merged is not None and not place.is_first_of_merged:
        for name in _ONCE:
            options.pop(name, None)
    wants_lse = options.pop("return_lse", False)
    call = local_calls.Call(ranges, options, wants_lse or place.merged is not None)
    found = _computed(query, key, value, plan, call)
    if place.merged is not None:
        found = merging.merged(found[0], found[1], place.merged)
    return tuple(found) if wants_lse else found[0]


# Places and plans of calls by number, the oldest first: compilers read them like any global.
_PLANS: dict[int, tuple[Place, RankPlan]] = {}
_NUMBERS: dict[tuple[Any, ...], int] = {}
_COUNT = count()
_MOST = 4096  # plans that are kept


@torch.compiler.assume_constant_result  # compilers call it while they trace
def _plan_number(
    mesh: DeviceMesh,
    mask: Mask,
    shard: Any,
    query_shard: Any,
    space: Any,
    key_space: Any,
    table: bool,
) -> int:
    """The number of a call's plan in `_PLANS`, which is made for the first call like it."""
    sharding = given.sharding(mask, mesh, shard, query_shard, space, key_space)
    # Equal meshes of other process groups, which were made later, have plans of their own.
    key = (weakref.ref(distributed.group.WORLD), mesh, mask, sharding, table)
    number = _NUMBERS.get(key)
    if number is None:
        place = place_of(mesh, *sharding)
        number = next(_COUNT)
        _PLANS[number] = place, _planned(place, mask, table)
        _NUMBERS[key] = number
        if len(_PLANS) > _MOST:
            del _PLANS[next(iter(_PLANS))], _NUMBERS[next(iter(_NUMBERS))]
    return number


def _planned(place: Place, mask: Mask, table: bool) -> RankPlan:
    bound = bind(mask, place.space, place.key_space)
    sides = zip(bound, place.parts, place.whole, strict=True)
    axes = tuple(ShardedAxis(axis, parts, whole, table) for axis, parts, whole in sides)
    group = "" if place.group is None else place.group.name
    return plan_of_rank(axes, place.mesh_axes, place.coordinates, group)


def _computed(
    query: Tensor, key: Tensor, value: Tensor, plan: RankPlan, call: local_calls.Call
) -> list[Tensor]:
    """The output of the rank's queries, and the logsumexp if the call wants it: those that need no
    other rank's keys are computed while these travel.
    """
    queries = _cut(query, plan)
    inner = outer = key, value
    received = ticket = key.new_empty(0)
    if plan.travels:
        received, ticket, inner, outer = exchange.start(key, value, plan.route)
    found: list[list[Tensor]] = [[] for _ in plan.tasks]
    boxed = [number for number, task in enumerate(plan.tasks) if task.own is None]
    for number, task in enumerate(plan.tasks):
        if task.own is not None:
            own = (slice(None), *task.own)
            found[number] = call.run(queries[number], inner[0][own], inner[1][own], task)
    if plan.travels:
        sizes = plan.route.sizes(key, value)
        received = exchange.wait(received, ticket, plan.route, sizes)
    if boxed:
        wanted = [plan.tasks[number].box for number in boxed]
        boxes = exchange.boxes(*outer, received, plan.route, wanted)
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

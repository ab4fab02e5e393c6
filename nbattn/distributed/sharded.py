"""The public function attention() on local shards: queries and keys of one rank."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from nbattn import arguments, functional, key_ranges
from nbattn.distributed import agreement, exchange, given, local_calls, merging, words
from nbattn.distributed.meshes import Place, place_of
from nbattn.distributed.rank_plan import RankPlan, plan_of_rank
from nbattn.distributed.shards import ShardedAxis
from nbattn.distributed.words import Options
from nbattn.fixes import signatures
from nbattn.geometry import bind
from nbattn.mask import Mask

_ONCE = ("sink", "extra_key", "extra_value", "extra_range")  # among results that are merged


@overload
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
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
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
    return_lse: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]: ...


@signatures.answering(words.refusal)
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes attention over a space that is cut into parts, one for each rank of a mesh.

    Every rank calls it with its own part, and receives from others only the keys that its queries
    attend to: one exchange forward, one backward. Parts are those of `torch.chunk`: all as long as
    the first one, but for the last ones, which can be shorter or empty. The mask is that of the
    whole space.

    Args:
        query: `[B, *space, H, D]`, this rank's part of it.
        key: `[B, *key_space, Hk, D]`, this rank's part.
        value: `[B, *key_space, Hk, Dv]`, this rank's part.
        mask: the keys that each query attends to in the whole space.
        mesh: a mesh whose dimensions have names. Those that `shard` does not name are anything
            else: ranks with other samples or other heads, which call it on their own.
        shard: for every axis the name of the mesh dimension over which it is cut, or None for an
            axis that every rank has whole; one name for a mask of one axis.
        space: lengths of the whole axes of the queries.
        key_space: those of the keys; default: `space`.
        query_shard: `shard` of the queries, if others: None for an axis of which every rank has all
            queries and a part of the keys, as in decoding with a cache that is cut. The results of
            these ranks are merged, and every one of them has the whole. Needs `border="clip"` and
            stride 1.
        options: `scale`, `softcap`, `sink`, `key_range`, `extra_key`, `extra_value`, `extra_range`,
            `relative_bias`, `alibi_slopes`, `backend`, `require`, `forbid`, `return_lse`, as in
            `nbattn.attention`. Tensors among them are alike on all ranks: a `key_range` is in
            positions of the whole space.

    Returns:
        `[B, *space, H, Dv]`, this rank's part of it; with `return_lse` also `[B, *space, H]`. Empty
        where the part is. The gradients of query, key and value are this rank's part. Of arguments
        that all ranks have (a sink, extra keys, a table, queries by `query_shard`), a rank's
        gradient is its share: the sum over the ranks of the space is the whole one.

    Raises:
        InputError: no mesh with names, a name that it does not have, a tensor that is not this
            rank's part; with both numbers and the fix.
        MaskError: the mask does not fit the space.
        BackendError: no backend supports the call.
        DistributedError: another rank has raised an error, has ended, is late, or calls with other
            arguments.

    >>> from torch import distributed
    >>> store = distributed.HashStore()  # this process is all ranks: torchrun has more
    >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> mesh = distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("rows", "columns"))
    >>> part = torch.randn(2, 30, 40, 4, 16)
    >>> mask = Mask.neighborhood((7, 7))
    >>> shard, space = ("rows", "columns"), (30, 40)
    >>> attention(part, part, part, mask, mesh=mesh, shard=shard, space=space).shape
    torch.Size([2, 30, 40, 4, 16])
    >>> distributed.destroy_process_group()
    """
    sharding = shard, query_shard, space, key_space
    if torch.compiler.is_compiling():
        return _attention(query, key, value, mask, mesh, sharding, options)
    try:
        return _attention(query, key, value, mask, mesh, sharding, options)
    except Exception as error:
        agreement.tell(mesh, shard, error)
        raise


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    mesh: DeviceMesh,
    sharding: tuple[Any, Any, Any, Any],
    options: dict[str, Any],
) -> Tensor | tuple[Tensor, Tensor]:
    if strange := words.strangers(options):
        shard, query_shard, space, key_space = sharding
        named = {"query": query, "mask": mask, "mesh": mesh, "shard": shard, "space": space}
        optional = {"key_space": key_space, "query_shard": query_shard}
        named |= {name: value for name, value in optional.items() if value is not None}
        raise words.unknown(strange, named | options)
    arguments.check_mask(mask, getattr(query, "ndim", 4) - 3)
    table = options.get("relative_bias") is not None
    shape = () if torch.compiler.is_compiling() else getattr(query, "shape", ())  # for words
    place, plan = _PLANS[_plan_number(shape, mesh, mask, *sharding, table)]
    query, named = functional.autocast(query, {"key": key, "value": value})
    if not all(isinstance(tensor, Tensor) for tensor in (query, *named.values())):
        arguments.check_tensors(query, named)
    key, value = named["key"], named["value"]
    place.check_shapes(query, key, value)
    options = dict(options)
    ranges = options.pop("key_range", None)
    if ranges is not None:
        ranges = key_ranges.standard(ranges, query)
    of_others: list[Tensor] = []
    if place.merged is not None and not place.is_first_of_merged:
        once = [options.pop(name, None) for name in _ONCE]
        of_others = [given for given in once if given is not None and given.requires_grad]
    wants_lse = options.pop("return_lse", False)
    call = local_calls.Call(ranges, options, wants_lse or place.merged is not None)
    if place.group is not None and not torch.compiler.is_compiling():
        _agree(query, key, value, mask, place, plan, call)
    found = _computed(query, key, value, plan, call)
    if place.merged is not None:
        found = merging.merged(found[0], found[1], place.merged)
    if of_others:  # their gradients are zeros, not None, for sums over ranks
        found = exchange.tied(found, *of_others)
    return (found[0], found[1]) if wants_lse else found[0]


def _agree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    place: Place,
    plan: RankPlan,
    call: local_calls.Call,
) -> None:
    """Waits for all ranks where this call is new: what travels must be alike, and every rank must
    have a backend for its part.
    """
    assert place.group is not None
    names = [name for name, option in call.options.items() if option is not None]
    names += ["key_range"] * (call.key_range is not None)
    trains = torch.is_grad_enabled() and (key.requires_grad or value.requires_grad)
    sides = [(side.shape[0], *side.shape[-2:]) for side in (query, key, value)]

    def described() -> agreement.Call:
        for task in plan.tasks:
            call.check(query, key, value, task)
        shapes = [f"[{batch}, *space, {heads}, {dim}]" for batch, heads, dim in sides]
        return {
            "mask": repr(mask),
            "space": f"{place.space}",
            "key_space": f"{place.key_space}",
            **dict(zip(("query", "key", "value"), shapes, strict=True)),
            "dtype": f"{key.dtype}",
            "gradients of keys": "wanted" if trains else "not wanted",
            "options": ", ".join(sorted({*names} - {*_ONCE})) or "none",
        }

    known = place, mask, *sides, key.dtype, trains, call.options.get("backend"), *names
    agreement.of_group(place.group.name).agree(known, described)


# Places and plans of calls by number, the oldest first: compilers read them like any global.
_PLANS: dict[int, tuple[Place, RankPlan]] = {}
_NUMBERS: dict[tuple[Any, ...], int] = {}
_COUNT = count()
_MOST = 4096  # plans that are kept


@torch.compiler.assume_constant_result  # compilers call it while they trace
def _plan_number(
    shape: Sequence[int],
    mesh: DeviceMesh,
    mask: Mask,
    shard: Any,
    query_shard: Any,
    space: Any,
    key_space: Any,
    table: bool,
) -> int:
    """The number of a call's plan in `_PLANS`, which is made for the first call like it."""
    sharding = given.sharding(shape, mask, mesh, shard, query_shard, space, key_space)
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


words.show(attention)

"""The plans of calls, made for the first call like it, and kept by number.

Compilers read `PLANS` like any global: so masks and numbers in it are what they are in the code.
"""

from __future__ import annotations

import weakref
from itertools import count
from typing import Any, NamedTuple

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed.meshes import Place, Shard, place_of
from nbattn.distributed.rank_plan import RankPlan, plan_of_rank
from nbattn.distributed.shards import ShardedAxis
from nbattn.distributed.tracing import constant
from nbattn.geometry import bind
from nbattn.mask import Mask

# Mesh dimensions of keys and of queries, and lengths of both, as for `place_of`.
Sharding = tuple[Shard, Shard, tuple[int, ...], tuple[int, ...]]

_NUMBERS: dict[tuple[Any, ...], int] = {}
_COUNT = count()
_MOST = 4096  # plans that are kept


class Known(NamedTuple):
    """A plan, and what it is for."""

    place: Place
    plan: RankPlan
    mask: Mask


PLANS: dict[int, Known] = {}  # the oldest first


@constant
def plan_number(mesh: DeviceMesh, mask: Mask, sharding: Sharding, table: bool) -> int:
    """The number of a plan, which is made for the first call like it.

    Args:
        mesh, mask: of the call.
        sharding: mesh dimensions of keys and of queries, and lengths of both.
        table: whether the call has a table of relative positions.
    """
    # Equal meshes of other process groups, which were made later, have plans of their own.
    key = (weakref.ref(distributed.group.WORLD), mesh, mask, sharding, table)
    number = _NUMBERS.get(key)
    if number is None:
        place = place_of(mesh, *sharding)
        number = next(_COUNT)
        PLANS[number] = Known(place, _planned(place, mask, table), mask)
        _NUMBERS[key] = number
        if len(PLANS) > _MOST:
            del PLANS[next(iter(PLANS))], _NUMBERS[next(iter(_NUMBERS))]
    return number


def _planned(place: Place, mask: Mask, table: bool) -> RankPlan:
    bound = bind(mask, place.space, place.key_space)
    sides = zip(bound, place.parts, place.whole, strict=True)
    axes = tuple(ShardedAxis(axis, parts, whole, table) for axis, parts, whole in sides)
    group = "" if place.group is None else place.group.name
    return plan_of_rank(axes, place.mesh_axes, place.coordinates, group, place.order)

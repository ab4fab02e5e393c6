"""Attention of one rank's queries: agrees with others on the call, exchanges keys, computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn import autograd, key_ranges
from nbattn.distributed import agreement, exchange, local_calls, merging
from nbattn.distributed.known_plans import PLANS
from nbattn.distributed.rank_plan import RankPlan
from nbattn.errors import BackendError


def attend(
    query: Tensor, key: Tensor, value: Tensor, number: int, options: dict[str, Any]
) -> list[Tensor]:
    """Computes attention of this rank's queries by a known plan.

    Args:
        query, key, value: the rank's parts, which fit the plan.
        number: of the plan, in `known_plans.PLANS`.
        options: other arguments of `nbattn.attention`.

    Returns:
        The output, and with `return_lse` the logsumexp.

    Raises:
        BackendError: inside of a transform of `torch.func`; or no backend supports the call.
    """
    known = PLANS[number]
    if known.place.group is None or torch.compiler.is_compiling():
        return _attend(query, key, value, number, options)
    try:
        if autograd.is_transformed():
            raise BackendError(
                "transforms of torch.func do not see what other ranks compute.",
                "torch.autograd.grad(outputs, inputs), with outputs of a call outside of torch.func"
                ".",
            )
        return _attend(query, key, value, number, options)
    except Exception as error:
        agreement.of_group(known.place.group.name).tell(error)
        raise


def _attend(
    query: Tensor, key: Tensor, value: Tensor, number: int, options: dict[str, Any]
) -> list[Tensor]:
    known, options = PLANS[number], dict(options)
    place = known.place
    ranges = options.pop("key_range", None)
    if ranges is not None:
        ranges = key_ranges.standard(ranges, query)
    of_others: list[Tensor] = []
    if place.merged is not None and not place.is_first_of_merged:
        once = [options.pop(name, None) for name in local_calls.ONCE]
        of_others = [given for given in once if given is not None and given.requires_grad]
    wants_lse = options.pop("return_lse", False)
    call = local_calls.Call(ranges, options, wants_lse or place.merged is not None)
    if place.group is not None and not torch.compiler.is_compiling():
        _agree(query, key, value, number, call)
    found = _computed(query, key, value, known.plan, call)
    if place.merged is not None:
        found = merging.merged(found[0], found[1], place.merged)
    if of_others:  # their gradients are zeros, not None, for sums over ranks
        found = exchange.tied(found, *of_others)
    return found[: 1 + wants_lse]


def _agree(query: Tensor, key: Tensor, value: Tensor, number: int, call: local_calls.Call) -> None:
    """Waits for all ranks where this call is new: what travels must be alike, and every rank must
    have a backend for its part.
    """
    place, plan, mask = PLANS[number]
    assert place.group is not None
    names = [name for name, option in call.options.items() if option is not None]
    names += ["key_range"] * (call.key_range is not None)
    trains = torch.is_grad_enabled() and (key.requires_grad or value.requires_grad)
    sides = [(side.shape[0], *side.shape[-2:]) for side in (query, key, value)]
    once = set[str](local_calls.ONCE if place.merged is not None else ())  # of the first rank only

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
            "options": ", ".join(sorted({*names} - once)) or "none",
        }

    like = number, *sides, key.dtype, trains, call.options.get("backend"), *names
    agreement.of_group(place.group.name).agree(like, described)


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
    return results if boxed or not plan.travels else exchange.after(results, received)


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

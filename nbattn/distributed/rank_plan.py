"""What one rank does in one attention: boxes of queries to compute, and what to exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from nbattn.axis import Axis
from nbattn.distributed import shards
from nbattn.distributed.chunks import Span
from nbattn.distributed.exchange import Box, Copy, Route, Slices
from nbattn.distributed.local_axes import LocalAxis, Run
from nbattn.distributed.shards import Ranks, ShardedAxis
from nbattn.mask import Mask


@dataclass(frozen=True, slots=True)
class Apart:
    """A prefix that was moved next to the windows, at its own distance: two calls.

    Args:
        windows: the mask without the prefix, for keys from `start` on.
        start: how many of the part's first keys the windows do not need.
        prefix: the mask of the first keys.
        stop: how many these are.
    """

    windows: Mask
    start: int
    prefix: Mask
    stop: int


@dataclass(frozen=True, slots=True)
class Task:
    """One call of attention: some of a rank's queries, the mask at its lengths, and its keys.

    Args:
        queries: which queries, per axis.
        mask: the mask at the part's lengths.
        laps: per axis, which keys of the whole axis are where, in groups that ascend.
        apart: for ALiBi, on whose distances it depends where keys are; None where it does not.
        own: the keys among the rank's own, if it needs no others.
        box: else, how they are put together.
    """

    queries: tuple[Span, ...]
    mask: Mask
    laps: tuple[tuple[tuple[Run, ...], ...], ...]
    apart: Apart | None
    own: Slices | None
    box: Box


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What one rank does.

    Args:
        route: what it sends and receives.
        travels: whether any rank needs another one's keys: else nobody sends anything.
        cuts: for every axis that is cut, its number and the lengths of its three parts; the middle
            one is cut further.
        tasks: the calls, in the order in which the cuts give their queries.
    """

    route: Route
    travels: bool
    cuts: tuple[tuple[int, tuple[int, int, int]], ...]
    tasks: tuple[Task, ...]


def plan_of_rank(
    axes: tuple[ShardedAxis, ...],
    mesh_axes: tuple[int, ...],
    rank: Ranks,
    group: str,
    order: Sequence[int] = (),
) -> RankPlan:
    """Plans one rank's part.

    Args:
        axes: the axes of the space.
        mesh_axes: the axes that are sharded, in the order of the group's ranks, the last one
            fastest.
        rank: this rank, as its part of every axis.
        group: name of the process group of all ranks that share the space.
        order: the group's ranks by their number in that order, if the group has another one.
    """
    numbers: dict[tuple[int, ...], int] = {}
    everyone = [range(axes[axis].parts) for axis in mesh_axes]
    ranks: list[Ranks] = []
    for parts in product(*everyone):
        place = dict(zip(mesh_axes, parts, strict=True))
        ranks.append(tuple(place.get(axis, 0) for axis in range(len(axes))))
    ranks = [ranks[number] for number in order] or ranks
    readers, owners = (set(f(axes, rank)) for f in (shards.readers_of, shards.owners_of))
    own = [axis.keys(part) for axis, part in zip(axes, rank, strict=True)]
    sent: list[tuple[Slices, ...]] = []
    received: list[tuple[tuple[int, ...], ...]] = []
    for other in ranks:
        out = shards.needed_from(axes, other, rank) if other in readers and other != rank else ()
        sent.append(tuple(_within(own, block.spans) for block in out))
        into = shards.needed_from(axes, rank, other) if other in owners and other != rank else ()
        sizes: list[tuple[int, ...]] = []
        for block in into:
            numbers[block.pieces] = len(numbers)
            sizes.append(tuple(span.length for span in block.spans))
        received.append(tuple(sizes))
    travels = any(needs_others(axes, other) for other in ranks)
    route = Route(group, ranks.index(rank), tuple(sent), tuple(received))
    cuts, spans = _cuts(axes, rank)
    tasks = [_task(axes, rank, own, numbers, queries) for queries in spans]
    return RankPlan(route, travels, cuts, tuple(tasks))


def needs_others(axes: Sequence[ShardedAxis], rank: Ranks) -> bool:
    """Whether a rank's queries attend to keys that others have."""
    owners = [{p.owner for p in axis.pieces(part)} for axis, part in zip(axes, rank, strict=True)]
    return all(owners) and any(o != {part} for o, part in zip(owners, rank, strict=True))


def _cuts(
    axes: Sequence[ShardedAxis], rank: Ranks
) -> tuple[tuple[tuple[int, tuple[int, int, int]], ...], list[list[Span]]]:
    """How the rank's queries are cut into those that need no other rank's keys, and the rest."""
    whole = [axis.queries(part) for axis, part in zip(axes, rank, strict=True)]
    inner = [axis.inner(part) for axis, part in zip(axes, rank, strict=True)]
    share = 1.0
    for some, every in zip(inner, whole, strict=True):
        share *= some.length / every.length if every.length else 0.0
    if share < shards.WORTH_A_CALL or inner == whole or not needs_others(axes, rank):
        return (), [whole]
    cuts: list[tuple[int, tuple[int, int, int]]] = []
    before: list[list[Span]] = []
    after: list[list[Span]] = []
    for number, (some, every) in enumerate(zip(inner, whole, strict=True)):
        if some == every:
            continue
        ends = Span(every.start, some.start), Span(some.stop, every.stop)
        cuts.append((number, (ends[0].length, some.length, ends[1].length)))
        for end, found in zip(ends, (before, after), strict=True):
            found.append([*inner[:number], end, *whole[number + 1 :]])
    return tuple(cuts), [*before, inner, *reversed(after)]


def _task(
    axes: Sequence[ShardedAxis],
    rank: Ranks,
    own: Sequence[Span],
    numbers: dict[tuple[int, ...], int],
    queries: Sequence[Span],
) -> Task:
    unit = shards.unit_of(axes, rank, queries)
    pieces = [axis.pieces(part) for axis, part in zip(axes, rank, strict=True)]
    copies: list[Copy] = []
    for shares in product(*unit.shares):
        ids = tuple(share.piece for share in shares)
        target = tuple(slice(s.at, s.at + s.length) for s in shares)
        block = numbers.get(ids, -1)
        source: list[slice] = []
        for share, of_axis, mine in zip(shares, pieces, own, strict=True):
            first = share.offset + (of_axis[share.piece].start - mine.start if block < 0 else 0)
            source.append(slice(first, first + share.length))
        copies.append(Copy(block, tuple(source), target))
    space = tuple(local.keys for local in unit.axes)
    is_whole = len(copies) == 1 and copies[0].block < 0
    if is_whole:
        ends = zip(copies[0].target, space, strict=True)
        is_whole = all(side == slice(0, count) for side, count in ends)
    return Task(
        tuple(local.queries for local in unit.axes),
        Mask(*[local.spec for local in unit.axes]),
        tuple(local.laps() or ((Run(0, 0, 0),),) for local in unit.axes),
        _apart(unit.axes[0]),
        copies[0].source if is_whole else None,
        Box(space, tuple(copies)),
    )


def _apart(local: LocalAxis) -> Apart | None:
    """The prefix by itself where it was moved: on the whole axis it is further away."""
    if local.spec.prefix == 0 or len(local.runs) == 1 or not local.runs:
        return None
    first, second = local.runs
    start = second.at // local.spec.stride * local.spec.stride
    windows = replace(local.spec, prefix=0, offset=local.spec.offset - start)
    place = local.spec.offset + second.start - second.at
    before = Axis(causal=local.spec.causal, align="top-left", offset=place)
    return Apart(Mask(windows), start, Mask(before), first.stop)


def _within(own: Sequence[Span], spans: Sequence[Span]) -> Slices:
    """Spans of the axes as slices of what a rank has."""
    pairs = zip(own, spans, strict=True)
    return tuple(slice(span.start - mine.start, span.stop - mine.start) for mine, span in pairs)

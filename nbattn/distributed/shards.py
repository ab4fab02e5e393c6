"""Who has which queries and keys, and who needs which: plain numbers, without processes.

Per axis, each part of a mesh dimension has a chunk of the queries and one of the keys. The keys
that a part's queries attend to lie in chunks of several parts: pieces. On several axes, a rank has
a box of queries, and needs the product of its pieces of every axis, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from nbattn.distributed.chunks import Span, chunk_of, joined, owners
from nbattn.distributed.local_axes import LocalAxis, local_axis, local_keys, whole_axis
from nbattn.geometry import BoundAxis

# Queries that need no other rank's keys run during the exchange if they are at least this share of
# all: the rest then takes up to two more calls per axis.
WORTH_A_CALL = 0.25
Ranks = tuple[int, ...]  # a rank as its part of every axis


class Piece(NamedTuple):
    """Keys `[start, stop)` of an axis, and the part whose chunk has them."""

    owner: int
    start: int
    stop: int


class Share(NamedTuple):
    """Of the keys of a local axis, `length` from `at` on: in piece `piece`, from `offset` on."""

    piece: int
    offset: int
    length: int
    at: int


@dataclass(frozen=True, slots=True)
class ShardedAxis:
    """One axis, cut into parts.

    Args:
        bound: the whole axis.
        parts: how many; 1 for an axis that every rank has whole.
        queries_are_whole: whether every part has all queries, and attends to its own keys only.
        table: whether the call has a table of relative positions.
    """

    bound: BoundAxis
    parts: int
    queries_are_whole: bool = False
    table: bool = False

    def queries(self, part: int) -> Span:
        """The queries that a part has."""
        if self.queries_are_whole:
            return Span(0, self.bound.queries)
        return chunk_of(self.bound.queries, self.parts, part)

    def keys(self, part: int) -> Span:
        """The keys that a part has."""
        return chunk_of(self.bound.keys, self.parts, part)

    def local(self, part: int, queries: Span | None = None) -> LocalAxis:
        """A part's queries, or some of them, as an axis of their own."""
        if self.parts == 1:
            return _uncut(self)
        if self.queries_are_whole:
            return local_keys(self.bound, self.keys(part))
        queries = self.queries(part) if queries is None else queries
        return local_axis(self.bound, queries, table=self.table)

    def needed(self, part: int) -> tuple[Span, ...]:
        """The keys that a part's queries attend to, in order, with those between them."""
        return joined([run.span for run in self.local(part).runs])

    def pieces(self, part: int) -> tuple[Piece, ...]:
        """The keys that a part's queries attend to, in order, and who has them."""
        return _pieces(self, part)

    def readers(self, part: int) -> tuple[int, ...]:
        """The parts whose queries attend to keys of a part."""
        return _readers(self)[part]

    def inner(self, part: int) -> Span:
        """The queries of a part that attend only to keys that it has."""
        return _inner(self, part)

    def shares(self, part: int, local: LocalAxis) -> tuple[Share, ...]:
        """Where in a part's pieces the keys of some of its queries lie."""
        return tuple(
            Share(number, keys.start - piece.start, keys.length, run.at + keys.start - run.start)
            for run in local.runs
            for number, piece in enumerate(self.pieces(part))
            if (keys := Span(piece.start, piece.stop).of(run.span)).length
        )


@lru_cache(1024)
def _uncut(axis: ShardedAxis) -> LocalAxis:
    """An axis that every rank has whole, without keys at its ends that no query attends to."""
    bound = axis.bound
    if bound.spec.border != "wrap":
        found = local_axis(bound, Span(0, bound.queries), table=axis.table)
        spans = [run.span.length for run in found.runs]
        if len(spans) < 2 and found.keys == sum(spans) < bound.keys:
            return found
    return whole_axis(bound)


@lru_cache(8192)
def _pieces(axis: ShardedAxis, part: int) -> tuple[Piece, ...]:
    return tuple(
        Piece(owner, *axis.keys(owner).of(span))
        for span in axis.needed(part)
        for owner in owners(axis.bound.keys, axis.parts, span)
    )


@lru_cache(64)
def _readers(axis: ShardedAxis) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(axis.parts)]
    for part in range(axis.parts):
        for owner in sorted({piece.owner for piece in axis.pieces(part)}):
            found[owner].append(part)
    return tuple(map(tuple, found))


@lru_cache(8192)
def _inner(axis: ShardedAxis, part: int) -> Span:
    queries, own = axis.queries(part), axis.keys(part)
    if axis.parts == 1 or axis.queries_are_whole:
        return queries

    def stays(start: int, stop: int) -> tuple[bool, bool]:
        """Whether the keys of some queries begin, and end, in the part's chunk."""
        reach = axis.local(part, Span(start, stop)).reach
        return not reach.length or reach.start >= own.start, reach.stop <= own.stop

    first = _first(queries, lambda at: stays(at, queries.stop)[0])
    stop = _first(Span(first, queries.stop), lambda at: not stays(first, at + 1)[1])
    return Span(first, stop)


def _first(span: Span, holds: Callable[[int], bool]) -> int:
    """The first position from which on something holds; the span's stop if it never does."""
    start, stop = span
    while start < stop:
        middle = (start + stop) // 2
        start, stop = (start, middle) if holds(middle) else (middle + 1, stop)
    return start


class Block(NamedTuple):
    """Keys that one rank has and another needs: pieces of every axis, by number and by place."""

    pieces: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def tokens(self) -> int:
        """How many keys."""
        return math.prod(span.length for span in self.spans)


class Unit(NamedTuple):
    """A box of a rank's queries that one call of attention computes, on all axes.

    `shares` are, for every axis, where its keys lie in the rank's pieces.
    """

    axes: tuple[LocalAxis, ...]
    shares: tuple[tuple[Share, ...], ...]


def needed_from(axes: Sequence[ShardedAxis], reader: Ranks, owner: Ranks) -> Iterator[Block]:
    """The blocks of keys that one rank has and another needs, in the order in which they travel."""
    chosen = (
        [(number, Span(p.start, p.stop)) for number, p in enumerate(axis.pieces(r)) if p.owner == o]
        for axis, r, o in zip(axes, reader, owner, strict=True)
    )
    for block in product(*chosen):
        pieces, spans = zip(*block, strict=True)
        yield Block(pieces, spans)


def owners_of(axes: Sequence[ShardedAxis], rank: Ranks) -> list[Ranks]:
    """The ranks that have keys which a rank needs; itself among them."""
    parts = ({piece.owner for piece in a.pieces(r)} for a, r in zip(axes, rank, strict=True))
    return sorted(product(*parts))


def readers_of(axes: Sequence[ShardedAxis], rank: Ranks) -> list[Ranks]:
    """The ranks that need keys which a rank has."""
    return sorted(product(*(axis.readers(part) for axis, part in zip(axes, rank, strict=True))))


def unit_of(axes: Sequence[ShardedAxis], rank: Ranks, queries: Sequence[Span]) -> Unit:
    """Some of a rank's queries."""
    local = [axis.local(p, q) for axis, p, q in zip(axes, rank, queries, strict=True)]
    found = (axis.shares(p, part) for axis, p, part in zip(axes, rank, local, strict=True))
    return Unit(tuple(local), tuple(found))

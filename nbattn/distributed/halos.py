"""The halo of every rank: which keys of others its queries attend to, who has them, and how much
that is against an all-gather and a ring. It needs no processes, and no torch.

What a rank needs is a product of spans, one or two for every axis. So all numbers of all ranks are
products of numbers of the parts of each axis: a table per axis is enough for thousands of ranks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np

from nbattn import mistaken_masks
from nbattn.distributed import halo_text
from nbattn.distributed.chunks import Span, joined, owners
from nbattn.distributed.shards import Ranks, ShardedAxis
from nbattn.distributed.traffic import Traffic, width_of
from nbattn.errors import InputError, counted, described
from nbattn.geometry import Ints, bind
from nbattn.mask import Mask

Block = tuple[Span, ...]  # keys of a box: a span of every axis


class Source(NamedTuple):
    """What a rank receives from another one.

    Args:
        rank: number of the other one.
        place: its part of every axis.
        blocks: its keys that the rank needs, each block a span of every axis.
    """

    rank: int
    place: Ranks
    blocks: tuple[Block, ...]

    @property
    def keys(self) -> int:
        """How many keys."""
        return sum(math.prod(span.length for span in block) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class RankHalo:
    """One rank: its queries and keys, and which keys it receives from whom.

    Args:
        number: of the rank, row-major over the parts.
        place: its part of every axis.
        queries: the span of its queries on every axis.
        inner: those of them that attend only to keys that it has: computed during the exchange.
        own: the span of its keys on every axis.
        needed: the keys that its queries attend to, one or two spans of every axis, with keys
            between them that a dilation leaves out.
        sources: from whom it receives which of them.
        readers: how many ranks it sends keys to.
        sent: how many keys to all of them.
        pairs: how many (query, key) pairs it computes.
    """

    number: int
    place: Ranks
    queries: Block
    inner: Block
    own: Block
    needed: tuple[tuple[Span, ...], ...]
    sources: tuple[Source, ...]
    readers: int
    sent: int
    pairs: int

    @property
    def received(self) -> int:
        """How many keys it receives."""
        return sum(source.keys for source in self.sources)

    @property
    def messages(self) -> int:
        """From how many ranks."""
        return len(self.sources)

    @property
    def keys(self) -> int:
        """How many keys it has itself."""
        return math.prod(span.length for span in self.own)

    @property
    def inner_share(self) -> float:
        """The share of its queries that need no halo; 1 if it has none."""
        every, some = (math.prod(s.length for s in spans) for spans in (self.queries, self.inner))
        return some / every if every else 1.0


@dataclass(frozen=True, slots=True, repr=False)
class Halo:
    """What all ranks need of each other in one attention. `halo` makes it.

    Args:
        mask: the mask.
        axes: its axes at their lengths, each with its number of parts.

    Ranks are numbered row-major over the parts: the last axis counts fastest.
    """

    mask: Mask
    axes: tuple[ShardedAxis, ...]

    def __repr__(self) -> str:
        lengths = f"{halo_text.by(self.space)}, parts={self.parts}"
        return f"Halo({self.mask!r}, {lengths}: up to {int(self.received.max())} keys of others)"

    @property
    def space(self) -> tuple[int, ...]:
        """The lengths of the queries."""
        return tuple(axis.bound.queries for axis in self.axes)

    @property
    def key_space(self) -> tuple[int, ...]:
        """The lengths of the keys."""
        return tuple(axis.bound.keys for axis in self.axes)

    @property
    def parts(self) -> tuple[int, ...]:
        """Into how many parts each axis is cut."""
        return tuple(axis.parts for axis in self.axes)

    @property
    def ranks(self) -> int:
        """How many ranks share the space."""
        return math.prod(self.parts)

    @property
    def keys(self) -> int:
        """How many keys the space has."""
        return math.prod(self.key_space)

    @property
    def own(self) -> Ints:
        """How many keys every rank has, int `[*parts]`."""
        return self._outer(_owned)

    @property
    def received(self) -> Ints:
        """How many keys every rank receives, int `[*parts]`."""
        return self._product(lambda table: table.needed) - self._kept()

    @property
    def sent(self) -> Ints:
        """How many keys every rank sends, to all others together, int `[*parts]`."""
        return self._product(lambda table: table.read) - self._kept()

    @property
    def messages(self) -> Ints:
        """From how many others every rank receives keys, int `[*parts]`."""
        return self._product(lambda table: table.owners) - self._keeps()

    @property
    def readers(self) -> Ints:
        """To how many others every rank sends keys, int `[*parts]`."""
        return self._product(lambda table: table.readers) - self._keeps()

    @property
    def pairs(self) -> Ints:
        """How many (query, key) pairs every rank computes, int `[*parts]`."""
        return self._outer(_pairs)

    @property
    def largest(self) -> RankHalo:
        """The rank that receives the most; of several the first."""
        return self.rank(int(self.received.argmax()))

    def rank(self, which: int | Sequence[int]) -> RankHalo:
        """One rank, by its number, or by its part of every axis.

        Raises:
            InputError: there is no such rank.
        """
        number, place = self._place(which)
        at = tuple(zip(self.axes, place, strict=True))
        needed = tuple(axis.needed(part) for axis, part in at)
        numbers = (self.readers, self.sent, self.pairs)
        return RankHalo(
            number,
            place,
            tuple(axis.queries(part) for axis, part in at),
            tuple(axis.inner(part) for axis, part in at),
            tuple(axis.keys(part) for axis, part in at),
            needed,
            tuple(self._sources(place)),
            *(int(every[place]) for every in numbers),
        )

    def bytes(
        self,
        *,
        kv_heads: int,
        head_dim: int,
        batch: int = 1,
        value_dim: int | None = None,
        dtype: Any = "bfloat16",
    ) -> Traffic:
        """What one forward pass moves, in bytes of keys and values. A backward pass sends the
        gradients of as many keys and values the other way.

        Args:
            kv_heads: heads of keys and values on a rank.
            head_dim: numbers of a head's key.
            batch: samples on a rank.
            value_dim: numbers of a head's value. Default: head_dim.
            dtype: of keys and values, a name or a torch.dtype.

        Raises:
            InputError: a number below 1, or an unknown dtype.

        >>> from nbattn import Mask
        >>> found = halo(Mask.sliding_window(511), 65536, 8)
        >>> found.bytes(kv_heads=8, head_dim=128).received  # 511 keys and values
        2093056
        """
        width = width_of(kv_heads, head_dim, batch, value_dim, dtype)
        received, own, total = self.received, self.own, self.keys
        return Traffic(
            ranks=self.ranks,
            received=width * int(received.max()),
            sent=width * int(self.sent.max()),
            total=width * int(received.sum()),
            messages=int(self.messages.max()),
            held=width * int((own + received).max()),
            shard=width * int(own.max()),
            all_gather=width * (total - int(own.min())),
            everything=width * total,
        )

    def explain(self, rank: int | Sequence[int] | None = None, **tensors: Any) -> str:
        """The halo as text: what one rank receives from whom, against all-gather and ring.

        Args:
            rank: which one is shown. Default: the one that receives the most.
            **tensors: the arguments of `bytes`; without them there are only numbers of keys.
        """
        traffic = self.bytes(**tensors) if tensors else None
        shown = self.largest if rank is None else self.rank(rank)
        return "\n".join(halo_text.lines(self, shown, traffic))

    def to_dict(self, **tensors: Any) -> dict[str, Any]:
        """The halo as plain data that JSON takes: every axis's parts, and every rank's numbers.

        Args:
            **tensors: the arguments of `bytes`, whose numbers are then under "bytes".
        """
        names = ("own", "received", "sent", "messages", "readers", "pairs")
        return {
            "mask": repr(self.mask),
            "space": list(self.space),
            "key_space": list(self.key_space),
            "parts": list(self.parts),
            "axes": [[_as_dict(axis, part) for part in range(axis.parts)] for axis in self.axes],
            "ranks": {name: getattr(self, name).ravel().tolist() for name in names},
            "largest": self.largest.number,
        } | ({"bytes": self.bytes(**tensors).to_dict()} if tensors else {})

    def plot(self, rank: int | Sequence[int] | None = None) -> Any:
        """Draws one rank's queries, its own keys, and its halo in a colour for every owner, as a
        matplotlib `Figure`; beside it how much every rank receives.

        Args:
            rank: which one. Default: the one that receives the most.

        Raises:
            InputError: matplotlib is missing, or there is no such rank.
        """
        from nbattn.distributed import halo_picture

        return halo_picture.figure(self, self.largest if rank is None else self.rank(rank))

    def _product(self, of: Callable[[_Table], Ints]) -> Ints:
        return self._outer(lambda axis: of(_table(axis)))

    def _outer(self, of: Callable[[ShardedAxis], Ints]) -> Ints:
        """A number of every rank: the product of those of its parts."""
        return reduce(np.multiply.outer, map(of, self.axes))

    def _kept(self) -> Ints:
        """How many keys every rank needs of its own."""
        return self._product(lambda table: table.kept)

    def _keeps(self) -> Ints:
        """Whether every rank needs keys of its own."""
        return self._product(lambda table: np.minimum(table.kept, 1))

    def _place(self, which: int | Sequence[int]) -> tuple[int, Ranks]:
        last = tuple(parts - 1 for parts in self.parts)
        try:
            if isinstance(which, Sequence):
                place = tuple(map(operator.index, which))
            else:
                every = operator.index(which)
                place = tuple(map(int, np.unravel_index(every, self.parts)))
            if len(place) != len(last) or not all(
                0 <= p <= q for p, q in zip(place, last, strict=True)
            ):
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"rank={which!r}: there are {self.ranks} ranks, from 0, {(0,) * len(last)}, to "
                f"{self.ranks - 1}, {last}.",
                f"rank={self.ranks - 1}",
            ) from None
        return _number(place, self.parts), place

    def _sources(self, place: Ranks) -> list[Source]:
        pieces = [axis.pieces(part) for axis, part in zip(self.axes, place, strict=True)]
        found: dict[Ranks, list[Block]] = {}
        for block in product(*pieces):
            owner = tuple(piece.owner for piece in block)
            if owner != place:
                spans = tuple(Span(piece.start, piece.stop) for piece in block)
                found.setdefault(owner, []).append(spans)
        return [
            Source(_number(owner, self.parts), owner, tuple(found[owner]))
            for owner in sorted(found)
        ]


def halo(
    mask: Mask,
    space: Sequence[int] | int,
    parts: Sequence[int] | int,
    *,
    key_space: Sequence[int] | int | None = None,
) -> Halo:
    """Returns what every rank needs of others when axes are cut into parts; without processes.

    Args:
        mask: the mask of the attention.
        space: lengths of the queries, one per axis; an int for one axis.
        parts: into how many parts each axis is cut, as `torch.chunk` cuts; 1 for an axis that every
            rank has whole. An int for one axis.
        key_space: lengths of the keys. Default: space.

    Raises:
        InputError: mask is no Mask, or parts are not one number from 1 per axis.
        MaskError: the mask does not fit the lengths.

    >>> from nbattn import Mask
    >>> found = halo(Mask.neighborhood((7, 7)), (64, 64), (4, 2))
    >>> found.received.tolist()
    [[153, 153], [258, 258], [258, 258], [153, 153]]
    >>> found.rank((0, 0)).sources[0]
    Source(rank=1, place=(0, 1), blocks=((Span(start=0, stop=16), Span(start=32, stop=35)),))
    """
    if not isinstance(mask, Mask):
        raise mistaken_masks.refusal(mask, len(space) if isinstance(space, Sequence) else 1)
    bound = bind(mask, space, key_space)
    numbers = _checked(parts, mask.rank)
    return Halo(mask, tuple(ShardedAxis(axis, n) for axis, n in zip(bound, numbers, strict=True)))


def _checked(parts: Any, rank: int) -> tuple[int, ...]:
    """One number of parts for every axis."""
    try:
        numbers = tuple(map(operator.index, parts if np.iterable(parts) else (parts,)))
    except TypeError:
        problem = f"parts={described(parts, ',')}, not a whole number for each axis."
        raise InputError(problem, f"parts={(2, *(1,) * (rank - 1))}") from None
    if len(numbers) != rank or min(numbers) < 1:
        fixed = tuple(max(1, number) for number in (*numbers, *(1,) * rank)[:rank])
        why = f"the mask has {counted(rank, 'axis', 'axes')}"
        if len(numbers) == rank:
            why = f"{min(numbers)} is below 1, an axis that is not cut"
        raise InputError(f"parts={parts!r}: {why}.", f"parts={fixed}")
    return numbers


class _Table(NamedTuple):
    """Numbers of the parts of one axis, int `[parts]` each.

    Args:
        needed: keys that a part's queries attend to, with those between them.
        kept: those of them that it has itself.
        owners: how many parts have some of them, itself among them.
        read: keys that it has, counted once for every part that needs them, itself among them.
        readers: how many parts need some of them.
    """

    needed: Ints
    kept: Ints
    owners: Ints
    read: Ints
    readers: Ints


@lru_cache(64)
def _table(axis: ShardedAxis) -> _Table:
    chunks = [axis.keys(part) for part in range(axis.parts)]
    needed = [axis.needed(part) for part in range(axis.parts)]
    read = [0] * axis.parts
    through, readers = [0] * (axis.parts + 1), [0] * (axis.parts + 1)  # differences of neighbours
    owned: list[int] = []
    for spans in needed:
        ranges: list[Span] = []
        for span in spans:
            found = owners(axis.bound.keys, axis.parts, span)
            first, last = found[0], found[-1]
            ranges.append(Span(first, last + 1))
            read[first] += chunks[first].of(span).length
            if first < last:
                read[last] += chunks[last].of(span).length
                through[first + 1] += 1
                through[last] -= 1
        ranges = list(joined(ranges))
        owned.append(sum(parts.length for parts in ranges))
        for parts in ranges:
            readers[parts.start] += 1
            readers[parts.stop] -= 1
    whole = zip(accumulate(through), chunks, strict=False)
    numbers = (
        [sum(span.length for span in spans) for spans in needed],
        [sum(c.of(s).length for s in spans) for c, spans in zip(chunks, needed, strict=True)],
        owned,
        [some + times * c.length for some, (times, c) in zip(read, whole, strict=True)],
        list(accumulate(readers))[:-1],
    )
    return _Table(*map(_ints, numbers))


@lru_cache(64)
def _pairs(axis: ShardedAxis) -> Ints:
    """Pairs of the queries of every part."""
    return _ints([axis.local(part).bound().pairs() for part in range(axis.parts)])


def _owned(axis: ShardedAxis) -> Ints:
    """Keys that every part has."""
    return _ints([axis.keys(part).length for part in range(axis.parts)])


def _ints(numbers: Sequence[int]) -> Ints:
    return np.array(numbers, dtype=np.int64)


def _number(place: Ranks, parts: Sequence[int]) -> int:
    """The number of a rank, row-major over the parts."""
    return reduce(lambda number, at: number * at[1] + at[0], zip(place, parts, strict=True), 0)


def _as_dict(axis: ShardedAxis, part: int) -> dict[str, Any]:
    return {
        "queries": list(axis.queries(part)),
        "keys": list(axis.keys(part)),
        "needed": [list(span) for span in axis.needed(part)],
    }

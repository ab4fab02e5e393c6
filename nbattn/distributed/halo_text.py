"""A halo in words: what one rank receives from whom, against an all-gather and a ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nbattn.distributed.chunks import Span
from nbattn.distributed.shards import WORTH_A_CALL
from nbattn.distributed.traffic import Traffic, short_bytes
from nbattn.errors import counted

if TYPE_CHECKING:
    from nbattn.distributed.halos import Halo, RankHalo

_LABEL = 12  # columns
_EVEN = 1.02  # the most pairs of a rank against the mean that are not worth a line
_LISTED = 26  # sources that are listed


def lines(halo: Halo, rank: RankHalo, traffic: Traffic | None) -> Iterator[str]:
    """The text of `Halo.explain`, with labels in front."""
    before = ""
    for label, text in rows(halo, rank, traffic):
        yield f"{label if label != before else '':<{_LABEL}}{text}"
        before = label


def rows(halo: Halo, rank: RankHalo, traffic: Traffic | None) -> Iterator[tuple[str, str]]:
    """Labels and texts: the mask, then one rank."""
    yield "halo", repr(halo.mask)
    keys = "" if halo.key_space == halo.space else f" and {by(halo.key_space)} keys"
    yield "halo", f"{by(halo.space)} queries{keys}, in {by(halo.parts)} parts: {halo.ranks} ranks"
    yield from of_rank(halo, rank, traffic)
    yield from _needs(halo, rank)


def of_rank(halo: Halo, rank: RankHalo, traffic: Traffic | None) -> Iterator[tuple[str, str]]:
    """What one rank receives and keeps, against an all-gather and a ring."""
    each = _each(halo, traffic)
    place = f"part {rank.place} of the axes, " if len(rank.place) > 1 else ""
    most = int(halo.received.max())
    which = "; none receives more" if rank.received == most else ""
    queries = f"{by_count(rank.queries)} {'query' if by_count(rank.queries) == '1' else 'queries'}"
    yield "rank", f"{rank.number}: {place}{queries}{which}"
    if rank.received:
        share = "" if not rank.keys else f", {_percent(rank.received, rank.keys)} of its own"
        yield (
            "receives",
            f"{amount(rank.received, each)} from {counted(rank.messages, 'rank')}{share}; the mean "
            f"of all ranks is {amount(round(float(halo.received.mean())), each)}",
        )
    else:
        yield "receives", "nothing"
    if rank.sent:
        yield "sends", f"{amount(rank.sent, each)} to {counted(rank.readers, 'rank')}"
    others = halo.keys - rank.keys
    times = f", {_times(others / rank.received)} as many" if rank.received and others else ""
    yield "all-gather", f"{amount(others, each)}{times}"
    if halo.ranks > 1:
        useful = f"{rank.messages} of them with keys that it attends to"
        yield "ring", f"as many, in {counted(halo.ranks - 1, 'step')}, {useful}"
    held = amount(rank.keys + rank.received, each)
    yield "memory", f"{held} in shard and halo; {amount(halo.keys, each)} after an all-gather"
    if rank.received:
        inner = f"{100 * rank.inner_share:.0f} % of its queries need no halo"
        apart = rank.inner_share >= WORTH_A_CALL
        yield "overlap", inner + (", and can be computed while it travels" if apart else "")
    mean = float(halo.pairs.mean())
    if mean and (most := float(halo.pairs.max()) / mean) > _EVEN:
        yield "balance", f"the rank with most pairs computes {_times(most)} as many as the mean"


def _needs(halo: Halo, rank: RankHalo) -> Iterator[tuple[str, str]]:
    """The spans of every axis, and who has them."""
    for number, spans in enumerate(rank.needed):
        needed = ", ".join(map(slice_of, spans)) or "none"
        cut = halo.parts[number] > 1
        own = f" (its own: {slice_of(rank.own[number])})" if cut else ", not cut"
        yield "needs", f"axis {number}: keys {needed}{own}"
    for source in rank.sources[:_LISTED]:
        blocks = ", ".join(" x ".join(map(slice_of, block)) for block in source.blocks[:2])
        more = f" and {len(source.blocks) - 2} more blocks" * (len(source.blocks) > 2)
        place = f" {source.place}" if len(source.place) > 1 else ""
        yield "from", f"rank {source.rank}{place}: {blocks}{more}, {counted(source.keys, 'key')}"
    if len(rank.sources) > _LISTED:
        yield "from", f"and {counted(len(rank.sources) - _LISTED, 'more rank')}"


def _each(halo: Halo, traffic: Traffic | None) -> int:
    """Bytes of a key and its value; 0 where they are not known."""
    return 0 if traffic is None or not halo.keys else traffic.everything // halo.keys


def amount(keys: int, each: int) -> str:
    """A number of keys, and their bytes with values where these are known."""
    found = f"{keys:,} {'key' if keys == 1 else 'keys'}"
    return f"{found} ({short_bytes(keys * each)})" if each else found


def by(lengths: Sequence[int]) -> str:
    """Lengths as text: "64 x 64"."""
    return " x ".join(map(str, lengths))


def by_count(spans: Sequence[Span]) -> str:
    """Lengths of spans as text."""
    return by([span.length for span in spans])


def slice_of(span: Span) -> str:
    """A span as a slice."""
    return f"{span.start}:{span.stop}"


def _percent(some: int, every: int) -> str:
    return f"{100 * some / every:.3g} %"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"

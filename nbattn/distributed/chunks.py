"""How axes are cut into chunks, one for each rank of a mesh dimension: as `torch.chunk` cuts."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Positions `[start, stop)` of an axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Positions."""
        return max(0, self.stop - self.start)

    def of(self, other: Span) -> Span:
        """The positions of another span that are in this one; empty if there are none."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))


def chunk_of(length: int, parts: int, part: int) -> Span:
    """The chunk of one part: all are as long as the first, but for the last ones, which can be
    shorter or empty.

    >>> [chunk_of(10, 4, part) for part in (0, 2, 3)], chunk_of(3, 4, 3)
    ([Span(start=0, stop=3), Span(start=6, stop=9), Span(start=9, stop=10)], Span(start=3, stop=3))
    """
    size = size_of(length, parts)
    return Span(min(size * part, length), min(size * (part + 1), length))


def size_of(length: int, parts: int) -> int:
    """The length of the first chunk."""
    return -(-length // parts)


def owners(length: int, parts: int, span: Span) -> range:
    """The parts whose chunks have positions of a span."""
    if not span.length:
        return range(0)
    size = size_of(length, parts)
    return range(span.start // size, (span.stop - 1) // size + 1)


def joined(spans: list[Span]) -> tuple[Span, ...]:
    """Spans in order, without empty ones, overlapping and touching ones as one."""
    found: list[Span] = []
    for span in sorted(span for span in spans if span.length):
        if found and found[-1].stop >= span.start:
            found[-1] = Span(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return tuple(found)

"""Which indices of a long axis a picture shows, and where: all of them, or those around some
places, with gaps between the parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Ints

_GAP = 0.05  # between two parts, of what is shown


@dataclass(frozen=True)
class Scale:
    """The shown indices of an axis, in parts, and their places. In the first part an index is at
    itself, as in matplotlib's own pictures of matrices; cells reach half a cell to either side.

    Args:
        parts: the ranges that are shown, in order, without overlap; none is empty. The first and
            the last may reach beyond the axis.
        length: of the axis.
        gap: the width between two parts, in cells.
    """

    parts: tuple[range, ...]
    length: int
    gap: float = 0.0

    @property
    def starts(self) -> tuple[float, ...]:
        """The place of the first index of every part."""
        places: list[float] = [float(self.parts[0].start)] if self.parts else []
        for before, _ in pairwise(self.parts):
            places.append(places[-1] + len(before) + self.gap)
        return tuple(places)

    @property
    def ends(self) -> tuple[float, float]:
        """The edges of the whole."""
        if not self.parts:
            return -0.5, 0.5
        return self.starts[0] - 0.5, self.starts[-1] + len(self.parts[-1]) - 0.5

    @property
    def frames(self) -> list[tuple[float, float]]:
        """The edges of every part, without what lies beyond the axis."""
        found: list[tuple[float, float]] = []
        for at, part in zip(self.starts, self.parts, strict=True):
            first, last = max(part.start, 0), min(part.stop, self.length)
            if first < last:
                found.append((at + (first - part.start) - 0.5, at + (last - part.start) - 0.5))
        return found

    @property
    def size(self) -> float:
        """The width of everything that is shown, in cells."""
        return self.ends[1] - self.ends[0]

    @property
    def indices(self) -> Ints:
        """All indices that are shown."""
        return np.concatenate([np.arange(p.start, p.stop) for p in self.parts] or [np.arange(0)])

    @property
    def places(self) -> NDArray[np.float64]:
        """The places of `indices`."""
        parts = zip(self.starts, self.parts, strict=True)
        return np.concatenate([at + np.arange(len(p)) for at, p in parts] or [np.arange(0.0)])

    def place(self, index: int) -> float | None:
        """The place of one index; None if it is not shown."""
        for at, part in zip(self.starts, self.parts, strict=True):
            if index in part:
                return at + (index - part.start)
        return None

    def ticks(self, room: float, step: int = 1, *, is_boxed: bool = False) -> list[int]:
        """Indices to be labelled: multiples of `step` at least `room` cells apart, and one of every
        part that has the room.

        Args:
            is_boxed: whether another scale is beside this one: labels, the longest of which has the
                room, take as much as they have digits, and stay inside of the ends.
        """
        found: list[int] = []
        digit, taken = room / len(str(self.length)), -float("inf")
        for at, part in zip(self.starts, self.parts, strict=True):
            inside = range(max(part.start, 0), min(part.stop, self.length))
            for index in _labelled(inside, room, step):
                place = at + (index - part.start)
                half = digit * len(str(index)) / 2 if is_boxed else room / 2
                is_inside = place + half <= self.ends[1] + digit if is_boxed else True
                if place - half >= taken and is_inside:
                    found.append(index)
                    taken = place + half
        return found


def _labelled(part: range, room: float, step: int) -> range | list[int]:
    """Round indices of a part; of a narrow part the roundest one near its middle."""
    size = _round_step(room, step)
    ticks = range(-(-part.start // size) * size, part.stop, size)
    if part.start == 0 or len(part) >= 2.5 * room:
        return ticks
    middle = part[len(part) // 2]
    near = range(part.start + len(part) // 4, part.stop - len(part) // 4)
    for size in (step * digit * 10**tens for tens in range(9, -1, -1) for digit in (5, 2, 1)):
        first = -(-near.start // size) * size
        if first in near:
            return [min(range(first, near.stop, size), key=lambda tick: abs(tick - middle))]
    return [middle]


def _round_step(room: float, step: int) -> int:
    """The least round multiple of a step that is no less than the room."""
    tens = 1
    while True:
        for digit in (1, 2, 5):
            if digit * tens * step >= room:
                return digit * tens * step
        tens *= 10


def whole(length: int, margin: tuple[int, int] = (0, 0)) -> Scale:
    """All indices of an axis, with a margin before and after them."""
    parts = (range(-margin[0], length + margin[1]),)
    return Scale(parts if len(parts[0]) else (), length)


def around(
    length: int,
    places: Iterable[int],
    size: int,
    step: int = 1,
    margin: tuple[int, int] = (0, 0),
) -> Scale:
    """Parts of at least `size` indices at both ends and around some places, which begin and end at
    multiples of `step`; what overlaps or touches is one part. A margin lies before and after.
    """
    size = -(-size // step) * step
    wanted = [range(0, min(size, length)), range(max(0, (length - size) // step * step), length)]
    for place in places:
        start = min(max(0, place - size // 2), max(0, length - size)) // step * step
        stop = max(start + size, -(-(place + 1) // step) * step)
        wanted.append(range(start, min(stop, length)))
    joined: list[range] = []
    for part in sorted(wanted, key=lambda part: part.start):
        if joined and part.start <= joined[-1].stop + step:
            part = range(joined[-1].start, max(part.stop, joined.pop().stop))
        joined.append(part)
    joined[0] = range(-margin[0], joined[0].stop)
    joined[-1] = range(joined[-1].start, length + margin[1])
    total = sum(map(len, joined))
    return Scale(tuple(joined), length, max(1.0, round(_GAP * total)))

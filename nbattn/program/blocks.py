"""The blocks that a kernel computes: what `plan.schedule()` lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from nbattn.geometry import Ints, Run
from nbattn.program.program import View


@dataclass(frozen=True, slots=True)
class Block:
    """One block that a kernel computes: ranges of queries and keys per axis.

    Args:
        queries: one range of positions per axis.
        keys: boxes of one range per axis; several where windows wrap or a prefix stands apart.
        full: whether every query attends to every key of the block.
    """

    queries: tuple[range, ...]
    keys: tuple[tuple[range, ...], ...]
    full: bool


def range_of(run: Run, step: int) -> range:
    """A run (start, count) of positions `step` apart."""
    return range(run[0], run[0] + run[1] * step, step)


def ranges_of(positions: Ints, step: int) -> list[range]:
    """Positions `step` apart as ranges: one, or two where they wrap around the end of the axis."""
    ends = np.flatnonzero(np.diff(positions) != step) + 1
    parts = np.split(positions, ends.tolist())
    return [range(int(part[0]), int(part[-1]) + 1, step) for part in parts]


def blocks_of_groups(query: View, key: View, *, full: bool) -> Iterator[Block]:
    """One block for every combination of a view's groups."""
    for groups in product(*(range(axis.groups) for axis in query.axes)):
        queries, keys = (
            tuple(
                range_of((axis.start + axis.group_step * number, axis.length), axis.step)
                for axis, number in zip(view.axes, groups, strict=True)
            )
            for view in (query, key)
        )
        yield Block(queries, (keys,), full)

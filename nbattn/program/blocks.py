"""The blocks that a kernel computes, as `plan.schedule()` lists them."""

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
        keys: boxes of one range per axis; several where windows wrap or leave a gap after a prefix.
        full: whether every query attends to every key of the block.
        grid: of packed grids, the one whose positions these are.
    """

    queries: tuple[range, ...]
    keys: tuple[tuple[range, ...], ...]
    full: bool
    grid: int = 0


def range_of(run: Run, step: int) -> range:
    """Returns a run (start, count) of positions `step` apart as a range."""
    return range(run[0], run[0] + run[1] * step, step)


def ranges_of(positions: Ints, step: int) -> list[range]:
    """Returns positions `step` apart as ranges: one, or two if they wrap around the axis end."""
    ends = np.flatnonzero(np.diff(positions) != step) + 1
    parts = np.split(positions, ends.tolist())
    return [range(int(part[0]), int(part[-1]) + 1, step) for part in parts]


def blocks_of_groups(query: View, key: View, *, full: bool) -> Iterator[Block]:
    """Yields one block for every combination of a view's groups."""
    for groups in product(*(range(axis.groups) for axis in query.axes)):
        queries, keys = (
            tuple(
                range_of((axis.start + axis.group_step * number, axis.length), axis.step)
                for axis, number in zip(view.axes, groups, strict=True)
            )
            for view in (query, key)
        )
        yield Block(queries, (keys,), full)

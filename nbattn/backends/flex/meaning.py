"""FlexAttention's dialect: any mask, as a function of flat token numbers and the blocks of tokens
that it leaves empty, partial or full.

Blocks are counted per axis from geometry's intervals, never from a dense matrix: the keys of a
query before a flat position are a prefix of a product of intervals. Only a whole block
counts as full: FlexAttention would read past the end of a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.limits import GRID, Limits, Reason
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

BLOCK = 128  # tokens; FlexAttention's own default
_DTYPES = ("float16", "bfloat16", "float32")
FLEX_CPU = Limits(name="flex", dtypes=_DTYPES, key_range=False, lse=False)
FLEX = Limits(
    name="flex", kinds=("cuda",), dtypes=_DTYPES, key_range=False, lse=False, deterministic=False
)


def reasons(needs: Needs) -> list[Reason]:
    """Every limit that a request breaks. Its CPU kernel has no backward and no logsumexp."""
    on_cpu = needs.device.kind == "cpu"
    found = (FLEX_CPU if on_cpu else FLEX).reasons(needs)
    if on_cpu and needs.training:
        found.append(Reason("training", "its CPU kernel has no backward"))
    return found


def over_grid(samples: int, heads: int) -> Reason | None:
    """Why so many samples and heads cannot be launched on CUDA: their product is one dimension of
    the grid in FlexAttention's decoding kernel, and in torch before 2.9 in all of them.
    """
    if samples * heads <= GRID:
        return None
    text = f"{samples} samples x {heads} heads are {samples * heads}, over the grid of {GRID}"
    return Reason("grid", text)


class AxisTable(NamedTuple):
    """The keys of every query of one axis: of its class `residue`, `[0, low)` and `[lo, hi)`."""

    step: int
    residue: Ints
    low: Ints
    lo: Ints
    hi: Ints


def table(axis: BoundAxis) -> AxisTable:
    """The intervals of an axis, as its mask function looks them up."""
    first, rows = axis.query_rows(0, axis.queries)
    return AxisTable(axis.spec.dilation, first, *rows)


def _minima(values: Ints, t: Ints) -> Ints:
    """The sum of min(value, t) over the values, for every t."""
    ranked = np.sort(values)
    sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ranked)])
    below = np.searchsorted(ranked, t)
    return sums[below] + (len(ranked) - below) * t


def _before(axis: AxisTable, first: int, stop: int, key: Ints) -> Ints:
    """How many keys below `key` `[E]` the queries from `first` to `stop` read, together."""
    total = np.zeros_like(key)
    residue = axis.residue[first:stop]
    for own in np.unique(residue):
        t = -((own - key) // axis.step)
        low, lo, hi = (side[first:stop][residue == own] for side in (axis.low, axis.lo, axis.hi))
        total += _minima(low, t) + _minima(hi, t) - _minima(lo, t)
    return total


class _Reach:
    """How many keys before every block edge a stretch of queries reads, axis by axis.

    A key lies before an edge if it is lower on the first axis, or there the same and lower on the
    next. Stretches repeat, so what an axis says is kept.
    """

    def __init__(self, axes: Axes, ends: Ints) -> None:
        self._tables = [table(axis) for axis in axes]
        self._edges = _coordinates(ends, tuple(axis.keys for axis in axes))
        self._known: dict[tuple[int, int, int], tuple[Ints, Ints, int]] = {}

    def _axis(self, number: int, first: int, stop: int) -> tuple[Ints, Ints, int]:
        """Keys of one axis before the edges, on them, and in all."""
        found = self._known.get((number, first, stop))
        if found is None:
            axis, edge = self._tables[number], self._edges[number]
            below, upto = (_before(axis, first, stop, at) for at in (edge, edge + 1))
            rows = slice(first, stop)
            count = int((axis.low[rows] + axis.hi[rows] - axis.lo[rows]).sum())
            found = self._known[number, first, stop] = (below, upto - below, count)
        return found

    def stretch(self, lead: tuple[int, ...], first: int, stop: int) -> Ints:
        """Of the queries `[*lead, first:stop]`, as `[E]`."""
        below, _, behind = self._axis(len(lead), first, stop)
        for number, at in reversed([*enumerate(lead)]):
            own, on, count = self._axis(number, at, at + 1)
            below, behind = own * behind + on * below, behind * count
        return below


def _coordinates(flat: Ints, space: tuple[int, ...]) -> list[Ints]:
    """Flat positions as one coordinate per axis; the end of the space is its first axis' end."""
    found: list[Ints] = []
    for length in reversed(space[1:]):
        flat, rest = np.divmod(flat, length)
        found.append(rest)
    return [flat, *reversed(found)]


def _stretches(
    space: tuple[int, ...], block: int
) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
    """Blocks cut at the ends of rows: block, leading coordinates, first and stop on the last."""
    length = space[-1]
    for row, lead in enumerate(product(*(range(n) for n in space[:-1]))):
        first = 0
        while first < length:
            number = (row * length + first) // block
            stop = min((number + 1) * block - row * length, length)
            yield number, lead, first, stop
            first = stop


@lru_cache(16)
def block_counts(axes: Axes, query_block: int, key_block: int) -> Ints:
    """Allowed pairs in every block of flat tokens, `[query blocks, key blocks]`."""
    space = tuple(axis.queries for axis in axes)
    total = math.prod(axis.keys for axis in axes)
    ends = np.minimum(np.arange(0, total + key_block, key_block, dtype=np.int64), total)
    reach, rows = _Reach(axes, ends), -(-math.prod(space) // query_block)
    before = np.zeros((rows, len(ends)), dtype=np.int64)
    for number, lead, first, stop in _stretches(space, query_block):
        before[number] += reach.stretch(lead, first, stop)
    blocks = np.diff(before, axis=1)
    blocks.flags.writeable = False  # the cache's own
    return blocks


@dataclass(frozen=True, slots=True)
class FlexArguments:
    """The mask by blocks of flat tokens: empty ones are skipped, full ones not masked."""

    axes: Axes
    query_block: int = BLOCK
    key_block: int = BLOCK

    def counts(self) -> Ints:
        """Allowed pairs per block."""
        return block_counts(self.axes, self.query_block, self.key_block)

    def full(self) -> NDArray[np.bool_]:
        """Whole blocks that are read entirely."""
        return self.counts() == self.query_block * self.key_block

    def partial(self) -> NDArray[np.bool_]:
        """Blocks that the mask function decides pair by pair."""
        return (self.counts() > 0) & ~self.full()

    def rows(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The mask function's rows, from its tables."""
        own = table(self.axes[number])
        starts = np.stack([own.residue, own.residue + own.step * own.lo], axis=1)
        return starts, np.stack([own.low, own.hi - own.lo], axis=1), own.step

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """What the blocks compute: the mask function where they are partial."""
        matrix = np.ones((1, 1), dtype=np.bool_)
        for axis in self.axes:
            own, key = table(axis), np.arange(axis.keys)
            t, r = np.divmod(key, own.step)
            low, lo, hi = (side[:, None] for side in (own.low, own.lo, own.hi))
            inside = (r == own.residue[:, None]) & ((t < low) | ((t >= lo) & (t < hi)))
            matrix = np.kron(matrix, inside)
        full, partial = (
            self._spread(blocks, matrix.shape) for blocks in (self.full(), self.partial())
        )
        return full | (partial & matrix)

    def computed(self) -> int:
        """Pairs of the blocks that are not empty."""
        return int((self.counts() > 0).sum()) * self.query_block * self.key_block

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """One block: what its kernel skips is its own."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """In words."""
        return f"blocks of {self.query_block}x{self.key_block}"

    def _spread(self, blocks: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        pairs = np.repeat(np.repeat(blocks, self.query_block, 0), self.key_block, 1)
        return pairs[: shape[0], : shape[1]]

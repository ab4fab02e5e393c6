"""FlexAttention's form of a mask: a function of flat token numbers, and which blocks of tokens are
empty, partial or full.

Blocks are counted per axis from geometry's intervals, never from a dense matrix: the keys of a
query before a flat position are a prefix of a product of intervals. A block at the end that is
shorter than the block size never counts as full: FlexAttention would load past its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes, BoundAxis, Ints
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.limits import GRID, READS_ALL_EXTRAS, Limits, Reason
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

BLOCK = 128  # tokens; FlexAttention's default
MOST_BLOCKS = 1 << 24  # those of 524,288 queries and keys
_DTYPES = ("float16", "bfloat16", "float32")
_WHY = (
    READS_ALL_EXTRAS,
    ("relative_bias", "the gradient of what a score_mod reads is summed in any order"),
    ("alibi_slopes", "no score_mod is passed"),
)
FLEX_CPU = Limits(name="flex", dtypes=_DTYPES, key_range=False, lse=False, why=_WHY)
FLEX = replace(FLEX_CPU, kinds=("cuda",), deterministic=False)


def reasons(needs: Needs) -> list[Reason]:
    """Returns a reason for every limit that a request exceeds. The CPU kernel has no backward and
    no logsumexp.
    """
    on_cpu = needs.device.kind == "cpu"
    exceeded = (FLEX_CPU if on_cpu else FLEX).reasons(needs)
    if on_cpu and needs.training:
        exceeded.append(Reason("training", "its CPU kernel has no backward"))
    return exceeded


def over_grid(samples: int, heads: int) -> Reason | None:
    """Returns why so many samples and heads cannot be launched on CUDA, or None: their product is
    one dimension of the grid in FlexAttention's decoding kernel, and before torch 2.9 in all
    kernels.
    """
    if samples * heads <= GRID:
        return None
    text = f"{samples} samples x {heads} heads are {samples * heads}, over the grid of {GRID}"
    return Reason("grid", text)


def over_blocks(queries: int, keys: int) -> Reason | None:
    """Returns why a mask of so many tokens is not laid out in blocks, or None: FlexAttention keeps
    several tensors with a number for every block, and so does the count of what they allow.
    """
    rows, columns = (-(-tokens // BLOCK) for tokens in (queries, keys))
    if rows * columns <= MOST_BLOCKS:
        return None
    text = f"{rows} x {columns} blocks of tokens are over the limit of {MOST_BLOCKS}"
    return Reason("mask", text)


class AxisTable(NamedTuple):
    """The keys of every query of one axis: `[0, low)` and `[lo, hi)` of the class `residue`."""

    step: int
    residue: Ints
    low: Ints
    lo: Ints
    hi: Ints


def table(axis: BoundAxis) -> AxisTable:
    """Returns the intervals of an axis, as its mask function looks them up."""
    first, rows = axis.query_rows(0, axis.queries)
    return AxisTable(axis.spec.dilation, first, *rows)


def _minima(values: Ints, t: Ints) -> Ints:
    """Returns the sum of min(value, t) over the values, for every t."""
    ranked = np.sort(values)
    sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ranked)])
    below = np.searchsorted(ranked, t)
    return sums[below] + (len(ranked) - below) * t


def _before(axis: AxisTable, first: int, stop: int, key: Ints) -> Ints:
    """Returns how many pairs the queries `[first, stop)` have with keys below `key` `[E]`."""
    total = np.zeros_like(key)
    residues = axis.residue[first:stop]
    for residue in np.unique(residues):
        t = -((residue - key) // axis.step)
        sides = (axis.low, axis.lo, axis.hi)
        low, lo, hi = (side[first:stop][residues == residue] for side in sides)
        total += _minima(low, t) + _minima(hi, t) - _minima(lo, t)
    return total


class _Reach:
    """Counts the pairs of a stretch of queries with keys before every block edge, axis by axis.

    A key is before an edge if it is lower on the first axis, or equal there and lower on the next.
    Stretches repeat, so the counts of every axis are cached. On 2 x 3 keys, before the edge (1, 2):

        ■ ■ ■       lower on axis 0: all of axis 1
        ■ ■ ⬚       equal on axis 0: lower on axis 1
    """

    def __init__(self, axes: Axes, ends: Ints) -> None:
        self._tables = [table(axis) for axis in axes]
        self._edges = _coordinates(ends, tuple(axis.keys for axis in axes))
        self._known: dict[tuple[int, int, int], tuple[Ints, Ints, int]] = {}

    def _axis(self, number: int, first: int, stop: int) -> tuple[Ints, Ints, int]:
        """Returns the pairs on one axis with keys before the edges, on them, and all."""
        counts = self._known.get((number, first, stop))
        if counts is None:
            axis, edge = self._tables[number], self._edges[number]
            below, upto = (_before(axis, first, stop, at) for at in (edge, edge + 1))
            rows = slice(first, stop)
            count = int((axis.low[rows] + axis.hi[rows] - axis.lo[rows]).sum())
            counts = self._known[number, first, stop] = (below, upto - below, count)
        return counts

    def stretch(self, lead: tuple[int, ...], first: int, stop: int) -> Ints:
        """Returns the counts of the queries `[*lead, first:stop]`, as `[E]`."""
        below, _, behind = self._axis(len(lead), first, stop)
        for number, at in reversed([*enumerate(lead)]):
            before, on, count = self._axis(number, at, at + 1)
            below, behind = before * behind + on * below, behind * count
        return below


def _coordinates(flat: Ints, space: tuple[int, ...]) -> list[Ints]:
    """Splits flat positions into one coordinate per axis; the end of the space is the end of its
    first axis.
    """
    last_first: list[Ints] = []
    for length in reversed(space[1:]):
        flat, coordinate = np.divmod(flat, length)
        last_first.append(coordinate)
    return [flat, *reversed(last_first)]


def _stretches(
    space: tuple[int, ...], block: int
) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
    """Yields blocks cut at the ends of rows: the block's number, the coordinates on all but the
    last axis, first and stop on the last axis.
    """
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
    """Returns the allowed pairs in every block of flat tokens, `[query blocks, key blocks]`."""
    space = tuple(axis.queries for axis in axes)
    total = math.prod(axis.keys for axis in axes)
    ends = np.minimum(np.arange(0, total + key_block, key_block, dtype=np.int64), total)
    reach, rows = _Reach(axes, ends), -(-math.prod(space) // query_block)
    before = np.zeros((rows, len(ends)), dtype=np.int64)
    for number, lead, first, stop in _stretches(space, query_block):
        before[number] += reach.stretch(lead, first, stop)
    blocks = np.diff(before, axis=1)
    blocks.flags.writeable = False  # it stays in the cache
    return blocks


@dataclass(frozen=True, slots=True)
class FlexArguments:
    """The mask as blocks of flat tokens: empty ones are skipped, full ones are not masked."""

    axes: Axes
    query_block: int = BLOCK
    key_block: int = BLOCK

    def counts(self) -> Ints:
        """Returns the allowed pairs per block."""
        return block_counts(self.axes, self.query_block, self.key_block)

    def full(self) -> NDArray[np.bool_]:
        """Returns which blocks are whole and have all of their pairs allowed."""
        return self.counts() == self.query_block * self.key_block

    def partial(self) -> NDArray[np.bool_]:
        """Returns which blocks need the mask function for every pair."""
        return (self.counts() > 0) & ~self.full()

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """Returns the mask function's rows, from its tables."""
        axis = table(self.axes[number])
        starts = np.stack([axis.residue, axis.residue + axis.step * axis.lo], axis=1)
        return starts, np.stack([axis.low, axis.hi - axis.lo], axis=1), axis.step

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """Returns the mask that the blocks compute: the mask function where they are partial."""
        matrix = np.ones((1, 1), dtype=np.bool_)
        for axis in self.axes:
            bounds, key = table(axis), np.arange(axis.keys)
            t, r = np.divmod(key, bounds.step)
            low, lo, hi = (side[:, None] for side in (bounds.low, bounds.lo, bounds.hi))
            inside = (r == bounds.residue[:, None]) & ((t < low) | ((t >= lo) & (t < hi)))
            matrix = np.kron(matrix, inside)
        full, partial = (
            self._spread(blocks, matrix.shape) for blocks in (self.full(), self.partial())
        )
        return full | (partial & matrix)

    def computed(self) -> int:
        """Returns the pairs of the blocks that are not empty."""
        return int((self.counts() > 0).sum()) * self.query_block * self.key_block

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """Yields one block of all pairs, without what the kernel skips."""
        return blocks_of_groups(call.query, call.key, full=False)

    def describe(self) -> str:
        """Describes the arguments in words."""
        return f"blocks of {self.query_block}x{self.key_block}"

    def _spread(self, blocks: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        pairs = np.repeat(np.repeat(blocks, self.query_block, 0), self.key_block, 1)
        return pairs[: shape[0], : shape[1]]

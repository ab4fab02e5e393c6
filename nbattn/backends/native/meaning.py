"""What the native kernels (`cpu/`) compute: any mask in one call, in tiles of 16 rows against the
hull of their columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nbattn import biases
from nbattn.backends.native.tiles import RANK, Extents, Tiles
from nbattn.geometry import Axes, Ints
from nbattn.packages import install_line
from nbattn.program import tile_traversal
from nbattn.program.blocks import Block, ranges_of
from nbattn.program.limits import Limits, Reason, over_int32
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request
from nbattn.program.tile_traversal import Traversal

NATIVE = Limits(
    name="native", kinds=("cpu",), extra_range=True, relative_bias=True, alibi_slopes=True
)
ENTRIES = 1 << 18  # of a head's table: kernels keep 16 numbers for each, a thread as many sums
PACKAGE = "c++"
COMPILERS = (
    f"g++ 10 or clang 14 or newer by the system's package manager, or {install_line('native')}"
)
_SINGLE = 1  # columns that a kernel may leave unmasked: each that every row of its tile attends to


def reasons(needs: Needs, axes: Axes) -> list[Reason]:
    """Every limit that a request exceeds, or that there is no compiler."""
    exceeded = NATIVE.reasons(needs)
    if not exceeded and needs.relative_bias:
        exceeded += _over_entries(axes)
    if not exceeded and PACKAGE not in needs.device.providers:
        exceeded.append(Reason("package", f"needs a C++ compiler, and found none: {COMPILERS}"))
    return exceeded + over_int32(axes)


def _over_entries(axes: Axes) -> list[Reason]:
    entries = math.prod(biases.table_sizes([axis.spec for axis in axes]))
    if entries <= ENTRIES:
        return []
    return [Reason("relative_bias", f"takes tables of {ENTRIES} entries a head, not {entries}")]


def many_tables(request: Request) -> list[Reason]:
    """Why the kernels cannot lay out one table of relative positions for all grids."""
    circles = any(axis.border == "wrap" for axis in request.mask.axes)
    if request.grids is None or not request.relative_bias or not circles:
        return []
    text = 'relative_bias of packed grids needs axes without border="wrap": each circle has its own'
    return [Reason("grids", f"{text} table")]


@dataclass(frozen=True, slots=True)
class NativeArguments:
    """One call on whole tensors, with the tiles of its kernels.

    Args:
        axes: the mask's axes.
        forward: the tiles of the forward kernel.
        grad_query, grad_key: the tiles of the kernels that compute the queries' gradients and those
            of keys and values; None without a backward, or where one kernel computes all of them.
        grad_all: the tiles of that kernel.
    """

    axes: Axes
    forward: Tiles
    grad_query: Tiles | None = None
    grad_key: Tiles | None = None
    grad_all: Tiles | None = None

    def alone(self, axes: Axes) -> NativeArguments:
        """The arguments of a call on one grid, in the same tiles."""
        return replace(self, axes=axes)

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The keys of each query on one axis, by the tiles of the forward kernel."""
        axis, rows = self.axes[number], _on_axes(self.forward.tile, len(self.axes))[number]
        starts, counts = Traversal(axis).reads(rows, _SINGLE)
        return starts, counts, axis.spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask that the kernels compute, tile by tile, the same for all heads of one. Raises
        AssertionError if one computes a pair twice, if their pairs differ, or if two work items add
        to the gradient of one key at a time.
        """
        kernels = (self.forward, self.grad_all or self.grad_query, self.grad_key)
        sizes = [None if tiles is None else self._extents(tiles) for tiles in kernels]
        if self.grad_all is not None:
            self._check_slabs(self.grad_all)
        return tile_traversal.pairs_of_kernels(self.axes, *sizes)

    def _check_slabs(self, tiles: Tiles) -> None:
        """Every other slab of a class runs at a time: they have no key in common."""
        first = RANK - len(self.axes)
        slabs = zip(self.axes, tiles.rows[first + 1 :], tiles.slab[first:], strict=True)
        for number, (axis, rows, groups) in enumerate(slabs):
            running: dict[tuple[int, int], NDArray[np.int64]] = {}  # times a key is in a class's
            order: dict[int, int] = {}
            for slab in Traversal(axis).tiles(rows * groups, 0):
                residue = int(slab.positions[0]) % axis.spec.dilation
                order[residue] = phase = order.get(residue, 1) ^ 1
                times = running.setdefault((residue, phase), np.zeros(axis.keys, dtype=np.int64))
                for columns in slab.columns:
                    times[columns.positions] += 1
                if times.size and times.max() > 1:
                    raise AssertionError(
                        f"axis {number}: two slabs of {rows * groups} queries that run at a time "
                        f"add to the gradient of key {int(times.argmax())}"
                    )

    def _extents(self, tiles: Tiles) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns of a tile on the axes of the mask: its columns are its hull."""
        rank = len(self.axes)
        return _on_axes(tiles.tile, rank), (0,) * rank

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The tiles of the forward kernel, or of the kernel that computes the keys' gradients: each
        one against the hull of its columns.
        """
        tiles = (self.grad_all or self.grad_key) if backward else self.forward
        assert tiles is not None
        inverse = backward and self.grad_all is None
        steps = [axis.spec.dilation for axis in self.axes]
        extents = self._extents(tiles)
        for row in tile_traversal.row_tiles(self.axes, *extents, inverse=inverse):
            rows = [ranges_of(part.positions, d)[0] for part, d in zip(row, steps, strict=True)]
            runs = [
                [ranges_of(column.positions, d)[0] for column in part.columns]
                for part, d in zip(row, steps, strict=True)
            ]
            full = all(bool(column.reads.all()) for part in row for column in part.columns)
            boxes = tuple(product(*runs))
            if not inverse:
                yield Block(tuple(rows), boxes, full)
            else:
                yield from (Block(box, (tuple(rows),), full) for box in boxes)

    def describe(self) -> str:
        """The forward kernel's tile and its group as one short line of text."""
        rank = len(self.axes)
        queries = "x".join(map(str, _on_axes(self.forward.tile, rank)))
        group = "x".join(map(str, _on_axes(self.forward.rows, rank)))
        heads = f" of {self.forward.tile[0]} heads" if self.forward.tile[0] > 1 else ""
        return f"tiles of {queries} queries{heads}, keys copied for {group}"


def _on_axes(extents: Extents, rank: int) -> tuple[int, ...]:
    """The extents on the axes of the mask."""
    return extents[1 + RANK - rank :]

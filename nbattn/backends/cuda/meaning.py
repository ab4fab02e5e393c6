"""What the project's CUDA kernels (`cuda/`) compute: any mask in one call, tile by tile.

There are kernels with tensor cores ("mma": half precision; "wgmma": on sm_90, by tensor maps) and
without ("simt": any dtype). Nothing here has run on a GPU yet; the tests run the kernels in an
emulator and compare them with the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nbattn import biases
from nbattn.backends.cuda import group_limits
from nbattn.backends.cuda.group_limits import HALVES
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.geometry import Axes, Ints
from nbattn.mask import Mask
from nbattn.packages import install_line
from nbattn.program import tile_traversal
from nbattn.program.blocks import Block, ranges_of
from nbattn.program.limits import Limits, Reason, over_int32, whole_axes
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request
from nbattn.program.tile_counts import RANK, Extents
from nbattn.program.tile_traversal import Traversal

CUDA = Limits(
    name="cuda",
    kinds=("cuda",),
    vendors=("nvidia",),  # NVRTC compiles for no other
    extra_range=True,
    relative_bias=True,
    alibi_slopes=True,
)
PACKAGE = "cupy"  # installed together with NVRTC
INSTRUCTIONS = ("mma", "simt", "wgmma")
GRID = (1 << 31) - 1  # the largest number of blocks in a launch
TABLE = 1 << 22  # the most entries of a head's table (cuda/bias.cuh)
_OLDEST = {"mma": 80, "simt": 75}  # compute capabilities
_HEADS = {"mma": (16, 256), "simt": (1, 512)}  # smallest and largest head size
_HEAD_STEP = 8  # tensor-core kernels need head sizes in steps of 16 bytes
# Bytes of shared memory that a block can use, by capability.
_MEMORY = {
    **dict.fromkeys((75,), 64 << 10),
    **dict.fromkeys((86, 89, 120, 121), 99 << 10),
    **dict.fromkeys((80, 87), 163 << 10),
    **dict.fromkeys((90, 100, 103, 110), 227 << 10),
}


def absent(needs: Needs) -> list[Reason]:
    """Why none of the kernels can run on the device; empty if one can."""
    reasons = CUDA.reasons(needs)
    if not reasons and PACKAGE not in needs.device.providers:
        text = f"needs CuPy and NVRTC, which are not installed: {install_line('cuda13')}"
        older = f"with a driver of CUDA 12: {install_line('cuda12')}"
        reasons.append(Reason("package", f"{text}; {older}"))
    return reasons


def reasons(instructions: str, needs: Needs, axes: Axes) -> list[Reason]:
    """Every limit of an instruction set that a request exceeds."""
    if instructions == "wgmma":
        return group_limits.reasons(needs) + whole_axes(axes) + over_int32(axes)
    reasons: list[Reason] = []
    number = needs.device.capability
    if number is not None and number < _OLDEST[instructions]:
        reasons.append(
            Reason("device", f"needs sm_{_OLDEST[instructions]} or newer, not sm_{number}")
        )
    if instructions == "mma" and needs.dtype not in HALVES:
        reasons.append(Reason("dtype", f"takes {', '.join(HALVES)}, not {needs.dtype}"))
    least, most = _HEADS[instructions]
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if not least <= size <= most:
            reasons.append(Reason(name, f"takes a {name} of {least} to {most}, not {size}"))
        elif instructions == "mma" and size % _HEAD_STEP:
            text = f"takes a {name} divisible by {_HEAD_STEP}, not {size}"
            reasons.append(Reason(name, text))
    return reasons + whole_axes(axes) + over_int32(axes)


def table_reason(mask: Mask) -> Reason | None:
    """The reason against a table of relative positions that is too large."""
    entries = math.prod(biases.table_sizes(mask.axes))
    if entries <= TABLE:
        return None
    return Reason("relative_bias", f"takes tables of up to {TABLE} entries per head, not {entries}")


def memory(needs: Needs) -> int:
    """Bytes of shared memory that a block can use; on an unknown device the least of all."""
    return _MEMORY.get(needs.device.capability or 0, min(_MEMORY.values()))


def two_runs(axes: Axes) -> bool:
    """Whether a query's keys on some axis can be two separate intervals."""
    return any(axis.spec.border == "wrap" or axis.spec.prefix for axis in axes)


@dataclass(frozen=True, slots=True)
class CudaArguments:
    """One call on whole tensors, with the tiles of its kernels.

    Args:
        axes: the mask's axes.
        build: the options that the kernels are compiled for.
        forward: the tiles of the forward kernel.
        grad_query, grad_key: the tiles of the kernels that compute the queries' gradients and those
            of keys and values; None without a backward.
        grad_table: the tiles of the kernel of the table's gradient; None without one.
        packed: query heads of one key head in each tile of the forward: its first extent.
    """

    axes: Axes
    build: Build
    forward: Tiles
    grad_query: Tiles | None = None
    grad_key: Tiles | None = None
    grad_table: Tiles | None = None
    packed: int = 1

    def alone(self, axes: Axes) -> CudaArguments:
        """The arguments of a call on one grid, in the same tiles."""
        return replace(self, axes=axes, build=self.build._replace(grids=False))

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The keys of each query on one axis, by the tiles of the forward kernel."""
        axis, at = self.axes[number], RANK - len(self.axes) + number
        starts, counts = Traversal(axis).reads(self.forward.rows[at], self.forward.columns[at])
        return starts, counts, axis.spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask that the kernels compute, tile by tile. Raises
        AssertionError if one computes a pair twice, or if their pairs differ.
        """
        kernels = (self.forward, self.grad_query, self.grad_key)
        sizes = [None if tiles is None else self._extents(tiles) for tiles in kernels]
        pairs = tile_traversal.pairs_of_kernels(self.axes, *sizes)
        if self.grad_table is not None:
            table = tile_traversal.pairs(self.axes, *self._extents(self.grad_table), inverse=False)
            assert np.array_equal(pairs, table), "the pairs of the table's gradient differ"
        return pairs

    def _extents(self, tiles: Tiles) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns of a tile on the axes of the mask."""
        first = RANK - len(self.axes)
        return tiles.rows[first:], tiles.columns[first:]

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The blocks that the forward kernel computes, or the kernel of the keys' gradients."""
        tiles = self.grad_key if backward else self.forward
        assert tiles is not None
        steps = [axis.spec.dilation for axis in self.axes]
        row_tiles = tile_traversal.row_tiles(self.axes, *self._extents(tiles), inverse=backward)
        for row in row_tiles:
            rows = [ranges_of(part.positions, d) for part, d in zip(row, steps, strict=True)]
            for visit in product(*(part.columns for part in row)):
                columns = [
                    ranges_of(part.positions, d) for part, d in zip(visit, steps, strict=True)
                ]
                queries, keys = (columns, rows) if backward else (rows, columns)
                boxes, full = tuple(product(*keys)), all(part.full for part in visit)
                yield from (Block(box, boxes, full) for box in product(*queries))

    def describe(self) -> str:
        """The forward kernel's tile as one short line of text."""
        rank = max(len(self.axes), 1)
        queries, keys = (_by(size, rank) for size in (self.forward.rows, self.forward.columns))
        heads = f" of {self.forward.rows[0]} heads" if self.packed > 1 else ""
        return f"tiles of {queries} queries{heads} and {keys} keys"


# Its tiles, by kernel.
FIELDS = {"fwd": "forward", "dq": "grad_query", "dkdv": "grad_key", "dbias": "grad_table"}


def _by(extents: Extents, rank: int) -> str:
    return "x".join(map(str, extents[RANK - rank :]))

"""What the Triton kernels (`kernels/`) compute: any mask in one call, tile by tile, on every GPU
that torch's own Triton compiles for.

Nothing here has run on a GPU yet; the tests run the kernels in Triton's interpreter and compare
them with the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nbattn import biases
from nbattn.backends.triton.tiles import Build, Tiles, largest_head
from nbattn.geometry import Axes, Ints
from nbattn.program import limits, tile_traversal
from nbattn.program.blocks import Block, ranges_of
from nbattn.program.device import DeviceInfo
from nbattn.program.limits import Limits, Reason, over_int32
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request
from nbattn.program.tile_counts import RANK, Extents
from nbattn.program.tile_traversal import RowTile, Traversal

TRITON = Limits(
    name="triton",
    kinds=("cuda", "xpu"),  # torch calls AMD's devices "cuda", too
    extra_range=True,
    relative_bias=True,
    alibi_slopes=True,
)
PACKAGE = "triton"
TABLE = 1 << 22  # the most entries of a head's table
# The most queries, or keys, of a sample: kernels number them, and those past the last tile, in 32
# bits.
TOKENS = 1 << 30
GRID = (1 << 31) - 1  # the largest number of programs in a launch
# A launch on AMD's GPUs has fewer threads in all ("HIP Runtime API", hipModuleLaunchKernel), of
# which a warp has up to 64.
_THREADS, _WAVE = 1 << 32, 64
_DELTA_ELEMENTS = 1 << 12  # elements of the output in a program of the kernel of delta
DELTA_WARPS = 4
# Before, Triton's compiler fails on float64's products for gfx942, not for gfx90a and gfx950.
_DOUBLES = (3, 8)
_OLDEST = 80  # compute capability: "NVIDIA GPUs (Compute Capability 8.0+)", Triton's README


def absent(needs: Needs) -> list[Reason]:
    """Why the kernels cannot run on the device at all; empty if they can."""
    reasons = TRITON.reasons(needs)
    if not reasons and PACKAGE not in needs.device.providers:
        text = "needs Triton, which is not installed or does not work here: torch's wheels for "
        reasons.append(Reason("package", f"{text}CUDA, ROCm and XPU bring it"))
    return reasons


def reasons(needs: Needs, axes: Axes) -> list[Reason]:
    """Every limit of the kernels that a request exceeds."""
    reasons: list[Reason] = []
    number = needs.device.capability
    if number is not None and number < _OLDEST:
        text = f"Triton needs sm_{_OLDEST} or newer, not sm_{number}"
        reasons.append(Reason("device", text))
    version, architecture = needs.device.triton, needs.device.architecture or needs.device.name
    if architecture.startswith("gfx94") and needs.dtype == "float64" and version < _DOUBLES:
        oldest, found = (".".join(map(str, one)) for one in (_DOUBLES, version))
        text = f"float64 on {architecture} needs Triton {oldest} or newer, not {found}"
        reasons.append(Reason("dtype", text))
    most = largest_head(needs.dtype, needs.device)
    reasons += [
        Reason(name, f"takes a {name} up to {most} in {needs.dtype}, not {size}")
        for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim))
        if size > most
    ]
    return reasons + over_int32(axes)


def token_reasons(request: Request) -> list[Reason]:
    """The reasons against too many queries or keys on all axes together."""
    counts = {"queries": request.query_count, "keys": request.key_count}
    return [
        Reason("size", f"takes up to {TOKENS} {name} in a sample, not {count}")
        for name, count in counts.items()
        if count > TOKENS
    ]


def table_reasons(request: Request) -> list[Reason]:
    """The reasons against a table of relative positions: too many entries, or heads."""
    entries = math.prod(biases.table_sizes(request.mask.axes))
    reasons: list[Reason] = []
    if entries > TABLE:
        text = f"takes tables of up to {TABLE} entries per head, not {entries}"
        reasons.append(Reason("relative_bias", text))
    if request.training and request.heads > limits.GRID:
        text = f"takes a table of up to {limits.GRID} heads, not {request.heads}"
        reasons.append(Reason("relative_bias", text))
    return reasons


def grid_reason(programs: int, warps: int, device: DeviceInfo) -> Reason | None:
    """The reason against a launch of too many programs."""
    most = GRID
    if device.vendor == "amd":
        most = min(most, (_THREADS - 1) // (_WAVE * warps))
    if programs <= most:
        return None
    return Reason("grid", f"{programs} programs are over the grid of {most}")


def delta_rows(value_dim: int) -> int:
    """Rows of a program of the kernel of delta: as many as fit its elements.

    >>> delta_rows(64), delta_rows(80)
    (64, 32)
    """
    return _DELTA_ELEMENTS // (1 << (max(value_dim, 16) - 1).bit_length())


def delta_programs(request: Request) -> int:
    """Programs of the kernel of delta."""
    rows = delta_rows(request.value_dim)
    return -(-request.batch * request.heads * request.query_count // rows)


def two_runs(axes: Axes) -> bool:
    """Whether a prefix may stand apart from the windows of some axis."""
    return any(axis.spec.prefix for axis in axes)


def circle(axes: Axes) -> bool:
    """Whether some axis wraps."""
    return any(axis.spec.border == "wrap" for axis in axes)


@dataclass(frozen=True, slots=True)
class TritonArguments:
    """One call on whole tensors, with the tiles of its kernels.

    Args:
        axes: the mask's axes.
        build: the options that the kernels are compiled for.
        forward: the tiles of the forward kernel.
        grad_query, grad_key: the tiles of the kernels that compute the queries' gradients and those
            of keys and values; None without a backward.
        grad_extra: those of the kernel of the extra keys' gradients; None without extra keys.
        grad_table: those of the kernel of the table's gradient; None without one.
    """

    axes: Axes
    build: Build
    forward: Tiles
    grad_query: Tiles | None = None
    grad_key: Tiles | None = None
    grad_extra: Tiles | None = None
    grad_table: Tiles | None = None

    def alone(self, axes: Axes) -> TritonArguments:
        """The arguments of a call on one grid, in the same tiles."""
        return replace(self, axes=axes, build=self.build._replace(grids=False))

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The keys of each query on one axis, by the tiles of the forward kernel."""
        axis, at = self.axes[number], RANK - len(self.axes) + number
        traversal = Traversal(axis, uncut=True)
        starts, counts = traversal.reads(self.forward.rows[at], self.forward.columns[at])
        return starts, counts, axis.spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask that the kernels compute, tile by tile. Raises
        AssertionError if one computes a pair twice, or if their pairs differ.
        """
        kernels = (self.forward, self.grad_query, self.grad_key)
        sizes = [None if tiles is None else self._extents(tiles) for tiles in kernels]
        pairs = tile_traversal.pairs_of_kernels(self.axes, *sizes, uncut=True)
        if self.grad_table is not None:
            sizes = self._extents(self.grad_table)
            table = tile_traversal.pairs(self.axes, *sizes, inverse=False, uncut=True)
            assert np.array_equal(pairs, table), "the pairs of the table's gradient differ"
        return pairs

    def row_tiles(self, *, backward: bool) -> Iterator[tuple[RowTile, ...]]:
        """The tiles of the forward kernel, or of the kernel of the keys' gradients."""
        tiles = self.grad_key if backward else self.forward
        assert tiles is not None
        sizes = self._extents(tiles)
        return tile_traversal.row_tiles(self.axes, *sizes, inverse=backward, uncut=True)

    def _extents(self, tiles: Tiles) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns of a tile on the axes of the mask."""
        first = RANK - len(self.axes)
        return tiles.rows[first:], tiles.columns[first:]

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The blocks that the forward kernel computes, or the kernel of the keys' gradients. On a
        circle, the last columns of a hull longer than a lap are the first ones again, for other
        rows.
        """
        steps = [axis.spec.dilation for axis in self.axes]
        for row in self.row_tiles(backward=backward):
            rows = [ranges_of(part.positions, d) for part, d in zip(row, steps, strict=True)]
            for visit in product(*(part.columns for part in row)):
                if not all(part.positions.size for part in visit):
                    continue  # columns of a circle that the tensors do not hold
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
        return f"tiles of {queries} queries and {keys} keys"


# Its tiles, by kernel.
FIELDS = {
    "fwd": "forward",
    "dq": "grad_query",
    "dkdv": "grad_key",
    "dextra": "grad_extra",
    "dbias": "grad_table",
}


def _by(extents: Extents, rank: int) -> str:
    return "x".join(map(str, extents[RANK - rank :]))

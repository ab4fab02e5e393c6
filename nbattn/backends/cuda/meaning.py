"""What the project's CUDA kernels (`cuda/`) compute: any mask in one call, tile by tile.

There are kernels with tensor cores ("mma": half precision) and without ("simt": any dtype). Nothing
here has run on a GPU yet; the tests run the kernels in an emulator and compare them with the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nbattn.backends.cuda.tile_traversal import ColumnTile, RowTile, Traversal
from nbattn.backends.cuda.tiles import RANK, Build, Extents, Tiles
from nbattn.geometry import Axes, Ints
from nbattn.program.blocks import Block, ranges_of
from nbattn.program.limits import Limits, Reason, whole_axes
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

CUDA = Limits(name="cuda", kinds=("cuda",))
PACKAGE = "cupy"  # installed together with NVRTC
INSTRUCTIONS = ("mma", "simt")
GRID = (1 << 31) - 1  # the largest number of blocks in a launch
# The largest numbers of an axis: then positions of a whole tile past the end fit 32 bits, too. A
# tile has up to 128 rows, a dilation apart.
LARGEST = 1 << 25
LARGEST_DILATION = 1 << 23
_OLDEST = {"mma": 80, "simt": 75}  # compute capabilities
_HEADS = {"mma": (16, 256), "simt": (1, 512)}  # smallest and largest head size
_HEAD_STEP = 8  # tensor-core kernels need head sizes in steps of 16 bytes
_HALVES = ("float16", "bfloat16")
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
        text = "needs CuPy and NVRTC, which are not installed: pip install 'nbattn[cuda13]'"
        reasons.append(Reason("package", f"{text}, or 'nbattn[cuda12]' with a driver of CUDA 12"))
    return reasons


def reasons(instructions: str, needs: Needs, axes: Axes) -> list[Reason]:
    """Every limit of an instruction set that a request exceeds."""
    reasons: list[Reason] = []
    number = needs.device.capability
    if number is not None and number < _OLDEST[instructions]:
        reasons.append(
            Reason("device", f"needs sm_{_OLDEST[instructions]} or newer, not sm_{number}")
        )
    if instructions == "mma" and needs.dtype not in _HALVES:
        reasons.append(Reason("dtype", f"takes {', '.join(_HALVES)}, not {needs.dtype}"))
    least, most = _HEADS[instructions]
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if not least <= size <= most:
            reasons.append(Reason(name, f"takes a {name} of {least} to {most}, not {size}"))
        elif instructions == "mma" and size % _HEAD_STEP:
            text = f"takes a {name} divisible by {_HEAD_STEP}, not {size}"
            reasons.append(Reason(name, text))
    reasons += whole_axes(axes)
    for number, axis in enumerate(axes):
        sizes = {"queries": axis.queries, "keys": axis.keys, "offset": abs(axis.offset)}
        sizes |= {"dilation": axis.spec.dilation, "stride": axis.spec.stride}
        limits = dict.fromkeys(sizes, LARGEST) | {"dilation": LARGEST_DILATION}
        reasons += [
            Reason("size", f"takes {name} up to {limits[name]} on axis {number}, not {size}")
            for name, size in sizes.items()
            if size > limits[name]
        ]
    return reasons


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
        packed: query heads of one key head in each tile of the forward: its first extent.
    """

    axes: Axes
    build: Build
    forward: Tiles
    grad_query: Tiles | None = None
    grad_key: Tiles | None = None
    packed: int = 1

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The keys of each query on one axis, by the tiles of the forward kernel."""
        axis, at = self.axes[number], RANK - len(self.axes) + number
        starts, counts = Traversal(axis).reads(self.forward.rows[at], self.forward.columns[at])
        return starts, counts, axis.spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask that the kernels compute, tile by tile. Raises AssertionError if a kernel
        computes a pair twice, or if the gradients' pairs differ from the forward's.
        """
        forward = self._pairs(self.forward, queries, keys, inverse=False)
        for tiles, inverse in ((self.grad_query, False), (self.grad_key, True)):
            if tiles is None:
                continue
            backward = self._pairs(tiles, queries, keys, inverse=inverse)
            if not np.array_equal(backward, forward):
                kernel = "keys" if inverse else "queries"
                raise AssertionError(
                    f"the pairs of the {kernel}' gradients differ from the output's"
                )
        return forward

    def _pairs(
        self, tiles: Tiles, queries: tuple[int, ...], keys: tuple[int, ...], *, inverse: bool
    ) -> NDArray[np.bool_]:
        """The pairs that one kernel computes, as a bool matrix `[queries, keys]`."""
        rows, columns = (keys, queries) if inverse else (queries, keys)
        times = np.zeros((math.prod(rows), math.prod(columns)), dtype=np.int8)
        written = np.zeros(math.prod(rows), dtype=np.int8)
        for row, visits in self._traverse(tiles, inverse=inverse):
            at = _flat([part.positions for part in row], rows)
            written[at] += 1
            for visit in visits:
                allowed = np.ones((1, 1), dtype=np.bool_)
                for part in visit:
                    allowed = np.kron(allowed, part.reads)
                if all(part.full for part in visit):
                    allowed[:] = True  # the kernel does not mask full tiles
                times[at[:, None], _flat([part.positions for part in visit], columns)] += allowed
        if times.size and times.max() > 1:
            row, column = np.argwhere(times > 1)[0].tolist()
            raise AssertionError(f"row {row} visits column {column} more than once")
        if written.size and written.max() > 1:
            raise AssertionError(f"row {int(written.argmax())} is in two tiles")
        return (times.T if inverse else times).astype(np.bool_)

    def _traverse(
        self, tiles: Tiles, *, inverse: bool
    ) -> Iterator[tuple[tuple[RowTile, ...], Iterator[tuple[ColumnTile, ...]]]]:
        """Every tile of rows (one part per axis) with the tiles of columns that it visits."""
        first = RANK - len(self.axes)
        per_axis = [
            list(Traversal(axis, inverse).tiles(tiles.rows[at], tiles.columns[at]))
            for at, axis in enumerate(self.axes, first)
        ]
        for row in product(*per_axis):
            yield row, product(*(part.columns for part in row))

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The blocks that the forward kernel computes, or the kernel of the keys' gradients."""
        tiles = self.grad_key if backward else self.forward
        assert tiles is not None
        steps = [axis.spec.dilation for axis in self.axes]
        for row, visits in self._traverse(tiles, inverse=backward):
            rows = [ranges_of(part.positions, d) for part, d in zip(row, steps, strict=True)]
            for visit in visits:
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


def _by(extents: Extents, rank: int) -> str:
    return "x".join(map(str, extents[RANK - rank :]))


def _flat(positions: list[Ints], space: tuple[int, ...]) -> Ints:
    """Positions on all axes as row-major indices."""
    flat = np.zeros(1, dtype=np.int64)
    for at, length in zip(positions, space, strict=True):
        flat = (flat[:, None] * length + at).reshape(-1)
    return flat

"""The dialect of the project's CUDA kernels (`cuda/`): any mask in one call, walked tile by tile.

On tensor cores ("mma": half precision) or without ("simt": any dtype). Nothing here has run on a
GPU yet; the kernels run in an emulator, which the tests compare with the mask.
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
from nbattn.program.device import AMPERE_SHARE, DeviceInfo
from nbattn.program.limits import Limits, Reason, whole_axes
from nbattn.program.program import Call
from nbattn.program.request import Needs, Request

CUDA = Limits(name="cuda", kinds=("cuda",))
PACKAGE = "cupy"  # and NVRTC
INSTRUCTIONS = ("mma", "simt")
GRID = (1 << 31) - 1  # blocks
FAR = 1 << 29  # a side that reaches past every end
LARGEST = 1 << 25  # of an axis' numbers: positions of a whole tile past the end fit 32 bits, too
_OLDEST = {"mma": 80, "simt": 75}
_HEADS = {"mma": (16, 256), "simt": (1, 512)}
_HEAD_STEP = 8  # of tensor cores: rows of 16 bytes
_HALVES = ("float16", "bfloat16")
_NEWER = (90, 100, 103, 110)  # with tensor-core instructions of their own
# Bytes of shared memory that a block may have, by capability.
_MEMORY = {
    **dict.fromkeys((75,), 64 << 10),
    **dict.fromkeys((86, 89, 120, 121), 99 << 10),
    **dict.fromkeys((80, 87), 163 << 10),
    **dict.fromkeys((90, 100, 103, 110), 227 << 10),
}


def absent(needs: Needs) -> list[Reason]:
    """Why no kernel of this dialect runs there at all."""
    found = CUDA.reasons(needs)
    if not found and PACKAGE not in needs.device.providers:
        text = "needs CuPy and NVRTC, which are not there: pip install 'nbattn[cuda13]'"
        found.append(Reason("package", f"{text}, or 'nbattn[cuda12]' with a driver of CUDA 12"))
    return found


def reasons(instructions: str, needs: Needs, axes: Axes) -> list[Reason]:
    """Every limit of a instructions that a request breaks."""
    found: list[Reason] = []
    number = needs.device.capability
    if number is not None and number < _OLDEST[instructions]:
        found.append(
            Reason("device", f"runs from sm_{_OLDEST[instructions]} on, not on sm_{number}")
        )
    if instructions == "mma" and needs.dtype not in _HALVES:
        found.append(Reason("dtype", f"takes {', '.join(_HALVES)}, not {needs.dtype}"))
    least, most = _HEADS[instructions]
    for name, size in (("head_dim", needs.head_dim), ("value_dim", needs.value_dim)):
        if not least <= size <= most:
            found.append(Reason(name, f"takes a {name} of {least} to {most}, not {size}"))
        elif instructions == "mma" and size % _HEAD_STEP:
            text = f"takes a {name} that {_HEAD_STEP} divides, not {size}"
            found.append(Reason(name, text))
    found += whole_axes(axes)
    for number, axis in enumerate(axes):
        sizes = {"queries": axis.queries, "keys": axis.keys, "offset": abs(axis.offset)}
        sizes |= {"dilation": axis.spec.dilation, "stride": axis.spec.stride}
        found += [
            Reason("size", f"takes {name} up to {LARGEST} on axis {number}, not {size}")
            for name, size in sizes.items()
            if size > LARGEST
        ]
    return found


def rate(instructions: str, device: DeviceInfo, dtype: str) -> float:
    """FLOP/s of the products. Tensor-core instructions of Ampere reach a part of what Hopper and
    its successors can, published for Flash 2; without them every multiply-add waits for shared
    memory, which serves one lane in four.
    """
    if instructions == "simt":
        return device.peak(dtype if dtype == "float64" else "float32") / 4
    newer = device.capability in _NEWER
    return device.peak(dtype) * (AMPERE_SHARE if newer else 1.0)


def memory(needs: Needs) -> int:
    """Bytes of shared memory that a block may have; of an unknown device, what all have."""
    return _MEMORY.get(needs.device.capability or 0, min(_MEMORY.values()))


def two_runs(axes: Axes) -> bool:
    """Whether a query's keys on an axis may be two intervals."""
    return any(axis.spec.border == "wrap" or axis.spec.prefix for axis in axes)


@dataclass(frozen=True, slots=True)
class CudaArguments:
    """One call on whole tensors, with the tiles of its kernels.

    Args:
        lines: the mask's axes.
        build: what the kernels are compiled for.
        forward: the tiles of the forward kernel.
        queries, keys: those of the kernels of the queries' and of the keys' gradients; None where
            no backward follows.
    """

    axes: Axes
    build: Build
    forward: Tiles
    queries: Tiles | None = None
    keys: Tiles | None = None

    def rows(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The rows as the tiles of the forward pass have them."""
        axis, at = self.axes[number], RANK - len(self.axes) + number
        starts, counts = Traversal(axis).reads(self.forward.rows[at], self.forward.columns[at])
        return starts, counts, axis.spec.dilation

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """What the kernels compute, tile by tile; raises if one of them computes a pair twice or
        other pairs than the forward.
        """
        found = self._pairs(self.forward, queries, keys, inverse=False)
        for tiles, inverse in ((self.queries, False), (self.keys, True)):
            if tiles is None:
                continue
            other = self._pairs(tiles, queries, keys, inverse=inverse)
            if not np.array_equal(other, found):
                kernel = "keys" if inverse else "queries"
                raise AssertionError(f"gradients of {kernel} are of other pairs than the output")
        return found

    def _pairs(
        self, tiles: Tiles, queries: tuple[int, ...], keys: tuple[int, ...], *, inverse: bool
    ) -> NDArray[np.bool_]:
        """The pairs of one kernel."""
        rows, columns = (keys, queries) if inverse else (queries, keys)
        times = np.zeros((math.prod(rows), math.prod(columns)), dtype=np.int8)
        written = np.zeros(math.prod(rows), dtype=np.int8)
        for row, visits in self._traverse(tiles, inverse=inverse):
            at = _flat([one.positions for one in row], rows)
            written[at] += 1
            for visit in visits:
                reads = np.ones((1, 1), dtype=np.bool_)
                for part in visit:
                    reads = np.kron(reads, part.reads)
                if all(part.full for part in visit):
                    reads[:] = True  # the kernel does not mask it
                times[at[:, None], _flat([part.positions for part in visit], columns)] += reads
        if times.size and times.max() > 1:
            row, column = np.argwhere(times > 1)[0].tolist()
            raise AssertionError(f"row {row} visits column {column} more than once")
        if written.size and written.max() > 1:
            raise AssertionError(f"row {int(written.argmax())} lies in two tiles")
        return (times.T if inverse else times).astype(np.bool_)

    def _traverse(
        self, tiles: Tiles, *, inverse: bool
    ) -> Iterator[tuple[tuple[RowTile, ...], Iterator[tuple[ColumnTile, ...]]]]:
        """Every tile of rows, one part per axis, with the tiles of columns that it visits."""
        first = RANK - len(self.axes)
        per_axis = [
            list(Traversal(axis, inverse).tiles(tiles.rows[at], tiles.columns[at]))
            for at, axis in enumerate(self.axes, first)
        ]
        for row in product(*per_axis):
            yield row, product(*(part.columns for part in row))

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The pairs of tiles of the forward kernel, or of the kernel of the keys' gradients."""
        tiles = self.keys if backward else self.forward
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
        """In words."""
        rank = max(len(self.axes), 1)
        return f"tile {_words(self.forward.rows, rank)} on {_words(self.forward.columns, rank)}"


def _words(extents: Extents, rank: int) -> str:
    return "x".join(map(str, extents[RANK - rank :]))


def _flat(positions: list[Ints], space: tuple[int, ...]) -> Ints:
    """Positions on all axes, row-major."""
    flat = np.zeros(1, dtype=np.int64)
    for at, length in zip(positions, space, strict=True):
        flat = (flat[:, None] * length + at).reshape(-1)
    return flat

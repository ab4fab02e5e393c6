"""Tiles of the CUDA kernels: what fits a device, what a walk over them costs, and the compile-time
constants that go with them.

Counts of registers are those of NVRTC 13.0; what a visit costs is counted from the kernels' loops.
Neither was measured on a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from nbattn.axis import Axis
from nbattn.backends.cuda.tile_traversal import Traversal
from nbattn.geometry import Axes, BoundAxis
from nbattn.kernels.variant import Variant

Extents = tuple[int, int, int]
RANK = 3  # of the kernels' grids
DELTA_ROWS = 4  # of a block of delta.cu
KERNELS = ("fwd", "dq", "dkdv")
DTYPES = ("float16", "bfloat16", "float32", "float64")  # in the order of NB_DTYPE
LARGEST_MEMORY = 227 << 10  # bytes of shared memory that a block has on any device
SPLIT = 128  # channels above which gradients of keys and of values are two launches
_ACCUMULATORS = {"mma": 160, "simt": 128}  # of a thread, above which compilers spill
# Where compilers spill below that: kernel, row blocks of a warp, columns → channels. Found by the
# compile matrix, whose deep profile tries every tile.
_SPILLS: Mapping[tuple[str, int, int], tuple[int, ...]] = {
    ("fwd", 2, 64): (80, 88, 96),
    ("fwd", 2, 32): (112, 120),
    ("dq", 2, 32): (88, 96),
    ("dkdv", 1, 64): (96,),
}
_LANES = 32
_FEWEST = 16  # rows of a tile; none has twice as many as the problem, but for this one
_SLOTS = 216  # blocks that run at once: two on every multiprocessor of an A100
_PAIR_OF_TILES, _TILE = (
    512,
    4096,
)  # pairs' worth of work that a visit and a tile of rows cost besides

_TRIVIAL = BoundAxis(Axis(), 1, 1)
_Shapes = Mapping[int, Mapping[int, tuple[tuple[int, ...], ...]]]
# Extents by the number of axes longer than one position, and their product.
_ROWS: _Shapes = {
    1: {16: ((16,),), 32: ((32,),), 64: ((64,),), 128: ((128,),)},
    2: {16: ((4, 4),), 32: ((4, 8),), 64: ((8, 8),), 128: ((8, 16),)},
    3: {
        16: ((1, 4, 4),),
        32: ((2, 4, 4),),
        64: ((4, 4, 4), (1, 8, 8)),
        128: ((4, 4, 8), (2, 8, 8)),
    },
}
_COLUMNS: _Shapes = {
    1: {32: ((32,),), 64: ((64,),)},
    2: {32: ((4, 8),), 64: ((8, 8), (4, 16))},
    3: {32: ((2, 4, 4), (1, 4, 8)), 64: ((4, 4, 4), (1, 8, 8))},
}
# Of a instructions: rows, warps, 16-row blocks and stages of a block; columns, the most that fit.
_BLOCKS = {
    "mma": ((16, 1, 1, 2), (32, 2, 1, 2), (64, 4, 1, 2), (128, 4, 2, 2)),
    "simt": ((16, 4, 0, 0), (32, 4, 0, 0), (64, 4, 0, 0)),
}
_WIDTHS = {"mma": (64, 32), "simt": (_LANES,)}


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one kernel cuts a problem.

    Args:
        rows, columns: extents per axis; of queries and keys, in gradients of keys of keys and
            queries.
        warps: of a block.
        row_blocks: 16-row blocks of a warp; 0 without tensor cores.
        stages: tiles of columns in flight; 0 without tensor cores.
    """

    rows: Extents
    columns: Extents
    warps: int = 4
    row_blocks: int = 0
    stages: int = 0

    @property
    def row_count(self) -> int:
        """Rows of a tile."""
        return math.prod(self.rows)

    @property
    def area(self) -> int:
        """Pairs of one visit."""
        return math.prod(self.rows) * math.prod(self.columns)

    @property
    def instructions(self) -> str:
        """With tensor cores "mma", else "simt"."""
        return "mma" if self.row_blocks else "simt"


class Build(NamedTuple):
    """What kernels are compiled for besides their tiles."""

    dtype: str
    head_dim: int
    value_dim: int
    two_runs: bool = False
    softcap: bool = False
    key_range: bool = False


class Pass(NamedTuple):
    """A kernel's tiles for a mask, with their totals per head: visits, and tiles of rows."""

    tiles: Tiles
    tile_pairs: int
    row_tiles: int

    @property
    def pairs(self) -> int:
        """Pairs that it computes."""
        return self.tile_pairs * self.tiles.area

    @property
    def work(self) -> float:
        """What they take, in pairs: every warp reads all columns of a visit from shared memory,
        which its row blocks share, and half of which the products hide.
        """
        reads = self.pairs / 2 / max(self.tiles.row_blocks, 1)
        return self.pairs + reads + self.tile_pairs * _PAIR_OF_TILES + self.row_tiles * _TILE


def grads_of(kernel: str, build: Build) -> tuple[int, ...]:
    """NB_GRADS of every launch of a kernel: 1 values, 2 keys, 3 both; 0 for kernels without."""
    if kernel != "dkdv":
        return (0,)
    return (3,) if max(build.head_dim, build.value_dim) <= SPLIT else (1, 2)


def products(kernel: str, build: Build) -> int:
    """Multiply-adds of one pair."""
    d, dv = build.head_dim, build.value_dim
    if kernel == "fwd":
        return d + dv
    if kernel == "dq":
        return 2 * d + dv
    return 2 * d + 2 * dv if grads_of(kernel, build) == (3,) else 3 * d + 2 * dv


def shared_bytes(kernel: str, tiles: Tiles, build: Build) -> int:
    """Dynamic shared memory of a block; the kernels assert the same number."""
    rows, columns = math.prod(tiles.rows), math.prod(tiles.columns)
    walk = 256 + 16 * sum(tiles.rows)
    if not tiles.row_blocks:
        exact = 8 if build.dtype == "float64" else 4
        places = 8 * (3 * rows + 3 * columns)
        return walk + places + (2 * rows + columns) * (columns + 1) * exact
    head, value = (2 * (-(-size // 16) * 16 + 8) for size in (build.head_dim, build.value_dim))
    own = max(head, value) if kernel == "fwd" else head + value
    stage = columns * (head + value + 8 * (kernel == "dkdv"))
    return walk + rows * own + tiles.stages * stage


def accumulators(kernel: str, tiles: Tiles, build: Build) -> int:
    """32-bit registers that the sums of a thread take."""
    columns = math.prod(tiles.columns)
    d, dv = build.head_dim, build.value_dim
    if not tiles.row_blocks:
        rows, exact = math.prod(tiles.rows) // tiles.warps, 1 + (build.dtype == "float64")
        both = kernel == "dkdv" and grads_of(kernel, build) == (3,)
        chunks = -(-d // _LANES) + -(-dv // _LANES) if both else -(-max(d, dv) // _LANES)
        return rows * chunks * exact
    if kernel == "fwd":
        return tiles.row_blocks * (dv + columns) // 2
    if kernel == "dq":
        return tiles.row_blocks * (d + 2 * columns) // 2
    sums = d + dv if grads_of(kernel, build) == (3,) else max(d, dv)
    return tiles.row_blocks * (sums + (2 + build.softcap) * columns) // 2


def fits(kernel: str, tiles: Tiles, build: Build, memory: int) -> bool:
    """Whether a block has registers and shared memory enough."""
    sums, channels = accumulators(kernel, tiles, build), max(build.head_dim, build.value_dim)
    if channels in _SPILLS.get((kernel, tiles.row_blocks, math.prod(tiles.columns)), ()):
        return False
    return (
        sums <= _ACCUMULATORS[tiles.instructions] and shared_bytes(kernel, tiles, build) <= memory
    )


@lru_cache(1024)
def legal_tiles(
    kernel: str, instructions: str, long: tuple[int, ...], build: Build, memory: int
) -> tuple[Tiles, ...]:
    """Every tile that may be chosen for a grid whose axes `long` are longer than one position."""
    axes = long or (RANK - 1,)
    rows, columns = _ROWS[len(axes)], _COLUMNS[len(axes)]
    found: list[Tiles] = []
    for count, warps, row_blocks, stages in _BLOCKS[instructions]:
        for width in _WIDTHS[instructions]:
            tiles = [
                Tiles(_placed(row, axes), _placed(column, axes), warps, row_blocks, stages)
                for row, column in product(rows[count], columns[width])
            ]
            fitting = [one for one in tiles if fits(kernel, one, build, memory)]
            found += fitting
            if fitting:
                break
    return tuple(found)


def _placed(extents: tuple[int, ...], axes: tuple[int, ...]) -> Extents:
    """Extents on some axes, 1 on the others."""
    at = dict(zip(axes, extents, strict=True))
    return at.get(0, 1), at.get(1, 1), at.get(2, 1)


def padded(axes: Axes) -> Axes:
    """The axes as kernels take them: leading ones of one query that reads one key."""
    return (_TRIVIAL,) * (RANK - len(axes)) + axes


def choose(
    kernel: str, instructions: str, axes: Axes, build: Build, memory: int, heads: int
) -> Pass | None:
    """The tiles with the lowest cost, with their totals; None where none fits.

    Args:
        axes: the mask's axes.
        memory: bytes of shared memory that a block may have.
        heads: of all samples.
    """
    grid, inverse = padded(axes), kernel == "dkdv"
    count = math.prod(axis.keys if inverse else axis.queries for axis in grid)
    long = tuple(n for n, axis in enumerate(grid) if max(axis.queries, axis.keys) > 1)
    walks = [Traversal(axis, inverse) for axis in grid]
    counted: dict[tuple[int, int, int], int] = {}

    def tile_pairs(number: int, rows: int, columns: int) -> int:
        at = (number, rows, columns)
        if at not in counted:
            here = walks[number]
            counted[at] = 1 if here.axis is _TRIVIAL else here.tile_pairs(rows, columns)
        return counted[at]

    passes = [
        Pass(
            tiles,
            math.prod(map(tile_pairs, range(RANK), tiles.rows, tiles.columns)),
            math.prod(
                row_tiles(axis, rows, inverse=inverse)
                for axis, rows in zip(grid, tiles.rows, strict=True)
            ),
        )
        for tiles in legal_tiles(kernel, instructions, long, build, memory)
        if tiles.row_count < max(_FEWEST + 1, 2 * count)
    ]
    return min(passes, key=lambda one: cost(one, heads), default=None)


def row_tiles(axis: BoundAxis, rows: int, *, inverse: bool) -> int:
    """Tiles of one axis: for each of its classes as many as the longest needs."""
    length = axis.keys if inverse else axis.queries
    classes = min(axis.spec.dilation, length)
    longest = (length + axis.spec.dilation - 1) // axis.spec.dilation
    return classes * ((longest + rows - 1) // rows)


def cost(one: Pass, heads: int) -> float:
    """What a launch takes, in pairs of one head: fewer blocks than a device has room for leave it
    idle.
    """
    return one.work * max(1.0, _SLOTS / max(one.row_tiles * heads, 1))


def variant(kernel: str, tiles: Tiles, build: Build, *, grads: int, vector: bool) -> Variant:
    """A kernel at its constants.

    Args:
        grads: of `grads_of`.
        vector: whether 16-byte copies are legal, which only tensor-core kernels ask.
    """
    query, key = tiles.rows, tiles.columns
    if kernel == "dkdv":
        query, key = key, query
    constants = {
        "NB_DTYPE": DTYPES.index(build.dtype),
        "NB_HEAD_DIM": build.head_dim,
        "NB_VALUE_DIM": build.value_dim,
        "NB_TWO_RUNS": int(build.two_runs),
        "NB_SOFTCAP": int(build.softcap),
        "NB_KEY_RANGE": int(build.key_range),
    }
    constants |= {f"NB_QUERY_TILE_{axis}": extent for axis, extent in enumerate(query)}
    constants |= {f"NB_KEY_TILE_{axis}": extent for axis, extent in enumerate(key)}
    constants |= {"NB_GRADS": grads} if grads else {}
    if tiles.row_blocks:
        constants |= {"NB_WARPS": tiles.warps, "NB_ROW_BLOCKS": tiles.row_blocks}
        constants |= {"NB_STAGES": tiles.stages, "NB_VECTOR": int(vector)}
    name = f"{kernel}_{tiles.instructions}"
    return Variant(
        f"{name}.cu",
        f"nb_{name}",
        tuple(sorted(constants.items())),
        32 * tiles.warps,
        shared_bytes(kernel, tiles, build),
    )


@lru_cache(64)
def delta(dtype: str, value_dim: int) -> Variant:
    """The kernel of `sum(out * grad_out) - grad_lse`, which knows no tiles of its own."""
    constants = {"NB_DTYPE": DTYPES.index(dtype), "NB_VALUE_DIM": value_dim}
    constants |= {f"NB_{side}_TILE_{axis}": 1 for side in ("QUERY", "KEY") for axis in range(RANK)}
    return Variant("delta.cu", "nb_delta", tuple(sorted(constants.items())), 128, 0)


def shipped() -> Iterator[Variant]:
    """What the deep compile matrix compiles for every target: every tile that may be chosen for
    bfloat16 with 64 or 128 channels, and of everything else one of each.
    """
    found = dict.fromkeys(
        one
        for size in (64, 128)
        for long in ((2,), (1, 2), (0, 1, 2))
        for one in _variants("mma", long, Build("bfloat16", size, size), every=True)
    )
    sizes = ((16, 16), (32, 64), (80, 80), (96, 128), (192, 128), (256, 256))
    builds = [Build("float16", *size) for size in sizes]
    present = ((False, False), (True, False), (False, True), (True, True))
    builds += [Build("bfloat16", 128, 128, a, b, a or b) for a, b in present[1:]]
    for build in builds:
        found |= dict.fromkeys(_variants("mma", (1, 2), build))
        found |= dict.fromkeys(_variants("mma", (0, 1, 2), build, vector=False))
    for dtype in DTYPES:
        for size, value in ((32, 32), (64, 20), (512, 512)):
            build = Build(dtype, size, value, size > 32, size > 64, size > 32)
            found |= dict.fromkeys(_variants("simt", (1, 2), build))
        found[delta(dtype, 64)] = None
    yield from found


def _variants(
    instructions: str,
    long: tuple[int, ...],
    build: Build,
    *,
    every: bool = False,
    vector: bool = True,
) -> Iterator[Variant]:
    """All kernels of a build: with every tile that may be chosen, or with the largest."""
    for kernel in KERNELS:
        tiles = legal_tiles(kernel, instructions, long, build, LARGEST_MEMORY)
        for one in tiles if every else tiles[-1:]:
            for grads in grads_of(kernel, build):
                yield variant(kernel, one, build, grads=grads, vector=vector)

"""Lists the tiles of the CUDA kernels: which fit a device, and the compile-time constants of the
kernels that use them.

Register limits are those of NVRTC 13.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from typing import NamedTuple

from nbattn.kernels import layout
from nbattn.kernels.variant import Variant
from nbattn.program.tile_counts import RANK, Extents, placed

DELTA_THREADS = 128  # of a block of delta.cu
KERNELS = ("fwd", "dq", "dkdv")
TABLE = "dbias"  # the kernel of the gradient of a table of relative positions: without tensor cores
TABLE_WARPS = 4  # of a block of it, each of which adds to a table of its own
DTYPES = ("float16", "bfloat16", "float32", "float64")  # in the order of NB_DTYPE
LARGEST_MEMORY = 227 << 10  # the most bytes of shared memory that a block has on any device
SPLIT = 128  # above this head size, two launches compute the gradients of keys and of values
# Accumulators per thread without options and with some: with more, compilers spill registers. The
# exceptions are by (kernel, warps, row blocks of a warp, columns): without a table, with one, and
# with one where rows have two runs of keys. From the compile matrix, whose deep profile tries every
# tile.
_ACCUMULATORS = {"mma": (192, 184), "simt": (128, 128)}
# The same by kernel and warpgroups: with more, compilers spill registers or let products wait for
# each other (ptxas's C7512).
_OF_WARPGROUPS = {"fwd": {2: 192, 3: 128}, "dq": {2: 192, 3: 112}, "dkdv": {2: 192, 3: 0}}
_FEWER: Mapping[tuple[str, int, int, int], tuple[int, int, int]] = {
    ("fwd", 4, 2, 64): (176, 112, 80),
    ("fwd", 4, 2, 32): (192, 192, 136),
    ("dq", 4, 2, 64): (176, 168, 144),
    ("dq", 4, 2, 32): (192, 192, 160),
    ("dkdv", 4, 2, 64): (192, 192, 152),
    ("dkdv", 1, 1, 64): (184, 184, 184),
}
_LANES = 32  # threads of a warp
_ORIGIN_BYTES = 4 * 40  # `BoxOrigin` of cuda/boxes.cuh, of four tensors
_GRID_BYTES = -(-(layout.SIZE + 4) // 16) * 16  # `OnGrid` of cuda/block.cuh

_Shapes = Mapping[int, Mapping[int, tuple[tuple[int, ...], ...]]]
# Extents of a tile, by the number of axes longer than one position and by the extents' product.
_ROWS: _Shapes = {
    1: {16: ((16,),), 32: ((32,),), 64: ((64,),), 128: ((128,),)},
    2: {16: ((4, 4), (2, 8)), 32: ((4, 8),), 64: ((8, 8), (4, 16)), 128: ((8, 16),)},
    3: {
        16: ((1, 4, 4),),
        32: ((2, 4, 4),),
        64: ((4, 4, 4), (1, 8, 8)),
        128: ((4, 4, 8), (2, 8, 8), (8, 4, 4)),
    },
}
_COLUMNS: _Shapes = {
    1: {32: ((32,),), 64: ((64,),)},
    2: {32: ((4, 8), (2, 16)), 64: ((8, 8), (4, 16))},
    3: {
        32: ((2, 4, 4), (1, 4, 8), (4, 2, 4), (2, 2, 8)),
        64: ((4, 4, 4), (1, 8, 8), (4, 2, 8), (2, 2, 16)),
    },
}
# Those of warpgroups, whose columns a tensor map copies as one box: no extent is over 256.
_GROUP_ROWS: _Shapes = {
    1: {128: ((128,),), 192: ((192,),)},
    2: {128: ((8, 16), (16, 8)), 192: ((12, 16),)},
    3: {128: ((2, 8, 8), (4, 4, 8), (8, 4, 4)), 192: ((3, 8, 8),)},
}
_GROUP_COLUMNS: _Shapes = {
    1: {64: ((64,),), 128: ((128,),)},
    2: {64: ((8, 8), (4, 16)), 128: ((8, 16), (4, 32))},
    3: {
        64: ((2, 4, 8), (4, 4, 4), (2, 2, 16)),
        128: ((2, 8, 8), (4, 4, 8), (2, 4, 16)),
    },
}
_GROUP, _GROUP_STAGES = 64, (4, 3, 2)  # rows of a warpgroup; stages, as many as fit
# By instruction set: rows, warps, 16-row blocks per warp and stages of a block; then its numbers of
# columns. Eight warps have the registers of one block only: in the gradients of keys, whose rows
# are loaded from shared memory in every visit, half as many visits are worth that.
_BLOCKS = {
    "mma": ((16, 1, 1, 2), (32, 2, 1, 2), (64, 4, 1, 2), (128, 4, 2, 2)),
    "simt": ((16, 4, 0, 0), (32, 4, 0, 0), (64, 4, 0, 0)),
}
_WIDE_BLOCKS = {("dkdv", "mma"): ((128, 8, 1, 2),)}
_WIDTHS = {"mma": (64, 32), "simt": (_LANES,)}


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one kernel cuts a problem.

    Args:
        rows, columns: extents per axis. Rows are queries and columns keys, except for the keys'
            gradients, where rows are keys and columns queries.
        warps: warps of a block.
        row_blocks: 16-row blocks of a warp; 0 without tensor cores.
        stages: tiles of columns in shared memory at once; 0 without tensor cores.
        warpgroups: those that compute 64 rows each, beside one that copies; 0 without any.
    """

    rows: Extents
    columns: Extents
    warps: int = 4
    row_blocks: int = 0
    stages: int = 0
    warpgroups: int = 0

    @property
    def row_count(self) -> int:
        """Rows of a tile."""
        return math.prod(self.rows)

    @property
    def area(self) -> int:
        """Pairs of one visit."""
        return math.prod(self.rows) * math.prod(self.columns)

    @property
    def column_count(self) -> int:
        """Columns of a tile."""
        return math.prod(self.columns)

    @property
    def instructions(self) -> str:
        """The instruction set: "wgmma" of warpgroups, "mma" of warps, "simt" of threads."""
        if self.warpgroups:
            return "wgmma"
        return "mma" if self.row_blocks else "simt"


class Build(NamedTuple):
    """The options, besides tiles, that kernels are compiled for."""

    dtype: str
    head_dim: int
    value_dim: int
    two_runs: bool = False
    softcap: bool = False
    key_range: bool = False
    extra: bool = False
    grids: bool = False
    extra_range: bool = False
    table: bool = False
    slopes: bool = False


def kernels(build: Build, *, training: bool) -> tuple[str, ...]:
    """The kernels of a call that have tiles, in the order of their launches."""
    if not training:
        return KERNELS[:1]
    return (*KERNELS, TABLE) if build.table else KERNELS


def grads_of(kernel: str, build: Build) -> tuple[int, ...]:
    """NB_GRADS of each launch of a kernel: 1 values, 2 keys, 3 both; 0 for the other kernels."""
    if kernel != "dkdv":
        return (0,)
    return (3,) if max(build.head_dim, build.value_dim) <= SPLIT else (1, 2)


def products(kernel: str, build: Build) -> int:
    """Multiply-adds that one pair costs."""
    d, dv = build.head_dim, build.value_dim
    if kernel in ("fwd", TABLE):
        return d + dv
    if kernel == "dq":
        return 2 * d + dv
    return 2 * d + 2 * dv if grads_of(kernel, build) == (3,) else 3 * d + 2 * dv


def shared_bytes(kernel: str, tiles: Tiles, build: Build) -> int:
    """Bytes of dynamic shared memory of a block; the kernels assert the same number."""
    per_row = 32 if build.table else 16
    traversal = 256 + per_row * sum(tiles.rows)  # `Traversal` of cuda/tile_traversal.cuh
    traversal += _GRID_BYTES * build.grids
    if not tiles.row_blocks:
        return traversal + _simt_bytes(tiles, build)
    visits, masks = 32 * 48, 16 * (sum(tiles.columns) + RANK)  # cuda/visits.cuh, cuda/mask.cuh
    vectors = _wgmma_bytes if tiles.warpgroups else _mma_bytes
    return traversal + visits + masks + vectors(kernel, tiles, build)


def _simt_bytes(tiles: Tiles, build: Build) -> int:
    """Three offsets per row and column, 32 channels of each, and the weights of all pairs."""
    rows, columns = math.prod(tiles.rows), math.prod(tiles.columns)
    itemsize = 8 if build.dtype == "float64" else 4
    pitch = columns + 1  # 33: 32 columns or channels, and one element against bank conflicts
    offsets = 8 * (3 * rows + 3 * columns)
    return offsets + (2 * rows + columns) * pitch * itemsize


def _mma_bytes(kernel: str, tiles: Tiles, build: Build) -> int:
    """The vectors of the tile of rows, and of the tiles of columns of all stages. The forward
    reuses the memory of its queries for its output; delta and logsumexp are loaded for dK/dV only.
    """
    rows, columns = tiles.row_count, tiles.column_count
    head, value = (2 * (-(-size // 16) * 16 + 8) for size in (build.head_dim, build.value_dim))
    row = max(head, value) if kernel == "fwd" else head + value
    stage = columns * (head + value + 8 * (kernel == "dkdv"))
    return rows * row + tiles.stages * stage


def _wgmma_bytes(kernel: str, tiles: Tiles, build: Build) -> int:
    """The same without padding, the barriers, two for each stage of either side's columns and one
    for the rows, and where boxes begin.
    """
    head, value = 2 * build.head_dim, 2 * build.value_dim
    row = max(head, value) if kernel == "fwd" else head + value
    stage = tiles.column_count * (head + value + 8 * (kernel == "dkdv"))
    return tiles.row_count * row + tiles.stages * (stage + 2 * 16) + 16 + _ORIGIN_BYTES


def accumulators(kernel: str, tiles: Tiles, build: Build) -> int:
    """32-bit registers of a thread's accumulators."""
    columns = math.prod(tiles.columns)
    d, dv = build.head_dim, build.value_dim
    if not tiles.row_blocks:
        rows, registers = math.prod(tiles.rows) // tiles.warps, 1 + (build.dtype == "float64")
        both = kernel == "dkdv" and grads_of(kernel, build) == (3,)
        chunks = -(-d // _LANES) + -(-dv // _LANES) if both else -(-max(d, dv) // _LANES)
        chunks = 1 if kernel == TABLE else chunks
        return rows * chunks * registers
    if tiles.warpgroups:
        return _group_accumulators(kernel, columns, build)
    if kernel == "fwd":
        return tiles.row_blocks * (dv + columns) // 2
    kept = columns * (
        build.softcap and (build.table or build.slopes)
    )  # `Capped`, cuda/backward.cuh
    sums = d + dv if grads_of(kernel, build) == (3,) else max(d, dv)
    sums = d if kernel == "dq" else sums
    return tiles.row_blocks * (sums + 2 * columns + kept) // 2


def _group_accumulators(kernel: str, columns: int, build: Build) -> int:
    """Of a warpgroup: the sums of 64 rows; in the forward their scores, and the weights before, two
    in a register; in the backward two scores of a pair.
    """
    d, dv = build.head_dim, build.value_dim
    sums = {"fwd": dv, "dq": d, "dkdv": d + dv}[kernel]
    return sums // 2 + (columns * 3 // 4 if kernel == "fwd" else columns)


def fits(kernel: str, tiles: Tiles, build: Build, memory: int) -> bool:
    """Whether registers and shared memory suffice for a block."""
    if shared_bytes(kernel, tiles, build) > memory:
        return False
    if tiles.warpgroups:
        if kernel != "fwd" and max(build.head_dim, build.value_dim) > SPLIT:
            return False  # there are no gradients in two launches
        return accumulators(kernel, tiles, build) <= _OF_WARPGROUPS[kernel][tiles.warpgroups]
    options = any(build[3:])
    most = _ACCUMULATORS[tiles.instructions][options]
    case = (kernel, tiles.warps, tiles.row_blocks, math.prod(tiles.columns))
    fewer = _FEWER.get(case, (most, most, most))[build.table + (build.table and build.two_runs)]
    return accumulators(kernel, tiles, build) <= min(most, fewer)


@lru_cache(1024)
def legal_tiles(
    kernel: str,
    instructions: str,
    long: tuple[int, ...],
    build: Build,
    memory: int,
    long_columns: tuple[int, ...] | None = None,
) -> tuple[Tiles, ...]:
    """All tiles to choose from for a grid of rows and columns.

    Args:
        long: the axes on which there is more than one row.
        long_columns: those with more than one column; default: the same.
    """
    axes = long or (RANK - 1,)
    column_axes = axes if long_columns is None else long_columns or (RANK - 1,)
    if instructions == "wgmma":
        return tuple(_of_warpgroups(kernel, axes, column_axes, build, memory))
    rows, columns = _ROWS[len(axes)], _COLUMNS[len(column_axes)]
    legal: list[Tiles] = []
    blocks = (*_BLOCKS[instructions], *_WIDE_BLOCKS.get((kernel, instructions), ()))
    for (count, warps, row_blocks, stages), width in product(blocks, _WIDTHS[instructions]):
        candidates = (
            Tiles(placed(row, axes), placed(column, column_axes), warps, row_blocks, stages)
            for row, column in product(rows[count], columns[width])
        )
        legal += [tiles for tiles in candidates if fits(kernel, tiles, build, memory)]
    return tuple(legal)


def _of_warpgroups(
    kernel: str, axes: tuple[int, ...], column_axes: tuple[int, ...], build: Build, memory: int
) -> Iterator[Tiles]:
    """Tiles of warpgroups, each with as many stages as fit."""
    rows, columns = _GROUP_ROWS[len(axes)], _GROUP_COLUMNS[len(column_axes)]
    widths = [width for width in columns if width == _GROUP or kernel != "dkdv"]
    for count, width in product(rows, widths):
        groups = count // _GROUP
        for row, column in product(rows[count], columns[width]):
            extents = placed(row, axes), placed(column, column_axes)
            staged = (Tiles(*extents, 4 * (groups + 1), 1, n, groups) for n in _GROUP_STAGES)
            fitting = (tiles for tiles in staged if fits(kernel, tiles, build, memory))
            yield from islice(fitting, 1)


def variant(kernel: str, tiles: Tiles, build: Build, *, grads: int, vector: bool) -> Variant:
    """A kernel with the constants that it is compiled with.

    Args:
        grads: one of `grads_of`.
        vector: whether 16-byte copies are legal; only kernels of "mma" have others.
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
        "NB_EXTRA": int(build.extra),
    }
    constants |= {f"NB_QUERY_TILE_{axis}": extent for axis, extent in enumerate(query)}
    constants |= {f"NB_KEY_TILE_{axis}": extent for axis, extent in enumerate(key)}
    constants |= {"NB_GRADS": grads} if grads else {}
    constants |= {"NB_EXTRA_RANGE": 1} if build.extra_range else {}
    constants |= {"NB_BIAS": build.table + 2 * build.slopes} if build.table or build.slopes else {}
    constants |= {"NB_GRIDS": 1} if build.grids else {}
    if tiles.row_blocks:
        constants |= {"NB_WARPS": tiles.warps, "NB_ROW_BLOCKS": tiles.row_blocks}
        constants |= {"NB_STAGES": tiles.stages}
        constants |= {} if tiles.warpgroups else {"NB_VECTOR": int(vector)}
    name = f"{kernel}_{tiles.instructions}"
    return Variant(
        f"{name}.cu",
        f"nb_{name}",
        tuple(sorted(constants.items())),
        32 * tiles.warps,
        shared_bytes(kernel, tiles, build),
    )


@lru_cache(64)
def delta(dtype: str, value_dim: int, *, vector: bool) -> Variant:
    """The kernel that prepares the backward; it does not depend on tiles.

    Args:
        vector: whether rows may be read 16 bytes at a time.
    """
    constants = {
        "NB_DTYPE": DTYPES.index(dtype),
        "NB_VALUE_DIM": value_dim,
        "NB_VECTOR": int(vector),
    }
    constants |= {f"NB_{side}_TILE_{axis}": 1 for side in ("QUERY", "KEY") for axis in range(RANK)}
    return Variant("delta.cu", "nb_delta", tuple(sorted(constants.items())), DELTA_THREADS, 0)


def delta_rows(dtype: str, value_dim: int) -> int:
    """Rows per block of that kernel: as many lanes as a row has chunks of 16 bytes share a row."""
    itemsize = {"float32": 4, "float64": 8}.get(dtype, 2)
    wide = 1 if value_dim * itemsize % 16 else 16 // itemsize
    lanes = min(_LANES, 1 << (value_dim // wide - 1).bit_length())
    return DELTA_THREADS // lanes


def shipped() -> Iterator[Variant]:
    """The variants that the deep compile matrix compiles for every target, those of warpgroups only
    for sm_90a: all tiles for bfloat16 with head size 64 or 128, and one variant of everything else.
    """
    variants = dict.fromkeys(
        variant
        for size in (64, 128)
        for long in ((2,), (1, 2), (0, 1, 2))
        for instructions in ("mma", "wgmma")
        for variant in _variants(instructions, long, Build("bfloat16", size, size), every=True)
    )
    sizes = ((16, 16), (32, 64), (80, 80), (96, 128), (192, 128), (256, 256))
    builds = [Build("float16", *size) for size in sizes]
    options = ((False, False), (True, False), (False, True), (True, True))
    builds += [Build("bfloat16", 128, 128, a, b, a or b) for a, b in options[1:]]
    for build in builds:
        variants |= dict.fromkeys(_variants("mma", (1, 2), build))
        variants |= dict.fromkeys(_variants("mma", (0, 1, 2), build, vector=False))
    for size, value in ((80, 80), (96, 128), (192, 192), (256, 256)):
        build = Build("float16", size, value, True, True, False, True, extra_range=True)
        variants |= dict.fromkeys(_variants("wgmma", (0, 1, 2), build))
    for dtype in DTYPES:
        for size, value in ((32, 32), (64, 20), (512, 512)):
            build = Build(dtype, size, value, size > 32, size > 64, size > 32)
            variants |= dict.fromkeys(_variants("simt", (1, 2), build))
        variants[delta(dtype, 64, vector=False)] = None
    yield from variants


def _variants(
    instructions: str,
    long: tuple[int, ...],
    build: Build,
    *,
    every: bool = False,
    vector: bool = True,
) -> Iterator[Variant]:
    """All kernels of a build, with every legal tile or only with the largest."""
    for kernel in KERNELS:
        legal = legal_tiles(kernel, instructions, long, build, LARGEST_MEMORY)
        for tiles in legal if every else legal[-1:]:
            for grads in grads_of(kernel, build):
                yield variant(kernel, tiles, build, grads=grads, vector=vector)

"""Lists the tiles of the Triton kernels, and what the kernels that use them are compiled for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from nbattn.backends.triton.kernels.numbers import Variant
from nbattn.program.device import DeviceInfo
from nbattn.program.tile_counts import RANK, Extents, placed

EXTRA = "dextra"  # the kernel of the gradients of extra keys
TABLE = "dbias"  # the kernel of the gradient of a table of relative positions
SPILLED = 104  # bytes of a thread's stack that a tile may need: 26 registers
_WITH_DOUBLES = (80, 90, 100, 103)
DTYPES = ("float16", "bfloat16", "float32", "float64")
_KERNELS = ("fwd", "dq", "dkdv")
_Shapes = Mapping[int, Mapping[int, tuple[tuple[int, ...], ...]]]
# Extents of a tile, by the number of axes longer than one position and by the extents' product.
_SHAPES: _Shapes = {
    1: {16: ((16,),), 32: ((32,),), 64: ((64,),), 128: ((128,),)},
    2: {16: ((4, 4),), 32: ((4, 8),), 64: ((8, 8), (4, 16)), 128: ((8, 16),)},
    3: {
        16: ((1, 4, 4),),
        32: ((2, 4, 4),),
        64: ((4, 4, 4), (1, 8, 8)),
        128: ((2, 8, 8), (4, 4, 8)),
    },
}
# Rows, columns and warps of a program: by the instructions of matrix products, the kernel, and the
# channels of a vector up to which they are offered. What is here compiles with no more than
# `SPILLED` bytes for every target of tests/golden/triton_kernels.json. Where 16 rows of a tile fall
# to each warp, no two warps compute the same scores; 128 rows read keys half as often as 64. Eight
# warps of AMD's have 256 registers each, fewer warps 512.
_Blocks = Mapping[str, Mapping[int, str]]
_SMALL = "64x32w4 32x32w2 16x32w1"
_WIDE = "32x32w4 16x32w2"  # for the widest heads
_MMA: _Blocks = {
    "fwd": {
        64: f"128x64w8 64x64w4 {_SMALL}",
        128: f"128x64w8 64x64w4 {_SMALL}",
        256: f"64x32w8 {_WIDE}",
    },
    "dq": {
        64: f"128x64w8 64x64w4 {_SMALL}",
        128: f"128x64w8 64x64w4 {_SMALL}",
        256: f"64x32w8 {_WIDE}",
    },
    "dkdv": {64: f"128x32w8 {_SMALL}", 128: "64x32w4 32x32w2", 256: f"64x32w8 {_WIDE}"},
}
_WGMMA: _Blocks = {
    **_MMA,
    "dkdv": {
        64: f"128x64w8 64x64w4 {_SMALL}",
        128: "128x32w8 64x32w4 32x32w2",
        256: f"64x32w8 {_WIDE}",
    },
}
_TCGEN05: _Blocks = {
    **_MMA,
    "dkdv": {
        64: f"128x64w8 64x64w4 {_SMALL}",
        128: "128x64w8 64x64w4 64x32w4 32x32w2",
        256: f"64x32w8 {_WIDE}",
    },
}
_MFMA: _Blocks = {
    "fwd": {
        64: f"128x64w8 64x64w4 {_SMALL}",
        128: f"128x64w8 64x64w4 {_SMALL}",
        256: f"64x32w8 {_WIDE}",
    },
    "dq": {64: f"128x64w8 64x64w4 {_SMALL}", 128: f"64x64w4 {_SMALL}", 256: _WIDE},
    "dkdv": {64: f"64x64w4 {_SMALL}", 128: "64x64w4 64x32w4 32x32w2", 256: _WIDE},
}
# Without such instructions for the dtype: a thread computes scores one by one.
_SIMT: _Blocks = {
    "fwd": {128: "32x32w4 16x32w4 16x16w4", 256: "16x16w8"},
    "dq": {128: "32x32w8 16x32w4 16x16w4", 256: "16x16w8"},
    "dkdv": {64: "32x32w8 16x32w4 16x16w4", 128: "16x16w4", 256: "16x16w8"},
}
_SINGLES: _Blocks = {  # float32 on AMD's Instinct
    "fwd": {128: "32x32w4 16x32w4", 256: "16x32w4"},
    "dq": {128: "32x32w4 16x32w4", 256: "16x32w4"},
    "dkdv": {128: "32x32w4 16x32w4", 256: "16x32w4"},
}
_DOUBLES: _Blocks = {kernel: {128: "16x16w2"} for kernel in _KERNELS}
_CAREFUL: _Blocks = {  # of devices that little or nothing was compiled for
    kernel: {128: "32x32w4 16x32w4 16x16w4", 256: "16x16w8"} for kernel in _KERNELS
}
_CAREFUL_DOUBLES: _Blocks = {kernel: {128: "16x16w4"} for kernel in _KERNELS}
# The gradients of a table keep the sums of all steps between rows and columns.
_OF_TABLE = "32x32w4 16x16w2"
# Bytes of shared memory that a program may have: NVIDIA's CUDA programming guide by the compute
# capability; the local data share of AMD's compute units, and on gfx950 that of CDNA 4's white
# paper; the shared local memory of Intel's Xe cores. Unknown devices are taken for the smallest.
_MEMORY = {
    **{75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227},
    **{120: 99, 121: 99},
}
_OTHER_MEMORY = {"nvidia": 99, "amd": 64, "intel": 128}
_LEAST_MEMORY = 48
_ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Tiles:
    """How one kernel cuts a problem.

    Args:
        rows, columns: extents per axis. Rows are queries and columns keys, except for the keys'
            gradients, where rows are keys and columns queries.
        warps: warps of a program.
        stages: tiles of columns that are loaded at once.
    """

    rows: Extents
    columns: Extents
    warps: int = 4
    stages: int = 2

    @property
    def row_count(self) -> int:
        """Rows of a tile."""
        return math.prod(self.rows)

    @property
    def column_count(self) -> int:
        """Columns of a tile."""
        return math.prod(self.columns)

    @property
    def area(self) -> int:
        """Pairs of one visit."""
        return self.row_count * self.column_count


class Build(NamedTuple):
    """The options, besides tiles, that kernels are compiled for.

    Args:
        rank: axes of the mask.
        two_runs: whether some axis has a prefix.
        circle: whether some axis wraps.
    """

    dtype: str
    head_dim: int
    value_dim: int
    rank: int
    two_runs: bool = False
    circle: bool = False
    softcap: bool = False
    key_range: bool = False
    extra: bool = False
    grids: bool = False
    extra_range: bool = False
    table: bool = False
    slopes: bool = False
    sink: bool = False


def kernels(build: Build, *, training: bool) -> tuple[str, ...]:
    """The kernels of a call that have tiles, in the order of their launches."""
    if not training:
        return _KERNELS[:1]
    return (*_KERNELS, *(EXTRA,) * build.extra, *(TABLE,) * build.table)


def products(kernel: str, build: Build) -> int:
    """Multiply-adds that one pair costs."""
    d, dv = build.head_dim, build.value_dim
    if kernel in ("fwd", TABLE):
        return d + dv
    return 2 * d + dv if kernel == "dq" else 2 * d + 2 * dv


def instructions(device: DeviceInfo, dtype: str) -> str:
    """The instructions of matrix products that Triton uses on a device for a dtype: "mma", "wgmma",
    "tcgen05", "mfma" or "wmma"; empty if there are none, or they are not known.
    """
    halves = dtype in ("float16", "bfloat16")
    if device.vendor == "amd":
        is_instinct = _architecture(device).startswith("gfx9")
        return "mfma" if is_instinct else "wmma" * halves
    capability = device.capability or 0
    if device.vendor != "nvidia" or capability < 80 or dtype == "float32":
        return ""
    generation = {9: "wgmma", 10: "tcgen05"}.get(capability // 10, "mma")
    # only data-center GPUs multiply matrices of float64
    return generation if halves else "mma" * (capability in _WITH_DOUBLES)


def _architecture(device: DeviceInfo) -> str:
    return device.architecture or device.name


def _blocks_of(kernel: str, build: Build, device: DeviceInfo) -> str:
    """The rows, columns and warps that are offered, largest first; empty for too large heads."""
    kind = instructions(device, build.dtype)
    by_kind: Mapping[str, _Blocks] = {
        "mma": _MMA, "wgmma": _WGMMA, "tcgen05": _TCGEN05, "mfma": _MFMA
    }  # fmt: skip
    if build.dtype == "float64":
        blocks = _DOUBLES if kind else _CAREFUL_DOUBLES
    elif build.dtype == "float32":
        blocks = _SINGLES if kind else _SIMT if device.vendor == "nvidia" else _CAREFUL
    else:
        blocks = by_kind.get(kind, _CAREFUL)
    channels = max(build.head_dim, build.value_dim)
    by_size = blocks["dkdv" if kernel in (EXTRA, TABLE) else kernel]
    if kernel == TABLE and channels <= max(by_size):
        return _OF_TABLE
    return next((text for most, text in by_size.items() if channels <= most), "")


def memory(device: DeviceInfo) -> int:
    """Bytes of shared memory that a program may have."""
    if device.capability is not None:
        return _MEMORY.get(device.capability, _OTHER_MEMORY["nvidia"]) << 10
    if _architecture(device) == "gfx950":
        return 160 << 10
    return _OTHER_MEMORY.get(device.vendor, _LEAST_MEMORY) << 10


def shared_bytes(kernel: str, tiles: Tiles, build: Build, device: DeviceInfo) -> int:
    """At most so many bytes of shared memory of a program.

    The rows' vectors, those of the columns of all stages (on AMD's, all but one, which is in
    registers), the weights between two products, and what Triton needs to reduce and to convert.
    """
    size = _ITEMSIZES[build.dtype]
    head, value = (max(16, 1 << (one - 1).bit_length()) for one in build[1:3])
    rows, columns, both = tiles.row_count, tiles.column_count, head + value
    kind = instructions(device, build.dtype)
    row = max(head, value) if kernel == "fwd" else both
    row += columns * (both < 128)  # weights take more than the vectors of narrow heads
    stages = tiles.stages - (device.vendor == "amd" and _architecture(device) != "gfx950")
    # Those in registers pass through shared memory once.
    needed = max(rows * row + max(stages, 0) * columns * both, columns * max(head, value))
    if device.vendor == "nvidia" and tiles.stages == 1 and kernel in ("dkdv", EXTRA):
        needed += columns * max(head, value)  # read in two orders, where strides allow no chunks
    if kind == "tcgen05" and kernel != "fwd":
        needed += max(2 * rows * columns, columns * both)
    # Entries of a table are loaded as early as columns, one for each score.
    needed += 2 * rows * columns * max(1, tiles.stages - 1) * build.table
    terms = 16 * tiles.stages * columns * (kernel not in ("fwd", "dq"))
    # To reduce and to convert; where several warps multiply together, rows pass through it, too.
    other = 2048 * (device.vendor != "amd") + 2304 * (kind in ("wgmma", "tcgen05"))
    return needed * size + terms + other


@lru_cache(1024)
def legal_tiles(
    kernel: str,
    build: Build,
    device: DeviceInfo,
    long: tuple[int, ...],
    long_columns: tuple[int, ...] | None = None,
) -> tuple[Tiles, ...]:
    """All tiles to choose from for a grid of rows and columns, largest first.

    Args:
        long: the axes on which there is more than one row.
        long_columns: those with more than one column; default: the same.
    """
    axes = (RANK - 1,) if kernel == EXTRA else long or (RANK - 1,)
    column_axes = axes if long_columns is None else long_columns or (RANK - 1,)
    row_shapes, column_shapes = _SHAPES[len(axes)], _SHAPES[len(column_axes)]
    legal: list[Tiles] = []
    for block in _blocks_of(kernel, build, device).split():
        rows, columns, warps = map(int, re.split("[xw]", block))
        for row, column in product(row_shapes[rows], column_shapes[columns]):
            extents = placed(row, axes), placed(column, column_axes)
            for stages in _stages(kernel, build, device):
                tiles = Tiles(*extents, warps, stages)
                if shared_bytes(kernel, tiles, build, device) <= memory(device):
                    legal.append(tiles)
                    break
    return tuple(legal)


@lru_cache(256)
def largest_head(dtype: str, device: DeviceInfo) -> int:
    """The channels up to which every kernel has a tile on a device; 0 if there are none."""
    sizes = [
        size
        for size in (16, 32, 64, 128, 256)
        if all(
            legal_tiles(kernel, Build(dtype, size, size, 1), device, (RANK - 1,))
            for kernel in (*_KERNELS, EXTRA, TABLE)
        )
    ]
    return max(sizes, default=0)


def _stages(kernel: str, build: Build, device: DeviceInfo) -> tuple[int, ...]:
    """Numbers of stages, of which the first that fits is taken."""
    if device.vendor == "nvidia":
        deep = instructions(device, build.dtype) in ("wgmma", "tcgen05") and kernel == "fwd"
        return (3, 2, 1) if deep else (2, 1)
    return (2, 1) if kernel in ("fwd", "dq") and build.dtype[-2:] == "16" else (1,)


def variant(tiles: Tiles, build: Build, *, step: int, wide: bool, precision: str) -> Variant:
    """What a kernel is compiled for.

    Args:
        step: elements of which all strides are multiples, if channels are neighbours; else 1.
        wide: whether offsets inside of a sample need 64 bits.
        precision: of products of float32, "ieee" or "tf32".
    """
    return Variant(
        rank=build.rank,
        rows=tiles.rows,
        columns=tiles.columns,
        head_dim=build.head_dim,
        value_dim=build.value_dim,
        two_runs=build.two_runs,
        circle=build.circle,
        softcap=build.softcap,
        packed=build.grids,
        step=step,
        wide=wide,
        precision=precision,
        double=build.dtype == "float64",
    )


class Shipped(NamedTuple):
    """A kernel as it is compiled: what `variant` takes."""

    kernel: str
    tiles: Tiles
    build: Build
    step: int = 8
    wide: bool = False
    precision: str = "ieee"


_AXES = ((2,), (1, 2), (0, 1, 2))  # by rank
_OPTIONS: tuple[Mapping[str, bool], ...] = (
    {"two_runs": True},
    {"circle": True},
    {"softcap": True},
    {"key_range": True},
    {"extra": True, "sink": True},
    {"extra": True, "extra_range": True},
    {"table": True},
    {"slopes": True},
    {"grids": True},
    {"two_runs": True, "softcap": True, "key_range": True, "table": True, "grids": True},
)


def shipped(device: DeviceInfo) -> Iterator[Shipped]:
    """What the deep compile matrix compiles for a device: every tile for bfloat16 with head size 64
    and 128 on one, two and three axes, and one variant of everything else.
    """
    found: dict[Shipped, None] = {}
    for size, axes in product((64, 128), _AXES):
        build = Build("bfloat16", size, size, len(axes))
        found |= dict.fromkeys(_variants(build, axes, device, every=True))
    for size in ((16, 16), (20, 12), (80, 80), (96, 64), (192, 128), (256, 256)):
        found |= dict.fromkeys(_variants(Build("float16", *size, 2), (1, 2), device, step=4))
    for dtype, size in product(DTYPES[2:], (32, 64, 128)):
        found |= dict.fromkeys(_variants(Build(dtype, size, size, 2), (1, 2), device, step=4))
    for options in _OPTIONS:
        found |= dict.fromkeys(_variants(Build("bfloat16", 64, 64, 3, **options), _AXES[2], device))
    plain = Build("bfloat16", 64, 64, 2)
    found |= dict.fromkeys(_variants(plain, (1, 2), device, step=1))
    found |= dict.fromkeys(_variants(plain, (1, 2), device, wide=True))
    if device.vendor == "nvidia":
        single = plain._replace(dtype="float32")
        found |= dict.fromkeys(_variants(single, (1, 2), device, step=4, precision="tf32"))
    yield from found


def _variants(
    build: Build, axes: tuple[int, ...], device: DeviceInfo, *, every: bool = False, **others: Any
) -> Iterator[Shipped]:
    """All kernels of a build, with every legal tile or only with the largest."""
    for kernel in kernels(build, training=True):
        legal = legal_tiles(kernel, build, device, axes)
        for tiles in legal if every else legal[:1]:
            yield Shipped(kernel, tiles, build, **others)

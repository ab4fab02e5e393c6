"""Lists the tiles of the Triton kernels, and what the kernels that use them are compiled for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from nbattn.backends.triton.kernels.numbers import Variant
from nbattn.program.device import DeviceInfo
from nbattn.program.tile_counts import RANK, Extents, placed

EXTRA = "dextra"  # the kernel of the gradients of extra keys
TABLE = "dbias"  # the kernel of the gradient of a table of relative positions
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


@lru_cache(1024)
def legal_tiles(
    kernel: str,
    build: Build,
    device: DeviceInfo,
    long: tuple[int, ...],
    long_columns: tuple[int, ...] | None = None,
) -> tuple[Tiles, ...]:
    """All tiles to choose from for a grid of rows and columns.

    Args:
        long: the axes on which there is more than one row.
        long_columns: those with more than one column; default: the same.
    """
    axes = (RANK - 1,) if kernel == EXTRA else long or (RANK - 1,)
    column_axes = axes if long_columns is None else long_columns or (RANK - 1,)
    rows, columns = _SHAPES[len(axes)], _SHAPES[len(column_axes)]
    legal: list[Tiles] = []
    for row_count, column_count in product((16, 32, 64), (16, 32, 64)):
        legal += [
            Tiles(placed(row, axes), placed(column, column_axes))
            for row, column in product(rows[row_count], columns[column_count])
        ]
    return tuple(legal)


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

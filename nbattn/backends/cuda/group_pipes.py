"""Estimates the time of a launch of the CUDA kernels of warpgroups, as `pipes.py` does for others.

Two or three warpgroups compute, one block at a time on a multiprocessor: while one's products run,
another computes weights. The copies of a further warpgroup are hidden. Nothing here was measured on
a device of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.pipes import L2, MUFU, Machine
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.program.costs import ITEMSIZE

# Bytes per clock of a multiprocessor's shared memory (CUDA programming guide: 32 banks of 4 bytes).
SHARED = 128
# Bytes of 16 channels of a product's 64 rows, and of a column.
ROW_BYTES, COLUMN_BYTES = 64 * 16 * 2, 16 * 2
# What overlaps least: the share of the time of other pipes that adds to that of the busiest.
# FlashAttention-3 (arXiv 2407.08608) publishes 648 TFLOP/s without a mask at 128 channels, of 989.
EXPOSED = 0.6
# Clocks of a block besides visits, a guess: those of `pipes.BLOCK`, and as many for tensor maps,
# first copies, barriers and roles.
BLOCK = 6000


class Issued(NamedTuple):
    """Instructions of one thread: per visit, per score, per accumulator of a sum."""

    visit: float
    score: float
    output: float


# Counted in the kernels that NVRTC 13.0.88 makes for sm_90a, products included.
ISSUED: Mapping[str, Issued] = {
    "fwd": Issued(75.0, 4.75, 0.45),
    "dq": Issued(35.0, 4.85, 1.1),
    "dkdv": Issued(77.0, 4.9, 0.53),
}
# In visits in which some pair is masked, besides.
MASKED = Issued(75.0, 1.25, 0.0)


def visit(
    kernel: str, tiles: Tiles, build: Build, on: Machine, *, masked: float = 0.0
) -> dict[str, float]:
    """Clocks of a multiprocessor that each pipe is busy in one visit of a block.

    Args:
        masked: the share of visits in which some pair is masked.
    """
    groups, columns = tiles.warpgroups, tiles.column_count
    scores = columns / 2  # of a thread: 64 rows have 128 threads
    cost = ISSUED[kernel]
    sums = _summed(kernel, build) / 2
    issued = cost.visit + scores * cost.score + sums * cost.output
    issued += masked * (MASKED.visit + scores * MASKED.score)
    exponents = MUFU * groups * scores  # of a scheduler, which has a warp of every warpgroup
    return {
        "tensor": 2 * tiles.area * cuda_tiles.products(kernel, build) / on.peak,
        "mufu": exponents,
        "issue": groups * issued,
        "shared": (groups * _operands(kernel, columns, build) + _copied(columns, build)) / SHARED,
    }


def _operands(kernel: str, columns: int, build: Build) -> int:
    """Bytes that the products of a warpgroup read: both sides of scores; of sums, whose weights
    are in registers, the columns.
    """
    head, value = build.head_dim, build.value_dim
    scored = {"fwd": head}.get(kernel, head + value) // 16  # steps of 16 channels
    summed = columns // 16 * COLUMN_BYTES * _summed(kernel, build)
    return scored * (ROW_BYTES + COLUMN_BYTES * columns) + summed


def _summed(kernel: str, build: Build) -> int:
    """Channels of a row's sums."""
    head, value = build.head_dim, build.value_dim
    return {"fwd": value, "dq": head}.get(kernel, head + value)


def _copied(columns: int, build: Build) -> int:
    """Bytes that tensor maps write in a visit."""
    return columns * (build.head_dim + build.value_dim) * ITEMSIZE[build.dtype]


def clocks(kernel: str, tiles: Tiles, build: Build, on: Machine, masked: float) -> float:
    """Clocks of a multiprocessor for one visit of a block."""
    busy = visit(kernel, tiles, build, on, masked=masked)
    shared = busy.pop("shared")
    most = max(busy.values())
    return max(most + EXPOSED * (sum(busy.values()) - most), shared)


def seconds(
    kernel: str,
    tiles: Tiles,
    build: Build,
    on: Machine,
    *,
    blocks: int,
    visits: float,
    masked: float,
) -> float:
    """The estimated time of a launch; arguments as those of `pipes.seconds`."""
    mine = -(-blocks // on.multiprocessors)  # of the busiest multiprocessor
    # Nothing is computed while the first columns are copied.
    work = (visits + 1) * clocks(kernel, tiles, build, on, masked) + BLOCK
    vectors = visits * tiles.column_count + 2 * tiles.row_count
    read = vectors * (build.head_dim + build.value_dim) * ITEMSIZE[build.dtype] / L2
    return mine * max(work, read) / on.clock

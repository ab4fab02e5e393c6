"""Estimates the time of a launch of the CUDA kernels from the pipes of a multiprocessor.

A visit's instructions are known in closed form, but for the coefficients below, which are fitted to
the instructions that the compiler makes (`tests/golden/kernels.json`). The busiest pipe bounds a
visit; with few warps only a share of that bound is reached; and all columns are read from the L2
cache again by every tile of rows. Nothing here was measured on a device.

After a change of the kernels: `python tests/whole/test_compile_matrix.py --update`, then `--fit`,
which prints the coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.program.costs import ITEMSIZE
from nbattn.program.device import DEVICES, DeviceInfo

SCHEDULERS = 4  # of a multiprocessor
REGISTERS = 65536  # of a multiprocessor
RESERVED = 1 << 10  # bytes of shared memory that the system takes for every block
# Clocks of a scheduler for one warp's instruction.
ALU, MUFU = 2, 8
# The matrix instructions of Ampere reach this share of the peak of newer devices: published for
# H100 (arXiv 2501.12084), assumed for the others.
NEWER, SHARE = (90, 100, 103, 110), 0.62
# Bytes per clock that a multiprocessor gets from L2: assumed, 5.8 TB/s of an H100 in all, half of
# the 5120 bytes per clock that NVIDIA states for the whole of an A100.
L2 = 24
# A warp alone keeps its scheduler busy half of the time, and each further one half of the rest:
# with two warps, as most tiles have, kernels like these reach about three quarters of the bound.
IDLE = 0.5
# Clocks that a block takes besides visits, to find its windows and to write its rows: a guess.
BLOCK = 3000
# Registers of a thread besides accumulators; more than the device has are never used.
OTHER_REGISTERS, MOST_REGISTERS = 80, 256
# Without tensor cores every multiply-add waits for shared memory, which delivers to one lane in
# four; instructions of a visit besides.
WAIT, SIMT_VISIT = 4, 500


class Part(NamedTuple):
    """Instructions of one thread: all that issue, those of the ALU, and words of shared memory that
    a warp moves (32 lanes x 4 bytes each).
    """

    issued: float
    alu: float
    words: float


# Fitted to the kernels for sm_80 and sm_90: per 16-byte copy, per score that is masked, per output
# accumulator that is rescaled; then by kernel per visit and per score.
COPY = Part(3.1, 3.6, 0.0)
MASK = Part(3.5, 2.5, 0.4)
OUTPUT = Part(0.2, 0.1, 0.1)
VISIT: Mapping[str, Part] = {
    "fwd": Part(108.0, 44.5, 13.1),
    "dq": Part(115.0, 38.5, 13.1),
    "dkdv": Part(152.7, 39.8, 23.3),
}
SCORE: Mapping[str, Part] = {
    "fwd": Part(4.0, 1.1, 0.0),
    "dq": Part(4.1, 0.1, 0.0),
    "dkdv": Part(4.3, 0.8, 0.0),
}
# The same per score, counted in kernels with a table of relative positions or slopes: all of them,
# and what a table costs where some pair is masked. A load of the table moves a word of the cache.
TABLE, TABLE_MASK = Part(4.2, 0.7, 1.0), Part(4.2, 3.0, 0.0)
SLOPES = Part(2.7, 0.7, 0.0)
# Without tensor cores, instructions of a row of a visit for either; and in the table's gradient,
# clocks until a warp has added a row to its table and may add the next: guesses.
SIMT_ADDED, SIMT_TABLE_ROW = 40, 100


class Machine(NamedTuple):
    """What the model knows of a device.

    Args:
        multiprocessors: their number.
        clock: clocks per second.
        hmma: clocks of a scheduler for one m16n8k16 product.
        peak: operations per clock of a multiprocessor with its own generation's tensor cores.
        rate: operations per clock of a multiprocessor without tensor cores.
        memory: bytes of shared memory of a multiprocessor.
    """

    multiprocessors: int
    clock: float
    hmma: float
    peak: float
    rate: float
    memory: int


class Work(NamedTuple):
    """What one warp does in one visit, in instructions and in words of shared memory."""

    hmma: float
    mufu: float
    issued: float
    alu: float
    words: float

    def clocks(self, hmma: float) -> dict[str, float]:
        """Clocks of each pipe where each scheduler has one warp: shared memory serves one at once.

        Args:
            hmma: clocks of one product.
        """
        return {
            "issue": self.issued,
            "alu": ALU * self.alu,
            "mufu": MUFU * self.mufu,
            "tensor": hmma * self.hmma,
            "shared": SCHEDULERS * self.words,
        }


def machine(device: DeviceInfo, dtype: str, memory: int) -> Machine:
    """A device's numbers; those of an A100 for a device that does not tell them.

    Args:
        memory: bytes of shared memory that a block can use.
    """
    known = device if device.multiprocessors else DEVICES["sm_80"]
    count, clock = known.multiprocessors, known.clock
    share = SHARE if device.capability in NEWER else 1.0
    single = "float64" if dtype == "float64" else "float32"
    return Machine(
        multiprocessors=count,
        clock=clock,
        hmma=4096 * SCHEDULERS * count * clock / (device.peak(dtype) * share),
        peak=device.peak(dtype) / (count * clock),
        rate=device.peak(single) / (count * clock),
        memory=memory + RESERVED,
    )


def visit(kernel: str, tiles: Tiles, build: Build, *, masked: float = 0.0) -> list[Work]:
    """What one warp does in one visit, for each launch of a tensor-core kernel.

    Args:
        masked: the share of visits in which some pair is masked.
    """
    columns, blocks = math.prod(tiles.columns), tiles.row_blocks
    head, value = (-(-size // 16) for size in (build.head_dim, build.value_dim))
    copies = sum(_copies(columns, 2 * steps, 32 * tiles.warps) for steps in (head, value))
    scores = blocks * columns / 2
    outputs = 8 * blocks * value * (kernel == "fwd")
    parts = [
        (COPY, copies),
        (MASK, masked * scores),
        (OUTPUT, outputs),
        (VISIT[kernel], 1),
        (SCORE[kernel], scores),
        (TABLE, scores * build.table),
        (TABLE_MASK, masked * scores * build.table),
        (SLOPES, scores * build.slopes),
    ]
    issued, alu, words = (
        sum(part[pipe] * count for part, count in parts) for pipe in range(len(Part._fields))
    )
    works: list[Work] = []
    for steps, loads in _products(kernel, tiles, build):
        hmma = blocks * columns / 8 * steps
        works.append(
            Work(hmma, scores, issued + hmma + loads + copies, alu, words + 4 * (loads + copies))
        )
    return works


def _copies(columns: int, chunks: int, threads: int) -> int:
    """Copies of 16 bytes of a busy thread for a tile of columns: as many lanes as the largest power
    of two in `chunks` share a vector (cuda/box_copy.cuh).
    """
    lanes = chunks & -chunks
    return max(1, columns * lanes // threads) * (chunks // lanes)


def _products(kernel: str, tiles: Tiles, build: Build) -> list[tuple[int, int]]:
    """For each launch: 16-channel steps of all products, and matrices that a warp loads for them
    from shared memory.
    """
    head, value = (-(-size // 16) for size in (build.head_dim, build.value_dim))
    columns, rows = math.prod(tiles.columns) // 16, tiles.row_blocks
    if kernel == "fwd":
        kept = tiles.row_blocks == 1 and build.head_dim <= 128  # queries, in registers
        return [(head + value, head * (columns + rows * (not kept)) + value * columns)]
    if kernel == "dq":
        return [(2 * head + value, (head + value) * (columns + rows) + head * columns)]
    score, grads = head * (columns + rows), value * (columns + rows)
    sums_value, sums_key = value * columns, head * columns
    launches = {
        1: (head + value, score + sums_value),
        2: (2 * head + value, score + grads + sums_key),
        3: (2 * head + 2 * value, score + grads + sums_value + sums_key),
    }
    return [launches[grads] for grads in cuda_tiles.grads_of(kernel, build)]


def clocks(kernel: str, tiles: Tiles, build: Build, on: Machine, masked: float) -> float:
    """Clocks of a multiprocessor for one visit, if nothing waits."""
    if tiles.row_blocks:
        works = visit(kernel, tiles, build, masked=masked)
        return sum(max(work.clocks(on.hmma).values()) for work in works) * tiles.warps / SCHEDULERS
    flops = 2 * tiles.area * cuda_tiles.products(kernel, build)
    launches = len(cuda_tiles.grads_of(kernel, build))
    row = SIMT_ADDED * (build.table + build.slopes) + SIMT_TABLE_ROW * (kernel == cuda_tiles.TABLE)
    other = (SIMT_VISIT * tiles.warps + row * tiles.row_count) * launches
    return WAIT * flops / on.rate + other / SCHEDULERS


def blocks_at_once(kernel: str, tiles: Tiles, build: Build, on: Machine) -> int:
    """Blocks that fit a multiprocessor, by shared memory and by registers."""
    used = cuda_tiles.accumulators(kernel, tiles, build) + OTHER_REGISTERS
    registers = min(-(-used // 8) * 8, MOST_REGISTERS) * 32 * tiles.warps
    memory = cuda_tiles.shared_bytes(kernel, tiles, build) + RESERVED
    return max(1, min(on.memory // memory, REGISTERS // registers))


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
    """The estimated time of a kernel's launches.

    Args:
        blocks: tiles of rows in all heads of all samples.
        visits: of one block, on average.
        masked: the share of them in which some pair is masked.
    """
    mine = -(-blocks // on.multiprocessors)  # of the busiest multiprocessor
    together = min(max(mine, 1), blocks_at_once(kernel, tiles, build, on))
    warps = together * tiles.warps / SCHEDULERS
    busy = 1 - IDLE**warps if warps > 1 else (1 - IDLE) * warps
    # The first visit's columns are loaded before anything else can be done: one visit more.
    work = (visits + 1) * clocks(kernel, tiles, build, on, masked) / busy + BLOCK / together
    channels = build.head_dim + build.value_dim
    launches = len(cuda_tiles.grads_of(kernel, build))
    vectors = visits * math.prod(tiles.columns) * launches + 2 * tiles.row_count
    read = vectors * channels * ITEMSIZE[build.dtype] / L2
    return mine * max(work, read) / on.clock

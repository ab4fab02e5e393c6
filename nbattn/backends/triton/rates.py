"""Estimates the time of a launch of the Triton kernels from a multiprocessor's rates.

A visit takes as long as its matrix products, at the share of the peak that attention in Triton
reaches, or as long as all of its instructions are issued, whichever is longer. The instructions are
those that the compiler makes; the shares are published for some GPUs and assumed for the others.
All columns are read from the L2 cache again by every tile of rows. Nothing here was measured on a
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nbattn.backends.triton.tiles import EXTRA, TABLE, Build, Tiles, instructions, products
from nbattn.program.costs import ITEMSIZE
from nbattn.program.device import DEVICES, DeviceInfo

FORWARD = "fwd"
_HALVES = ("float16", "bfloat16")
# The share of the peak in the forward and in the backward.
# NVIDIA with Ampere's instructions: FlashAttention-2 reaches up to 73 % and 63 % of an A100
# (arXiv 2307.08691), FlexAttention's Triton kernels 90 % and 85 % of that (arXiv 2412.05496).
AMPERE = (0.73 * 0.90, 0.63 * 0.85)
# With Hopper's: Triton's fused attention, 395 of 989 TFLOP/s on an H100 (arXiv 2407.08608, 16k,
# head size 128); the backward is assumed to be as much slower as on an A100, and Blackwell alike.
HOPPER = (395 / 989, 395 / 989 * AMPERE[1] / AMPERE[0])
OTHERS = (0.30, 0.25)  # AMD's and Intel's: assumed
# Without matrix instructions every multiply-add loads its operands from shared memory: assumed.
WITHOUT = (0.25, 0.25)
# Threads whose instruction a multiprocessor issues in a clock: four warps of 32 of NVIDIA's, four
# of AMD's units with 16 lanes, eight of Intel's.
_LANES: Mapping[str, int] = {"nvidia": 128, "amd": 64, "intel": 128}
_WARP, _INSTINCT_WARP = 32, 64
# Bytes per clock that a multiprocessor gets from L2: half of the 5120 bytes per clock that NVIDIA
# states for the whole of an A100, which has 108; assumed for the others.
_L2 = 24
# Kernels have up to 255 registers per thread, so that eight warps are on a multiprocessor at once.
_WARPS, _SCHEDULERS = 8, 4
# A warp alone keeps its scheduler busy half of the time, and each further one half of the rest.
_IDLE = 0.5
_BUSY = 1 - _IDLE ** (_WARPS / _SCHEDULERS)
# Clocks of a program besides visits, to find its windows and to write; and of a visit in which all
# wait for loads and barriers: guesses.
_PROGRAM, _WAIT = 3000, 200


class Work(NamedTuple):
    """Instructions of a visit: of each thread, for each pair, for each element of its columns, for
    each 64 multiply-adds of matrix products; and for each pair where some pair is masked.
    """

    thread: float
    pair: float
    element: float
    product: float
    mask: float


# Fitted to what Triton 3.8 compiles for sm_80 and sm_90, as `--visits` of
# tests/whole/test_triton_matrix.py prints it: tiles of 16 to 128 rows, 32 and 64 columns, head
# sizes 64 and 128. The largest errors of the first three are 20, 26 and 14 %; the others were
# compared with seven and four tiles. Masks: what else is in the loop; the last two have none.
WORK: Mapping[str, Work] = {
    FORWARD: Work(201, 2.6, 1.1, 1.4, 6.4),
    "dq": Work(111, 3.1, 1.2, 0.8, 11.0),
    "dkdv": Work(205, 2.8, 1.6, 1.0, 10.5),
    EXTRA: Work(265, 2.8, 4.0, 1.0, 0.0),
    TABLE: Work(335, 177.0, 2.3, 0.8, 0.0),
}
# Instructions for each pair of a table of relative positions, slopes, and softcap, counted in the
# same way; and of each thread on a circle, or with a prefix.
_TABLE, _SLOPES, _SOFTCAP = 13.0, 1.0, 16.0
_CIRCLE, _TWO_RUNS = 75.0, 25.0


class Machine(NamedTuple):
    """What the model knows of a device.

    Args:
        multiprocessors: their number.
        clock: clocks per second.
        flops: operations per clock of a multiprocessor, at the peak for a dtype.
        forward, backward: the share of them that kernels reach.
        lanes: threads whose instruction a multiprocessor issues in a clock.
        warp: threads of a warp.
    """

    multiprocessors: int
    clock: float
    flops: float
    forward: float
    backward: float
    lanes: int
    warp: int


def machine(device: DeviceInfo, dtype: str) -> Machine:
    """A device's numbers; those of an A100 for a device that does not tell them."""
    known = device if device.multiprocessors else DEVICES["sm_80"]
    count, clock = known.multiprocessors, known.clock
    flops = device.peak(dtype) / (count * clock)
    instinct = (device.architecture or device.name).startswith("gfx9")
    return Machine(
        count,
        clock,
        flops,
        *_shares(device, dtype),
        lanes=_LANES.get(device.vendor, _LANES["nvidia"]),
        warp=_INSTINCT_WARP if instinct else _WARP,
    )


def _shares(device: DeviceInfo, dtype: str) -> tuple[float, float]:
    """The shares of the peak. Products of float32 are exact, for which only AMD's Instincts have
    matrix instructions.
    """
    kind = instructions(device, dtype)
    if kind == "mma":
        return AMPERE
    if kind in ("wgmma", "tcgen05"):
        return HOPPER
    return OTHERS if kind or dtype in _HALVES else WITHOUT


def visit(kernel: str, tiles: Tiles, build: Build, on: Machine, masked: float) -> float:
    """Clocks of a multiprocessor for one visit, while eight warps are on it.

    Args:
        masked: the share of visits in which some pair is masked.
    """
    share = on.forward if kernel == FORWARD else on.backward
    matrix = 2.0 * tiles.area * products(kernel, padded(build)) / (on.flops * share)
    others = _instructions(kernel, tiles, build, on, masked) / (on.lanes * _BUSY)
    return max(matrix, others) + _WAIT


def padded(build: Build) -> Build:
    """With head sizes as the kernels compute them: powers of two, of at least 16."""
    head, value = (
        1 << (max(size, 16) - 1).bit_length() for size in (build.head_dim, build.value_dim)
    )
    return build._replace(head_dim=head, value_dim=value)


def _instructions(kernel: str, tiles: Tiles, build: Build, on: Machine, masked: float) -> float:
    """Instructions of all threads in a visit."""
    work, channels = WORK[kernel], sum(padded(build)[1:3])
    pair = work.pair + work.product * products(kernel, padded(build)) / 64 + work.mask * masked
    pair += _TABLE * build.table + _SLOPES * build.slopes + _SOFTCAP * build.softcap
    thread = work.thread + _CIRCLE * build.circle + _TWO_RUNS * build.two_runs
    return (
        thread * on.warp * tiles.warps
        + pair * tiles.area
        + work.element * tiles.column_count * channels
    )


def seconds(
    kernel: str,
    tiles: Tiles,
    build: Build,
    on: Machine,
    *,
    programs: int,
    visits: float,
    masked: float,
) -> float:
    """The estimated time of a kernel's launch.

    Args:
        programs: of the launch.
        visits: of one program, on average.
        masked: the share of them in which some pair is masked.
    """
    mine = -(-programs // on.multiprocessors)  # of the busiest multiprocessor
    together = max(1, min(mine, _WARPS // tiles.warps))
    warps = together * tiles.warps / _SCHEDULERS
    busy = (1 - _IDLE**warps if warps > 1 else (1 - _IDLE) * warps) / _BUSY
    # The first visit's columns are loaded before anything else can be done: one visit more.
    work = (visits + 1) * visit(kernel, tiles, build, on, masked) / busy + _PROGRAM / together
    channels = sum(padded(build)[1:3])
    vectors = visits * tiles.column_count + 2 * tiles.row_count
    read = vectors * channels * ITEMSIZE[build.dtype] / _L2
    return mine * max(work, read) / on.clock

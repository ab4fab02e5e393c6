"""Time every tile of every CUDA kernel alone on a GPU: a JSON line per workload, kernel and tile.

    PYTHONPATH=. python benchmarks/gpu_tiles.py --output tiles.jsonl [--seconds 480] [--only FLUX]

The few tiles of each kernel that the planner expects to be the fastest come first, for all
workloads, beside its estimate; then the others. It stops in time, and a second run goes on where
the first one stopped. `--dry` runs without a GPU: everything but the kernels, and no line has a
time. `fit_costs.py` makes a cost table of the lines.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gpu_timing
import torch
from findings import Findings

import nbattn
from nbattn import Mask, geometry
from nbattn.backends.cuda import kernel_times, measured_tiles
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.choice import Pass
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.inputs import Inputs, KernelRun
from nbattn.kernels import cubins, launch, nvrtc
from nbattn.kernels.variant import Variant
from nbattn.planner import cost_table
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES

_ROWS = 32  # smaller tiles are for problems that leave a GPU idle
INSTRUCTIONS = ("wgmma", "mma")
FEW = 4  # tiles of a kernel that are timed before all others
PARTS = slice(0, FEW), slice(FEW, None)  # of a kernel's tiles in the order of their estimates
_SHARE = 0.3  # of the time, the most for compiling


@dataclass(frozen=True)
class Workload:
    """One attention: `[batch, *space, heads, dim]`."""

    name: str
    space: tuple[int, ...]
    mask: Mask
    heads: int
    dim: int
    batch: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each tensor."""
        return (self.batch, *self.space, self.heads, self.dim)


def workloads() -> Iterator[Workload]:
    """Yield published workloads: of diffusion models, video models, vision, and a line."""
    hood, flux, video = Mask.neighborhood, (256, 256), (30, 48, 80)
    for dim in (128, 64):
        yield Workload(f"FLUX D{dim}", flux, hood((80, 80)), 24, dim)
        yield Workload(f"FLUX s16 D{dim}", flux, hood((80, 80), stride=16), 24, dim)
    strided = hood((18, 24, 24), stride=(16, 8, 8))
    for dim in (128, 64):
        yield Workload(f"Hunyuan D{dim}", video, hood((18, 24, 24)), 24, dim)
        yield Workload(f"Hunyuan s16,8,8 D{dim}", video, strided, 24, dim)
    yield Workload("LTX stage 5", (79, 192, 192), hood((11, 11, 11)), 4, 64)
    yield Workload("LTX stage 4", (69, 64, 96), hood((3, 5, 5)), 8, 64)
    for dim in (128, 64):
        yield Workload(f"1-D 32k D{dim}", (32768,), hood(2048), 8, dim)
    for side, heads, dilation in ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1)):
        yield Workload(f"NAT {side}", (side, side), hood((7, 7)), heads, 32, 128)
        if dilation > 1:
            dilated = hood((7, 7), dilation=dilation)
            yield Workload(f"DiNAT {side} d{dilation}", (side, side), dilated, heads, 32, 128)
    for dim in (128, 64):
        yield Workload(f"dense 8k D{dim}", (8192,), Mask.full(), 16, dim)


class Nothing:
    """A launcher that launches nothing, for dry runs."""

    def launch(self, *_: Any) -> None:
        """Do nothing."""

    def load(self, *_: Any) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Bench:
    """Where it runs: on a GPU, or dry on tensors without data."""

    device: str
    planned_for: Any
    launcher: Any
    timer: gpu_timing.Timer

    @classmethod
    def of(cls, dry: bool) -> Bench:
        """Return the GPU, or the stand-in."""
        if dry:
            gpu = replace(DEVICES["sm_90"], providers=("cupy",))
            return cls("meta", gpu, Nothing(), gpu_timing.nothing)
        return cls("cuda", "cuda", launch.launcher(), gpu_timing.seconds)

    def plan(self, load: Workload, instructions: str = "mma") -> Plan | None:
        """Return the plan of both passes by an instruction set; None where there is none."""
        try:
            return nbattn.plan(
                load.mask, load.shape, dtype="bfloat16", device=self.planned_for, backend="cuda",
                require=(instructions,), training=True,
            )  # fmt: skip
        except nbattn.BackendError:
            return None

    def tensors(self, load: Workload) -> tuple[Inputs, torch.Tensor]:
        """Return the inputs and the gradient of the output."""
        torch.manual_seed(0)
        *given, grad = (
            torch.randn(load.shape, device=self.device, dtype=torch.bfloat16) for _ in range(4)
        )
        return Inputs(*given, scale=load.dim**-0.5), grad


class Choice(NamedTuple):
    """A tile of one kernel of a plan, and its place in the order of estimates."""

    plan: Plan
    arguments: CudaArguments
    kernel: str
    rank: int
    one: Pass

    @property
    def word(self) -> str:
        """The tile's name in a cost table."""
        return measured_tiles.name(self.kernel, self.one.tiles)

    def variants(self) -> Iterator[Variant]:
        """Yield what is compiled for it."""
        build = self.arguments.build
        for grads in cuda_tiles.grads_of(self.kernel, build):
            yield cuda_tiles.variant(self.kernel, self.one.tiles, build, grads=grads, vector=True)


def choices(load: Workload, bench: Bench, part: slice) -> Iterator[Choice]:
    """Yield the tiles of every kernel and instruction set, those with the lowest estimates first.

    Args:
        part: of each kernel's tiles, one of `PARTS`.
    """
    for instructions in INSTRUCTIONS:
        if (plan := bench.plan(load, instructions)) is None:
            continue
        axes, arguments = plan.request.axes(), plan.chosen.program.calls[0].arguments  # pyright: ignore
        assert isinstance(arguments, CudaArguments)
        for kernel in cuda_tiles.KERNELS:
            found = measured_tiles.ranked(kernel, instructions, plan.request, axes, arguments.build)
            found = [one for one in found if one.tiles.row_count >= _ROWS][part]
            for rank, one in enumerate(found, part.start):
                yield Choice(plan, arguments, kernel, rank, one)


def compile_all(variants: Iterable[Variant], seconds: float) -> None:
    """Compile for the device by processes of their own, until the time is up. What does not compile
    is reported where it is measured.
    """
    arch, end = nvrtc.arch_of(torch.cuda.get_device_capability()), time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")  # no process has the parent's CUDA
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=spawn) as pool:
        for done in [pool.submit(cubins.get, one, arch) for one in dict.fromkeys(variants)]:
            try:
                done.exception(max(0.0, end - time.monotonic()))
            except TimeoutError:
                pool.shutdown(wait=False, cancel_futures=True)
                return


def rows(
    load: Workload, bench: Bench, found: Findings, left: Callable[[], bool], part: slice
) -> None:
    """Time the tiles of one workload that are not known; stop when no time is left."""
    made = None
    for choice in choices(load, bench, part):
        plan, arguments, kernel, rank, one = choice
        if found.known(kind="tile", workload=load.name, tile=choice.word):
            continue
        if not left():
            return
        made = made or bench.tensors(load)
        pairs = geometry.pairs(plan.request.axes())
        row = {
            "kind": "tile", "workload": load.name,
            "request": json.loads(cost_table.tile_key(plan.request)),
            "useful_pairs": pairs * load.batch * load.heads, "kernel": kernel,
            "instructions": one.tiles.instructions, "tile": choice.word, "rank": rank,
            "estimate": one.seconds,
        }  # fmt: skip
        assert plan.chosen.program is not None
        ((_, attempt),) = kernel_times.kernels(
            plan.chosen.program, kernel, [one.tiles], *made, bench.launcher
        )  # fmt: skip
        found.add(row := row | measured(attempt, one, arguments, row, bench))
        if "error" in row and bench.device == "cuda":
            torch.cuda.synchronize()  # raises where the device is lost: a new process goes on


def measured(
    attempt: Callable[[], KernelRun],
    one: Pass,
    arguments: CudaArguments,
    row: dict[str, Any],
    bench: Bench,
) -> dict[str, Any]:
    """Return the time and rates of a tile, or the error that it ends with."""
    try:
        seconds = bench.timer(attempt().run)
    except (nbattn.NbattnError, RuntimeError) as error:
        return {"error": str(error)[:500]}
    request = row["request"]
    visited = one.pairs * request["batch"] * request["heads"]
    if seconds is None:
        return {"dry": True, "share": row["useful_pairs"] / visited}
    flops = 2 * cuda_tiles.products(row["kernel"], arguments.build) / seconds * 1e-12
    return {
        "seconds": seconds, "share": row["useful_pairs"] / visited,
        "visited_tflops": visited * flops, "useful_tflops": row["useful_pairs"] * flops,
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Measure until all is known or the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of JSON lines, which is continued")
    parser.add_argument("--seconds", type=float, default=480, help="stop after this time")
    parser.add_argument("--only", help="only workloads whose name contains this")
    parser.add_argument("--few", action="store_true", help=f"only the first {FEW} of each kernel")
    parser.add_argument("--dry", action="store_true", help="without a GPU, and without times")
    options = parser.parse_args(words)
    if not options.dry and not torch.cuda.is_available():
        print("gpu_tiles: this machine has no CUDA device.", file=sys.stderr)
        return 2
    end, bench = time.monotonic() + options.seconds, Bench.of(options.dry)
    found = Findings(options.output)
    loads = [load for load in workloads() if not options.only or options.only in load.name]
    for part in PARTS[:1] if options.few else PARTS:
        if not options.dry:
            every = (choice for load in loads for choice in choices(load, bench, part))
            compiled = (variant for choice in every for variant in choice.variants())
            compile_all(compiled, _SHARE * (end - time.monotonic()))
        for load in loads:
            rows(load, bench, found, lambda: time.monotonic() < end, part)
            if not options.dry:
                torch.cuda.empty_cache()
            if time.monotonic() >= end:
                print("gpu_tiles: the time is up; the next run goes on.", file=sys.stderr)
                return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

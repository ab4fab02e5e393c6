"""Time tiles of every Triton kernel alone on a GPU: a JSON line per workload, kernel and tile.

    PYTHONPATH=. python benchmarks/gpu_triton_tiles.py --output tiles.jsonl [--seconds 480]

The tiles with the lowest estimates are measured, `--most` of a kernel. They are compiled first, by
several processes, whose results Triton's cache keeps. It stops in time, and a second run goes on
where the first one stopped. `--dry` runs without a GPU: everything but the kernels, and no line has
a time. `fit_costs.py` makes a cost table of the lines. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_tiles
import gpu_timing
import torch
from findings import Findings
from gpu_tiles import Workload

import nbattn
from nbattn import geometry
from nbattn.backends.inputs import Inputs
from nbattn.backends.triton import kernel_times, launch, measured_tiles
from nbattn.backends.triton import run as triton_run
from nbattn.backends.triton import tiles as triton_tiles
from nbattn.backends.triton.choice import Pass
from nbattn.backends.triton.meaning import FIELDS, TritonArguments
from nbattn.planner import cost_table
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES
from nbattn.program.program import Program

KERNELS = ("fwd", "dq", "dkdv")
MOST = 12  # tiles of a kernel
SHARE = 0.5  # of the time, for compiling


@dataclass(frozen=True)
class Bench:
    """Where it runs: on a GPU, or dry on tensors without data."""

    device: str
    planned_for: Any
    launcher: Any
    timer: gpu_timing.Timer
    most: int

    @classmethod
    def of(cls, dry: bool, most: int) -> Bench:
        """Return the GPU, or the stand-in."""
        if dry:
            gpu = replace(DEVICES["sm_90"], providers=("triton",))
            return cls("meta", gpu, gpu_tiles.Nothing(), gpu_timing.nothing, most)
        return cls("cuda", "cuda", launch.launcher(), gpu_timing.seconds, most)

    def plan(self, load: Workload) -> Plan:
        """Return the plan of both passes."""
        return nbattn.plan(
            load.mask, load.shape, dtype="bfloat16", device=self.planned_for, backend="triton",
            training=True,
        )  # fmt: skip

    def tensors(self, load: Workload) -> tuple[Inputs, torch.Tensor]:
        """Return the inputs and the gradient of the output."""
        torch.manual_seed(0)
        *given, grad = (
            torch.randn(load.shape, device=self.device, dtype=torch.bfloat16) for _ in range(4)
        )
        return Inputs(*given, scale=load.dim**-0.5), grad

    def tiles(self, plan: Plan, kernel: str) -> list[Pass]:
        """Return the tiles of a kernel to measure, those with the lowest estimates."""
        request, build = plan.request, arguments_of(plan).build
        return measured_tiles.ranked(kernel, request, request.axes(), build)[: self.most]


def arguments_of(plan: Plan) -> TritonArguments:
    """Return the arguments of a plan's one call."""
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    assert isinstance(call.arguments, TritonArguments)
    return call.arguments


def variants(loads: list[Workload], bench: Bench) -> Iterator[Program]:
    """Yield programs whose kernels are all that is to be compiled, each once."""
    known = set[tuple[Any, ...]]()
    for load in loads:
        plan = bench.plan(load)
        arguments = arguments_of(plan)
        assert plan.chosen.program is not None
        (call,) = plan.chosen.program.calls
        for kernel in KERNELS:
            for one in bench.tiles(plan, kernel):
                key = (kernel, one.tiles, arguments.build)
                if key not in known:
                    known.add(key)
                    named: dict[str, Any] = {FIELDS[kernel]: one.tiles}
                    yield Program((replace(call, arguments=replace(arguments, **named)),))


def compile_part(loads: list[Workload], bench: Bench, part: str, left: Callable[[], bool]) -> None:
    """Compile one part of the kernels, "3/12", for Triton's cache."""
    number, parts = map(int, part.split("/"))
    for at, program in enumerate(variants(loads, bench)):
        if at % parts == number and left():
            try:
                triton_run.warmup(program, bench.launcher)
            except Exception as error:  # whatever a compiler raises; the measurement reports it
                print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr)


def compile_all(words: list[str], seconds: float, parts: int) -> None:
    """Compile all kernels by processes of their own."""
    commands = [
        [sys.executable, __file__, *words, f"--compile={n}/{parts}", f"--seconds={seconds}"]
        for n in range(parts)
    ]
    for process in [subprocess.Popen(command) for command in commands]:
        process.wait()


def rows(load: Workload, bench: Bench, found: Findings, left: Callable[[], bool]) -> None:
    """Time the tiles of one workload that are not known; stop when no time is left."""
    plan = bench.plan(load)
    assert plan.chosen.program is not None
    axes, arguments = plan.request.axes(), arguments_of(plan)
    about = {
        "kind": "tile", "family": "triton", "workload": load.name,
        "request": json.loads(cost_table.tile_key(plan.request)),
        "useful_pairs": geometry.pairs(axes) * load.batch * load.heads,
    }  # fmt: skip
    made = None
    for kernel in KERNELS:
        for rank, one in enumerate(bench.tiles(plan, kernel)):
            word = measured_tiles.name(kernel, one.tiles)
            if found.known(kind="tile", workload=load.name, tile=word):
                continue
            if not left():
                return
            made = made or bench.tensors(load)
            row = {**about, "kernel": kernel, "tile": word, "rank": rank, "estimate": one.seconds}
            ((_, attempt),) = kernel_times.kernels(
                plan.chosen.program, kernel, [one.tiles], *made, bench.launcher
            )  # fmt: skip
            found.add(row | measured(attempt, one, arguments, row, bench))


def measured(
    attempt: Callable[[], Any],
    one: Pass,
    arguments: TritonArguments,
    row: dict[str, Any],
    bench: Bench,
) -> dict[str, Any]:
    """Return the time and rates of a tile, or the error that it ends with."""
    try:
        seconds = bench.timer(attempt().run)
    except Exception as error:  # whatever a compiler or a driver raises
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    request = row["request"]
    visited = one.pairs * request["batch"] * request["heads"]
    if seconds is None:
        return {"dry": True, "share": row["useful_pairs"] / visited}
    flops = 2 * triton_tiles.products(row["kernel"], arguments.build) / seconds * 1e-12
    return {
        "seconds": seconds, "share": row["useful_pairs"] / visited,
        "visited_tflops": visited * flops, "useful_tflops": row["useful_pairs"] * flops,
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Measure until all is known or the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of JSON lines, which is continued")
    parser.add_argument("--seconds", type=float, default=480, help="stop after this time")
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    parser.add_argument("--most", type=int, default=MOST, help="tiles of a kernel")
    parser.add_argument("--dry", action="store_true", help="without a GPU, and without times")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not options.dry and not torch.cuda.is_available():
        print("gpu_triton_tiles: this machine has no CUDA device.", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    loads = [load for load in gpu_tiles.workloads() if options.only in load.name]

    def left() -> bool:
        return time.monotonic() < end

    bench = Bench.of(options.dry, options.most)
    if options.compile:
        compile_part(loads, bench, options.compile, left)
        return 0
    if not options.dry:
        given = [f"--only={options.only}", f"--most={options.most}"]
        compile_all(given, options.seconds * SHARE, min(12, os.cpu_count() or 1))
    found = Findings(options.output)
    for load in loads:
        rows(load, bench, found, left)
        if not options.dry:
            torch.cuda.empty_cache()
        if not left():
            print("gpu_triton_tiles: the time is up; the next run goes on.", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

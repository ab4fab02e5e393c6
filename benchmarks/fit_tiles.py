"""Time tile sizes of the tiled backend: samples for fitting its cost model, and its regret."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from workloads import Workload, known, select

from nbattn import machine
from nbattn.backends.inputs import Inputs
from nbattn.backends.tiled import costs as model
from nbattn.backends.tiled import run as engine
from nbattn.backends.tiled.meaning import TiledArguments
from nbattn.geometry import BoundAxis, TileTotals
from nbattn.program.program import Call, Program, whole
from nbattn.timing import Action, Samples, clock, interleave

_ROWS = (8, 1024)
_WASTE = 1.25
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PASSES = ("forward", "training")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One tile size of a workload, and the totals of its tiles."""

    tile: tuple[int, ...]
    totals: TileTotals

    @property
    def rows(self) -> int:
        """The number of queries of a tile."""
        return math.prod(self.tile)


def candidates(lines: tuple[BoundAxis, ...], count: int) -> list[Candidate]:
    """Return about `count` tile sizes from few rows to many, selected by geometry only.

    Every range of rows gives its tile with the smallest halo and, of those nearly as good, the one
    that is longest on the last axis, which is contiguous in memory.
    """
    every = [_candidate(lines, tile) for tile in product(*(_sizes(line) for line in lines))]
    every = [c for c in every if _ROWS[0] <= c.rows <= _ROWS[1]] or every
    smallest, largest = min(c.rows for c in every), max(c.rows for c in every)
    bins = max(1, count if len(lines) == 1 else -(-count // 2))
    width = math.log2(largest / smallest) / bins or 1.0
    groups: dict[int, list[Candidate]] = {}
    for c in every:
        groups.setdefault(min(bins - 1, int(math.log2(c.rows / smallest) / width)), []).append(c)
    chosen: dict[tuple[int, ...], Candidate] = {}
    for group in groups.values():
        least = min(group, key=lambda c: (c.totals.pairs, -c.rows))
        near = [c for c in group if c.totals.pairs <= _WASTE * least.totals.pairs]
        for c in (least, max(near, key=lambda c: (c.tile[-1], -c.totals.pairs))):
            chosen[c.tile] = c
    return sorted(chosen.values(), key=lambda c: c.rows)


def _candidate(lines: tuple[BoundAxis, ...], tile: tuple[int, ...]) -> Candidate:
    per_axis = [line.tile_totals(size) for line, size in zip(lines, tile, strict=True)]
    return Candidate(tile, TileTotals(*(math.prod(sums) for sums in zip(*per_axis, strict=True))))


def _sizes(line: BoundAxis) -> list[int]:
    """Return even divisions of the longest residue class of an axis, and powers of two."""
    longest = max(group.queries for group in line.classes())
    parts = [p for p in range(1, longest + 1) if p < 32 or (p & (p - 1)) == 0]
    powers = [1 << n for n in range(longest.bit_length())]
    halves = [3 << n for n in range(longest.bit_length()) if 3 << n <= longest]
    return sorted({-(-longest // part) for part in parts} | set(powers) | set(halves))


def runner(workload: Workload, tile: tuple[int, ...], dtype: torch.dtype, training: bool) -> Action:
    """Return a function that runs the backend with an explicit tile: forward, or both passes."""
    call = Call(whole(workload.space), whole(workload.keys), TiledArguments(workload.lines, tile))
    program = Program((call,))
    query, key, value, grad = workload.tensors(dtype)
    inputs = Inputs(query, key, value, scale=workload.head_dim**-0.5)
    lse = torch.zeros(query.shape[:-1])  # the backward recomputes the logsumexp

    def run() -> object:
        out, _ = engine.forward(program, inputs, return_lse=False)
        return engine.backward(program, inputs, out, lse, grad, None) if training else out

    return run


def item(workload: Workload) -> model.Item:
    """Return the cost model's input for a workload."""
    count = workload.batch * workload.heads
    return model.Item(count, 1, workload.head_dim, workload.head_dim, 0)


def sweep(
    workload: Workload,
    dtype_name: str,
    training: bool,
    options: argparse.Namespace,
    progress: Progress,
) -> dict[str, Any]:
    """Time every candidate tile of one workload, including the model's choice."""
    dtype = DTYPES[dtype_name]
    chosen = model.choose_tile(workload.lines, item(workload))
    tiles = {c.tile: c for c in candidates(workload.lines, options.candidates)}
    tiles.setdefault(chosen, _candidate(workload.lines, chosen))
    runs = {_words(tile): runner(workload, tile, dtype, training) for tile in tiles}
    task = progress.add_task(workload.name, total=len(runs) * (options.rounds + 1))
    samples = interleave(
        runs, clock=clock(options.threads), rounds=options.rounds, budget=options.budget,
        done=lambda name, so_far: progress.advance(task),
    )  # fmt: skip
    progress.update(task, visible=False)
    rows = [_row(c, samples[_words(c.tile)]) for c in tiles.values()]
    return {
        "workload": workload.name,
        "shape": str(workload),
        "mask": repr(workload.mask),
        "dtype": dtype_name,
        "pass": "training" if training else "forward",
        "item": item(workload)._asdict(),
        "chosen": list(chosen),
        "samples": sorted(rows, key=lambda row: row["seconds"]),
    }


def _row(candidate: Candidate, samples: Samples) -> dict[str, Any]:
    return {
        "tile": list(candidate.tile),
        "totals": candidate.totals._asdict(),
        "seconds": samples.typical,
        "best": samples.best,
        "rounds": len(samples.seconds),
    }


def _words(tile: tuple[int, ...] | list[int]) -> str:
    return "x".join(map(str, tile))


def table(sweeps: list[dict[str, Any]]) -> Table:
    """Return a table: per workload the fastest tile, the model's choice and its regret."""
    shown = Table(title="tile sizes", title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "dtype", "pass", "best tile", "ms", "chosen", "ms", "regret", "next"):
        shown.add_column(
            name, no_wrap=True, justify="right" if name in ("ms", "regret") else "left"
        )
    for result in sweeps:
        times = {_words(row["tile"]): row["seconds"] for row in result["samples"]}
        (best, least), *others = times.items()
        chosen = _words(result["chosen"])
        shown.add_row(
            result["workload"], result["dtype"], result["pass"], best, f"{1e3 * least:.1f}", chosen,
            f"{1e3 * times[chosen]:.1f}", f"{times[chosen] / least:.2f}",
            ", ".join(f"{tile} {seconds / least:.2f}" for tile, seconds in others[:3]),
        )  # fmt: skip
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = partial(parser.add_argument)
    add("--workloads", default="W1,W2,W3,W4b,W5,W5b,W6", help='workload names, or "all"')
    add("--dtypes", default="float32", help=", ".join(DTYPES))
    add("--passes", default="forward", help=", ".join(PASSES))
    add("--threads", type=int, default=1)
    add("--candidates", type=int, default=12, help="approximate number of tiles per workload")
    add("--rounds", type=int, default=5)
    add("--budget", type=float, default=60.0, help="seconds per workload, after three rounds")
    add("--output", type=Path, help="JSON with every sample")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    torch.set_num_threads(options.threads)
    console, sweeps = report.console(), []
    jobs = product(
        known(options.dtypes.split(","), DTYPES, "dtype"),
        known(options.passes.split(","), PASSES, "pass"),
        select(options.workloads),
    )
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for dtype, name, workload in jobs:
            sweeps.append(sweep(workload, dtype, name == "training", options, progress))
            if options.output:
                records.write(options.output, _record(options, sweeps))
    console.print(table(sweeps))


def _record(options: argparse.Namespace, sweeps: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "threads": options.threads,
        "clock": clock(options.threads).title,
        "sweeps": sweeps,
    }


if __name__ == "__main__":
    main()

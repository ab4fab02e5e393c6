"""Time tiles and groups of the native kernels one by one, fit their cost model, show its regret."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from workloads import Workload, known, select

from nbattn import machine
from nbattn.backends.inputs import Inputs, kernel_tensors
from nbattn.backends.native import costs, run
from nbattn.backends.native import tiles as native_tiles
from nbattn.backends.native.costs import KERNELS, LANES, Work
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import STATE, Tiles
from nbattn.planner import devices
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request, request_of
from nbattn.timing import clock, interleave

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# The coefficients of `costs.seconds`, in cycles but for the last two.
NAMES = ("PRODUCT", "SCORE", "COPY", "SUM", "TILE", "CHANNEL", "MEMORY", "ITEM", "CALL")


class Case(NamedTuple):
    """One kernel on one workload: its tensors and its request."""

    workload: Workload
    request: Request
    tensors: dict[str, Tensor]
    inputs: Inputs


def case(workload: Workload, dtype: torch.dtype) -> Case:
    """Prepares the tensors of all kernels: the backward's come from a forward."""
    query, key, value, grad = workload.tensors(dtype)
    request = request_of(
        workload.mask, workload.query_shape, workload.key_shape, dtype=dtype,
        value_dim=workload.head_dim, device=devices.device_info(torch.device("cpu")), training=True,
    )  # fmt: skip
    inputs = Inputs(query, key, value, scale=workload.head_dim**-0.5)
    tiles = {name: native_tiles.choose(name, request, workload.lines).tiles for name in KERNELS}
    out, lse = run.forward(program(workload, tiles), inputs, return_lse=True)
    assert lse is not None
    own = {"out": out, "lse": lse, "grad_out": grad, "delta": lse.new_empty((*lse.shape, 2))}
    grads = {"grad_query": query, "grad_key": key, "grad_value": value}
    own |= {name: torch.empty_like(like) for name, like in grads.items()}
    return Case(workload, request, kernel_tensors(inputs) | own, inputs)


def program(workload: Workload, tiles: dict[str, Tiles]) -> Program:
    """The program of a workload with given tiles."""
    arguments = NativeArguments(workload.lines, *(tiles[name] for name in KERNELS))
    return Program((Call(whole(workload.space), whole(workload.keys), arguments),))


def choices(kernel: str, one: Case, count: int) -> Iterator[Tiles]:
    """The model's choice, and other tiles and groups by chance."""
    chosen = native_tiles.choose(kernel, one.request, one.workload.lines).tiles
    yield chosen
    chance, rank = random.Random(0), len(one.workload.space)
    largest = max(STATE // native_tiles.state(kernel, one.request), 1)
    every = [
        Tiles((1, *tile), (1, *group))
        for tile in product((1, 2, 4, 8, 16), repeat=3)
        if np.prod(tile) == LANES and all(n == 1 for n in tile[: 3 - rank])
        for group in product((1, 2, 4, 8, 16, 32), repeat=3)
        if np.prod(group) <= largest and all(n == 1 for n in group[: 3 - rank])
    ]
    lengths = (1,) * (3 - rank) + one.workload.space
    fitting = [
        tiles
        for tiles in every
        if all(t <= 2 * n and t * g <= max(2 * n, t) for t, g, n in
               zip(tiles.tile[1:], tiles.group[1:], lengths, strict=True))
    ]  # fmt: skip
    yield from chance.sample(fitting, min(count, len(fitting)))


def times(kernel: str, one: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per tile: its work by the model, and the seconds of the kernel alone."""
    number, grad = KERNELS.index(kernel), one.tensors["grad_out"]
    rows, runs = {}, {}
    for tiles in choices(kernel, one, options.candidates):
        cut = native_tiles.given(kernel, one.request, one.workload.lines, tiles)
        window = NativeArguments(one.workload.lines, *(cut.tiles,) * len(KERNELS))
        numbers = run._pass(window, number, one.inputs, grad if number else None)
        name = f"{tiles.tile} {tiles.group}"
        runs[name] = lambda numbers=numbers: run._run(numbers, one.tensors)
        rows[name] = (cut.tiles, cut.work)
    timed = interleave(runs, clock=clock(1), rounds=options.rounds, budget=options.budget)
    return [
        {
            "workload": one.workload.name, "kernel": kernel, "dtype": one.request.dtype,
            "tile": tiles.tile, "group": tiles.group, "work": work._asdict(),
            "model": costs.seconds(kernel, one.request, work), "seconds": timed[name].best,
        }
        for name, (tiles, work) in rows.items()
    ]  # fmt: skip


def features(row: dict[str, Any], request: Request) -> list[float]:
    """What each coefficient of `NAMES` is multiplied with, in seconds; see `costs.seconds`."""
    work, kernel = Work(**row["work"]), row["kernel"]
    channels = request.head_dim + request.value_dim
    copies = request.batch * request.kv_heads
    wide = costs.WIDE.get(request.dtype, 1.0)
    columns, gradients = work.columns + work.extra, 1 if kernel == "forward" else 2
    scores, sums = costs.products(kernel, request)
    cycles = (
        (columns * scores + (work.summed + work.extra) * sums) * wide, columns * wide,
        work.copied * channels, work.copied * channels * (kernel == "grad_all"), work.tiles,
        work.tiles * channels * gradients * wide,
    )  # fmt: skip
    memory = max(0.0, costs.moved(kernel, request, work) - costs.CACHE) / costs.CLOCK
    return [*(copies * x / costs.CLOCK for x in cycles), memory, copies * work.items, 1.0]


def fit(rows: list[dict[str, Any]], requests: dict[str, Request]) -> dict[str, float]:
    """The coefficients, at least 0, with the smallest relative errors."""
    from scipy.optimize import nnls

    matrix = np.array([features(row, requests[row["workload"]]) for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    found, _ = nnls(matrix / seconds[:, None], np.ones(len(rows)))
    for row, estimate in zip(rows, matrix @ found, strict=True):
        row["fitted"] = float(estimate)
    return dict(zip(NAMES, found.tolist(), strict=True))


def table(rows: list[dict[str, Any]]) -> Table:
    """Per workload and kernel: the chosen tiles, the best, and the model's errors."""
    shown = Table(title="native kernels", title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "dtype", "kernel", "chosen", "ms", "best", "ms", "regret", "model"):
        shown.add_column(name, no_wrap=True)
    keys = dict.fromkeys((row["workload"], row["dtype"], row["kernel"]) for row in rows)
    for key in keys:
        own = [row for row in rows if (row["workload"], row["dtype"], row["kernel"]) == key]
        chosen, best = own[0], min(own, key=lambda row: row["seconds"])
        words = [f"{row['tile'][1:]} {row['group'][1:]}" for row in (chosen, best)]
        shown.add_row(
            *key, words[0], f"{1e3 * chosen['seconds']:.3f}", words[1],
            f"{1e3 * best['seconds']:.3f}", f"{chosen['seconds'] / best['seconds']:.2f}",
            f"{chosen['fitted'] / chosen['seconds']:.2f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="W1,W2,W3,W3-B1,W3-14,W3-7,W4,W5,W6,LTX")
    parser.add_argument("--dtypes", default="float32", help=", ".join(DTYPES))
    parser.add_argument("--candidates", type=int, default=8, help="tiles beside the model's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds per kernel")
    parser.add_argument("--output", type=Path, help="JSON with every sample")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, every = report.console(), []
    coefficients: dict[str, dict[str, float]] = {}
    for dtype in known(options.dtypes.split(","), DTYPES, "dtype"):
        rows: list[dict[str, Any]] = []
        requests: dict[str, Request] = {}
        for workload in select(options.workloads):
            one = case(workload, DTYPES[dtype])
            requests[workload.name] = one.request
            for kernel in KERNELS:
                rows += times(kernel, one, options)
        coefficients[dtype] = fit(rows, requests)
        every += rows
        console.print(dtype, {name: float(f"{x:.3g}") for name, x in coefficients[dtype].items()})
    console.print(table(every))
    if options.output:
        record = {
            "date": machine.now(), "machine": records.machine(), "versions": records.versions(),
            "clock": clock(1).title, "coefficients": coefficients, "samples": every,
        }  # fmt: skip
        records.write(options.output, record)


if __name__ == "__main__":
    main()

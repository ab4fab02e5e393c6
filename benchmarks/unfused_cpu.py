"""Time the unfused functions of the NATTEN drop-in on one CPU thread, against natten 0.17 in the
same process where it is installed.

Scores, softmax, weighted sums; heads first, float32. For a fair peer build natten==0.17.5 with
CXXFLAGS="-O3 -march=native -fopenmp -DCPU_CAPABILITY_AVX2 -DCPU_CAPABILITY=AVX2".
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import natten_017
import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from nbattn import machine
from nbattn.integrations.natten import legacy
from nbattn.timing import clock, interleave

TARGET = 1.5  # limit of nbattn's time / natten's time


class Case(NamedTuple):
    """One feature map with its heads and window."""

    space: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: int
    dilation: int = 1
    bias: bool = False


CASES = [
    Case((56, 56), 4, 32, 7),
    Case((56, 56), 4, 32, 7, bias=True),
    Case((56, 56), 4, 32, 7, dilation=8, bias=True),
    Case((14, 14), 16, 32, 7, dilation=2, bias=True),
    Case((2048,), 4, 64, 127),
    Case((12, 12, 12), 4, 32, 5),
]


def passes(case: Case, functions: Any) -> dict[str, Callable[[], Any]]:
    """Return functions for forward, and for forward and backward, of one library."""
    rank, shape = len(case.space), (1, case.heads, *case.space, case.head_dim)
    torch.manual_seed(0)
    leaves = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    bias = None
    if case.bias:
        table = (case.heads, *(2 * case.kernel_size - 1,) * rank)
        bias = torch.randn(table, requires_grad=True)
    upward, scale = torch.randn(shape), case.head_dim**-0.5
    qk, av = (getattr(functions, f"na{rank}d_{name}") for name in ("qk", "av"))
    window = (case.kernel_size, case.dilation)

    def chain() -> Tensor:
        query, key, value = leaves
        scores = qk(query * scale, key, *window, rpb=bias)
        return av(scores.softmax(-1), value, *window)

    def forward() -> Tensor:
        with torch.no_grad():
            return chain()

    inputs = [*leaves, *([bias] if bias is not None else [])]
    return {"forward": forward, "both": lambda: torch.autograd.grad(chain(), inputs, upward)}


def measure(case: Case, peer: Any, rounds: int) -> list[dict[str, Any]]:
    """Measure one row per pass."""
    libraries = {"nbattn": legacy} | ({"natten": peer} if peer else {})
    runs = {name: passes(case, functions) for name, functions in libraries.items()}
    rows: list[dict[str, Any]] = []
    for which in ("forward", "both"):
        taken = interleave(
            {n: run[which] for n, run in runs.items()}, clock=clock(1), rounds=rounds
        )
        seconds = {name: samples.median for name, samples in taken.items()}
        row: dict[str, Any] = {**case._asdict(), "pass": which, "seconds": seconds}
        if peer:
            ours, theirs = (run["forward"]() for run in runs.values())
            row["error"] = float((ours - theirs).abs().max())
            row["ratio"] = seconds["nbattn"] / seconds["natten"]
            row["met"] = row["ratio"] <= TARGET
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows: milliseconds, and the ratio of nbattn to natten."""
    shown = Table(title="unfused, ms, one thread", title_justify="left", box=SIMPLE_HEAD)
    for name in ("map", "heads", "K", "d", "bias", "pass", "nbattn", "natten 0.17", "ratio"):
        shown.add_column(name, justify="right")
    for row in rows:
        peer = row["seconds"].get("natten")
        shown.add_row(
            "x".join(map(str, row["space"])), f"{row['heads']}x{row['head_dim']}",
            str(row["kernel_size"]), str(row["dilation"]), "yes" if row["bias"] else "",
            row["pass"], f"{1e3 * row['seconds']['nbattn']:.1f}",
            "absent" if peer is None else f"{1e3 * peer:.1f}",
            "" if peer is None else f"{row['ratio']:.2f}{'' if row['met'] else '!'}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print and write JSON."""
    default = f"unfused-{machine.today()}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two cases; writes no file")
    records.add_output(parser, default)
    options = parser.parse_args()
    path = None if options.quick else records.destination(options, default)
    torch.set_num_threads(1)
    peer, rows = natten_017.functions(), []
    for case in CASES[:2] if options.quick else CASES:
        rows += measure(case, peer, options.rounds)
    report.console().print(table(rows))
    worst = math.inf if not peer else max(row["ratio"] for row in rows)
    found = natten_017.version() if peer else "absent"
    print(f"natten: {found}; target: at most {TARGET}, worst {worst:.2f}")
    if path is not None:
        flags = os.environ.get("NATTEN_CXXFLAGS", "as installed")
        record = {"machine": records.machine(), "versions": records.versions(), "rows": rows}
        records.write(path, record | {"natten_build": flags, "threads": 1, "target": TARGET})


if __name__ == "__main__":
    main()

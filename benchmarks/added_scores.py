"""Time what a table of relative positions adds to attention on one CPU thread: each call against
the same call without it, in turns.

NAT's shapes: four feature maps, windows of 7x7, heads of 32 channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

import nbattn
from nbattn import Mask, biases, machine
from nbattn.timing import clock, interleave

TARGETS = {"forward": 1.15, "both": 1.25}  # limits of the time with a table / the time without
MASK = Mask.neighborhood((7, 7))


class Case(NamedTuple):
    """One call without additions."""

    mask: Mask
    space: tuple[int, ...]
    heads: int
    head_dim: int
    batch: int
    dtype: str


CASES = [
    Case(MASK, (length, length), heads, 32, batch, dtype)
    for dtype in ("float32", "bfloat16")
    for length, heads in ((56, 4), (28, 4), (14, 4), (7, 4))
    for batch in (1, 8)
]


def passes(case: Case, *, added: bool) -> dict[str, Callable[[], Any]]:
    """Return functions for forward, and for forward and backward."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    shape = (case.batch, *case.space, case.heads, case.head_dim)
    leaves = [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]
    upward = torch.randn(shape, dtype=dtype)
    more: dict[str, Any] = {}
    if added:
        sizes = biases.table_sizes(case.mask.axes)
        more["relative_bias"] = torch.randn(case.heads, *sizes).requires_grad_()
    inputs = [*leaves, *more.values()]

    def attend() -> Tensor:
        query, key, value = leaves
        return nbattn.attention(query, key, value, case.mask, backend="native", **more)

    def forward() -> Tensor:
        with torch.no_grad():
            return attend()

    return {"forward": forward, "both": lambda: torch.autograd.grad(attend(), inputs, upward)}


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Measure one row per pass."""
    runs = {name: passes(case, added=name == "with") for name in ("without", "with")}
    rows: list[dict[str, Any]] = []
    for which, target in TARGETS.items():
        taken = interleave(
            {n: run[which] for n, run in runs.items()}, clock=clock(1), rounds=rounds
        )
        seconds = {name: samples.median for name, samples in taken.items()}
        ratio = seconds["with"] / seconds["without"]
        shape = {"space": case.space, "heads": case.heads, "batch": case.batch}
        row = {**shape, "dtype": case.dtype, "pass": which, "seconds": seconds, "ratio": ratio}
        rows.append(row | {"met": ratio <= target})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows: milliseconds, and the ratio."""
    shown = Table(title="relative bias, ms, one thread", title_justify="left", box=SIMPLE_HEAD)
    for name in ("map", "H", "B", "dtype", "pass", "without", "with", "ratio"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            "x".join(map(str, row["space"])), str(row["heads"]), str(row["batch"]), row["dtype"],
            row["pass"], *(f"{1e3 * row['seconds'][name]:.3f}" for name in ("without", "with")),
            f"{row['ratio']:.3f}{'' if row['met'] else '!'}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print and write JSON."""
    default = f"added-scores-{machine.today()}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="writes no file")
    records.add_output(parser, default)
    options = parser.parse_args()
    path = None if options.quick else records.destination(options, default)
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in measure(case, options.rounds)]
    report.console().print(table(rows))
    if path is not None:
        record = {"machine": records.machine(), "versions": records.versions(), "rows": rows}
        records.write(path, record | {"threads": 1, "targets": TARGETS})


if __name__ == "__main__":
    main()

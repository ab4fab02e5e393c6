"""Time grids of different sizes that are packed in one call against the same grids one by one, and
plans of 10,000 grids.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import records
import report
import torch
from report import Row
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

import nbattn
from nbattn import Mask, machine
from nbattn.planner import planner
from nbattn.timing import Action, clock, interleave

GRIDS = 10_000  # of a plan
LARGE, SMALL = 0.9, 5.0  # the least speed, in that of the grids one by one


class Case(NamedTuple):
    """Grids, their mask, and the least speed that is allowed."""

    name: str
    mask: Mask
    grids: Sequence[tuple[int, ...]]
    limit: float | None = None
    heads: int = 2
    dim: int = 32


def cases() -> list[Case]:
    """Return all cases, H2 D32 unless they say others."""
    plane, line = Mask.neighborhood((7, 7)), Mask.sliding_window(255)
    images = [(14 + 7 * n % 29, 14 + 11 * n % 31) for n in range(64)]
    documents = [(50 + 997 * n % 3001,) for n in range(32)]
    return [
        Case("8 of 56x56", plane, [(56, 56)] * 8, LARGE),
        Case("32 of 28x28", plane, [(28, 28)] * 32, LARGE),
        Case("64 images of 14x14 to 42x44", plane, images),
        Case("256 of 7x7", plane, [(7, 7)] * 256, SMALL),
        Case("256 of 7x7, H1 D16", plane, [(7, 7)] * 256, SMALL, 1, 16),
        Case("32 documents of 50 to 3,050, window 255", line, documents),
    ]


def actions(case: Case, training: bool, backend: str) -> dict[str, Action]:
    """Return the call, and the calls one by one."""
    counts = [torch.Size(size).numel() for size in case.grids]
    generator = torch.Generator().manual_seed(0)
    *qkv, grad = (
        torch.randn(sum(counts), case.heads, case.dim, generator=generator) for _ in range(4)
    )
    qkv = [tensor.requires_grad_(training) for tensor in qkv]
    grids = nbattn.Grids(np.array(case.grids, dtype=np.int64))
    alone = [
        [
            part.detach().unflatten(0, (1, *size)).requires_grad_(training)
            for part in (tensor.split(counts)[number] for tensor in qkv)
        ]
        for number, size in enumerate(case.grids)
    ]
    grads = [
        part.unflatten(0, (1, *s)) for part, s in zip(grad.split(counts), case.grids, strict=True)
    ]

    def run(qkv: list[Tensor], grad: Tensor, **grids: Any) -> Any:
        out = nbattn.attention(*qkv, case.mask, backend=backend, **grids)
        return torch.autograd.grad(out, qkv, grad) if training else out

    def one_by_one() -> list[Any]:
        return list(map(run, alone, grads))

    return {"packed": partial(run, qkv, grad, grids=grids), "one by one": one_by_one}


def check(found: Any, wanted: list[Any]) -> None:
    """Both compute the same."""
    sides = (
        zip(found, zip(*wanted, strict=True), strict=True)
        if isinstance(found, tuple)
        else [(found, wanted)]
    )
    for tensor, parts in sides:
        rows = torch.cat([part.flatten(0, -3) for part in parts])
        torch.testing.assert_close(tensor, rows, rtol=1e-4, atol=1e-5)


def measure(case: Case, training: bool, options: argparse.Namespace) -> Row:
    """Time a case and return its row."""
    runs = actions(case, training, options.backend)
    check(*(run() for run in runs.values()))
    samples = interleave(
        runs, clock=clock(options.threads), rounds=options.rounds, budget=options.budget
    )
    packed, alone = (samples[name].best for name in runs)
    row: Row = {
        "name": case.name,
        "passes": "training" if training else "forward",
        "seconds": packed,
        "seconds_one_by_one": alone,
        "speed": alone / packed,
        "limit": case.limit,
        **{f"median {name}": each.median for name, each in samples.items()},
    }
    if case.limit is not None:
        row["met"] = row["speed"] >= case.limit
    return row


def plans(rounds: int) -> list[Row]:
    """Time plans that nothing is known of, of grids with few and with many sizes."""
    at = np.arange(GRIDS)
    sizes = {
        "1 size": np.full((GRIDS, 2), 14),
        "8 sizes": np.stack([14 + at % 8, 14 + 2 * (at % 8)], axis=1),
        "all distinct": np.stack([7 + at // 100, 7 + at % 100], axis=1),
    }
    rows: list[Row] = []
    for (name, grids), training in product(sizes.items(), (False, True)):
        shape = (int(grids.prod(axis=1).sum()), 2, 32)
        mask, taken = Mask.neighborhood((7, 7)), [0.0] * rounds
        for number in range(rounds):
            planner.forget()
            begun = perf_counter()
            nbattn.plan(mask, shape, dtype="float32", device="cpu", grids=grids, training=training)
            taken[number] = perf_counter() - begun
        limit = 50e-3 if name == "all distinct" else 5e-3
        passes = "training" if training else "forward"
        row: Row = {"name": f"{GRIDS} grids, {name}", "passes": passes, "seconds": min(taken)}
        rows.append(row | {"limit": limit, "met": min(taken) <= limit})
    return rows


def table_of_plans(rows: list[Row]) -> Table:
    """Return the table of plans."""
    shown = Table(title="plans", title_justify="left", box=SIMPLE_HEAD)
    for name in ("grids", "passes", "seconds", "limit"):
        shown.add_column(name, justify="left" if name in ("grids", "passes") else "right")
    for row in rows:
        limit = f"<= {report.short(row['limit'])} {'met' if row['met'] else 'MISSED'}"
        shown.add_row(row["name"], row["passes"], report.short(row["seconds"]), limit)
    return shown


def table(rows: list[Row]) -> Table:
    """Return the table of all rows."""
    shown = Table(title="packed grids", title_justify="left", box=SIMPLE_HEAD)
    for name in ("grids", "passes", "packed", "one by one", "speed", "limit"):
        shown.add_column(name, justify="left" if name in ("grids", "passes") else "right")
    for row in rows:
        times = (report.short(row[name]) for name in ("seconds", "seconds_one_by_one"))
        limit = "" if row["limit"] is None else f">= {row['limit']:.1f}x"
        limit += "" if "met" not in row else " met" if row["met"] else " MISSED"
        shown.add_row(row["name"], row["passes"], *times, f"{row['speed']:.2f}x", limit)
    return shown


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backend", default="auto")
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=15)
    add("--budget", type=float, default=60.0, help="no round begins after these seconds")
    add("--note", default="", help="what else is to be known of the machine")
    add("--quick", action="store_true", help="three rounds; writes no file")
    records.add_output(parser, "packed-grids-DATE-THREADSt.json")
    options = parser.parse_args()
    path = None
    if options.quick:
        options.rounds = 3
    else:
        default = f"packed-grids-{machine.today()}-{options.threads}t.json"
        path = records.destination(options, default)
    torch.set_num_threads(options.threads)
    rows = [measure(case, training, options) for case in cases() for training in (False, True)]
    of_plans = plans(options.rounds)
    report.console().print(table(rows), table_of_plans(of_plans))
    record: dict[str, Any] = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "backend": options.backend,
        "threads": options.threads,
        "note": options.note,
        "method": f"{clock(options.threads).title}, least turn of {options.rounds} rounds; "
        "packed and one by one in turn, in one process",
        "rows": rows,
        "plans": of_plans,
    }
    if path is not None:
        records.write(path, record)


if __name__ == "__main__":
    main()

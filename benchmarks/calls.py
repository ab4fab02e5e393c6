"""Time calls against what a user would write by hand: small maps against SDPA with a dense mask,
padded batches against sliced keys, layers against their products and attention. One process, in
turn.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, NamedTuple

import records
import report
import targets
import torch
from peers import heads_first
from report import Row
from rich.box import SIMPLE_HEAD
from rich.table import Table
from workloads import Workload

import nbattn
from nbattn import Mask, machine
from nbattn.timing import Action, clock, interleave

REPEATS = 50  # calls of a small map between two readings of the clock
REAL = 128  # keys of a padded sample that are not padding


class Case(NamedTuple):
    """A call, the same by hand, and what is allowed: seconds, or a ratio to the time by hand."""

    name: str
    by_hand: str
    own: Action
    other: Action
    seconds: float | None = None
    ratio: float | None = None
    repeats: int = 1


def small(backend: str) -> list[Case]:
    """Return the small maps, batch 1."""
    shapes: list[tuple[str, Mask, tuple[int, ...], int, int]] = [
        ("16 tokens", Mask.sliding_window(3), (16,), 1, 16),
        ("7x7, 7x7", Mask.neighborhood((7, 7)), (7, 7), 2, 32),
        ("7x7, 3x3", Mask.neighborhood((3, 3)), (7, 7), 2, 32),
        ("14x14, 7x7", Mask.neighborhood((7, 7)), (14, 14), 2, 32),
    ]
    cases: list[Case] = []
    for name, mask, space, heads, head_dim in shapes:
        workload = Workload(
            name=name, title="", mask=mask, space=space, heads=heads, head_dim=head_dim
        )
        query, key, value, _ = workload.tensors(torch.float32)
        own = partial(nbattn.attention, query, key, value, mask, backend=backend)
        *inputs, _ = heads_first(workload, torch.float32, False)
        function = torch.nn.functional.scaled_dot_product_attention
        other = partial(function, *inputs, attn_mask=workload.dense())
        torch.testing.assert_close(own().flatten(1, -3).transpose(1, 2), other())
        limit = targets.CALLS[name]
        ratio = 1 / targets.NEVER_SLOWER if limit is None else None
        title = f"{name}, H{heads} D{head_dim}"
        cases.append(Case(title, "SDPA, dense mask", own, other, limit, ratio, REPEATS))
    return cases


def padded(backend: str) -> list[Case]:
    """Return a batch with few real keys: `key_range` against keys sliced by hand."""
    mask = Mask.causal("top-left")
    workload = Workload(
        name="padded", title="causal", mask=mask, space=(4096,), heads=4, head_dim=64, batch=4
    )
    key_range = torch.tensor([[[0, REAL]]] * workload.batch, dtype=torch.int32)
    cases: list[Case] = []
    for training in (False, True):
        *qkv, grad = workload.tensors(torch.float32, requires_grad=training)

        def own(qkv: list[torch.Tensor] = qkv) -> torch.Tensor:
            return nbattn.attention(*qkv, mask, key_range=key_range, backend=backend)

        def other(qkv: list[torch.Tensor] = qkv) -> torch.Tensor:
            query, key, value = qkv
            return nbattn.attention(query, key[:, :REAL], value[:, :REAL], mask, backend=backend)

        torch.testing.assert_close(own(), other())
        title = f"{workload.batch}x4096 causal, {REAL} real keys"
        if training:
            runs = [
                partial(
                    lambda run, qkv, grad: torch.autograd.grad(run(), qkv, grad), run, qkv, grad
                )
                for run in (own, other)
            ]
            cases.append(Case(f"{title}, training", "sliced keys", *runs))
        else:
            cases.append(Case(title, "sliced keys", own, other, ratio=targets.PADDED))
    return cases


def layers(backend: str) -> list[Case]:
    """Return layers in inference: what the module costs above the three calls in it."""
    mask = Mask.neighborhood((7, 7))
    linear = torch.nn.functional.linear
    cases: list[Case] = []
    for side, dim, heads in ((7, 64, 4), (14, 64, 4), (56, 128, 4)):
        layer = nbattn.NeighborhoodAttention(dim, heads, mask, backend=backend).requires_grad_(
            False
        )
        x = torch.randn(1, side, side, dim)

        def by_hand(
            layer: nbattn.NeighborhoodAttention = layer, x: torch.Tensor = x, heads: int = heads
        ) -> torch.Tensor:
            qkv = linear(x, layer.qkv.weight, layer.qkv.bias)
            parts = qkv.view(*x.shape[:-1], 3 * heads, -1).split(heads, dim=-2)
            out = nbattn.attention(*parts, mask, backend=backend)
            return linear(out.flatten(-2), layer.proj.weight, layer.proj.bias)

        torch.testing.assert_close(layer(x), by_hand())
        title = f"layer, {side}x{side}, 7x7, dim {dim}, H{heads}"
        repeats = REPEATS if side < 56 else 1
        cases.append(Case(title, "its three calls", partial(layer, x), by_hand, repeats=repeats))
    return cases


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Time a case and return its row."""

    def several(run: Action) -> Action:
        def action() -> None:
            for _ in range(case.repeats):
                run()

        return action if case.repeats > 1 else run

    samples = interleave(
        {"own": several(case.own), "other": several(case.other)},
        clock=clock(options.threads), rounds=options.rounds, budget=options.budget,
    )  # fmt: skip
    own, other = (samples[name].best / case.repeats for name in ("own", "other"))
    row: Row = {
        "name": case.name, "by_hand": case.by_hand, "seconds": own, "seconds_by_hand": other,
        "ratio": own / other, "limit_seconds": case.seconds, "limit_ratio": case.ratio,
        "median": samples["own"].median / case.repeats,
        "median_by_hand": samples["other"].median / case.repeats,
    }  # fmt: skip
    if case.seconds is not None:
        row["met"] = own <= case.seconds
    elif case.ratio is not None:
        row["met"] = row["ratio"] <= case.ratio
    return row


def table(rows: list[Row]) -> Table:
    """Return the table of all rows."""
    shown = Table(title="calls", title_justify="left", box=SIMPLE_HEAD)
    for name in ("call", "nbattn", "by hand", "", "ratio", "limit"):
        shown.add_column(name, justify="left" if name in ("call", "") else "right", no_wrap=True)
    for row in rows:
        limit = ""
        if row["limit_seconds"] is not None:
            limit = f"<= {1e6 * row['limit_seconds']:.0f} us"
        elif row["limit_ratio"] is not None:
            limit = f"<= {row['limit_ratio']:.2f}x"
        if "met" in row:
            limit += " met" if row["met"] else " MISSED"
        times = (report.short(row[name]) for name in ("seconds", "seconds_by_hand"))
        shown.add_row(row["name"], *times, row["by_hand"], f"{row['ratio']:.2f}", limit)
    return shown


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backend", default="auto")
    add("--threads", type=int, default=1)
    add("--rounds", type=int, default=15)
    add("--budget", type=float, default=60.0, help="no round begins after these seconds")
    add("--quick", action="store_true", help="three rounds; writes no file")
    records.add_output(parser, "calls-DATE-THREADSt.json")
    options = parser.parse_args()
    path = None
    if options.quick:
        options.rounds = 3
    else:
        default = f"calls-{machine.today()}-{options.threads}t.json"
        path = records.destination(options, default)
    torch.set_num_threads(options.threads)
    cases = [c for make in (small, padded, layers) for c in make(options.backend)]
    rows = [measure(case, options) for case in cases]
    report.console().print(table(rows))
    record: dict[str, Any] = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "backend": options.backend,
        "threads": options.threads,
        "method": f"{clock(options.threads).title}, least turn of {options.rounds} rounds",
        "rows": rows,
    }
    if path is not None:
        records.write(path, record)


if __name__ == "__main__":
    main()

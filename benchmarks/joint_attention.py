"""Time joint attention against its two parts on one CPU thread, each call in turns with the others:
MMDiT's image and text, and a ViT's patches and registers. It also times the parts alone, and the
extra tokens' part over concatenated keys, which joint attention does not make.
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
from nbattn import Mask, machine
from nbattn.timing import clock, interleave

TARGET = 1.05  # limit of the time of joint attention / the time of its two parts
SHOWN = ("joint", "parts", "grid", "extras", "concatenated")
Leaves = tuple[Tensor, ...]


class Case(NamedTuple):
    """A grid, the window of its tokens, and the number of tokens beside it."""

    name: str
    space: tuple[int, int]
    window: tuple[int, int]
    extras: int
    heads: int = 8
    head_dim: int = 64
    batch: int = 1


CASES = [
    Case("MMDiT, 77 tokens of text", (64, 64), (9, 9), 77),
    Case("MMDiT, 512 tokens of text", (64, 64), (9, 9), 512),
    Case("ViT, CLS and registers", (14, 14), (7, 7), 5, heads=6, batch=8),
    Case("ViT, one image", (14, 14), (7, 7), 5, heads=6),
]


def calls(case: Case) -> dict[str, Callable[[Leaves], Any]]:
    """Return joint attention, its two parts in one function and alone, and the extra tokens' part
    over concatenated keys.
    """
    mask, full = Mask.neighborhood(case.window), Mask.full(rank=2)
    line = Mask.full()

    def grid(leaves: Leaves) -> Leaves:
        query, key, value, _, extra_key, extra_value = leaves
        named = {"extra_key": extra_key, "extra_value": extra_value}
        return (nbattn.attention(query, key, value, mask, **named),)

    def extras(leaves: Leaves) -> Leaves:
        _, key, value, query, extra_key, extra_value = leaves
        named = {"extra_key": extra_key, "extra_value": extra_value}
        return (nbattn.attention(query.unsqueeze(2), key, value, full, **named),)

    def concatenated(leaves: Leaves) -> Leaves:
        _, key, value, query, extra_key, extra_value = leaves
        sides = ((key, extra_key), (value, extra_value))
        both = (torch.cat([one.flatten(1, 2), other], 1) for one, other in sides)
        return (nbattn.attention(query, *both, line),)

    def joint(leaves: Leaves) -> Leaves:
        return nbattn.joint_attention(*leaves[:3], mask, *leaves[3:])

    def parts(leaves: Leaves) -> Leaves:
        return grid(leaves) + extras(leaves)

    return {
        "joint": joint,
        "parts": parts,
        "grid": grid,
        "extras": extras,
        "concatenated": concatenated,
    }


def passes(case: Case, training: bool) -> dict[str, Callable[[], Any]]:
    """Return every call as a function without arguments, forward or forward and backward."""
    torch.manual_seed(0)
    heads = (case.heads, case.head_dim)
    shapes = [(case.batch, *case.space, *heads)] * 3 + [(case.batch, case.extras, *heads)] * 3
    leaves = tuple(torch.randn(shape, requires_grad=training) for shape in shapes)

    def both(call: Callable[[Leaves], Leaves]) -> None:
        found = call(leaves)
        torch.autograd.backward(found, [torch.ones_like(t) for t in found])
        for leaf in leaves:
            leaf.grad = None

    run = both if training else lambda call: call(leaves)
    return {name: lambda call=call: run(call) for name, call in calls(case).items()}


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Measure one row per pass."""
    rows: list[dict[str, Any]] = []
    for which, training in (("forward", False), ("both", True)):
        taken = interleave(passes(case, training), clock=clock(1), rounds=rounds)
        seconds = {name: samples.median for name, samples in taken.items()}
        ratio = seconds["joint"] / seconds["parts"]
        shape = {name: value for name, value in case._asdict().items() if name != "name"}
        plan = nbattn.plan(
            Mask.neighborhood(case.window), (case.batch, *case.space, case.heads, case.head_dim),
            extra_keys=case.extras, extra_queries=True, dtype="float32", device="cpu",
            training=training,
        )  # fmt: skip
        names = [part.chosen.name for part in plan.parts()]  # pyright: ignore
        row = {"case": case.name, **shape, "pass": which, "candidates": names}
        rows.append(row | {"seconds": seconds, "ratio": ratio, "met": ratio <= TARGET})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows: milliseconds, and the ratio."""
    title = "joint attention, ms, one thread, float32"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("case", "pass", *SHOWN, "ratio", "parts by"):
        shown.add_column(name, justify="left" if name in ("case", "parts by") else "right")
    for row in rows:
        shown.add_row(
            row["case"], row["pass"], *(f"{1e3 * row['seconds'][name]:.3f}" for name in SHOWN),
            f"{row['ratio']:.3f}{'' if row['met'] else '!'}", ", ".join(row["candidates"]),
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print and write JSON."""
    default = f"joint-attention-{machine.today()}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--quick", action="store_true", help="writes no file")
    records.add_output(parser, default)
    options = parser.parse_args()
    path = None if options.quick else records.destination(options, default)
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in measure(case, options.rounds)]
    report.console().print(table(rows))
    if path is not None:
        record = {"machine": records.machine(), "versions": records.versions(), "rows": rows}
        busy = {"note": options.note, "busy_cores": machine.busy()}
        records.write(path, record | {"threads": 1, "target": TARGET, **busy})


if __name__ == "__main__":
    main()

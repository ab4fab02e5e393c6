"""`nbattn plan`: show the chosen candidate, the others with costs, and why some are refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan
    from nbattn.program.candidate import Candidate

_DESCRIPTION = """
Show how the planner runs an attention: the chosen candidate, all other ones with
their costs, and the reason for each refusal. Needs no device.

Requests come from a configuration (all plans or the named ones), or from --mask
and --query. Options override the configuration.
"""
_EPILOG = """
A cost is a measured time where `nbattn tune` has measured exactly this request, else
a bound from device data; the last line of a plan shows which of them decided.

examples:
  nbattn plan configs/nat_tiny.toml
  nbattn plan configs/video_3d.toml train --device sm_90 --verify
  nbattn plan --mask 'neighborhood((7, 7), dilation=8)' --query 8,56,56,2,32 --training
  nbattn plan configs/video_3d.toml --mask encoder --query 1,8,24,24,8,64 --json

exit status:
  0  planned, and with --verify proved exact
  1  with --verify: a plan computes other pairs than its mask
  2  a file, mask or shape is invalid, or no backend supports the request
"""


_NARROW = 70  # columns; a narrower terminal gets plain text instead of a table


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plan",
        help="show which kernel would run, and why",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_request(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--verify", action="store_true", help="prove that each plan computes exactly its mask"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plan every request and print it."""
    plans = arguments.plans(options)
    wrong = dict(_wrong(plans)) if options.verify else {}
    if options.json:
        exact = {name: {"verified": name not in wrong} for name in plans if options.verify}
        records = [{"name": n} | p.to_dict() | exact.get(n, {}) for n, p in plans.items()]
        print(json.dumps(records, indent=1))
    else:
        proofs = {n: wrong.get(n, "exact: every pair of the mask once, no other") for n in plans}
        _print(plans, proofs if options.verify else {})
    return 1 if wrong else 0


def _wrong(plans: dict[str, Plan]) -> Iterator[tuple[str, str]]:
    """Yield each plan that does not compute its mask, with the first difference."""
    for name, plan in plans.items():
        try:
            plan.verify()
        except AssertionError as error:
            yield name, f"NOT EXACT: {error}"


def _print(plans: dict[str, Plan], proofs: dict[str, str]) -> None:
    """Print every plan: a table on a wide terminal, `explain()` elsewhere."""
    from rich.console import Console

    console = Console()
    for number, (name, plan) in enumerate(plans.items()):
        if number:
            print()
        if console.is_terminal and console.width >= _NARROW:
            _table(console, name, plan)
        else:
            print(f"{name}\n{plan.explain()}")
        if name in proofs:
            print(f"  proof     {proofs[name]}")


def _table(console: Any, name: str, plan: Plan) -> None:
    """Print one plan as a table with one row per candidate."""
    from rich.table import Table

    table = Table(title=name, title_justify="left", caption_justify="left", show_edge=False)
    table.caption = plan.decided_by()
    for column in ("candidate", "cost", "x"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_column("what it does, or why not")
    for candidate in plan.candidates:
        style = "bold green" if candidate is plan.chosen else "dim" if candidate.reasons else ""
        table.add_row(candidate.name, *_cells(candidate, plan), style=style)
    console.print(f"{plan.request.mask!r}\n{plan.request.summary()}", soft_wrap=True, markup=False)
    console.print(table, highlight=False)


def _cells(candidate: Candidate, plan: Plan) -> tuple[str, str, str]:
    cost, best = candidate.cost, plan.chosen.cost
    if candidate.reasons or cost is None or best is None:
        return "refused", "", "\n".join(reason.text for reason in candidate.reasons)
    ratio = f"{cost.seconds / max(best.seconds, 1e-12):.3g}"
    label = "bound" if cost.measured is None else "measured"
    return f"{label} {cost.seconds * 1e3:.3g} ms", ratio, candidate.work()

"""`nbattn plan`: show the chosen candidate, the others with costs, and why some are refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Show how the planner runs an attention: the chosen candidate, all other ones with
their costs, and the reason for each refusal. Needs no device.

Requests come from a configuration (all plans or the named ones), or from --mask
and --query. Options override the configuration.
"""
_EPILOG = """
A cost is a measured time where `nbattn tune` has measured exactly this request, else
an estimate from device data; the last line of a plan shows which of them ranked it.

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
    parser.add_argument("--all", action="store_true", help="every candidate with every reason")
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
        _print(plans, proofs if options.verify else {}, every=options.all)
    return 1 if wrong else 0


def _wrong(plans: dict[str, Plan]) -> Iterator[tuple[str, str]]:
    """Yield each plan that does not compute its mask, with the first difference."""
    for name, plan in plans.items():
        try:
            plan.verify()
        except AssertionError as error:
            yield name, f"NOT EXACT: {error}"


def _print(plans: dict[str, Plan], proofs: dict[str, str], *, every: bool) -> None:
    """Print every plan: a table on a wide terminal, `explain()` elsewhere."""
    from rich.console import Console

    from nbattn.planner.explain import explain

    console = Console()
    for number, (name, plan) in enumerate(plans.items()):
        if number:
            print()
        if console.is_terminal and console.width >= _NARROW:
            _table(console, name, plan, every)
        else:
            print(f"{name}\n{explain(plan, every=every, how='--all')}")
        if name in proofs:
            print(f"  proof     {proofs[name]}")


def _table(console: Any, name: str, plan: Plan, every: bool) -> None:
    """Print one plan as a table with one row per candidate."""
    from rich.table import Table

    from nbattn.planner.explain import candidate_lines, faster

    table = Table(title=name, title_justify="left", caption_justify="left", show_edge=False)
    hidden = "" if every else f"\n--all lists all {len(plan.candidates)} candidates."
    table.caption = f"{plan.decided_by()}{hidden}"
    for column in ("candidate", "cost", "times"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_column("what it does, or why not")
    for line in candidate_lines(plan, every=every):
        style = {"chosen": "bold green", "equal": "", "slower": ""}.get(line.state, "dim")
        ratio = f"{line.ratio:.3g}" if line.ratio else "1" * (line.state in ("chosen", "equal"))
        cost = line.cost or line.state
        table.add_row(line.name, cost, ratio, "\n".join(line.reasons), style=style)
    head = f"{plan.request.mask!r}\n{plan.request.summary()}\nfaster: {faster(plan)}"
    console.print(head, soft_wrap=True, markup=False)
    console.print(table, highlight=False)

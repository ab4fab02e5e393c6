"""`nbattn plan`: what would run, what else could, at what cost, and why not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Show how the planner runs an attention: the candidate it chose, every other one
with its cost, and the reason against each that is refused. Needs no device.

Requests come from a configuration (all of its plans, or those named), or from
--mask and --query. Options replace what the configuration says.
"""
_EPILOG = """
A cost is a measured time where `nbattn tune` took one of exactly this request, else
an estimate from device data; the last lines of a plan name which one ranked it.

examples:
  nbattn plan configs/nat_tiny.toml
  nbattn plan configs/video_3d.toml train --device sm_90 --verify
  nbattn plan --mask 'neighborhood((7, 7), dilation=8)' --query 8,56,56,2,32 --training
  nbattn plan configs/video_3d.toml --mask encoder --query 1,8,24,24,8,64 --json

exit status:
  0  planned, and with --verify proved exact
  1  with --verify: a plan is not the mask
  2  a file, mask or shape does not fit, or no backend can
"""


_NARROW = 70  # columns of a terminal below which reasons find no room in a table


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plan",
        help="show what would run, and why",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_request(parser)
    parser.add_argument("--all", action="store_true", help="every candidate with every reason")
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument("--verify", action="store_true", help="prove that each plan is its mask")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plan every request and print it."""
    plans = arguments.plans(options)
    wrong = dict(_wrong(plans)) if options.verify else {}
    if options.json:
        exact = {name: {"verified": name not in wrong} for name in plans if options.verify}
        found = [{"name": n} | p.to_dict() | exact.get(n, {}) for n, p in plans.items()]
        print(json.dumps(found, indent=1))
    else:
        proofs = {n: wrong.get(n, "exact: every pair of the mask once, no other") for n in plans}
        _print(plans, proofs if options.verify else {}, every=options.all)
    return 1 if wrong else 0


def _wrong(plans: dict[str, Plan]) -> Iterator[tuple[str, str]]:
    """Plans that are not their mask, with the first difference."""
    for name, plan in plans.items():
        try:
            plan.verify()
        except AssertionError as error:
            yield name, f"NOT EXACT: {error}"


def _print(plans: dict[str, Plan], proofs: dict[str, str], *, every: bool) -> None:
    """Every plan as text: a table on a terminal, `explain()` elsewhere."""
    from rich.console import Console

    console = Console()
    for number, (name, plan) in enumerate(plans.items()):
        if number:
            print()
        if console.is_terminal and console.width >= _NARROW:
            _table(console, name, plan, every)
        else:
            print(f"{name}\n{plan.explain(all=every)}")
        if name in proofs:
            print(f"  proof     {proofs[name]}")


def _table(console: Any, name: str, plan: Plan, every: bool) -> None:
    """One plan as a table: a row per candidate."""
    from rich.table import Table

    from nbattn.planner.explain import candidate_lines, faster

    table = Table(title=name, title_justify="left", caption_justify="left", show_edge=False)
    hidden = "" if every else f"\n--all lists all {len(plan.candidates)} candidates."
    table.caption = f"{plan.decided_by()}{hidden}"
    for column in ("candidate", "cost", "x"):
        table.add_column(column, justify="left" if column == "candidate" else "right", no_wrap=True)
    table.add_column("what it does, or why not")
    for line in candidate_lines(plan, every=every):
        style = {"chosen": "bold green", "slower": ""}.get(line.state, "dim")
        ratio = f"{line.ratio:.3g}" if line.ratio else "1" if line.state == "chosen" else ""
        cost = line.cost or line.state
        table.add_row(line.name, cost, ratio, "\n".join(line.reasons), style=style)
    head = f"{plan.request.mask!r}\n{plan.request.summary()}\nfaster: {faster(plan)}"
    console.print(head, soft_wrap=True, markup=False)
    console.print(table, highlight=False)

"""`nbattn plan`: what would run, what else could, at what cost, and why not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.config import PlanConfig
    from nbattn.planner.candidate import Candidate
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Show how the planner runs an attention: the candidate it chose, every other one
with its cost, and the reason against each that is refused. Needs no device.

Requests come from a configuration (all of its plans, or those named), or from
--mask and --query. Options replace what the configuration says.
"""
_EPILOG = """
A cost is a measured time where one is committed for exactly this request, else
a bound from device data; the last line of a plan says which one decided.

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
_SWITCHES = {
    "training": "a backward pass follows",
    "return-lse": "the logsumexp is an output",
    "sink": "a sink takes part in the softmax",
    "key-range": "keys have valid ranges (padding)",
    "deterministic": "the same bits every time",
    "packed": "q, k and v are views of one tensor",
}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plan",
        help="show what would run, and why",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="TOML, YAML or JSON file")
    parser.add_argument("names", nargs="*", metavar="PLAN", help="plans of the file; default: all")
    add_request(parser)
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument("--verify", action="store_true", help="prove that each plan is its mask")
    parser.set_defaults(run=run)


def add_request(parser: argparse.ArgumentParser) -> None:
    """The options that say or change a plan request; `requests` reads them."""
    group = parser.add_argument_group("request")
    text = "a mask, 'Axis(3, 3), Axis(6, 6, border=\"wrap\")', or one's name in CONFIG"
    group.add_argument("--mask", metavar="MASK", help=text)
    shape = "comma-separated"
    group.add_argument("--query", type=_shape, metavar="B,X,…,H,D", help=f"{shape} shape")
    group.add_argument("--key", type=_shape, metavar="B,X,…,Hk,D", help="default: as the query")
    group.add_argument("--value-dim", type=int, metavar="DV", help="default: D")
    group.add_argument("--dtype", help="float16, bfloat16 (default), float32 or float64")
    group.add_argument("--device", help="cpu, sm_80, sm_90, …; default: this machine's")
    group.add_argument("--backend", help="default: auto")
    for name in ("require", "forbid"):
        text = f"strategies or backends to {name}"
        group.add_argument(f"--{name}", type=_names, metavar="NAME,…", help=text)
    group.add_argument("--extra-keys", type=int, metavar="E", help="keys that every query reads")
    group.add_argument("--softcap", type=float, metavar="C", help="cap of the scores")
    for name, text in _SWITCHES.items():
        group.add_argument(f"--{name}", action="store_true", default=None, help=text)


def run(options: argparse.Namespace) -> int:
    """Plan every request and print it."""
    plans = {name: request.plan() for name, request in requests(options)}
    wrong = dict(_wrong(plans)) if options.verify else {}
    if options.json:
        exact = {name: {"verified": name not in wrong} for name in plans if options.verify}
        found = [{"name": n} | p.to_dict() | exact.get(n, {}) for n, p in plans.items()]
        print(json.dumps(found, indent=1))
    else:
        proofs = {n: wrong.get(n, "exact: every pair of the mask once, no other") for n in plans}
        _print(plans, proofs if options.verify else {})
    return 1 if wrong else 0


def requests(options: argparse.Namespace) -> list[tuple[str, PlanConfig]]:
    """The plan requests that the command line means, by name.

    Raises:
        ConfigError, InputError: a file, name or option that does not fit.
    """
    from dataclasses import fields, replace

    from nbattn.config import PlanConfig

    given = {f.name: getattr(options, f.name, None) for f in fields(PlanConfig) if f.name != "mask"}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.mask is None and options.config is not None:
        return [(name, replace(plan, **changes)) for name, plan in _named(options)]
    if options.mask is None or options.query is None:
        raise InputError(
            "there is no request.",
            fix="nbattn plan CONFIG, or nbattn plan --mask 'sliding_window(511)' "
            "--query 1,4096,8,64",
        )
    if options.names:
        raise InputError(
            f"--mask makes a request of its own, but plans are named: {', '.join(options.names)}.",
            fix="either --mask, or names of plans.",
        )
    return [(options.mask, PlanConfig(mask=_mask(options), **changes))]


def _named(options: argparse.Namespace) -> list[tuple[str, PlanConfig]]:
    """The plans of the file that are asked for."""
    from nbattn.config import load

    plans = load(options.config).plans
    for name in options.names or plans or [""]:
        if name not in plans:
            known = ", ".join(plans) or "none: it declares masks or layers only"
            raise InputError(
                f"{options.config} has no plan {name!r}." if name else "no plan to show.",
                fix=f"plans of {options.config}: {known}.",
            )
    return [(name, plans[name]) for name in options.names or plans]


def _mask(options: argparse.Namespace) -> Any:
    """The mask that --mask says: a name in the file, else the mask itself."""
    from nbattn.cli.mask_text import parse_mask

    if options.config is not None:
        from nbattn.config import load

        masks = load(options.config).masks
        if options.mask in masks:
            return masks[options.mask]
        if options.mask.isidentifier():
            problem = f"{options.config} has no mask {options.mask!r}."
            raise InputError(problem, fix=f"masks of {options.config}: {', '.join(masks)}.")
    return parse_mask(options.mask)


def _wrong(plans: dict[str, Plan]) -> Iterator[tuple[str, str]]:
    """Plans that are not their mask, with the first difference."""
    for name, plan in plans.items():
        try:
            plan.verify()
        except AssertionError as error:
            yield name, f"NOT EXACT: {error}"


def _print(plans: dict[str, Plan], proofs: dict[str, str]) -> None:
    """Every plan as text: a table on a terminal, `explain()` elsewhere."""
    from rich.console import Console

    console = Console()
    for number, (name, plan) in enumerate(plans.items()):
        if number:
            print()
        if console.is_terminal:
            _table(console, name, plan)
        else:
            print(f"{name}\n{plan.explain()}")
        if name in proofs:
            print(f"  proof     {proofs[name]}")


def _table(console: Any, name: str, plan: Plan) -> None:
    """One plan as a table: a row a candidate."""
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


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write 1,56,56,2,32") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))

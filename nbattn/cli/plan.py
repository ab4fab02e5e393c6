"""`nbattn plan`: show the chosen candidate, the others with costs, and why some are refused."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nbattn.cli import arguments, picture_files, plan_mesh, plan_model, screen, values
from nbattn.cli.parser import Parser

if TYPE_CHECKING:
    from nbattn.planner.explain import Line
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Show which kernel would run an attention, and how to get a faster one; then the other candidates
with their costs, and the reason for each refusal. Needs no device; writes
nothing without --html.

Requests come from a configuration (all plans or the named ones), or from --mask and --query.
Options override the configuration. --model plans all attention of a published model. --mesh cuts
the space over ranks: what they send each other, and the plan of the rank that receives the most.
"""
_EPILOG = """
A cost is a measured time where `nbattn tune` has measured exactly this request, else an estimate
from device data; the last lines say which of them ranked the plans.

examples:
  nbattn plan nat_tiny
  nbattn plan video_3d train --device sm_90 --verify
  nbattn plan --mask 'neighborhood((7, 7), dilation=8)' --query 8,56,56,2,32 --training
  nbattn plan video_3d --mask encoder --query 1,8,24,24,8,64 --json
  nbattn plan nat_tiny --html nat_tiny.html
  nbattn plan --model flux --size 4096x4096 --device sm_90
  nbattn plan hunyuan_video strided --mesh 4,2 --shard 1,2 --device sm_90
  nbattn plan hunyuan_sta --mask near --model hunyuan_video --device sm_90 --plot hunyuan.png

exit status:
  0  planned, and with --verify proved exact
  1  with --verify: a plan computes other pairs than its mask
  2  a file, mask or shape is invalid, or no backend supports the request
"""
_LABEL = 9  # columns of the labels "choice", "faster", "request"
_ROOM = 60  # columns for reasons beside the costs; with less they stand below
_OWN = ("--all", "--json", "--verify")  # options that `nbattn tune` does not have
_FILES = ("--html", *(f"--{name}" for name in picture_files.FORMATS))
_STYLES = {"chosen": ("bold", "green"), "refused": ("dim",), "by name": ("dim",)}


def parser() -> Parser:
    """Return the parser of the command."""
    found = Parser("plan", "show which kernel would run, and why", _DESCRIPTION, _EPILOG)
    arguments.add_request(found)
    plan_mesh.add_options(found)
    plan_model.add_options(found)
    add = found.add_argument
    add("--all", action="store_true", help="every candidate with every reason")
    add("--json", action="store_true", help="print JSON instead of text")
    add("--verify", action="store_true", help="prove that each plan computes exactly its mask")
    picture_files.add_options(found, "the blocks that one plan computes as an SVG")
    text = "also write a page that explores the plans in a browser"
    add("--html", type=values.page, metavar="FILE", help=text)
    return found


def run(options: argparse.Namespace) -> int:
    """Plan every request, or a model, and print it."""
    if plan_model.is_asked(options):
        return plan_model.run(options)
    values.check_writable("--html", options.html, ".html")
    figures = picture_files.files(options)
    cuts = plan_mesh.cuts(options)
    plans = {name: cut.plan() for name, cut in cuts.items()} or arguments.plans(options)
    plan_mesh.draw(options, cuts)
    picture_files.draw_plan(options, plans, figures)
    wrong = dict(_wrong(plans)) if options.verify else {}
    if options.html is not None:
        from nbattn.explorer import page

        page.write(plans, options.html)
    if options.json:
        exact = {name: {"verified": name not in wrong} for name in plans if options.verify}
        halos = {name: cut.to_dict() for name, cut in cuts.items()}
        records = [
            {"name": n} | halos.get(n, {}) | p.to_dict() | exact.get(n, {})
            for n, p in plans.items()
        ]
        screen.show(json.dumps(records, indent=1))
        return 1 if wrong else 0
    proofs = {n: wrong.get(n, "exact: every pair of the mask once, no other") for n in plans}
    for number, (name, plan) in enumerate(plans.items()):
        proof = proofs[name] if options.verify else ""
        if number:
            screen.show()
        if name in cuts:
            screen.show(f"{plan_mesh.text(name, cuts[name])}\n")
            name = f"rank {cuts[name].rank.number}"
        screen.show(text(name, plan, proof, every=options.all))
    screen.show("\n".join(["", *_end(plans, options)]))
    for path in filter(None, (options.plot, options.html, *figures)):
        screen.show(f"written: {path}")
    return 1 if wrong else 0


def _wrong(plans: dict[str, Plan]) -> Iterator[tuple[str, str]]:
    """Yield each plan that does not compute its mask, with the first difference."""
    for name, plan in plans.items():
        try:
            plan.verify()
        except AssertionError as error:
            yield name, f"NOT EXACT: {error}"


def text(name: str, plan: Plan, proof: str, *, every: bool) -> str:
    """Return one plan as text: the choice and how to get a faster one first, then the request and
    the other candidates.
    """
    from nbattn.planner.explain import candidate_lines, cost_of, faster

    chosen = plan.chosen
    choice = f"{chosen.name}, {cost_of(chosen)}"
    lines = [
        screen.styled(name, "bold"),
        _labelled("choice", choice, "bold", "green"),
        _labelled("", chosen.work()),
        *[_labelled("", chosen.note)] * bool(chosen.note),
        _labelled("faster", faster(plan, tune="")),
        _labelled("mask", repr(plan.request.mask)),
        _labelled("request", plan.request.summary()),
    ]
    if proof:
        lines.append(_labelled("proof", proof, *(("bold", "red") if "NOT" in proof else ())))
    return "\n".join([*lines, "", *_candidates(list(candidate_lines(plan, every=every)))])


def _end(plans: dict[str, Plan], options: argparse.Namespace) -> Iterator[str]:
    """Yield what holds for several plans, once: what ranked them, and what else to call."""
    from nbattn.planner.explain import measuring_helps

    ranked: dict[str, list[str]] = {}
    for name, plan in plans.items():
        ranked.setdefault(plan.decided_by(), []).append(name)
    for how, names in ranked.items():
        yield screen.wrapped(f"{', '.join(names)}: {how}" if len(ranked) > 1 else how)
    if not options.all:
        yield screen.wrapped("--all lists every candidate with every reason")
    if options.mesh is None and any(map(measuring_helps, plans.values())):
        command = f"nbattn tune {shlex.join(_of_tune(options.words))}"
        yield screen.wrapped_command(command, "to measure the candidates: ")


def _of_tune(words: list[str]) -> Iterator[str]:
    """Yield the words of a command line that `nbattn tune` takes as well."""
    before = ""
    for word in words:
        own = word in _OWN or before in _FILES or word.split("=")[0] in _FILES
        if not own:
            yield word
        before = word


def _labelled(label: str, content: str, *styles: str) -> str:
    start = f"  {label:<{_LABEL}}"
    return start + screen.styled(screen.wrapped(content, start)[len(start) :], *styles)


def _candidates(lines: list[Line]) -> Iterator[str]:
    """Yield one block per candidate: state, name and cost, and what it does or why not."""
    rows = [_row(line) for line in lines]
    states, names, costs = zip(*rows, strict=True)
    single = [name for name in names if ", " not in name]  # several ones do not widen the column
    sizes = [max(map(len, cells)) for cells in (states, single, costs)]
    is_wide = screen.width() - sum(sizes) >= _ROOM
    for line, row in zip(lines, rows, strict=True):
        shown = row if is_wide else row[: 2 + bool(row[2])]
        cells = [f"{cell:<{size}}" for cell, size in zip(shown, sizes, strict=False)]
        head = f"  {'  '.join(cells)}  "
        reasons = [] if line.state == "chosen" else [*line.reasons]  # said above
        no_room = screen.width() - len(head) < screen.NARROWEST
        if no_room or len(line.name) > sizes[1] or (line.cost and not is_wide):
            indent = " " * min(sizes[0] + 6, screen.width() - screen.NARROWEST)
            block = [
                screen.wrapped(head.strip(), "  "),
                *(screen.wrapped(r, indent) for r in reasons),
            ]
        else:
            first, *rest = reasons or [""]
            block = [screen.wrapped(first, head)]
            block += [screen.wrapped(reason, " " * len(head)) for reason in rest]
        yield screen.styled("\n".join(block), *_STYLES.get(line.state, ()))


def _row(line: Line) -> tuple[str, str, str]:
    ratio = f" ({line.ratio:.3g}x)" if line.ratio else ""
    return line.state, line.name, f"{line.cost}{ratio}"

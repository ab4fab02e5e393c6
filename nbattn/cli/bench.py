"""`nbattn bench`: time every usable backend on the plans of a configuration, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from nbattn.cli import arguments, screen, values
from nbattn.cli.parser import Parser
from nbattn.errors import counted

if TYPE_CHECKING:
    from nbattn.bench import Effort, Job, Row
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Measure every candidate that can run a plan on this machine, in interleaved rounds: forward, and for
training plans also forward and backward. A candidate whose result differs from the result of the
planner's choice is reported and not timed.

Prints a table per plan and pass: time, time divided by the chosen candidate's, useful GFLOP/s
(over the pairs that the mask allows), the planner's estimate (from device data, not a time), and
the regret: the chosen candidate's time divided by the best time. On a terminal the times so far
are shown while they are measured. Ctrl-C stops: what was measured is printed, and written with
--json. Nothing else is written.

One thread is timed by the CPU time of the process (median), several threads by wall time
(shortest), CUDA by events (median). "reference" runs where its dense scores fit in 1 GiB.
"""
_EPILOG = """
examples:
  nbattn bench nat_tiny
  nbattn bench nat_tiny stage1 --threads 1 --json times.json --png times.png
  nbattn bench --mask 'neighborhood((7, 7))' --query 1,56,56,2,32 --backends tiled,sdpa

exit status:
  0   all timed candidates agree with the chosen one
  1   a candidate was wrong or failed, or nothing could be measured on this machine
  2   the command, the configuration or a shape is invalid
  130 interrupted; what was measured until then is printed and written
"""


_HEADS = ("candidate", "ms", "x chosen", "GFLOP/s", "estimated ms")
_WIDTHS = (6, 8, 8, 12)  # of the numbers


def parser() -> Parser:
    """Return the parser of the command."""
    summary = "time every usable backend on the plans of a configuration"
    found = Parser("bench", summary, _DESCRIPTION, _EPILOG)
    arguments.add_request(found)
    add = found.add_argument
    add("--rounds", type=values.count, default=7, metavar="N", help="default: 7")
    text = "no round of a job begins after S seconds, and a candidate whose estimate exceeds S is "
    text += "skipped; default: 20"
    add("--seconds", type=values.seconds, default=20.0, metavar="S", help=text)
    text = "threads of torch; default: unchanged"
    add("--threads", type=values.count, metavar="N", help=text)
    text = "backends beside the chosen one; default: all"
    add("--backends", type=values.names, metavar="A,B", help=text)
    add("--json", type=values.file, metavar="FILE", help="write all measurements as JSON")
    add("--png", type=values.picture, metavar="FILE", help="draw the times (matplotlib)")
    return found


def run(options: argparse.Namespace) -> int:
    """Measure and report; return the exit status that the epilog lists."""
    values.check_writable("--json", options.json)
    values.check_writable("--png", options.png, ".png")
    if options.png is not None:
        from nbattn.cli import bench_chart

        bench_chart.check_installed()
    import torch

    from nbattn import bench
    from nbattn.backends import families

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    backends = values.names_of(lambda: families.BACKENDS[1:], "backend", options.backends)
    plans = [
        (name, part)
        for name, plan in arguments.plans(options).items()
        for part in bench.passes(plan)
    ]
    effort = bench.Effort(rounds=options.rounds, seconds=options.seconds, backends=backends)
    if disturbed := bench.why_unreliable("cpu"):
        screen.complain("nbattn bench", disturbed)
    jobs = measure(plans, effort)
    screen.show(_totals(jobs, len(plans)))
    if options.json is not None:
        options.json.write_text(json.dumps(bench.record(jobs, effort), indent=1) + "\n")
        screen.show(f"written: {options.json}")
    if options.png is not None:
        from nbattn.cli import bench_chart

        if bench_chart.save(jobs, options.png):
            screen.show(f"written: {options.png}")
    if jobs[-1].interrupted:
        return 130
    failed = any(row.wrong for job in jobs for row in job.rows)
    return int(failed or not any(job.timed for job in jobs))


def measure(plans: Sequence[tuple[str, Plan]], effort: Effort) -> list[Job]:
    """Measure every job and print its table; stop after an interruption."""
    from nbattn import bench

    jobs: list[Job] = []
    for name, plan in plans:
        title = f"{bench.Job(name, plan).title}: {plan.request.summary()}"
        screen.show(screen.styled(screen.wrapped(title, rest="  "), "bold"))
        with _shown_while_measured(name, plan) as seen:
            job = bench.measure(name, plan, effort, seen)
        jobs.append(job)
        if job.rows:
            screen.show("\n".join(table(job)))
        screen.show(screen.wrapped(verdict(job), "  ") + "\n")
        if job.interrupted:
            break
    return jobs


@contextlib.contextmanager
def _shown_while_measured(name: str, plan: Plan) -> Generator[Callable[[Row], None]]:
    """On a terminal, shows the table so far while it grows; it is gone at the end."""
    if not screen.is_terminal(sys.stdout):
        yield lambda row: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from nbattn.bench import Job

    rows: dict[str, Row] = {}
    with Live(console=Console(), transient=True, auto_refresh=False) as live:

        def seen(row: Row) -> None:
            rows[row.name] = row
            lines = "\n".join(table(Job(name, plan, tuple(rows.values()))))
            rounds = max((len(r.samples.seconds) for r in rows.values() if r.samples), default=0)
            so_far = f"  measuring, round {rounds or 1}; Ctrl-C stops and keeps what is measured"
            live.update(Text.from_ansi(f"{lines}\n{so_far}"), refresh=True)

        yield seen


def table(job: Job) -> list[str]:
    """Return the lines of a job's table, the fastest candidate first."""
    times = dict(job.timed)
    rows = sorted(job.rows, key=lambda row: times.get(row.name, float("inf")))
    name = max(len(_HEADS[0]), *(len(row.name) for row in rows))
    lines = [_line(name, *_HEADS)]
    chosen = job.plan.chosen.name
    untimed = "stopped before its" if job.interrupted else "checked, waits for its"
    for row in rows:
        estimate = "" if row.estimate is None else _ms(row.estimate)
        if row.seconds is None:
            note = row.reason or f"{untimed} first round"
            start = _line(name, row.name, "", "", "", estimate) + "  "
            is_piped = not screen.is_terminal(sys.stdout)
            lines.append(start + note if is_piped else _below(start, note, name))
            continue
        ratio = f"{row.seconds / times[chosen]:.2f}" if chosen in times else ""
        flops = f"{job.useful_flops / row.seconds / 1e9:.3g}"
        cells = _line(name, row.name, _ms(row.seconds), ratio, flops, estimate)
        is_chosen = row.name == chosen
        line = cells + "  chosen" * is_chosen
        lines.append(screen.styled(line, "green") if is_chosen else line)
    return lines


def _line(width: int, name: str, *numbers: str) -> str:
    cells = (f"{text:>{size}}" for text, size in zip(numbers, _WIDTHS, strict=True))
    return f"  {name:<{width}}  {'  '.join(cells)}"


def _below(start: str, note: str, width: int) -> str:
    """Returns a row without times, its reason beside it or wrapped below it."""
    if len(start) + len(note) <= screen.width():
        return start + note
    return f"{start.rstrip()}\n{screen.wrapped(note, ' ' * 4)}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def verdict(job: Job) -> str:
    """Compare the planner's choice with the fastest candidate, as text."""
    if job.regret is None:
        return f"not measured: {job.skipped}"
    if len(job.timed) == 1:
        return "regret unknown: no other candidate was timed"
    best = job.timed[0][0]
    if best == job.plan.chosen.name:
        return "regret 1.00: the chosen candidate is the fastest"
    return f"regret {job.regret:.2f}: {best} is faster than the chosen {job.plan.chosen.name}"


def _totals(jobs: list[Job], wanted: int) -> str:
    """Return the last lines: clocks, what estimates are, failed candidates, an interruption."""
    import torch

    clocks = {
        row.samples.clock.title: None for job in jobs for row in job.rows if row.samples is not None
    }
    wrong = [f"{row.name} on {job.title}" for job in jobs for row in job.rows if row.wrong]
    lines = [f"{counted(torch.get_num_threads(), 'thread')}, {title}" for title in clocks]
    lines += ["estimated: by the planner from device data, not a time"] * bool(clocks)
    lines += [f"WRONG or failed: {', '.join(wrong)}"] if wrong else []
    if jobs[-1].interrupted:
        fewer = "; its times are of fewer rounds" * bool(jobs[-1].timed)
        lines.append(f"interrupted in job {len(jobs)} of {wanted}{fewer}")
    elif not clocks:
        lines.append("nothing could be measured on this machine; --device cpu measures its CPU")
    return "\n".join(screen.wrapped(line, rest="  ") for line in lines)

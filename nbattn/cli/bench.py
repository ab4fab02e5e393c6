"""`nbattn bench`: time every usable backend on the plans of a configuration, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments, values

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nbattn.bench import Effort, Job
    from nbattn.planner.plan import Plan

_DESCRIPTION = """
Measure every candidate that can run a plan on this machine, in interleaved rounds: forward, and for
training plans also forward and backward. A candidate whose result differs from the result of the
planner's choice is reported and not timed.

Prints a table per plan and pass: time, time divided by the chosen candidate's, useful GFLOP/s
(over the pairs that the mask allows), the planner's estimate (not a time), and the regret: the
chosen candidate's time divided by the best time. One thread is timed by the CPU time of the process
(median), several threads by wall time (shortest), CUDA by events (median). "reference" runs where
its dense scores fit in 1 GiB.
"""
_EPILOG = """
examples:
  nbattn bench configs/nat_tiny.toml
  nbattn bench configs/nat_tiny.toml stage1 --threads 1 --json times.json --png times.png
  nbattn bench --mask 'neighborhood((7, 7))' --query 1,56,56,2,32 --backends tiled,sdpa

exit status:
  0   all timed candidates agree with the chosen one
  1   a candidate was wrong or failed, or nothing could be measured on this machine
  2   the command, the configuration or a shape is invalid
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "bench",
        help="time every usable backend on the plans of a configuration",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_request(parser)
    add = parser.add_argument
    add("--rounds", type=values.whole, default=7, metavar="N", help="default 7")
    add(
        "--seconds",
        type=values.seconds,
        default=20.0,
        metavar="S",
        help="no round of a job begins after S seconds, and a candidate whose estimate exceeds S "
        "is skipped; default 20",
    )
    add("--threads", type=values.whole, metavar="N", help="threads of torch; default: unchanged")
    add("--backends", metavar="A,B", help="backends beside the chosen one; default: all")
    add("--json", type=Path, metavar="FILE", help="write all measurements as JSON")
    add("--png", type=Path, metavar="FILE", help="draw the times (matplotlib)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and report; return the exit status that the epilog lists."""
    values.check_writable(options.json)
    values.check_writable(options.png, ".png")
    if options.png is not None:
        from nbattn.cli import bench_chart

        bench_chart.check_installed()
    import torch

    from nbattn import bench
    from nbattn.backends import families

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    backends = values.names_of(lambda: families.BACKENDS[1:], "backend", options.backends)
    plans = {
        (name, part.request.training): part
        for name, plan in arguments.plans(options).items()
        for part in bench.passes(plan)
    }
    effort = bench.Effort(rounds=options.rounds, seconds=options.seconds, backends=backends)
    disturbed = bench.why_unreliable("cpu")
    if disturbed:
        print(f"nbattn bench: {disturbed}", file=sys.stderr)
    jobs = measure(plans, effort)
    report(jobs)
    if options.json is not None:
        options.json.write_text(json.dumps(bench.record(jobs, effort), indent=1) + "\n")
    if options.png is not None:
        from nbattn.cli import bench_chart

        bench_chart.save(jobs, options.png)
    failed = any(row.wrong for job in jobs for row in job.rows)
    return int(failed or not any(job.timed for job in jobs))


def measure(plans: dict[tuple[str, bool], Plan], effort: Effort) -> list[Job]:
    """Measure every job, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from nbattn import bench

    screen, jobs = Console(stderr=True), list[bench.Job]()
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
        whole = progress.add_task("plans", total=len(plans))
        for (name, _), plan in plans.items():
            turns = len(bench.candidates(plan, effort)) * effort.rounds
            task = progress.add_task(name, total=turns)
            done = _advance(progress, task)
            jobs.append(bench.measure(name, plan, effort, done))
            progress.remove_task(task)
            progress.advance(whole)
    return jobs


def _advance(progress: Any, task: Any) -> Callable[[str], None]:
    return lambda name: progress.advance(task)


def report(jobs: list[Job]) -> None:
    """Print the tables and the totals; plain text where stdout is not a terminal."""
    screen = console()
    with screen.capture() as captured:
        for job in jobs:
            screen.print(f"{job.title}: {job.plan.request.summary()}", style="bold")
            if job.rows:
                screen.print(_table(job))
            screen.print(f"  {_verdict(job)}\n")
        screen.print(_totals(jobs))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def console() -> Console:
    """Return a rich console on a terminal, a plain one of 160 columns elsewhere."""
    from rich.console import Console

    screen = Console(markup=False, highlight=False, soft_wrap=True)
    if screen.is_terminal:
        return screen
    return Console(
        width=160, color_system=None, no_color=True, markup=False, highlight=False, soft_wrap=True
    )


def _table(job: Job) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("  candidate", no_wrap=True)
    for name in ("ms", "x chosen", "GFLOP/s", "estimate ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    times = dict(job.timed)
    chosen = job.plan.chosen.name
    for row in sorted(job.rows, key=lambda row: times.get(row.name, float("inf"))):
        estimate = "" if row.estimate is None else _ms(row.estimate)
        if row.seconds is None:
            table.add_row(f"  {row.name}", "", "", "", estimate, row.reason)
            continue
        ratio = f"{row.seconds / times[chosen]:.2f}" if chosen in times else ""
        flops = f"{job.useful_flops / row.seconds / 1e9:.3g}"
        mark = "chosen" if row.name == chosen else ""
        table.add_row(f"  {row.name}", _ms(row.seconds), ratio, flops, estimate, mark)
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _verdict(job: Job) -> str:
    """Compare the planner's choice with the fastest candidate, as text."""
    if job.regret is None:
        return f"not measured: {job.skipped}"
    if len(job.timed) == 1:
        return "regret unknown: no other candidate was timed"
    best = job.timed[0][0]
    if best == job.plan.chosen.name:
        return "regret 1.00: the chosen candidate is the fastest"
    return f"regret {job.regret:.2f}: {best} is faster than the chosen {job.plan.chosen.name}"


def _totals(jobs: list[Job]) -> str:
    """Return the last lines: threads, clocks, and failed candidates."""
    import torch

    clocks = {
        row.samples.clock.title: None for job in jobs for row in job.rows if row.samples is not None
    }
    wrong = [f"{row.name} on {job.title}" for job in jobs for row in job.rows if row.wrong]
    lines = [f"{torch.get_num_threads()} thread(s), {title}" for title in clocks]
    lines += [f"WRONG or failed: {', '.join(wrong)}"] if wrong else []
    lines += [] if clocks else ["nothing could be measured on this machine"]
    return "\n".join(lines)

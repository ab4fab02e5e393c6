"""`nbattn bench`: every usable backend on the plans of a configuration, timed side by side."""

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
training plans also forward and backward. Before it is timed, each must agree with the one that the
planner chose; one that does not is reported, not timed.

Prints a table per plan and pass: time, time over the chosen one's, useful GFLOP/s (of the pairs
that the mask allows), the planner's bound, which is no time, and the regret: the chosen one's time
over the best one's. One thread is timed by the CPU time of the process (median), several by wall
time (shortest), CUDA by events (median). "reference" runs where its dense scores fit in 1 GiB.
"""
_EPILOG = """
examples:
  nbattn bench configs/nat_tiny.toml
  nbattn bench configs/nat_tiny.toml stage1 --threads 1 --json times.json --png times.png
  nbattn bench --mask 'neighborhood((7, 7))' --query 1,56,56,2,32 --backends tiled,sdpa

exit status:
  0   everything that was timed agrees with the chosen candidate
  1   a candidate was wrong or failed, or nothing could be measured here
  2   the command, the configuration or a shape does not fit
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
        help="of a job after which no round begins; a candidate with a larger bound is skipped; "
        "default 20",
    )
    add("--threads", type=values.whole, metavar="N", help="of torch; default: what torch has")
    add("--backends", metavar="A,B", help="beside the chosen one; default: all")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--png", type=Path, metavar="FILE", help="draw it (matplotlib)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and report; the exit status of the epilog."""
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
    disturbed = bench.disturbance("cpu")
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
    """Every job, with a bar on a terminal."""
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
    """The tables, and what they add up to; plain text where stdout is no terminal."""
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
    """Rich on a terminal; plain and wide elsewhere."""
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
    for name in ("ms", "x chosen", "GFLOP/s", "bound ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    times = dict(job.timed)
    chosen = job.plan.chosen.name
    for row in sorted(job.rows, key=lambda row: times.get(row.name, float("inf"))):
        bound = "" if row.bound is None else _ms(row.bound)
        if row.seconds is None:
            table.add_row(f"  {row.name}", "", "", "", bound, row.reason)
            continue
        ratio = f"{row.seconds / times[chosen]:.2f}" if chosen in times else ""
        flops = f"{job.useful_flops / row.seconds / 1e9:.3g}"
        said = "chosen" if row.name == chosen else ""
        table.add_row(f"  {row.name}", _ms(row.seconds), ratio, flops, bound, said)
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _verdict(job: Job) -> str:
    """What the measurement says of the planner's choice."""
    if job.regret is None:
        return f"not measured: {job.skipped}"
    if len(job.timed) == 1:
        return "regret unknown: nothing else was timed"
    best = job.timed[0][0]
    if best == job.plan.chosen.name:
        return "regret 1.00: the chosen one is the fastest"
    return f"regret {job.regret:.2f}: {best} is faster than the chosen {job.plan.chosen.name}"


def _totals(jobs: list[Job]) -> str:
    """The last lines: how it was measured, and what went wrong."""
    import torch

    clocks = {
        row.samples.clock.title: None for job in jobs for row in job.rows if row.samples is not None
    }
    wrong = [f"{row.name} on {job.title}" for job in jobs for row in job.rows if row.wrong]
    lines = [f"{torch.get_num_threads()} thread(s), {title}" for title in clocks]
    lines += [f"WRONG or failed: {', '.join(wrong)}"] if wrong else []
    lines += [] if clocks else ["nothing could be measured on this machine"]
    return "\n".join(lines)

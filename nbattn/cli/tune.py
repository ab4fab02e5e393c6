"""`nbattn tune`: measure this device and write the planner's cost table."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbattn.cli import arguments, screen, values
from nbattn.cli.parser import Parser
from nbattn.errors import counted

if TYPE_CHECKING:
    from nbattn.bench import Effort, Job
    from nbattn.planner.cost_table import Entry, Rates
    from nbattn.planner.plan import Plan
    from nbattn.program.device import DeviceInfo

_DESCRIPTION = """
Measure this device and write the planner's cost table: the rates of matrix products, copies and
calls; and, with a configuration or a mask, the time of every candidate of every plan (as `nbattn
bench` measures it), forward and, for training plans, both passes. Of the CUDA and Triton kernels
the tiles with the lowest estimates are measured first, each kernel alone.

The planner then ranks the candidates of exactly these requests by their times, if all of them have
one; all other requests by estimates, at the measured rates. `plan.explain()` shows which of the two
decided. A table never changes results. It is valid for one device model, number of threads, torch
and nbattn version; a new measurement replaces the old one.
"""
_EPILOG = """
The table is costs.json in $NBATTN_CACHE, else $XDG_CACHE_HOME/nbattn, else ~/.cache/nbattn. A
directory that other users can write is refused. With NBATTN_CACHE=off no table is read or written.

examples:
  nbattn tune
  nbattn tune nat_tiny --threads 1
  nbattn tune nat_tiny stage1 --quick --dry-run

exit status:
  0   the measurements are written to the file in the last line
  1   a candidate was wrong or failed; the other times are written
  2   the command or the configuration is invalid, or the table cannot be written
  130 interrupted; the plans that were finished are written
"""


def parser() -> Parser:
    """Return the parser of the command."""
    found = Parser("tune", "measure this device for the planner", _DESCRIPTION, _EPILOG)
    arguments.add_request(found)
    add = found.add_argument
    text = "write to FILE instead; the planner ignores it"
    add("--output", type=values.file, metavar="FILE", help=text)
    add("--quick", action="store_true", help="fewer rounds, small matrices")
    add("--dry-run", action="store_true", help="only list what would be measured and written")
    text = "threads of torch; default: unchanged"
    add("--threads", type=values.count, metavar="N", help=text)
    return found


def run(options: argparse.Namespace) -> int:
    """Measure, print and write; return the exit status that the epilog lists."""
    values.check_writable("--output", options.output)
    import torch

    from nbattn import tune
    from nbattn.planner import devices

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = None if options.output or options.dry_run else tune.prepared_table_path()
    info = devices.device_info(options.device)
    device = tune.this_device(info)
    plans, left_out = tune.plans_to_measure(_asked(options), info)
    effort = tune.QUICK if options.quick else tune.FULL
    threads = f", {counted(device.threads, 'thread')}" if device.threads else ""
    screen.show(screen.wrapped(f"{device.device}: {device.model}{threads}, torch {device.torch}"))
    for reason in left_out:
        screen.show(screen.wrapped(f"not measured: {reason}", "  "))
    if options.dry_run:
        return _dry(plans, options.output or tune.table_path())
    tune.check_quiet(info.kind)
    measured = tune.rates(info.kind, effort=effort)
    _print_rates(measured, info)
    by_tile = dict[str, dict[str, float]]()
    jobs, interrupted = _times(plans, effort, by_tile)
    _write(path or options.output, tune.entry(device, measured, jobs, by_tile), path is not None)
    if interrupted:
        screen.complain("nbattn tune", "interrupted; the plans that were finished are written.")
        return 130
    return int(any(row.wrong for job in jobs for row in job.rows))


def _write(path: Path, new: Entry, is_table: bool) -> None:
    """Write the measurements to the planner's table, or to a file of the user."""
    from nbattn import tune
    from nbattn.planner import cost_table

    many = counted(len(new.times), "request")
    if not is_table:
        path.write_text(cost_table.encode((new,)))
        screen.show(f"written: {path} ({many}); the planner does not read it")
        return
    problem = tune.save(path, new)
    if problem:
        screen.show(f"replaced: the old table {problem}")
    screen.show(f"written: {path} ({many})")


def _asked(options: argparse.Namespace) -> dict[str, Plan]:
    """Return the plans to measure; none if the options select no plan."""
    return arguments.plans(options) if arguments.is_asked(options) else {}


def _dry(plans: dict[str, list[Plan]], path: Path | None) -> int:
    screen.show("would measure: products, copies, calls")
    for name, parts in plans.items():
        for part in parts:
            names = ", ".join(c.name for c in part.candidates if not c.reasons)
            which = "forward + backward" if part.request.training else "forward"
            screen.show(screen.wrapped(f"would measure: {name} {which}: {names}", rest="  "))
    screen.show(f"would write: {path or 'nothing: NBATTN_CACHE=off'}")
    return 0


def _print_rates(measured: Rates, info: DeviceInfo) -> None:
    for dtype, rate in measured.flops:
        known = dict(info.flops).get(dtype)
        before = f" (so far: {known / 1e9:.3g})" if known else ""
        screen.show(f"  {dtype + ' products':<18}{rate / 1e9:8.3g} GFLOP/s{before}")
    rate, launch = measured.bandwidth / 1e9, measured.launch * 1e6
    screen.show(f"  {'copies':<18}{rate:8.3g} GB/s (so far: {info.bandwidth / 1e9:.3g})")
    screen.show(f"  {'a small call':<18}{launch:8.3g} us (so far: {info.launch * 1e6:.3g})")


def _times(
    plans: dict[str, list[Plan]], effort: Effort, by_tile: dict[str, dict[str, float]]
) -> tuple[list[Job], bool]:
    """Measure every plan, with a progress bar on a terminal, and print a line for each. The times
    of its kernels' tiles are added to `by_tile` first; its candidates then run with the fastest.

    Returns:
        The jobs that were finished, and whether the user interrupted the next one.
    """
    from nbattn import bench

    jobs, interrupted = list[bench.Job](), False
    waiting = [(name, part) for name, parts in plans.items() for part in parts]
    with _progress(waiting) as advance:
        try:
            for name, part in waiting:
                advance(bench.Job(name, part).title)
                job = _measured(name, part, effort, by_tile)
                if job.interrupted:
                    raise KeyboardInterrupt
                jobs.append(job)
                screen.show(_line(job))
        except KeyboardInterrupt:
            interrupted = True
    count = sum(map(len, by_tile.values()))
    if count:
        screen.show(f"  {counted(count, 'tile')} of kernels measured")
    return jobs, interrupted


def _measured(name: str, part: Plan, effort: Effort, by_tile: dict[str, dict[str, float]]) -> Job:
    """Measure the tiles of one plan, and then its candidates with the fastest tiles."""
    from nbattn import tune
    from nbattn.planner import cost_table

    known = by_tile.setdefault(cost_table.tile_key(part.request), {})
    known |= tune.tiles(part, effort=effort, known=known)
    (job,) = tune.times([(name, tune.retiled(part, known))], effort=effort)
    return job


@contextlib.contextmanager
def _progress(waiting: Sequence[object]) -> Generator[Callable[[str], None]]:
    """Shows on a terminal which plan is measured; `advance` is called before each."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    both = screen.is_terminal(sys.stdout)
    with Progress(
        console=console, disable=not console.is_terminal, transient=True, redirect_stdout=both
    ) as progress:
        task = progress.add_task("", total=len(waiting), completed=-1)
        yield lambda title: progress.update(task, advance=1, description=title)


def _line(job: Job) -> str:
    if job.skipped:
        return screen.wrapped(f"{job.title}: not measured: {job.skipped}", "  ", "    ")
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in job.timed)
    text = screen.wrapped(f"{job.title}: {times}".replace(" ms", f"{screen.TIED}ms"), "  ", "    ")
    reasons = (screen.wrapped(f"{r.name}: {r.reason}", "    ") for r in job.rows if r.reason)
    return "\n".join([text.replace(screen.TIED, " "), *reasons])

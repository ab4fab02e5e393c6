"""`nbattn tune`: measure this device and write the planner's cost table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments, values
from nbattn.errors import counted

if TYPE_CHECKING:
    from nbattn.bench import Effort, Job
    from nbattn.planner.cost_table import Rates
    from nbattn.planner.plan import Plan
    from nbattn.program.device import DeviceInfo

_DESCRIPTION = """
Measure this device and write the planner's cost table: the rates of matrix products, copies and
calls; and, with a configuration or a mask, the time of every candidate of every plan (as `nbattn
bench` measures it), forward and, for training plans, both passes. Of the CUDA kernels the tiles
with the lowest estimates are measured first, each kernel alone.

The planner then ranks the candidates of exactly these requests by their times, if all of them have
one; all other requests by estimates, at the measured rates. `plan.explain()` shows which of the two
decided. A table never changes results. It is valid for one device model, number of threads, torch
and nbattn version; a new measurement replaces the old one.
"""
_EPILOG = """
files:
  costs.json in $NBATTN_CACHE, else $XDG_CACHE_HOME/nbattn, else ~/.cache/nbattn. A directory that
  other users can write is refused. With NBATTN_CACHE=off no table is read or written.

examples:
  nbattn tune
  nbattn tune configs/nat_tiny.toml --threads 1
  nbattn tune configs/nat_tiny.toml stage1 --quick --dry-run

exit status:
  0   the measurements are written to the file in the last line
  1   a candidate was wrong or failed; the other times are written
  2   the command or the configuration is invalid, or the table cannot be written
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "tune",
        help="measure this device for the planner",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_request(parser)
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="write to FILE instead; the planner ignores it")
    add("--quick", action="store_true", help="fewer rounds, small matrices")
    add("--dry-run", action="store_true", help="only list what would be measured and written")
    add("--threads", type=values.whole, metavar="N", help="threads of torch; default: unchanged")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write; return the exit status that the epilog lists."""
    values.check_writable(options.output)
    import torch

    from nbattn import tune
    from nbattn.planner import cost_table, devices

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = None if options.output or options.dry_run else tune.prepared_table_path()
    info = devices.device_info(options.device)
    device = tune.this_device(info)
    plans, left_out = tune.plans_to_measure(_asked(options), info)
    effort = tune.QUICK if options.quick else tune.FULL
    threads = f", {counted(device.threads, 'thread')}" if device.threads else ""
    print(f"{device.device}: {device.model}{threads}, torch {device.torch}")
    for reason in left_out:
        print(f"  not measured: {reason}")
    if options.dry_run:
        return _dry(plans, options.output or tune.table_path())
    tune.check_quiet(info.kind)
    measured = tune.rates(info.kind, effort=effort)
    _print_rates(measured, info)
    by_tile = dict[str, dict[str, float]]()
    jobs = _times(plans, effort, by_tile)
    new = tune.entry(device, measured, jobs, by_tile)
    many = counted(len(new.times), "request")
    if path is None:
        options.output.write_text(cost_table.encode((new,)))
        print(f"written: {options.output} ({many}); the planner does not read it")
    else:
        problem = tune.save(path, new)
        if problem:
            print(f"replaced: the old table {problem}")
        print(f"written: {path} ({many})")
    return int(any(row.wrong for job in jobs for row in job.rows))


def _asked(options: argparse.Namespace) -> dict[str, Plan]:
    """Return the plans to measure; none if the options select no plan."""
    return arguments.plans(options) if arguments.is_asked(options) else {}


def _dry(plans: dict[str, list[Plan]], path: Path | None) -> int:
    print("would measure: products, copies, calls")
    for name, parts in plans.items():
        for part in parts:
            names = ", ".join(c.name for c in part.candidates if not c.reasons)
            which = "forward + backward" if part.request.training else "forward"
            print(f"would measure: {name} {which}: {names}")
    print(f"would write: {path or 'nothing: NBATTN_CACHE=off'}")
    return 0


def _print_rates(measured: Rates, info: DeviceInfo) -> None:
    for dtype, rate in measured.flops:
        known = dict(info.flops).get(dtype)
        before = f" (so far: {known / 1e9:.3g})" if known else ""
        print(f"  {dtype + ' products':<18}{rate / 1e9:8.3g} GFLOP/s{before}")
    print(
        f"  {'copies':<18}{measured.bandwidth / 1e9:8.3g} GB/s (so far: {info.bandwidth / 1e9:.3g})"
    )
    print(
        f"  {'a small call':<18}{measured.launch * 1e6:8.3g} us (so far: {info.launch * 1e6:.3g})"
    )


def _times(
    plans: dict[str, list[Plan]], effort: Effort, by_tile: dict[str, dict[str, float]]
) -> list[Job]:
    """Measure every plan, with a progress bar on a terminal, and print a line for each. The times
    of its kernels' tiles are added to `by_tile` first; its candidates then run with the fastest.
    """
    from rich.console import Console
    from rich.progress import Progress

    from nbattn import bench, tune
    from nbattn.planner import cost_table

    screen, jobs = Console(stderr=True), list[bench.Job]()
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
        whole = progress.add_task("plans", total=sum(map(len, plans.values())))
        for name, parts in plans.items():
            for part in parts:
                known = by_tile.setdefault(cost_table.tile_key(part.request), {})
                known |= tune.tiles(part, effort=effort, known=known)
                jobs += tune.times([(name, tune.retiled(part, known))], effort=effort)
                progress.advance(whole)
    for job in jobs:
        print(_line(job))
    count = sum(map(len, by_tile.values()))
    if count:
        print(f"  {counted(count, 'tile')} of kernels measured")
    return jobs


def _line(job: Job) -> str:
    if job.skipped:
        return f"  {job.title}: not measured: {job.skipped}"
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in job.timed)
    reasons = "".join(f"\n    {row.name}: {row.reason}" for row in job.rows if row.reason)
    return f"  {job.title}: {times}{reasons}"

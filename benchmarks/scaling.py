"""Time one thread against two in one process, in turn; `--busy 4` beside four busy processes."""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import records
import report
import targets
import torch
from report import Row
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from workloads import known

import cpu
from cpu import Job
from nbattn import machine
from nbattn.timing import Action, Clock, clock, interleave

# A busy process ends with this one.
_BUSY = "import os\nwhile os.getppid() == {parent}:\n for _ in range(10**6): pass"


def on(threads: int, run: Action) -> Action:
    """Return the function with a number of torch threads."""

    def action() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return run()

    return action


def wall(run: Action) -> float:
    """Return the wall time of one run."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def watch(busy: int) -> Clock:
    """Return the clock: the shortest wall time; beside busy processes a run is at times
    interrupted, at times not, and the mean counts.
    """
    if not busy:
        return clock(2)
    return Clock("median of mean wall times", wall, statistics.fmean, statistics.median)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that only compute."""
    command = [sys.executable, "-c", _BUSY.format(parent=os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(job: Job, names: list[str], options: argparse.Namespace) -> list[Row]:
    """Check the peers of a job, time them with one and with more threads; return a row per peer."""
    torch._dynamo.reset()
    gc.collect()
    torch.set_num_threads(options.threads)
    wanted, rows, actions = cpu.expected(job), {}, {}
    for name in names:
        prepared, rows[name] = cpu.prepare(job, name, wanted)
        if prepared is not None:
            actions |= {(name, n): on(n, prepared.run) for n in (1, options.threads)}
    keyed = {f"{name} {n}": action for (name, n), action in actions.items()}
    with busy_processes(options.busy):
        samples = interleave(
            keyed, clock=watch(options.busy), rounds=options.rounds, budget=options.budget
        )
    for name in names:
        if (name, 1) in actions:
            one, more = (samples[f"{name} {n}"] for n in (1, options.threads))
            rows[name] |= {
                "seconds": {"1": one.typical, str(options.threads): more.typical},
                "samples": {"1": one.seconds, str(options.threads): more.seconds},
                "scaling": one.typical / more.typical,
            }
            if name in cpu.OURS and name != "tiled" and options.threads == 2:
                row = rows[name]
                row["target"] = targets.scaling(one.typical, bool(options.busy))
                row["met"] = row["scaling"] >= row["target"]
    return list(rows.values())


def table(rows: list[Row], threads: int) -> Table:
    """Return the table of all rows."""
    shown = Table(title="one thread against more", title_justify="left", box=SIMPLE_HEAD)
    left = ("workload", "dtype", "pass", "peer", "note")
    for name in (*left[:4], "1, ms", f"{threads}, ms", "scaling", "target", left[4]):
        shown.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        cells = [row["workload"], row["dtype"], row["pass"], row["peer"]]
        if "reason" in row:
            shown.add_row(*cells, "-", "-", "-", "", row["reason"])
            continue
        times = (f"{1e3 * seconds:.3g}" for seconds in row["seconds"].values())
        target = ""
        if "target" in row:
            target = f">= {row['target']:g} {'met' if row['met'] else 'MISSED'}"
        shown.add_row(*cells, *times, f"{row['scaling']:.2f}", target, row["note"])
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--peers", default="nbattn", help=f"some of {', '.join(cpu.PEERS)}")
    add("--threads", type=int, default=2, help="compared with one")
    add("--busy", type=int, default=0, metavar="N", help="number of busy processes beside")
    cpu.add_selection(parser)
    records.add_output(parser, "scaling-DATE.json, with --busy scaling-DATE-busy.json")
    return cpu.quick(parser, parser.parse_args())


def main() -> int:
    """Measure, print and write; return 1 if a peer was wrong."""
    options = arguments()
    path, selected = None, list(cpu.jobs(options))
    names = known(options.peers.split(","), cpu.PEERS, "peer")
    if options.output or not options.quick:
        suffix = "-busy" if options.busy else ""
        path = records.destination(options, f"scaling-{machine.today()}{suffix}.json")
    screen, rows = report.console(), []
    others = machine.busy()
    if others is not None and others > 0.3:
        screen.print(f"Other programs use {others:.1f} cores: these times say little.")
    record: dict[str, Any] = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "busy_processes": options.busy,
        "method": f"{watch(options.busy).title} of up to {options.rounds} rounds, 1 and "
        f"{options.threads} threads in turn in one process",
        "rows": rows,
    }
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
        for job in progress.track(selected, description="scaling"):
            rows += measure(job, names, options)
            if path is not None:
                records.write(path, record)
    screen.print(table(rows, options.threads))
    checked = [row for row in rows if "met" in row]
    screen.print(f"targets met: {sum(row['met'] for row in checked)} of {len(checked)}")
    screen.print(f"  {record['method']}; busy processes beside: {options.busy}", highlight=False)
    return int(any("WRONG" in row.get("reason", "") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

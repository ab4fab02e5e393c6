"""Compare two builds of the native kernels, each in its own process, in turn: the usual one, and
one whose compiler gets `-march=x86-64-v3` (AVX2) last. `--env` compares other differences.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import records
import report
import targets
import torch
from report import Row
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

import cpu
from cpu import Job
from nbattn import machine
from nbattn.cache import VARIABLE as CACHE
from nbattn.timing import clock, interleave

USUAL, OTHER = "usual", "other"
_COMPILERS = ("c++", "g++", "clang++")


@contextmanager
def worker(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process with the same options that answers the requests of `serve`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], request: str, job: int) -> Any:
    """Send a request about a job; return the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(request, job, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("A worker has ended; its message is above.")
    return json.loads(answer)


def serve(options: argparse.Namespace) -> None:
    """Answer "prepare N" with the peer's row, "turn N" with seconds, "lanes 0" with the lanes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what others print is no answer
    torch.set_num_threads(options.threads)
    jobs, prepared = list(cpu.jobs(options)), None
    for line in sys.stdin:
        request, number = line.split()
        if request == "prepare":
            job = jobs[int(number)]
            prepared, answer = cpu.prepare(job, options.peer, cpu.expected(job))
        elif request == "turn":
            assert prepared is not None
            samples = interleave({"": prepared.run}, clock=clock(options.threads), rounds=1)
            answer = samples[""].typical
        else:
            answer = lanes()
        print(json.dumps(answer), file=answers, flush=True)


def lanes() -> int | None:
    """Return the floats of a vector in the native library; None without one."""
    from nbattn.errors import BackendError
    from nbattn.kernels import host

    try:
        return host.library().nb_native_lanes()
    except BackendError:  # the rows have the reason
        return None


def environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return the other build's environment: compilers that append the option, its own cache."""
    changed = os.environ | {CACHE: str(folder / "cache")}
    if options.env:
        return changed | dict(pair.split("=", 1) for pair in options.env)
    for name in filter(None, {*_COMPILERS, Path(os.environ.get("CXX", "")).name}):
        real = shutil.which(name)
        if real is not None:
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec "{real}" "$@" -march={options.march}\n')
            script.chmod(0o755)
    changed["PATH"] = os.pathsep.join((str(folder), os.environ.get("PATH", "")))
    if "CXX" in changed:
        changed["CXX"] = str(folder / Path(changed["CXX"]).name)
    return changed


def measure(
    number: int, job: Job, workers: dict[str, subprocess.Popen[str]], rounds: int, judged: bool
) -> Row:
    """Time a job in both processes in turn; return its row, `judged` with the target's verdict."""
    answers = {name: ask(process, "prepare", number) for name, process in workers.items()}
    refused = [answer["reason"] for answer in answers.values() if "reason" in answer]
    if refused:
        return {**job.fields, "reason": refused[0]}
    turns: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, process in workers.items():
            turns[name].append(ask(process, "turn", number))
    usual, other = (statistics.median(turns[name]) for name in (USUAL, OTHER))
    row = {**job.fields, "seconds": usual, "other": other, "ratio": other / usual, "turns": turns}
    if judged:
        row["met"] = row["ratio"] <= targets.BUILD
    return row


def table(rows: list[Row], found: dict[str, int | None]) -> Table:
    """Return the table of all rows."""
    title = "two builds, lanes of a vector: " + ", ".join(
        f"{name} {'unknown' if count is None else count}" for name, count in found.items()
    )
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "dtype", "pass", USUAL, OTHER, "ratio", ""):
        shown.add_column(name, justify="right" if name in (USUAL, OTHER, "ratio") else "left")
    for row in rows:
        cells = [row["workload"], row["dtype"], row["pass"]]
        if "reason" in row:
            shown.add_row(*cells, "-", "-", "-", row["reason"])
            continue
        verdict = {True: "met", False: f"MISSED: at most {targets.BUILD}"}.get(row.get("met"), "")
        times = (report.short(row[name]) for name in ("seconds", "other"))
        shown.add_row(*cells, *times, f"{row['ratio']:.2f}", verdict)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--peer", default="native", choices=tuple(cpu.OURS))
    add("--threads", type=int, default=1)
    add("--march", default="x86-64-v3", help="the other build's -march")
    add("--env", action="append", metavar="NAME=VALUE", help="set this instead of -march; repeat")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    cpu.add_selection(parser)
    records.add_output(parser, "builds-DATE-THREADSt.json")
    return cpu.quick(parser, parser.parse_args())


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    if options.worker:
        serve(options)
        return
    path, selected = None, list(cpu.jobs(options))
    if options.output or not options.quick:
        default = f"builds-{machine.today()}-{options.threads}t.json"
        path = records.destination(options, default)
    screen = report.console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environments = {USUAL: dict(os.environ), OTHER: environment(options, folder)}
        workers = {name: stack.enter_context(worker(env)) for name, env in environments.items()}
        found = {name: ask(process, "lanes", 0) for name, process in workers.items()}
        judged = not options.env and found[USUAL] != found[OTHER]
        record: dict[str, Any] = {
            "date": machine.now(),
            "machine": records.machine(),
            "versions": records.versions(),
            "threads": options.threads,
            "method": f"median of {options.rounds} rounds, two processes in turn; "
            f"a round: {clock(options.threads).title}",
            "other": options.env or f"-march={options.march}",
            "lanes": found,
            "rows": [],
        }
        bar = Progress(console=screen, disable=not screen.is_terminal, transient=True)
        stack.enter_context(bar)
        for number, job in enumerate(bar.track(selected, description="builds")):
            record["rows"].append(measure(number, job, workers, options.rounds, judged))
            if path is not None:
                records.write(path, record)
    screen.print(table(record["rows"], found))


if __name__ == "__main__":
    main()

"""Puts bugs into a copy of the kernels and tells which checks catch each.

`cd tests && python -m emulator.bugs [name…]` prints the table and fails if a check misses a bug
that it should catch. With `--one`, each bug is tried with only one of its checks, in turn. A bug is
caught if the emulator reports a fault, a result is wrong by the rule that judges values, the
process dies, or shared memory has conflicts that the kernels do not have.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import takewhile
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "instruments"))

import torch

from emulator import bug_table, build, cases, hopper_bugs, hopper_cases
from emulator.bug_table import Bug
from emulator.launcher import KernelError, Launcher, Mode
from emulator.problem import Tensors, expected_results, judge, make, run, variant

BUGS = [*bug_table.BUGS, *hopper_bugs.BUGS]
CASES = cases.CASES | hopper_cases.CASES
# The checks: values and faults in the three fast modes, the check build, bank conflicts.
CATCHERS: dict[str, Mode] = {"E": "eager", "L": "lazy", "R": "random", "C": "check", "B": "lazy"}
SECONDS = 20  # CPU time of one launch
LOG2E = 1.4426950408889634


@cache
def made_for(case: str) -> Tensors:
    return make(CASES[case])


@cache
def read_by(case: str, kernel: str) -> Tensors:
    """Inputs of a case, with what correct kernels compute of them before this one."""
    tensors = dict(made_for(case))
    for earlier in takewhile(kernel.__ne__, ("fwd", "delta")):  # the last two read these only
        tensors |= run(CASES[case], Launcher("eager"), earlier, tensors)
    return tensors


@cache
def expected(case: str) -> tuple[Tensors, Tensors]:
    made = made_for(case)
    low, exact = expected_results(CASES[case], made)
    delta = (exact["out"] * made["grad_out"].double()).sum(-1) - made["grad_lse"].double()
    terms = torch.stack([exact["lse"] * LOG2E, delta], dim=-1)
    terms[exact["lse"].isinf()] = 0.0
    return low | {"delta": terms}, exact | {"delta": terms}


def mutated(bug: Bug, folder: Path) -> None:
    """Copy the kernels and put the bug into the copy."""
    shutil.copytree(build.CUDA, folder, dirs_exist_ok=True)
    text = (folder / bug.path).read_text("utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(
            f"{bug.name}: {bug.path} has its text {text.count(bug.old)} times, not once"
        )
    (folder / bug.path).write_text(text.replace(bug.old, bug.new), "utf-8")


def report_of_check(bug: Bug, catcher: str, folder: Path) -> str:
    """The report of one check on a bug; empty if the check misses it."""
    tensors = read_by(bug.case, bug.kernel)
    p, launcher = CASES[bug.case], Launcher(CATCHERS[catcher], seconds=SECONDS, folder=folder)
    try:
        outputs = run(p, launcher, bug.kernel, tensors)
        if catcher != "B":
            judge(p, outputs, expected(bug.case))
    except (KernelError, AssertionError) as error:
        return "" if catcher == "B" else str(error).splitlines()[0]
    if catcher == "B" and launcher.counts.bank_ways > launcher.counts.matrices:
        return f"{launcher.counts.bank_ways / launcher.counts.matrices:.1f} passes a matrix"
    return ""


def in_child(bug: Bug, catcher: str, folder: Path) -> str:
    """Runs `report_of_check` in a child process, which the bug may kill."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, report_of_check(bug, catcher, folder).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else report


def reports_by_check(bug: Bug, catchers: Iterable[str] = CATCHERS) -> dict[str, str]:
    """Check → its report, of the checks that catch the bug."""
    p = CASES[bug.case]
    read_by(bug.case, bug.kernel), expected(bug.case)  # once, in what is forked
    with tempfile.TemporaryDirectory() as scratch:
        mutated(bug, Path(scratch))
        # before the fork, since a compiler error does not count as a catch
        for checked in {CATCHERS[catcher] == "check" for catcher in catchers}:
            build.kernel(variant(p, bug.kernel), checked=checked, folder=Path(scratch))
        reports = {catcher: in_child(bug, catcher, Path(scratch)) for catcher in catchers}
    return {catcher: report for catcher, report in reports.items() if report}


def reports_on_correct_kernels(tried: Iterable[tuple[Bug, str]]) -> list[str]:
    """The reports of the checks on the kernels without the bugs; there should be none."""
    clean = {(bug.case, bug.kernel, catcher): bug for bug, checks in tried for catcher in checks}
    reports = [
        (bug, catcher, report_of_check(bug, catcher, build.CUDA))
        for (_, _, catcher), bug in clean.items()
    ]
    return [
        f"{bug.case}, {bug.kernel}, {catcher}: {text}" for bug, catcher, text in reports if text
    ]


def main(names: list[str], *, one: bool) -> int:
    """Print the table and return the number of bugs that a check misses but should catch."""
    torch.set_num_threads(1)
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    due = [bug.catch[n % len(bug.catch)] if one else bug.catch for n, bug in enumerate(chosen)]
    tried = [wanted if one else "".join(CATCHERS) for wanted in due]
    if wrong := reports_on_correct_kernels(zip(chosen, tried, strict=True)):
        raise SystemExit("without a bug:\n" + "\n".join(wrong))
    missed = 0
    for bug, wanted, checks in zip(chosen, due, tried, strict=True):
        reports = reports_by_check(bug, checks)
        missing = "".join(catcher for catcher in wanted if catcher not in reports)
        missed += bool(missing or not reports)
        text = reports.get("C") or next(iter(reports.values()), "nothing")
        flag = f"MISSED BY {missing or 'ALL'}: " if missing or not reports else ""
        print(f"{bug.name:45} {''.join(reports):5} {flag}{text}", flush=True)
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="bugs; default: all")
    parser.add_argument("--one", action="store_true", help="try one check per bug, in turn")
    arguments = parser.parse_args()
    sys.exit(bool(main(arguments.names, one=arguments.one)))

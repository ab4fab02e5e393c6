"""Runs checks in a process of its own, one after the other, each in a fork of that process.

A child of fork() waits for ever in torch's OpenMP if its parent has used several threads there, as
a process of tests may have. `python -m native_checks.apart CHECK:NAME…` prints a line for each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from native_checks import checks, scenarios
from native_checks.children import Say, ended_well, in_child, started
from nbattn.kernels import host

TESTS = Path(__file__).resolve().parents[1]
WAIT = 600  # seconds; a check that hangs ends by itself before
_FOLDERS = (TESTS.parent, TESTS, TESTS / "instruments")
SCENARIOS = {one.__name__: one for one in scenarios.SCENARIOS}


def guards(name: str) -> str:
    checks.known(name)  # here, where what torch sets up for it stays
    checks.recorded_probes(name)
    return checks.guarded(host.library(), name)


def shortened(name: str) -> str:
    return checks.cut_short(host.library(), *name.split("."))


def threads(name: str) -> str:
    scenarios.of_one_thread()
    return in_child(SCENARIOS[name])


def failures(name: str) -> str:
    """A child that fails, dies or hangs, to see what is reported of it."""

    def fails(say: Say) -> None:
        ended_well([started(lambda: bool(1 / 0))], "it")

    def dies(say: Say) -> None:
        say("here")
        signal.raise_signal(signal.SIGSEGV)

    def hangs(say: Say) -> None:
        started(signal.pause)  # which has the pipe, too
        say("here")
        signal.pause()

    return in_child({"fails": fails, "dies": dies, "hangs": hangs}[name], seconds=1)


CHECKS: dict[str, Callable[[str], str]] = {
    "guards": guards,
    "shortened": shortened,
    "threads": threads,
    "failures": failures,
}


def reports(**names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What each check says of its names; empty texts if all is well.

    Raises:
        RuntimeError: the process failed.
        TimeoutExpired: it did not end.
    """
    asked = [f"{check}:{name}" for check, listed in names.items() for name in listed]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, _FOLDERS))}
    done = subprocess.run(
        [sys.executable, "-m", "native_checks.apart", *asked], env=environment, cwd=TESTS,
        capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found = {check: dict[str, str]() for check in names}
    for check, name, report in map(json.loads, done.stdout.splitlines()):
        found[check][name] = report
    return found


def main(asked: Iterable[str]) -> None:
    torch.set_num_threads(1)
    host.library()
    for check, _, name in (one.partition(":") for one in asked):
        print(json.dumps([check, name, CHECKS[check](name)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

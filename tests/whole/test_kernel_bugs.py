"""Tests that the emulator and the rule that judges values catch bugs put into the kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import bug_table, build, hopper_bugs
from emulator.bugs import BUGS, CASES, CATCHERS, Bug

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
PARTS = 2
# A bug of each kernel for each set of checks that catch it, of every eightieth and of those that
# not everything catches; of the kernels of sm_90a one of each.
SOME = {
    (bug.kernel, bug.catch): bug
    for place, bug in enumerate(bug_table.BUGS)
    if place % 80 == 0 or len(bug.catch) < 4
} | {bug.kernel: bug for bug in hopper_bugs.BUGS if len(bug.catch) < 4}
TESTS = Path(__file__).resolve().parents[1]


def test_a_bug_is_caught(cases):
    """By one of what should catch it, in turn."""
    table([bug for bug in BUGS if bug in SOME.values()], cases, "--one")


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS))
def test_everything_that_should_catch_a_bug_does(part: int, cases):
    table(BUGS[part::PARTS], cases)


def table(bugs: list[Bug], cases: Callable[[str, int], None], *options: str) -> None:
    """Rows of the table, in a process of its own: a bug may end the one that it runs in."""
    names = [bug.name for bug in bugs]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "emulator.bugs", *options, *names],
        cwd=TESTS, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.match(r"(.{45}) (\w+) ", line) for line in done.stdout.splitlines()]
    assert [row[1].strip() for row in rows if row] == names
    for row in rows:
        for catcher in row[2]:
            cases(f"bugs caught: {CATCHERS[catcher] if catcher != 'B' else 'bank conflicts'}", 1)


def test_the_table_is_in_order():
    assert len(BUGS) >= 140
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        assert len(bug.name) <= 45
        assert bug.case in CASES
        assert bug.catch
        assert set(bug.catch) <= set(CATCHERS)

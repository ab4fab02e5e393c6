"""Tests that the checks of the CPU kernels catch bugs put into them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from native_checks import build
from native_checks.bug_table import BUGS, Bug
from native_checks.bugs import CATCHERS, here
from native_checks.cases import CASES, PROBED

sanitizers = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
PARTS = 2
FEW = ("rows that are nowhere are read", "a line is full whatever its plane")
TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted({bug.path for bug in BUGS}))
def test_every_bug_changes_one_place(path: str) -> None:
    text = (build.CPU / path).read_text("utf-8")
    found = {bug.name: text.count(bug.old) for bug in BUGS if bug.path == path}
    assert found == dict.fromkeys(found, 1)


def test_the_table_is_in_order() -> None:
    assert len(BUGS) >= 90
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        assert len(bug.name) <= 45
        assert bug.case in CASES
        assert bug.old != bug.new
        assert bug.catch
        assert set(bug.catch) <= set(CATCHERS)
        assert "S" not in bug.catch or bug.case in PROBED


@sanitizers
def test_a_few_bugs_are_caught(cases: Callable[[str, int], None]) -> None:
    """By the guard pages, and by values."""
    table([bug for bug in BUGS if bug.name in FEW], cases, "--first")


@sanitizers
@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS))
def test_everything_that_should_catch_a_bug_does(
    part: int, cases: Callable[[str, int], None]
) -> None:
    table(here()[part::PARTS], cases)


def table(bugs: Iterable[Bug], cases: Callable[[str, int], None], *options: str) -> None:
    """Rows of the table, in a process of its own."""
    names = [bug.name for bug in bugs]
    assert names
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "native_checks.bugs", *options, *names],
        cwd=TESTS, env=environment, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.match(r"(.{45}) (\w+) ", line) for line in done.stdout.splitlines()]
    assert [row[1].strip() for row in rows if row] == names
    for row in rows:
        for catcher in row[2]:
            cases(f"native bugs caught: {CATCHERS[catcher].__name__}", 1)

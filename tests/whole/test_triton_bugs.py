"""Tests that the checks of the Triton kernels catch bugs put into them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import triton_interpreter

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)
if triton_interpreter.missing() is None:
    from triton_checks.bug_table import BUGS, Bug
    from triton_checks.bugs import CASES, GRID_CASES, GRIDS, path_of

Count = Callable[[str, int], None]
PARTS = 2
FEW = (
    "a window is not shifted at the end",
    "a class begins one position early",
    "one share of the extra keys' gradients",
)
TESTS = Path(__file__).resolve().parents[1]


def test_every_bug_changes_one_place() -> None:
    found = {bug.name: path_of(bug).read_text("utf-8").count(bug.old) for bug in BUGS}
    assert found == dict.fromkeys(found, 1)


def test_the_table_is_in_order() -> None:
    assert len(BUGS) >= 70
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        assert len(bug.name) <= 45
        known = GRID_CASES if bug.case.startswith(GRIDS) else CASES
        assert bug.case.removeprefix(GRIDS) in known
        assert bug.old != bug.new
        assert bug.catch in ("V", "A", "O")


def test_a_few_bugs_are_caught(cases: Count) -> None:
    """By values, by an access outside of tensors, and in what launches kernels."""
    table([bug for bug in BUGS if bug.name in FEW], cases)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS))
def test_everything_that_should_catch_a_bug_does(part: int, cases: Count) -> None:
    table(BUGS[part::PARTS], cases)


def table(bugs: Iterable[Bug], cases: Count) -> None:
    """Rows of the table, in a process of its own: an access may end it."""
    names = [bug.name for bug in bugs]
    assert names
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "triton_checks.bugs", *names],
        cwd=TESTS, env=environment, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.match(r"(.{45}) ([AVO]) ", line) for line in done.stdout.splitlines()]
    assert [row[1].strip() for row in rows if row] == names
    cases("Triton bugs caught", len(names))

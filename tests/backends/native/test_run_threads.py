"""Tests of the native kernels' threads: many callers, forks, signals, idle helpers, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from native_checks import apart, build, checks
from native_checks.cases import CASES
from native_library import needs_library

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
sanitizers = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
FATAL = "FATAL: ThreadSanitizer"  # it finds no place in this machine's memory


@linux
@needs_library
def test_scenarios(cases: Callable[[str, int], None]) -> None:
    """And what is reported of one that fails, dies or waits for ever."""
    every = apart.reports(threads=apart.SCENARIOS, failures=["fails", "dies", "hangs"])
    assert every["threads"] == dict.fromkeys(apart.SCENARIOS, "")
    cases("native threads", len(apart.SCENARIOS))
    assert every["failures"] == {
        "fails": "it: children ended with [1]",
        "dies": "here: SIGSEGV",
        "hangs": "here: SIGALRM",
    }


@sanitizers
def test_the_pool_alone() -> None:
    assert not checks.pool(build.CPU)


@sanitizers
@pytest.mark.deep
def test_races_of_the_pool() -> None:
    judge_races(checks.pool(build.CPU, "-fsanitize=thread"))


@sanitizers
@pytest.mark.deep
def test_races_of_calls(cases: Callable[[str, int], None]) -> None:
    judge_races(checks.raced(build.CPU, CASES))
    cases("native races", len(CASES))


def judge_races(report: str) -> None:
    if FATAL in report:
        pytest.skip(report)
    assert not report

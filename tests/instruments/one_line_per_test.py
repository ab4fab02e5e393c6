"""A pytest plugin: one JSON line per test, written when it ends; tests that have one are left out.

`pytest -p one_line_per_test --findings FILE --part 1/8 --each 120`. It needs no other plugin:
several parts in several processes share one file. A test that hangs ends its process after `--each`
seconds; a test that loses the device ends it, too (exit status 3). The next process goes on, and a
test during which a process was ended twice from outside counts as one without an end.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections import Counter
from pathlib import Path

import findings
import pytest
import torch

LOST = 3  # exit status
STARTS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("findings")
    group.addoption("--findings", type=Path, required=True)
    group.addoption("--part", default="1/1", help="which of how many parts of the tests")
    group.addoption("--each", type=float, default=120, help="seconds of one test")


def progress(path: Path) -> tuple[set[str], Counter[str]]:
    """The tests that have ended, and how often each has started."""
    rows = findings.read(path)
    ended = {row["test"] for row in rows if "outcome" in row}
    return ended, Counter(row["test"] for row in rows if row.get("started"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = config.getoption("--findings")
    number, parts = map(int, config.getoption("--part").split("/"))
    ended, starts = progress(path)
    mine = items[number - 1 :: parts]
    for item in mine:
        if item.nodeid not in ended and starts[item.nodeid] >= STARTS:
            findings.append(
                path, {"test": item.nodeid, "outcome": "no end", "text": f"started {STARTS} times"}
            )
            ended.add(item.nodeid)
    items[:] = [item for item in mine if item.nodeid not in ended]


class Lines:
    """Writes the lines."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path = config.getoption("--findings")
        self.each: float = config.getoption("--each")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        findings.append(self.path, {"test": nodeid, "started": True})
        self.watch = threading.Timer(self.each, self.stop, (nodeid,))
        self.watch.daemon = True
        self.watch.start()

    def stop(self, nodeid: str) -> None:
        """End the process: a kernel that hangs cannot be stopped from inside."""
        text = f"no end after {self.each:g} s"
        findings.append(self.path, {"test": nodeid, "outcome": "no end", "text": text})
        faulthandler.dump_traceback()
        os._exit(LOST)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        text = str(report.longrepr)[-2000:] if report.longrepr else ""
        findings.append(
            self.path, dict(test=report.nodeid, outcome=report.outcome, text=text,
            seconds=round(report.duration, 3), **findings.about()),
        )  # fmt: skip

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.watch.cancel()
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                findings.append(self.path, {"device_lost_by": nodeid, "text": str(error)[:500]})
                os._exit(LOST)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Lines(config))

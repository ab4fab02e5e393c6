"""Counts what a call does, where a clock would say how fast this machine is.

Lines of Python grow with every loop, and memory with every array: a call that does no work in
proportion to a length has as many of both at a thousand times the length.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What one call did: lines of Python run, in every module, and bytes held at its peak."""

    lines: int
    peak: int


def work(run: Callable[[], object]) -> Work:
    """The work of a call, which runs three times: one count would disturb the other."""
    return Work(lines(run), peak(run))


def lines(run: Callable[[], object]) -> int:
    """Lines of Python that a call runs; a loop or a comprehension counts in every round."""
    count = 0

    def see(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return see

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # whatever a collection calls is not the call's
    sys.settrace(see)
    try:
        run()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count


def frames(run: Callable[[], object]) -> list[str]:
    """The file of every Python function that a call enters."""
    files: list[str] = []

    def see(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            files.append(frame.f_code.co_filename)

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return files


def peak(run: Callable[[], object]) -> int:
    """Bytes that a call holds at its peak, above what there was; numpy's arrays are among them.

    The least of two runs: other threads' memory counts as well, such as a test runner's messages.
    """
    return min(_peak(run), _peak(run))


def _peak(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

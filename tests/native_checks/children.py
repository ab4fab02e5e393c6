"""Forks of this process that report how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterable

import torch

Say = Callable[[str], object]


def forked() -> int:
    """As os.fork, which warns in a process with threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(action: Callable[[Say], None], seconds: int = 60) -> str:
    """Runs an action in a fork of this process. How it failed or died, and what it said last; empty
    if all is well. Processes that it leaves behind are killed.
    """
    reader, writer = os.pipe()
    child = forked()
    if not child:
        os.close(reader)
        os.setsid()
        status = 0
        try:
            signal.alarm(seconds)
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.set_num_threads(1)  # the threads that torch may have had are gone
            action(lambda text: os.write(writer, text.encode()))
        except BaseException as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            os.write(writer, text.encode())
            status = 1
        os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with os.fdopen(reader, errors="replace") as pipe:
        said = pipe.read().splitlines()
    if status == 0:
        return ""
    ends = [signal.Signals(os.WTERMSIG(status)).name] if os.WIFSIGNALED(status) else []
    return ": ".join([*said[-2:], *ends]) or "silent"


def started(action: Callable[[], None], seconds: int = 30) -> int:
    """Runs an action in a fork of this process; returns its process number."""
    child = forked()
    if child:
        return child
    status = 1
    try:
        signal.alarm(seconds)
        action()
        status = 0
    finally:
        os._exit(status)


def ended_well(children: Iterable[int], where: str) -> None:
    """Raises AssertionError if a child failed or died."""
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(ends), f"{where}: children ended with {ends}"

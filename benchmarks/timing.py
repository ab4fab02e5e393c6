"""The clocks: interleaved timing of several functions in one process, and the extra memory one of them takes."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK_RESET = "5"
MIN_ROUNDS = 3

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Samples:
    """The times of one function, in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def typical(self, threads: int) -> float:
        """The number that is reported: median CPU time of one thread, or the shortest wall time of several."""
        return self.median if threads == 1 else self.best


def clock(threads: int) -> Callable[[], float]:
    """CPU time of the process for one thread, which other load does not disturb; wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def interleave(
    functions: Mapping[str, Run],
    *,
    threads: int,
    rounds: int,
    budget: float = float("inf"),
    warm: int = 1,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Samples]:
    """Time functions in rounds A, B, C, A, B, C, so that a slow minute of the machine hits all of them.

    Args:
        functions: what to time, by name.
        threads: which clock is read.
        rounds: how often each runs.
        budget: seconds of wall time after which no round begins, once there are `MIN_ROUNDS`.
        warm: runs of each before the first round, not timed.
        done: called after every run.

    Returns:
        The samples of every function.
    """
    now = clock(threads)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for name, run in functions.items():
        for _ in range(warm):
            run()
            done(name)
    start = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, run in functions.items():
            before = now()
            run()
            taken[name].append(now() - before)
            done(name)
    return {name: Samples(tuple(seconds)) for name, seconds in taken.items()}


def extra_memory(run: Run) -> int | None:
    """Bytes of resident memory at the peak of a run, over what was resident before.

    Returns:
        None where the system cannot tell: no /proc, or no permission to reset the peak.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text(_PEAK_RESET)
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        return None
    result = run()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def _resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")

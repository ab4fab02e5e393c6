"""The clocks: interleaved timing of functions in one process, and the extra memory of one."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK_RESET = "5"
MIN_ROUNDS = 3
TURN = 0.05  # seconds that a turn is timed for, at least
LONG = 1.0  # seconds of a run from which on the state of the caches does not matter

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Samples:
    """The times of one function, in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The shortest."""
        return min(self.seconds)

    def typical(self, threads: int) -> float:
        """What is reported: median CPU time of one thread, the shortest wall time of several."""
        return self.median if threads == 1 else self.best


def clock(threads: int) -> Callable[[], float]:
    """CPU time of the process for one thread, undisturbed by other load; wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def interleave(
    functions: Mapping[str, Run],
    *,
    threads: int,
    rounds: int,
    budget: float = float("inf"),
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Samples]:
    """Time functions in rounds A, B, C, A, B, C: a slow minute of the machine hits all of them.

    A turn begins with a run that is not timed, so that nobody pays for what the one before left in
    the caches; short functions then repeat for `TURN` seconds. Functions that take longer than
    `LONG` run once.

    Args:
        functions: what to time, by name.
        threads: which clock is read.
        rounds: how often each runs.
        budget: seconds of wall time after which no round begins, once there are `MIN_ROUNDS`.
        done: called after every turn.

    Returns:
        The samples of every function, one a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    repeats = {name: _repeats(run) for name, run in functions.items()}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, run in functions.items():
            taken[name].append(_turn(run, repeats[name], threads))
            done(name)
    return {name: Samples(tuple(seconds)) for name, seconds in taken.items()}


def _repeats(run: Run) -> int:
    """Runs that fill a turn, after one that warms up; 0 where one run is long enough by itself."""
    seconds = 0.0
    for _ in range(2):
        before = time.perf_counter()
        run()
        seconds = time.perf_counter() - before
        if seconds > LONG:
            return 0
    return math.ceil(TURN / max(seconds, 1e-9))


def _turn(run: Run, repeats: int, threads: int) -> float:
    """Seconds of one run: the mean of a turn in CPU time, its shortest in wall time."""
    now = clock(threads)
    if repeats:
        run()
    taken: list[float] = []
    for _ in range(max(1, repeats)):
        before = now()
        run()
        taken.append(now() - before)
    return statistics.fmean(taken) if threads == 1 else min(taken)


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

"""Time functions in one process, interleaved, and measure a function's extra memory."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK_RESET = "5"
MIN_ROUNDS = 3
TURN = 0.05  # the least seconds of timed runs per turn
AHEAD = 200_000  # cycles, about 0.1 ms, that a GPU sleeps before an event while the host launches
LONG = 1.0  # seconds; longer runs need no warm-up, since cache state hardly matters

Action = Callable[[], object]
Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Clock:
    """A way to time functions.

    Args:
        title: name of the clock and the statistic, for tables and files.
        time: returns the seconds of one run.
        of_turn: reduces the runs of a turn to one number.
        of_rounds: reduces all turns to the reported number.
    """

    title: str
    time: Callable[[Action], float]
    of_turn: Statistic
    of_rounds: Statistic


@dataclass(frozen=True, slots=True)
class Samples:
    """The times of one function in seconds, in the order of measurement."""

    seconds: tuple[float, ...]
    clock: Clock

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The shortest time."""
        return min(self.seconds)

    @property
    def typical(self) -> float:
        """The reported time: the clock's `of_rounds` of all turns."""
        return self.clock.of_rounds(self.seconds)


def clock(threads: int = 1, device: str = "cpu") -> Clock:
    """Return the clock for a device: CPU time of the process for one thread (independent of other
    load); wall time for several; events on the stream for CUDA.

    >>> clock(1).title, clock(2).title
    ('median process CPU time', 'shortest wall time')
    """
    if device == "cuda":
        return Clock(
            "median time between CUDA events", _events, statistics.median, statistics.median
        )
    if device != "cpu":
        return Clock("shortest synchronised wall time", _synchronised(device), min, min)
    if threads == 1:
        return Clock(
            "median process CPU time", _by(time.process_time), statistics.fmean, statistics.median
        )
    return Clock("shortest wall time", _by(time.perf_counter), min, min)


def _by(now: Callable[[], float]) -> Callable[[Action], float]:
    def seconds(run: Action) -> float:
        before = now()
        run()
        return now() - before

    return seconds


def _events(run: Action) -> float:
    """Return the time between two events of the stream, without the host's launch overhead: the
    device sleeps until the host has launched, else it would wait for the host between the events.
    """
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD)  # pyright: ignore[reportPrivateUsage]
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3


def _synchronised(device: str) -> Callable[[Action], float]:
    """Return a wall clock that synchronises an accelerator (mps, xpu) before and after a run."""
    import torch

    module = torch.get_device_module(device)

    def seconds(run: Action) -> float:
        module.synchronize()
        before = time.perf_counter()
        run()
        module.synchronize()
        return time.perf_counter() - before

    return seconds


def interleave(
    functions: Mapping[str, Action],
    *,
    clock: Clock,
    rounds: int,
    budget: float = float("inf"),
    done: Callable[[str, Samples], None] = lambda name, so_far: None,
) -> dict[str, Samples]:
    """Time functions in rounds A, B, C, A, B, C: a slow phase of the machine affects all of them.

    A turn begins with an untimed run, so that the caches do not depend on the previous function;
    short functions then repeat for `TURN` seconds. Functions that take longer than `LONG` run once.

    Args:
        functions: what to time, by name.
        clock: measures each run.
        rounds: turns per function.
        budget: seconds of wall time after which no round begins, after at least `MIN_ROUNDS`.
        done: called after every turn with the function's name and its samples so far.

    Returns:
        The samples of every function, one per round.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    repeats = {name: _repeats(run, clock) for name, run in functions.items()}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, run in functions.items():
            taken[name].append(_turn(run, repeats[name], clock))
            done(name, Samples(tuple(taken[name]), clock))
    return {name: Samples(tuple(seconds), clock) for name, seconds in taken.items()}


def _repeats(run: Action, clock: Clock) -> int:
    """Return the number of runs that fill a turn; 0 where one run takes longer than `LONG`."""
    seconds = 0.0
    for _ in range(2):
        seconds = clock.time(run)
        if seconds > LONG:
            return 0
    return math.ceil(TURN / max(seconds, 1e-6))


def _turn(run: Action, repeats: int, clock: Clock) -> float:
    """Run one turn and return its seconds per run."""
    if repeats:
        run()
    return clock.of_turn([clock.time(run) for _ in range(max(1, repeats))])


def extra_memory(run: Action) -> int | None:
    """Return the peak of resident memory during a run minus the resident memory before, in bytes.

    Returns:
        None where it cannot be measured: no /proc, or no permission to reset the peak.
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
    """Return a field of /proc/self/status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")

"""Times of work on a GPU without the host's: launches wait behind a sleeping kernel, so that the
device never waits for the host between the two events.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 7
GOAL = 0.02  # seconds of work between two events
MOST = 200  # launches between two events
_CYCLES = 2e9  # per second, no less than a GPU's clock: then it sleeps long enough
Action = Callable[[], object]
Timer = Callable[[Action], float | None]


def seconds(run: Action) -> float:
    """Return the median time of a call between events, several calls per pair of events."""
    run()
    torch.cuda.synchronize()
    once = _between(run, 1, 0.0)
    count = max(1, min(MOST, int(GOAL / max(once, 1e-6))))
    start = time.perf_counter()
    for _ in range(count):
        run()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return statistics.median(_between(run, count, host) for _ in range(ROUNDS))


def _between(run: Action, count: int, host: float) -> float:
    """Return the time of one of `count` calls, which the host needs `host` seconds to launch."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if host and count > 1:
        torch.cuda._sleep(int(min(1.5 * host + 1e-4, 0.5) * _CYCLES))
    first.record()
    for _ in range(count):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e-3 / count


def nothing(run: Action) -> None:
    """Stand in for `seconds` where there is no GPU: run once, and measure nothing."""
    run()


def by_kernel(run: Action) -> dict[str, float]:
    """Return the seconds of each kernel of one call, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        run()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in taken.key_averages():
        spent = getattr(event, "self_device_time_total", 0.0)
        if spent:
            found[event.key[:120]] = spent * 1e-6
    return found

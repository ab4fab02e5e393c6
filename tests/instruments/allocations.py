"""Measures the largest tensor that a call allocates, inside of operators as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def largest(run: Callable[[], object]) -> int:
    """The bytes of the largest single allocation on the CPU while a function runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    kineto: Any = found.profiler
    events = kineto.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")

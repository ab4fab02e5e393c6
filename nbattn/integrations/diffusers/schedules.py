"""Time steps and their masks: which part of a schedule a forward pass is in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nbattn.errors import InputError, kind

Range = tuple[float, float]
_EXAMPLE = "schedule={(0, 700): mask, (700, 1000): None}."


@dataclass(frozen=True)
class Schedule:
    """Ranges of time steps, from low to high; without ranges all time steps are in part 0."""

    ranges: tuple[Range, ...] = ()

    def part(self, timestep: Any) -> int:
        """Returns the number of the range that a time step is in.

        Args:
            timestep: the forward pass's: a number, or a tensor `[B, …]`, of which each sample's
                largest number counts.

        Raises:
            InputError: it is in no range, or samples are in several.
        """
        return self._read(timestep) if self.ranges else 0

    def _read(self, timestep: Any) -> int:
        steps = [timestep]
        if isinstance(timestep, Tensor):
            steps = timestep.detach().double().reshape(len(timestep) if timestep.dim() else 1, -1)
            steps = steps.amax(dim=1).tolist()
        elif not isinstance(timestep, int | float):
            raise InputError(f"timestep is {kind(timestep)}: the schedule needs a time step.")
        parts = {step: self._part(step) for step in steps}
        if len({*parts.values()}) > 1:
            low, high = min(parts), max(parts)
            raise InputError(
                f"the batch has time steps in several ranges of the schedule: {low:g} in "
                f"{self.ranges[parts[low]]}, {high:g} in {self.ranges[parts[high]]}.",
                "one call of the model for the samples of each range.",
            )
        return parts[steps[0]]

    def _part(self, step: float) -> int:
        for number, (low, high) in enumerate(self.ranges):
            if low <= step < high or step == high == self.ranges[-1][1]:
                return number
        listed = ", ".join(map(str, self.ranges))
        raise InputError(
            f"time step {step:g} is in no range of the schedule: {listed}.",
            "ranges that cover every time step, in the units of the model's timestep.",
        )


def read(schedule: Any) -> tuple[Schedule, list[Any]]:
    """Returns a schedule, and the mask or table of each of its ranges.

    Args:
        schedule: `{(low, high): mask or table}`: of time steps low <= t < high, in the units of the
            model's `timestep`; the highest range has its end, too.

    Raises:
        InputError: it is no such mapping, or its ranges overlap.
    """
    if not isinstance(schedule, Mapping) or not schedule:
        raise InputError(f"schedule is {kind(schedule)}, not ranges and masks.", _EXAMPLE)
    for given in schedule:
        is_pair = isinstance(given, tuple) and len(given) == 2
        if not is_pair or not all(isinstance(end, int | float) for end in given):
            raise InputError(f"schedule has {given!r}, not (low, high).", _EXAMPLE)
        if not given[0] < given[1]:
            raise InputError(
                f"schedule has {given}, which has no time step: low is not below high.",
                f"{(given[1], given[0])}." if given[0] != given[1] else _EXAMPLE,
            )
    ranges = sorted(schedule)
    for first, second in itertools.pairwise(ranges):
        if second[0] < first[1]:
            raise InputError(
                f"schedule has {first} and {second}, which share time steps.",
                f"{(first[0], second[0])} and {second}.",
            )
    return Schedule(tuple(ranges)), [schedule[given] for given in ranges]

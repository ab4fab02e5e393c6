"""Plans to measure, and a clock that shows given times."""

from collections.abc import Sequence
from typing import Any

import nbattn
from nbattn import Mask, timing

DINAT, SHAPE = Mask.neighborhood((7, 7), dilation=4), (1, 28, 28, 2, 32)


def plan(mask: Mask = DINAT, shape: Sequence[int] = SHAPE, **named: Any) -> nbattn.Plan:
    return nbattn.plan(mask, shape, **{"dtype": "float32", "device": "cpu", **named})


def fake(*seconds: float) -> timing.Clock:
    """Every function takes its own time, in the order in which functions are first timed, and none
    is run. Above `timing.LONG`, so that a turn is one run.
    """
    known: dict[int, float] = {}
    alive: list[object] = []  # so that no two share an id

    def time(run: timing.Action) -> float:
        if id(run) not in known:
            alive.append(run)
            known[id(run)] = seconds[len(known)]
        return known[id(run)]

    return timing.Clock("fake", time, min, min)

"""One call of attention on a part of the space: its mask, its ranges of real keys, its distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nbattn import functional
from nbattn.axis import Axis
from nbattn.distributed.local_axes import LocalAxis, Run
from nbattn.distributed.rank_plan import Task
from nbattn.joining import merge
from nbattn.mask import Mask

_ONCE = ("sink", "extra_key", "extra_value", "extra_range")


@dataclass(frozen=True, slots=True)
class Call:
    """What all calls of one rank have in common.

    Args:
        key_range: int32 `[B, rank, 2]`, in positions of the whole axes.
        options: other arguments of `nbattn.attention`.
        wants_lse: whether results have the logsumexp.
    """

    key_range: Tensor | None
    options: dict[str, Any]
    wants_lse: bool

    def run(self, query: Tensor, key: Tensor, value: Tensor, task: Task) -> list[Tensor]:
        """The output, and the logsumexp if it is wanted."""
        local = task.unit.axes
        calls = [(task.mask, key, value, key_range) for key_range in self._ranges(local)]
        if self.options.get("alibi_slopes") is not None and _has_gap(local[0]):
            calls = _apart(local[0], key, value, calls[0][-1], self.key_range)
        many = len(calls) > 1
        parts: list[list[Tensor]] = []
        for mask, keys, values, key_range in calls:
            options = {n: o for n, o in self.options.items() if not parts or n not in _ONCE}
            found: Any = functional.attention(
                query,
                keys,
                values,
                mask,
                key_range=key_range,
                return_lse=self.wants_lse or many,
                **options,
            )
            parts.append(list(found) if isinstance(found, tuple) else [found])
        if many:
            outs, lses = zip(*parts, strict=True)
            return list(merge(outs, lses))[: 1 + self.wants_lse]
        return parts[0]

    def _ranges(self, axes: Sequence[LocalAxis]) -> list[Tensor | None]:
        """The ranges in positions of the part, one for every lap around circles."""
        if self.key_range is None:
            return [None]
        every = [axis.laps() or ((Run(0, 0, 0),),) for axis in axes]
        return [
            torch.stack([moved(self.key_range[:, axis], lap) for axis, lap in enumerate(laps)], 1)
            for laps in product(*every)
        ]


def moved(ends: Tensor, runs: Sequence[Run]) -> Tensor:
    """Positions on the whole axis as positions of a part, whose runs ascend.

    Args:
        ends: whole numbers of any shape.
        runs: where the part has which keys.
    """
    found = torch.full_like(ends, runs[0].at)
    end = runs[0].at
    for run in runs:
        count = run.span.count
        found = found + (ends - run.start).clamp(0, count) + (ends > run.start) * (run.at - end)
        end = run.at + count
    return found


def _has_gap(axis: LocalAxis) -> bool:
    """Whether a prefix was moved next to the windows, which changes distances."""
    return len(axis.runs) == 2 and axis.spec.prefix > 0


def _apart(
    axis: LocalAxis, key: Tensor, value: Tensor, key_range: Tensor | None, whole: Tensor | None
) -> list[tuple[Mask, Tensor, Tensor, Tensor | None]]:
    """The windows, and the prefix at its own distance: two calls over different keys."""
    first, second = axis.runs
    start = second.at // axis.spec.stride * axis.spec.stride
    offset = axis.spec.offset
    windows = replace(axis.spec, prefix=0, offset=offset - start)
    place = offset + second.start - second.at
    before = Axis(causal=axis.spec.causal, align="top-left", offset=place)
    ranges = key_range, whole
    if key_range is not None and whole is not None:
        ranges = (key_range - start).clamp(min=0), whole.clamp(max=first.stop)
    return [
        (Mask(windows), key[:, start:], value[:, start:], ranges[0]),
        (Mask(before), key[:, : first.stop], value[:, : first.stop], ranges[1]),
    ]

"""One call of attention on a part of the space: its mask, its ranges of real keys, distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nbattn import functional
from nbattn.distributed.local_axes import Run
from nbattn.distributed.rank_plan import Apart, Task
from nbattn.joining import merge
from nbattn.mask import Mask

ONCE = ("sink", "extra_key", "extra_value", "extra_range")  # among results that are merged
_FLAGS = ("sink", "extra_range", "relative_bias", "alibi_slopes")  # of a plan


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
        ranges = self._ranges(task.laps)
        if self.options.get("alibi_slopes") is not None and task.apart is not None:
            calls = _apart(task.apart, key, value, ranges[0], self.key_range)
        else:
            calls = [(task.mask, key, value, key_range) for key_range in ranges]
        many = len(calls) > 1
        parts: list[list[Tensor]] = []
        for mask, keys, values, key_range in calls:
            options = {n: o for n, o in self.options.items() if not parts or n not in ONCE}
            options |= {"key_range": key_range, "return_lse": self.wants_lse or many}
            found: Any = functional.attention(query, keys, values, mask, **options)
            parts.append(list(found) if isinstance(found, tuple) else [found])
        if not many:
            return parts[0]
        merged = merge([part[0] for part in parts], [part[1] for part in parts])
        return list(merged)[: 1 + self.wants_lse]

    def check(self, query: Tensor, key: Tensor, value: Tensor, task: Task) -> None:
        """Plans the call without its tensors.

        Raises:
            InputError, MaskError, BackendError: as the call would.
        """
        given = {name: option for name, option in self.options.items() if option is not None}
        numbers = {
            name: given[name]
            for name in ("softcap", "backend", "require", "forbid")
            if name in given
        }
        extra = given.get("extra_key")
        queries = (span.length for span in task.queries)
        functional.plan(
            task.mask,
            (query.shape[0], *queries, *query.shape[-2:]),
            (key.shape[0], *task.box.space, *key.shape[-2:]),
            value_dim=value.shape[-1],
            dtype=query.dtype,
            device=query.device,
            training=torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)),
            return_lse=self.wants_lse,
            extra_keys=0 if extra is None else extra.shape[1],
            key_range=self.key_range is not None,
            **{name: name in given for name in _FLAGS},
            **numbers,
        )

    def _ranges(self, axes: Sequence[Sequence[Sequence[Run]]]) -> list[Tensor | None]:
        """The ranges in positions of the part, one for every lap around circles."""
        given = self.key_range
        if given is None:
            return [None]
        return [
            torch.stack([moved(given[:, axis], lap) for axis, lap in enumerate(laps)], 1)
            for laps in product(*axes)
        ]


def moved(ends: Tensor, runs: Sequence[Run]) -> Tensor:
    """Positions on the whole axis as positions of a part, whose runs ascend.

    Args:
        ends: whole numbers of any shape.
        runs: where the part has which keys.

    >>> moved(torch.tensor([0, 10, 12, 40]), [Run(10, 15, 0)]).tolist()
    [0, 0, 2, 5]
    """
    end = runs[0][2]
    found = torch.full_like(ends, end)
    for start, stop, at in runs:
        found = found + (ends - start).clamp(0, stop - start) + (ends > start) * (at - end)
        end = at + stop - start
    return found


def _apart(
    apart: Apart, key: Tensor, value: Tensor, key_range: Tensor | None, whole: Tensor | None
) -> list[tuple[Mask, Tensor, Tensor, Tensor | None]]:
    """The windows, and the prefix at its own distance: two calls over different keys."""
    start, stop = apart.start, apart.stop
    ranges = key_range, whole
    if key_range is not None and whole is not None:
        ranges = (key_range - start).clamp(min=0), whole.clamp(max=stop)
    return [
        (apart.windows, key[:, start:], value[:, start:], ranges[0]),
        (apart.prefix, key[:, :stop], value[:, :stop], ranges[1]),
    ]

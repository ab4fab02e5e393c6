"""Bytes of an attention across ranks: what a halo moves and keeps, an all-gather, and a ring."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any

from nbattn.errors import InputError, described
from nbattn.program.costs import ITEMSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of keys and values in one forward pass; of one rank, where it is not said otherwise.

    Args:
        ranks: how many share the space.
        received: by the rank that receives the most.
        sent: by the rank that sends the most.
        total: over all ranks.
        messages: from how many others a rank receives, at most.
        held: shard and halo of the rank where they are largest.
        shard: the largest shard.
        all_gather: received by a rank that gathers all keys; a ring brings as many.
        everything: all keys and values: what a rank has after an all-gather.
    """

    ranks: int
    received: int
    sent: int
    total: int
    messages: int
    held: int
    shard: int
    all_gather: int
    everything: int

    @property
    def ring_steps(self) -> int:
        """Steps of a ring, in each of which every rank passes a shard on, and computes with it."""
        return self.ranks - 1

    @property
    def saving(self) -> float:
        """How many times as much an all-gather receives; infinite where nothing has to travel."""
        if not self.received:
            return float("inf") if self.all_gather else 1.0
        return self.all_gather / self.received

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self) | {"ring_steps": self.ring_steps}


def width_of(kv_heads: int, head_dim: int, batch: int, value_dim: int | None, dtype: Any) -> int:
    """Bytes of one position: its key and its value, of all heads and samples.

    Raises:
        InputError: a number below 1, or an unknown dtype.

    >>> width_of(8, 128, 1, None, "bfloat16")
    4096
    """
    given = {"kv_heads": kv_heads, "head_dim": head_dim, "batch": batch}
    given |= {} if value_dim is None else {"value_dim": value_dim}
    for name, number in given.items():
        try:
            if operator.index(number) < 1:
                raise ValueError
        except (TypeError, ValueError):
            problem = f"{name}={described(number, ',')}, not a whole number from 1."
            raise InputError(problem, f"{name}=1") from None
    name = str(dtype).removeprefix("torch.")
    if name not in ITEMSIZE:
        problem = f"dtype={dtype!r} is none of {', '.join(ITEMSIZE)}."
        raise InputError(problem, 'dtype="bfloat16"')
    numbers = head_dim + (head_dim if value_dim is None else value_dim)
    return batch * kv_heads * numbers * ITEMSIZE[name]


def short_bytes(number: float) -> str:
    """Bytes in three digits and a unit.

    >>> short_bytes(512), short_bytes(2_093_056), short_bytes(31.5e9)
    ('512 B', '2.09 MB', '31.5 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{number:.0f} B"

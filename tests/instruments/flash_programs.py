"""Helpers for tests of Flash programs: requests, candidates, and the pairs of calls."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import flash_oracle
import numpy as np

from nbattn import Mask
from nbattn.backends.flash import candidates as flash
from nbattn.backends.flash.meaning import FlashArguments
from nbattn.geometry import bind
from nbattn.program import device
from nbattn.program.candidate import Candidate
from nbattn.program.program import Call, View
from nbattn.program.request import Request

PROVIDERS = ("aten", "fa3", "fa4")  # fa2 reads as aten does, and has a cache besides


def request_for(mask: Mask, queries: Any, keys: Any, **fields: Any) -> Request:
    plain: dict[str, Any] = {
        "batch": 1,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 8,
        "value_dim": 8,
        "dtype": "float32",
        "device": device.DEVICES["cpu"],
        "backend": "flash-model",
    }
    return Request(mask=mask, query_space=queries, key_space=keys, **(plain | fields))


def flash_candidates_for(mask: Mask, queries: Any, keys: Any, **fields: Any) -> list[Candidate]:
    """The model's candidates of `PROVIDERS`, and the kv-cache entry of Flash 2."""
    request = request_for(mask, queries, keys, **fields)
    names = [f"flash-model:{name}" for name in PROVIDERS]
    every = flash.candidates(request, bind(mask, queries, keys))
    return [c for c in every if c.backend in names or c.strategy == "kv-cache"]


@lru_cache(100_000)
def kernel(call: FlashArguments, rows: int, keys: int) -> np.ndarray:
    """What the host code and the kernel of a call's provider compute."""
    window_arguments = call.window
    window = (window_arguments.left, window_arguments.right, window_arguments.causal)
    if call.provider == "fa4":
        return flash_oracle.flash4(rows, keys, *window)
    if call.entry == "kvcache":
        assert window_arguments.used is not None
        assert window_arguments.max_keys == keys
        found = np.zeros((rows, keys), dtype=bool)
        host = flash_oracle.flash3 if call.provider == "fa3" else flash_oracle.flash2_cache
        found[:, : window_arguments.used] = host(rows, window_arguments.used, *window, keys)
        return found
    if call.provider == "fa3":
        return flash_oracle.flash3(rows, keys, *window)
    lengths = (window_arguments.max_queries, window_arguments.max_keys)
    if call.runs:
        sizes = [(run.queries, run.keys) for run in call.runs for _ in range(run.times)]
        return flash_oracle.sequences(rows, keys, sizes, *window, *lengths)
    return flash_oracle.flash2(rows, keys, *window, call.entry, *lengths)


def positions(view: View) -> np.ndarray:
    """The positions `[groups, length]` of a view of one axis, computed one by one."""
    (axis,) = view.axes
    return np.array(
        [
            [axis.start + g * axis.group_step + t * axis.step for t in range(axis.length)]
            for g in range(axis.groups)
        ]
    )


def pair_counts(calls: tuple[Call, ...], queries: int, keys: int) -> np.ndarray:
    """How often a program computes every pair of one axis."""
    times = np.zeros((queries, keys), dtype=int)
    written: set[int] = set()
    for call in calls:
        assert isinstance(call.arguments, FlashArguments)
        at, to = positions(call.query), positions(call.key)
        assert call.joins or written.isdisjoint(at.flat)
        written |= set(at.flat)
        keys_given = to.shape[1] + call.arguments.pad
        allowed = kernel(call.arguments, at.shape[1], keys_given)[:, : to.shape[1]]
        for rows, columns in zip(at, to, strict=True):
            times[np.ix_(rows, columns)] += allowed
    return times

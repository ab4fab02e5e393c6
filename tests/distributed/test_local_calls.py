"""Tests of one call on a part of an axis: ranges of real keys as positions of the part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nbattn import Axis, BackendError, InputError, Mask
from nbattn.distributed.chunks import Span
from nbattn.distributed.local_axes import Run, local_axis
from nbattn.distributed.local_calls import Call, moved
from nbattn.distributed.rank_plan import plan_of_rank
from nbattn.distributed.shards import ShardedAxis
from nbattn.geometry import bind


@st.composite
def parts(draw: st.DrawFn) -> list[Run]:
    """Ascending runs of an axis, with gaps among them there and in the part."""
    runs: list[Run] = []
    start = at = 0
    for _ in range(draw(st.integers(1, 3))):
        start, at = start + draw(st.integers(0, 5)), at + draw(st.integers(0, 3))
        length = draw(st.integers(1, 6))
        runs.append(Run(start, start + length, at))
        start, at = start + length, at + length
    return runs


@given(parts(), st.integers(0, 30), st.integers(0, 30))
def test_a_range_has_the_same_keys_on_the_part(runs: list[Run], start: int, stop: int) -> None:
    first, last = moved(torch.tensor([start, stop]), runs).tolist()
    for run in runs:
        for key in range(run.start, run.stop):
            at = run.at + key - run.start
            assert (start <= key < stop) == (first <= at < last)


def test_ranges_around_a_circle_are_one_for_every_lap() -> None:
    (axis,) = bind(Mask(Axis(3, 3, border="wrap")), (12,), (12,))
    local = local_axis(axis, Span(0, 4))  # keys 9 to 11, and 0 to 6
    assert [[tuple(run)[:2] for run in lap] for lap in local.laps()] == [[(9, 12)], [(0, 7)]]
    call = Call(torch.tensor([[[2, 11]], [[0, 12]]]), {}, False)
    found = call._ranges([local.laps()])
    assert [one.tolist() for one in found if one is not None] == [
        [[[0, 2]], [[0, 3]]],
        [[[5, 10]], [[3, 10]]],
    ]


def test_checks_refuse_what_the_call_would() -> None:
    (bound,) = bind(Mask(Axis(2, 2)), (12,), (12,))
    (task,) = plan_of_rank((ShardedAxis(bound, 1),), (), (0,), "").tasks
    query = torch.ones(1, 12, 4, 8)
    Call(None, {"scale": 1.0, "sink": torch.ones(4)}, True).check(query, query, query, task)
    for options, error in (
        ({"backend": "fastest"}, InputError),
        ({"softcap": -1.0}, InputError),
        ({"backend": "cuda"}, BackendError),
    ):
        with pytest.raises(error):
            Call(None, options, False).check(query, query, query, task)
    with pytest.raises(InputError):
        Call(None, {}, False).check(query, query[..., :3, :], query[..., :3, :], task)

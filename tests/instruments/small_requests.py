"""Small requests, fixed or random, and the checks of their candidates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracle import masks, matrix

from nbattn import Axis, Mask
from nbattn.geometry import bind
from nbattn.planner import proof
from nbattn.planner.planner import candidates
from nbattn.program import device
from nbattn.program.candidate import Candidate
from nbattn.program.program import Call, Program
from nbattn.program.request import DTYPES, LAYOUTS, Request

Count = Callable[[str, int], None]


def request_for(mask: Mask, queries: Any, keys: Any = None, **fields: Any) -> Request:
    """A small request; `fields` replace the rest."""
    queries = (queries,) if isinstance(queries, int) else queries
    keys = queries if keys is None else (keys,) if isinstance(keys, int) else keys
    plain: dict[str, Any] = {
        "batch": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "value_dim": 8,
        "dtype": "float32",
        "device": device.DEVICES["cpu"],
    }
    return Request(mask=mask, query_space=queries, key_space=keys, **(plain | fields))


def all_of(request: Request) -> list[Candidate]:
    return candidates(request, bind(request.mask, request.query_space, request.key_space))


def oracle_of(request: Request) -> np.ndarray:
    return matrix(request.mask.axes, request.query_space, request.key_space)


@st.composite
def requests(draw: st.DrawFn, max_rank: int = 3) -> Request:
    """Anything a plan can be for, small."""
    mask, queries, keys = draw(masks(max_rank))
    kv_heads = draw(st.integers(1, 2))
    dim = draw(st.sampled_from((8, 16)))
    flags = {
        name: draw(st.booleans())
        for name in ("training", "deterministic", "return_lse", "softcap", "sink", "key_range")
    }
    return request_for(
        mask,
        queries,
        keys,
        batch=draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 3)),
        head_dim=dim,
        value_dim=draw(st.sampled_from((dim, dim, 4))),
        dtype=draw(st.sampled_from(DTYPES)),
        device=device.DEVICES[draw(st.sampled_from(("cpu", "cpu", "sm_90")))],
        layout=draw(st.sampled_from(LAYOUTS)),
        extra_keys=draw(st.sampled_from((0, 0, 3))),
        **flags,
    )


# Programs against the mask


DENSE_AXES = [
    Axis(),
    Axis(causal=True, align="top-left"),
    Axis(dilation=2, align="top-left"),
    Axis(dilation=3, align="top-left"),
    Axis(dilation=2, causal=True, align="top-left"),
    Axis(3, causal=True, stride=4, align="top-left"),
    Axis(3, causal=True, align="top-left"),
    Axis(1, 0, stride=4, align="top-left"),
    Axis(0, 0, align="top-left"),
    Axis(2, 1, stride=4, border="shift", align="top-left"),
    Axis(1, 0, stride=2, border="shift", dilation=2, align="top-left"),
    Axis(9, 9, align="top-left"),
    Axis(9, 9, border="shift", align="top-left"),
    Axis(None, 2, align="bottom-right"),
    Axis(causal=True, align="bottom-right"),
    Axis(causal=True, align="bottom-right", dilation=2),
    Axis(causal=True, align=1),
    Axis(causal=True, align=3),
    Axis(causal=True, align=-2),
    Axis(0, 0, prefix=2, align="top-left"),
]


@st.composite
def requests_with_dense_programs(draw: st.DrawFn, shortest: int = 0, max_rank: int = 3) -> Request:
    """Requests that dense kernels often have programs for: folds, triangles, blocks, slices."""
    rank = draw(st.integers(1, max_rank))
    longest = {1: 17, 2: 6, 3: 4}[rank]
    axes = [draw(st.sampled_from(DENSE_AXES)) for _ in range(rank)]
    spaces = [tuple(draw(st.integers(shortest, longest)) for _ in range(rank)) for _ in range(2)]
    return request_for(
        Mask(*axes),
        *spaces,
        batch=draw(st.integers(1, 2)),
        kv_heads=draw(st.integers(1, 2)),
        layout=draw(st.sampled_from(LAYOUTS)),
        extra_keys=draw(st.sampled_from((0, 2))),
        softcap=draw(st.booleans()),
    )


def check_programs_compute_the_mask(request: Request, cases: Count) -> None:
    want = oracle_of(request)
    for candidate in all_of(request):
        if candidate.program is None:
            assert candidate.reasons
            continue
        found = proof.support(request, candidate)
        assert found.dtype == np.bool_
        assert np.array_equal(found, want), candidate.name
        assert proof.verify(request, candidate) is True
        cases(f"planner, programs: {candidate.backend}/{candidate.strategy}", 1)


def program_of(request: Request, name: str) -> Candidate:
    (found,) = [c for c in all_of(request) if c.name == name and c.program is not None]
    return found


def with_calls(candidate: Candidate, *calls: Call) -> Candidate:
    return replace(candidate, program=Program(tuple(calls)))


def calls_of(candidate: Candidate) -> tuple[Call, ...]:
    assert candidate.program is not None
    return candidate.program.calls


def with_arguments(candidate: Candidate, arguments: Any) -> Candidate:
    one, *rest = calls_of(candidate)
    return with_calls(candidate, replace(one, arguments=arguments), *rest)

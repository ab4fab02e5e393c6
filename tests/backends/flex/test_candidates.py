"""Tests of FlexAttention as a candidate: its limits, and that auto never chooses it."""

from __future__ import annotations

from typing import Any

import pytest

import nbattn
from nbattn import Axis, BackendError, Mask

# The backend.


SHAPE = (1, 13, 20, 2, 32)
MASK = Mask(Axis(2, 2, border="shift", dilation=2), Axis(3, 3, border="wrap"))


def reasons(mask: Mask = MASK, shape: tuple[int, ...] = SHAPE, **named: Any) -> list[str]:
    """Why flex is refused, asked by name on a CPU."""
    named = {"backend": "flex", "dtype": "float32", "device": "cpu"} | named
    with pytest.raises(BackendError) as error:
        nbattn.plan(mask, shape, **named)
    lines = str(error.value).splitlines()
    return [line.split(": ", 1)[1] for line in lines if line.startswith("  flex/blocks: ")]


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"training": True}, "its CPU kernel has no backward"),
        ({"return_lse": True},
         "returns no logsumexp, which return_lse, sink and extra keys need"),
        ({"dtype": "float64"}, "takes float16, bfloat16, float32, not float64"),
        ({"key_range": True}, "has no key_range"),
        ({"mask": Mask(Axis(0, causal=True, stride=4)), "shape": (1, 9, 2, 8)},
         "does not support queries without keys"),
        ({"mask": Mask.full(), "shape": (1, 0, 2, 8)},
         "does not support zero pairs of queries and keys"),
        ({"training": True, "deterministic": True, "device": "sm_90"},
         "its backward is not deterministic"),
        ({"mask": Mask.full(), "shape": (32_768, 16, 2, 8), "device": "sm_90"},
         "32768 samples x 2 heads are 65536, over the grid of 65535"),
        ({"mask": Mask.sliding_window(5), "shape": (1, 524_289, 2, 8)},
         "4097 x 4097 blocks of tokens are over the limit of 16777216"),
    ],
)  # fmt: skip
def test_each_limit_of_flex_has_a_reason(named: dict[str, Any], text: str) -> None:
    assert reasons(**named) == [text]


def test_a_plan_of_many_tokens_is_explained_without_counting_blocks() -> None:
    plan = nbattn.plan(Mask.neighborhood((7, 7)), (1, 4096, 4096, 1, 64), device="sm_90")
    flex = plan.explain(all=True).split("flex/blocks")[1]
    assert "131072 x 131072 blocks of tokens are over the limit" in flex


def test_auto_never_compiles_flex() -> None:
    plan = nbattn.plan(MASK, SHAPE, dtype="float32", device="cpu")
    (own,) = [candidate for candidate in plan.candidates if candidate.backend == "flex"]
    assert [reason.text for reason in own.reasons] == [
        "takes seconds to compile, runs only if requested: backend='flex'"
    ]


def test_flex_runs_on_gpus_of_amd_and_not_of_intel() -> None:
    assert nbattn.plan(MASK, SHAPE, device="gfx942", backend="flex").chosen.name == "flex/blocks"
    assert reasons(device="xe") == ["runs on cuda, not on xe"]

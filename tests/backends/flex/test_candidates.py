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
    ],
)  # fmt: skip
def test_each_limit_of_flex_has_a_reason(named: dict[str, Any], text: str) -> None:
    assert reasons(**named) == [text]


def test_auto_never_compiles_flex() -> None:
    plan = nbattn.plan(MASK, SHAPE, dtype="float32", device="cpu")
    (own,) = [candidate for candidate in plan.candidates if candidate.backend == "flex"]
    assert [reason.text for reason in own.reasons] == [
        "takes seconds to compile, runs only if requested: backend='flex'"
    ]

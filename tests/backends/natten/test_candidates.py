"""Tests of natten as a candidate: unsupported masks, its limits, and its absence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from natten_plans import HERE, planned

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.natten.meaning import window
from nbattn.geometry import bind
from nbattn.program.device import DEVICES


@pytest.mark.parametrize(
    ("axis", "keys", "text"),
    [
        (Axis(3, 3), None, 'border="clip"; it supports border="shift"'),
        (Axis(3, 3, border="wrap"), None, 'border="wrap"; it supports border="shift"'),
        (Axis(3, causal=True, border="shift"), None,
         'a causal axis with border="shift"; it supports border="clip"'),
        (Axis(3, 1, border="shift"), None, "left=3, right=1; it supports 2 and 2"),
        (Axis(causal=True), None, "an unlimited side; it supports only finite windows"),
        (Axis(3, causal=True, offset=1), None, "offset=1; it has no offset"),
        (Axis(3, causal=True, prefix=1), None, "prefix=1; it has no prefix"),
        (Axis(0, 0, border="shift"), None,
         "a window of 1 with stride=1; it needs at least 2 and the stride"),
        (Axis(1, 1, border="shift", stride=4), None,
         "a window of 3 with stride=4; it needs at least 2 and the stride"),
        (Axis(2, 2, border="shift", dilation=3), None,
         "5 keys x dilation 3 exceed the axis length 12"),
        (Axis(2, 2, border="shift", align=0), 14, "12 queries and 14 keys; it needs equal numbers"),
    ],
)  # fmt: skip
def test_unsupported_masks_are_refused(axis: Axis, keys: int | None, text: str) -> None:
    assert window(bind(Mask(axis), 12, keys)[0]) == text


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"dtype": "float64"}, "takes float16, bfloat16, float32, not float64"),
        ({"device": "gfx942"}, "needs an NVIDIA GPU, and gfx942 is AMD's"),
        ({"device": replace(DEVICES["xe"], providers=("natten",))},
         "needs an NVIDIA GPU, and xe is Intel's"),
        ({"value_dim": 12}, "needs a value_dim that 8 divides, not 12"),
        ({"softcap": 2.0}, "has no softcap"),
        ({"sink": True}, "has no sink"),
        ({"extra_keys": 3}, "does not support extra keys"),
        ({"training": True, "return_lse": True},
         "its backward cannot use a gradient of the logsumexp"),
        ({"training": True, "deterministic": True}, "its backward is not deterministic"),
    ],
)  # fmt: skip
def test_each_limit_of_natten_has_a_reason(named: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendError) as error:
        planned(Mask.neighborhood(7), (20,), **named)
    assert f"  natten/window: {text}\n" in str(error.value)


def test_natten_grid_has_heads_and_residue_classes_in_one_dimension() -> None:
    mask = Mask.neighborhood((3, 3), dilation=(8, 4))
    for shape, text in (
        ((65_536, 24, 12, 1, 8), "65536 samples"),
        ((1, 24, 12, 2_048, 8), "65536 heads"),
    ):
        with pytest.raises(BackendError, match=f"{text} after folding are over the grid of 65535"):
            nbattn.plan(mask, shape, device=HERE, backend="natten")
    nbattn.plan(mask, (65_535, 24, 12, 2_047, 8), device=HERE, backend="natten")


def test_an_absent_package_is_the_reason() -> None:
    with pytest.raises(BackendError, match="natten/window: needs the package natten"):
        nbattn.plan(Mask.neighborhood(7), (1, 20, 2, 32), device="sm_90", backend="natten")


def test_auto_does_not_trust_what_has_not_run_on_a_gpu() -> None:
    plan = planned(Mask.neighborhood(7), (20,), backend="auto")
    (own,) = [candidate for candidate in plan.candidates if candidate.backend == "natten"]
    assert [reason.text for reason in own.reasons] == [
        "not yet run on a GPU, runs only if requested: backend='natten'"
    ]

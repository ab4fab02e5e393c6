"""Tests of SDPA's declared limits, and of its grid on CUDA."""

from typing import Any

import pytest
from small_requests import all_of, request_for

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.dense import meaning as dense
from nbattn.program import device
from nbattn.program.limits import Limits

# fmt: off
DECLARED: list[tuple[str, Limits, dict[str, Any], str]] = [
    ("cpu", dense.SDPA_CPU, {"softcap": True}, "softcap"),
    ("cpu", dense.SDPA_CPU, {"key_range": True}, "key_range"),
    ("cpu", dense.SDPA_CPU, {"value_dim": 4}, "value_dim"),
    ("cpu", dense.SDPA_CPU, {"training": True, "return_lse": True}, "lse_gradient"),
    ("sm_90", dense.SDPA, {"softcap": True}, "softcap"),
    ("sm_90", dense.SDPA, {"key_range": True}, "key_range"),
    ("sm_90", dense.SDPA, {"return_lse": True}, "lse"),
    ("sm_90", dense.SDPA, {"sink": True}, "lse"),
    ("sm_90", dense.SDPA, {"extra_keys": 2}, "lse"),
    ("sm_90", dense.SDPA, {"training": True, "deterministic": True}, "deterministic"),
]
# fmt: on


@pytest.mark.parametrize(("on", "limits", "asked", "name"), DECLARED)
def test_sdpa_is_refused_by_its_declared_limits(
    on: str, limits: Limits, asked: dict[str, Any], name: str
) -> None:
    request = request_for(Mask.causal(), 8, device=device.DEVICES[on], **asked)
    for candidate in all_of(request):
        found = [reason.limit for reason in candidate.reasons]
        if candidate.backend == "sdpa":
            assert name in found
            assert limits.reasons(request)[0] in candidate.reasons
        elif candidate.runner != "flash" and "wgmma" not in candidate.traits:
            assert name not in found
    free = request_for(Mask.causal(), 8, device=device.DEVICES[on])
    assert not [c for c in all_of(free) if c.backend == "sdpa" and c.reasons]


@pytest.mark.parametrize(
    ("mask", "shape", "name", "text"),
    [
        (Mask.causal(), (65_536, 16, 2, 8), "sdpa/causal", "65536 samples"),
        (Mask.causal(), (2, 16, 65_536, 8), "sdpa/causal", "65536 heads"),
        (Mask.full(), (65_536, 1, 1, 8), "sdpa/dense", "65536 samples"),
        (Mask.sliding_window(3), (65_536, 16, 2, 8), "sdpa/mask", "65536 samples"),
        (Mask.sliding_window(3), (2, 16, 65_536, 8), "sdpa/mask", "65536 heads"),
        (Mask(Axis(dilation=32)), (1, 64, 4_000, 8), "sdpa/dense+fold", "128000 heads"),
        (Mask(Axis(0, 0), Axis()), (2_048, 64, 16, 1, 8), "sdpa/dense+fold", "131072 samples"),
    ],
)
def test_sdpa_on_cuda_is_refused_beyond_its_grid(
    mask: Mask, shape: tuple[int, ...], name: str, text: str
) -> None:
    """Folded residues and axes count: they are samples and heads of the call."""
    wanted = [f"{text} after folding are over the grid of 65535"]
    for on, expected in (("sm_90", wanted), ("cpu", [])):
        plan = nbattn.plan(mask, shape, device=on)
        (found,) = [candidate for candidate in plan.candidates if candidate.name == name]
        assert [r.text for r in found.reasons if r.limit == "grid"] == expected
    most = tuple(65_535 if size == 65_536 else size for size in shape)
    if most != shape:
        plan = nbattn.plan(mask, most, device="sm_90")
        (found,) = [candidate for candidate in plan.candidates if candidate.name == name]
        assert not found.reasons

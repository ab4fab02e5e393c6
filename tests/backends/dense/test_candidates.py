"""Tests of dense candidates: why SDPA is refused, and the largest matrix that it accepts."""

import pytest
from small_requests import all_of, request_for

from nbattn import Axis, Mask
from nbattn.backends import families
from nbattn.program.device import DEVICES
from nbattn.program.request import Request


@pytest.mark.parametrize(
    ("request_", "name", "limit"),
    [
        (request_for(Mask.sliding_window(3), 8), "sdpa/dense", "mask"),
        (request_for(Mask(Axis(causal=True), Axis(causal=True)), (3, 3)), "sdpa/dense", "mask"),
        (request_for(Mask.causal("bottom-right"), 3, 8), "sdpa/dense", "mask"),
        (
            request_for(Mask.sliding_window(3, align="top-left"), 1 << 11, (1 << 11) + 1),
            "sdpa/mask",
            "mask",
        ),
        (request_for(Mask(Axis(0, causal=True, stride=2)), 8), "sdpa/mask", "mask"),
        (request_for(Mask.causal(), 8, extra_keys=2), "sdpa/mask", "extra_keys"),
    ],
)
def test_sdpa_refuses_unsupported_masks(request_: Request, name: str, limit: str) -> None:
    (found,) = [candidate for candidate in all_of(request_) if candidate.name == name]
    assert [reason.limit for reason in found.reasons] == [limit]
    assert found.program is None


def test_a_matrix_at_its_limit_is_taken() -> None:
    request = request_for(Mask.sliding_window(3), 1 << 11)
    (found,) = [candidate for candidate in all_of(request) if candidate.name == "sdpa/mask"]
    assert not found.reasons


@pytest.mark.parametrize("name", ["gfx942", "xe"])
def test_sdpa_on_gpus_of_others_is_the_public_function(name: str) -> None:
    """Nothing is known of their kernels: neither which runs, nor its grid, nor a logsumexp."""
    for batch in (1, 70_000):  # over the grid of NVIDIA's kernels
        request = request_for(Mask.causal(), 8, device=DEVICES[name], batch=batch)
        (found,) = [candidate for candidate in all_of(request) if candidate.name == "sdpa/causal"]
        assert not found.reasons
        assert found.work().startswith("is_causal, top-left; ")
    request = request_for(Mask.causal(), 8, device=DEVICES[name], return_lse=True)
    (found,) = [candidate for candidate in all_of(request) if candidate.name == "sdpa/causal"]
    assert [reason.text for reason in found.reasons] == [
        "returns no logsumexp, which return_lse, sink and extra keys need"
    ]
    assert families.backend("sdpa").gives_lse_on == ("cpu",)

"""Tests of dense candidates: why SDPA is refused, and the largest matrix that it accepts."""

import pytest
from small_requests import all_of, request_for

from nbattn import Axis, Mask
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

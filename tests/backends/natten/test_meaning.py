"""Tests that natten plans are exactly the masks which natten publishes."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from natten_plans import planned

from nbattn import Axis, Mask
from nbattn.backends.natten.meaning import NattenAxis, window
from nbattn.geometry import bind

SPACES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {"kernel_size": 6, "stride": 4}),
    ((17,), {"kernel_size": 5, "dilation": 3}),
    ((17,), {"kernel_size": 4, "stride": 3, "is_causal": True}),
    ((13, 12), {"kernel_size": (4, 5), "stride": (3, 2), "dilation": (3, 2)}),
    ((9, 8), {"kernel_size": (3, 8), "is_causal": (True, False)}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "stride": (1, 2, 3), "dilation": (1, 3, 2)}),
]
DEFAULTS = {"stride": 1, "dilation": 1, "is_causal": False}


@pytest.mark.parametrize(("space", "given"), SPACES)
def test_natten_plans_are_the_published_mask(space: tuple[int, ...], given: dict[str, Any]) -> None:
    mask = Mask.neighborhood(**given)
    rank, full = len(space), DEFAULTS | given
    plan = planned(mask, space)
    call = plan.chosen.program.calls[0].arguments
    assert call.named() == {name: oracle.per_axis(value, rank) for name, value in full.items()}
    assert plan.verify()
    wanted = oracle.natten_matrix(
        space, full["kernel_size"], full["stride"], full["dilation"], full["is_causal"]
    )
    assert np.array_equal(plan.support(), wanted)


def test_a_full_axis_is_a_window_of_its_length() -> None:
    assert window(bind(Mask.full(), 9)[0]) == NattenAxis(9, 1, 1, False)
    assert planned(Mask(Axis(), Axis(2, 2, border="shift")), (6, 9)).verify()

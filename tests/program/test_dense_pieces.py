"""Tests that dense programs (folds, blocks and slices) compute exactly the mask."""

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from small_requests import (
    DENSE_AXES,
    check_programs_compute_the_mask,
    request_for,
    requests_with_dense_programs,
)

from nbattn import Axis, Mask
from nbattn.program.request import Request

Count = Callable[[str, int], None]


@given(requests_with_dense_programs())
def test_every_dense_program_is_its_mask(cases: Count, request_: Request) -> None:
    check_programs_compute_the_mask(request_, cases)


@pytest.mark.parametrize("axis", DENSE_AXES, ids=repr)
def test_every_dense_program_of_every_short_axis(cases: Count, axis: Axis) -> None:
    for queries, keys in product(range(8), repeat=2):
        request = request_for(Mask(axis), queries, keys, batch=1, kv_heads=1, heads=2)
        check_programs_compute_the_mask(request, cases)

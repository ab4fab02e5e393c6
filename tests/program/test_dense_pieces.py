"""Owns the law of dense pieces: their programs are the mask, by folds, blocks, slices."""

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from small_requests import SAYABLE, check_law, request_for, sayable_requests

from nbattn import Axis, Mask
from nbattn.program.request import Request

Count = Callable[[str, int], None]


@given(sayable_requests())
def test_every_dense_program_is_its_mask(cases: Count, request_: Request) -> None:
    check_law(request_, cases)


@pytest.mark.parametrize("axis", SAYABLE, ids=repr)
def test_every_dense_program_of_every_short_axis(cases: Count, axis: Axis) -> None:
    for queries, keys in product(range(8), repeat=2):
        request = request_for(Mask(axis), queries, keys, batch=1, kv_heads=1, heads=2)
        check_law(request, cases)

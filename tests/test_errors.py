"""Owns the check of errors as values: they keep their parts when they are pickled."""

import pickle

import pytest

from nbattn import Axis, Mask, MaskError


def test_errors_keep_their_parts_when_pickled() -> None:
    with pytest.raises(MaskError) as error:
        Mask(Axis(1, 1)).to_flash()
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is MaskError
    assert str(again) == str(error.value)
    assert (again.problem, again.fix, again.where) == (
        error.value.problem,
        error.value.fix,
        error.value.where,
    )

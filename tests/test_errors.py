"""Tests that errors keep their parts when they are pickled."""

import pickle

import numpy as np
import pytest

from nbattn import Axis, Mask, MaskError
from nbattn.errors import kind


def test_a_numpy_type_is_named_as_one() -> None:
    assert [kind(value) for value in (True, 1, np.True_, np.float32(1))] == [
        *("a bool", "an int", "a numpy.bool", "a numpy.float32")
    ]


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

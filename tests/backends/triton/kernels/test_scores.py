"""Tests of the Triton kernels' scores in the interpreter: the cap, and the online softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton_interpreter
from triton_interpreter import call

from nbattn.backends.triton.kernels.numbers import Variant

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)
NONE = -np.inf


def kind(dtype: Any) -> Any:
    """Triton's type."""
    return getattr(triton_interpreter._language(), np.dtype(dtype).name)


@pytest.mark.parametrize(("dtype", "digits"), [(np.float32, 5e-7), (np.float64, 2e-14)])
def test_the_cap_keeps_digits_near_0_and_far_from_it(dtype: Any, digits: float) -> None:
    """A large cap puts all scores near 0, where 1 - 2 / (1 + exp 2x) has none left."""
    x = np.concatenate([2.0 ** np.linspace(-40, 7, 2048), -(2.0 ** np.linspace(-40, 7, 2048))])
    x = x.astype(dtype)
    found = call("scores.tanh", x, kind(dtype))
    wanted = np.tanh(x.astype(np.longdouble))
    assert found.dtype == dtype
    assert (np.abs(found - wanted) <= digits * np.abs(wanted)).all()


def test_the_derivative_of_the_cap() -> None:
    products = np.linspace(-9, 9, 64).reshape(4, 16)
    variant = Variant(1, (1, 1, 4), (1, 1, 16), 16, 16, softcap=True, double=True)
    scores, bend = call("scores.scores_of", products, 0.7, 2.5, variant)
    bent = np.tanh(products * 0.7 / 2.5)
    np.testing.assert_allclose(scores, 2.5 * bent * np.log2(np.e), rtol=1e-12)
    np.testing.assert_allclose(bend, 1 - bent**2, rtol=1e-12, atol=1e-15)
    without = Variant(1, (1, 1, 4), (1, 1, 16), 16, 16, double=True)
    plain, bend = call("scores.scores_of", products, 0.7, 0.0, without)
    assert bend == 1
    np.testing.assert_allclose(plain, products * 0.7 * np.log2(np.e), rtol=1e-12)


def softmax(chunks: list[np.ndarray], logit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximum, sum and weights of all columns, as a loop over visits computes them."""
    rows = len(chunks[0])
    top = np.full(rows, logit)
    total = np.full(rows, 0.0 if logit == NONE else 1.0)
    weights = np.zeros((rows, 0))
    for chunk in chunks:
        new, top, total, shrink = call("scores.online_softmax", chunk, top, total)
        weights = np.concatenate([weights * shrink[:, None], new], axis=1)
    return top, total, weights


@pytest.mark.parametrize("logit", [NONE, -3.0, 40.0], ids=str)
def test_visits_in_turn_are_one_softmax(logit: float) -> None:
    """Rows without keys, rows whose first keys come late, loud scores, and a sink."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(8, 32)) * 9
    scores[0] = NONE
    scores[1, :16] = NONE
    scores[2, 16:] = NONE
    scores[3] *= 100
    scores[4, ::3] = NONE
    top, total, weights = softmax([scores[:, :16], scores[:, 16:]], logit)
    every = np.concatenate([scores, np.full((8, 1), logit)], axis=1)
    largest = every.max(1)
    base = np.where(largest == NONE, 0, largest)
    wanted = np.exp2(every - base[:, None])
    assert np.array_equal(top, largest)
    np.testing.assert_allclose(total, wanted.sum(1), rtol=1e-13)
    np.testing.assert_allclose(weights, wanted[:, :-1], rtol=1e-13, atol=0)

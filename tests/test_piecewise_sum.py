"""Tests of sums in closed form."""

from __future__ import annotations

import numpy as np

from nbattn import piecewise_sum as series


def test_sums_in_closed_form() -> None:
    """Whole periods, ends of periods, and what lies around a bend."""

    def value(u: np.ndarray) -> np.ndarray:
        return np.where(u < 1000, u, 3 * u - 2000) + u % 7

    for start, stop in ((0, 5000), (3, 4998), (-11, 8), (990, 1010), (5, 5)):
        wanted = int(value(np.arange(start, stop)).sum())
        assert series.piecewise_sum(value, start, stop, 7, [1000]) == wanted

"""Tests of bands: trimmed, compared and cut, against their pairs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import flash_oracle
import numpy as np
import pytest

from nbattn.program.bands import Band, first_difference, sliced, split_points, trim

Count = Callable[[str, int], None]


def matrix(band: Band, rows: int, keys: int) -> np.ndarray:
    return flash_oracle.band(rows, keys, band.left, band.right)


# Bands


@pytest.mark.parametrize("keys", range(1, 7))
def test_trimming_keeps_every_pair_and_makes_both_windows_non_negative(
    keys: int, cases: Count
) -> None:
    sides = (None, *range(-8, 9))
    for rows, left, right in product(range(1, 7), sides, sides):
        band = Band(left, right)
        whole = matrix(band, rows, keys)
        found = trim(band, rows, keys)
        cases("bands, trimmed", 1)
        if found is None:
            assert not whole.any()
            continue
        part = np.zeros_like(whole)
        part[found.row : found.row_stop, found.key : found.key_stop] = matrix(
            found.band, found.rows, found.keys
        )
        assert np.array_equal(part, whole)
        assert whole[found.row : found.row_stop].any(1).all()
        shift = found.keys - found.rows
        assert found.band.left is None or found.band.left + shift >= 0
        assert found.band.right is None or found.band.right - shift >= 0
        assert np.array_equal(matrix(band.limits(rows, keys), rows, keys), whole)


def test_a_difference_is_found_at_the_first_query_that_has_one(cases: Count) -> None:
    sides = (None, *range(-3, 5))
    bands = [Band(left, right) for left, right in product(sides, repeat=2)]
    for rows, keys in ((1, 1), (1, 4), (4, 1), (2, 5), (5, 2), (4, 4)):
        pictures = [matrix(band, rows, keys) for band in bands]
        for (one, a), (other, b) in product(list(zip(bands, pictures, strict=True)), repeat=2):
            wrong = (a != b).any(1)
            want = int(wrong.argmax()) if wrong.any() else None
            assert first_difference(one, other, rows, keys) == want, (one, other, rows, keys)
        cases("bands, compared", len(bands) ** 2)


def test_a_cut_band_is_the_band(cases: Count) -> None:
    sides = (None, *range(10))
    for (rows, keys), left, right in product(product(range(1, 9), repeat=2), sides, sides):
        found = trim(Band(left, right), rows, keys)
        if found is None:
            continue
        band = found.band
        for at in [(), *split_points(band, found.keys)]:
            part = np.zeros((found.rows, found.keys), dtype=int)
            for one in sliced(band, found.rows, found.keys, at):
                part[one.row : one.row_stop, one.key : one.key_stop] += matrix(
                    one.band, one.rows, one.keys
                )
            assert np.array_equal(part, matrix(band, found.rows, found.keys).astype(int))
            cases("bands, cut", 1)

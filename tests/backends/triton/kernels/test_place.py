"""Tests of the Triton kernels' places in the interpreter: grids by tile, and offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton_interpreter
from triton_interpreter import call

from nbattn.backends.triton.kernels.numbers import Columns, Place, Strides, Variant

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)
SMALL: Any = (1, (1, 1, 4), (1, 1, 4), 16, 16)


@pytest.mark.parametrize("kernel", range(4))
@pytest.mark.parametrize("tiles", [[3], [1, 1], [2, 0, 0, 5, 1], [0, 4, 0, 7, 3, 3, 3]], ids=str)
def test_a_tile_is_in_the_grid_that_has_it(tiles: list[int], kernel: int) -> None:
    """Grids without tiles, such as empty ones, have none."""
    table = torch.full((len(tiles), 16), -7, dtype=torch.int64)
    table[:, 9 + kernel] = torch.tensor([sum(tiles[:number]) for number in range(len(tiles))])
    owners = [number for number, count in enumerate(tiles) for _ in range(count)]
    for tile, owner in enumerate(owners):
        assert call("place.grid_of", table, len(tiles), tile, kernel) == owner


def positions(count: int, step: int) -> Columns:
    at = np.arange(count, dtype=np.int32) * step
    return Columns(at, at, np.ones(count, dtype=bool), False)


@pytest.mark.parametrize("wide", [False, True])
def test_offsets_count_in_steps(wide: bool) -> None:
    """In 32 bits, or in 64 where a sample is larger."""
    strides = Strides(0, 50, 10, 3, 1, 0)
    places = (positions(4, 1), positions(4, 2), positions(4, 5))
    found = call("place.offsets_of", strides, places, Variant(*SMALL, step=8, wide=wide))
    assert found.dtype == (np.int64 if wide else np.int32)
    assert found.tolist() == [8 * n * (50 + 2 * 10 + 5 * 3) for n in range(4)]


def test_wide_offsets_are_beyond_32_bits() -> None:
    strides = Strides(0, 1 << 29, 0, 0, 0, 0)
    places = (positions(4, 30), positions(4, 0), positions(4, 0))
    found = call("place.offsets_of", strides, places, Variant(*SMALL, step=2, wide=True))
    assert found.tolist() == [n * 30 << 30 for n in range(4)]
    with pytest.raises(AssertionError, match="overflow"):
        call("place.offsets_of", strides, places, Variant(*SMALL, step=2))


@pytest.mark.parametrize("packed", [False, True])
def test_the_start_of_a_head_is_in_64_bits(packed: bool) -> None:
    strides = Strides(1 << 30, 0, 0, 1 << 20, 5, 1)
    place = Place(0, 3, 6, 0, 0, ())
    found = call(
        "place.start_of", strides, place, 3, 1 << 33, Variant(*SMALL, step=4, packed=packed)
    )
    assert found == 4 * (15 + ((1 << 53) if packed else 6 << 30))


def test_packed_tensors_have_the_strides_of_each_grid() -> None:
    strides = Strides(0, 9, 9, 7, 2, 1)
    assert call("place.strides_of", strides, 5, 3, Variant(*SMALL)) == strides
    found = call("place.strides_of", strides, 5, 3, Variant(*SMALL, packed=True))
    assert found == Strides(0, 7 * 3 * 5, 7 * 3, 7, 2, 1)


def test_queries_are_numbered_row_by_row() -> None:
    axes = tuple(_lengths(queries) for queries in (2, 3, 4))
    strides = Strides(0, 1000, 100, 10, 0, 1)
    number = np.arange(32, dtype=np.int32)
    found = call("place.flat_offsets", strides, number, axes, Variant(*SMALL))
    wanted = [1000 * a + 100 * b + 10 * c for a in range(2) for b in range(3) for c in range(4)]
    assert found[:24].tolist() == wanted


def _lengths(queries: int) -> Any:
    from nbattn.backends.triton.kernels.numbers import Axis

    return Axis(queries, 0, 0, 1, 1, 0, 0, 0, 0, queries, 0, queries)


@pytest.mark.parametrize("given", [(1, 3), (-4, 9), (4, 2), (0, 0)], ids=str)
def test_extra_keys_in_range(given: tuple[int, int]) -> None:
    table = torch.tensor([[0, 5], given], dtype=torch.int32)
    lo, hi = call("place.extra_keys", table, 1, 5)
    assert range(lo, hi) == range(max(given[0], 0), min(given[1], 5)) or lo >= hi
    assert call("place.extra_keys", None, 1, 5) == (0, 5)


@pytest.mark.parametrize("neighbours", [False, True])
def test_vectors_are_loaded_with_zeros_beside_them(neighbours: bool) -> None:
    """A head of five channels in sixteen; a row that is not there is not read."""
    data = torch.arange(40.0)
    step = 1 if neighbours else 2
    at = np.array([0, 20, 9999, 3], dtype=np.int32)
    inside = np.array([True, True, False, True])
    found = call("place.load", data, at, inside, step, neighbours, 5, 16)
    assert found.shape == (4, 16)
    for row, start in enumerate(at.tolist()):
        wanted = [start + step * n for n in range(5)] if inside[row] else [0] * 5
        assert found[row].tolist() == wanted + [0] * 11

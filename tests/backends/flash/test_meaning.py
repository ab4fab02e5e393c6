"""Tests of what each Flash entry computes for each window_size, and of its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import flash_oracle
import numpy as np
import pytest

from nbattn.backends.flash.meaning import FlashArguments, WindowArguments, flash_arguments
from nbattn.backends.flash.providers import tile
from nbattn.program import device
from nbattn.program.bands import Band, trim

Count = Callable[[str, int], None]
# Each length of deep runs, and those beside a side of `SIDES` that are tried on every push.
every_length = pytest.mark.parametrize(
    "lengths", [(1, 2, 3, 6, 9, 12), pytest.param(range(1, 13), marks=pytest.mark.deep)]
)


def matrix(band: Band, rows: int, keys: int) -> np.ndarray:
    return flash_oracle.band(rows, keys, band.left, band.right)


# Meanings


SIDES = (-4, -1, 0, 1, 2, 5, 8, 11, 12, 20)


def pairs_of(call: FlashArguments, rows: int, keys: int) -> np.ndarray:
    """The call's meaning, once as rows and once as a matrix."""
    allowed = call.allowed((rows,), (keys,))
    starts, counts, step = call.key_runs(0, rows, keys)
    assert step == 1
    key, first, end = np.arange(keys), starts[..., None], (starts + counts)[..., None]
    again = ((first <= key) & (key < end)).any(axis=1)
    assert np.array_equal(again, allowed)
    return allowed


@every_length
@pytest.mark.parametrize("causal", [False, True])
def test_flash_2_dense_equals_its_host_code(
    causal: bool, lengths: Sequence[int], cases: Count
) -> None:
    for rows, keys, left, right in product(lengths, lengths, SIDES, SIDES):
        call = FlashArguments("fa2", "dense", WindowArguments(left, right, causal))
        want = flash_oracle.flash2(rows, keys, left, right, causal)
        assert np.array_equal(pairs_of(call, rows, keys), want), (rows, keys, left, right)
        cases("meaning, flash 2 dense", 1)


@pytest.mark.parametrize("entry", ["varlen", "kvcache"])
def test_flash_2_uses_the_maximum_lengths_that_are_given(entry: str, cases: Count) -> None:
    shapes = product((1, 2, 3, 5, 9), repeat=2)
    sides = (-2, -1, 0, 1, 3, 6, 9, 10)
    for (rows, keys), left, right, more, causal, one in product(
        shapes, sides, sides, (0, 1, 4), (False, True), (False, True)
    ):
        window_arguments = WindowArguments(left, right, causal, 1 if one else rows, keys + more)
        want = flash_oracle.flash2(
            rows, keys, left, right, causal, entry, 1 if one else rows, keys + more
        )
        assert np.array_equal(
            pairs_of(FlashArguments("aten", entry, window_arguments), rows, keys), want
        ), (
            window_arguments,
            rows,
        )
        cases(f"meaning, flash 2 {entry}", 1)


@every_length
@pytest.mark.parametrize("causal", [False, True])
def test_flash_3_equals_its_host_code(causal: bool, lengths: Sequence[int], cases: Count) -> None:
    for rows, keys, left, right in product(lengths, lengths, SIDES, SIDES):
        call = FlashArguments("fa3", "dense", WindowArguments(left, right, causal))
        want = flash_oracle.flash3(rows, keys, left, right, causal)
        assert np.array_equal(pairs_of(call, rows, keys), want), (rows, keys, left, right)
        cases("meaning, flash 3", 1)


def test_flash_3_compares_with_the_capacity_of_its_cache(cases: Count) -> None:
    """Which changes no mask: a side that reaches the capacity reaches every key."""
    sides, more = (-1, 0, 1, 3, 6, 9, 12), (0, 1, 4)
    shapes = product((1, 2, 3, 5, 9), repeat=2)
    for (rows, keys), left, right, extra, causal in product(
        shapes, sides, sides, more, (False, True)
    ):
        window_arguments = WindowArguments(left, right, causal, max_keys=keys + extra, used=keys)
        found = FlashArguments("fa3", "kvcache", window_arguments).allowed((rows,), (keys + extra,))
        assert not found[:, keys:].any()
        want = flash_oracle.flash3(rows, keys, left, right, causal, keys + extra)
        assert np.array_equal(found[:, :keys], want), (window_arguments, rows)
        assert np.array_equal(want, flash_oracle.flash3(rows, keys, left, right, causal))
        cases("meaning, flash 3 kvcache", 1)


@pytest.mark.parametrize("provider", ["fa2", "fa3"])
def test_only_the_filled_part_of_a_cache_is_used(provider: str) -> None:
    """4 queries on the last of 6 keys, in a cache of 9."""
    call = flash_arguments(provider, Band(0, 2), 4, 6, capacity=9)
    assert call.describe() == "kvcache window_size=(2, 0), cache_seqlens=6 of 9"
    want = np.zeros((4, 9), dtype=bool)
    want[:, :6] = matrix(Band(0, 2), 4, 6)
    assert np.array_equal(call.allowed((4,), (9,)), want)
    assert call.key_runs(0, 4, 9)[1][:, 1].tolist() == want.sum(1).tolist()
    first, end = call.key_blocks((2, 2), 4, 9)
    assert (first.tolist(), end.tolist()) == ([0, 1], [2, 3])


@every_length
@pytest.mark.parametrize("causal", [False, True])
def test_flash_4_equals_its_host_code(causal: bool, lengths: Sequence[int], cases: Count) -> None:
    sides = (None, *SIDES, -7)
    for rows, keys, left, right in product(lengths, lengths, sides, sides):
        call = FlashArguments("fa4", "dense", WindowArguments(left, right, causal))
        want = flash_oracle.flash4(rows, keys, left, right, causal)
        assert np.array_equal(pairs_of(call, rows, keys), want), (rows, keys, left, right)
        cases("meaning, flash 4", 1)


TABLE = {
    (-1, -1): ("4444", "4444", "4444"),
    (-1, 0): ("1234", "1234", "4444"),
    (-1, 2): ("3444", "3444", "2210"),
    (0, -1): ("4321", "4321", "4444"),
    (2, -1): ("4443", "4443", "0122"),
    (3, -2): ("4444", "4444", "0012"),
}


@pytest.mark.parametrize("window", TABLE)
def test_same_window_size_differs_between_flash_versions(window: tuple[int, int]) -> None:
    """Keys per row of a 4 x 4 problem, literally."""
    for provider, want in zip(("fa2", "fa3", "fa4"), TABLE[window], strict=True):
        counts = (
            FlashArguments(provider, "dense", WindowArguments(*window)).allowed((4,), (4,)).sum(1)
        )
        assert "".join(map(str, counts)) == want, provider


def test_a_window_stays_on_its_axis() -> None:
    call = FlashArguments("fa2", "dense", WindowArguments(-1, 0), axis=1)
    assert call.key_runs(0, 1, 3)[1].tolist() == [[0, 3]]
    assert call.key_runs(1, 3, 3)[1].tolist() == [[0, 1], [0, 2], [0, 3]]


def test_one_call_computes_every_trimmed_band(cases: Count) -> None:
    sides = (None, *range(13))
    for (rows, keys), left, right in product(product(range(1, 9), repeat=2), sides, sides):
        found = trim(Band(left, right), rows, keys)
        if found is None:
            continue
        want = matrix(found.band, found.rows, found.keys)
        for provider in ("aten", "fa3", "fa4"):
            call = flash_arguments(
                provider, found.band, found.rows, found.keys, varlen=provider == "aten"
            )
            assert np.array_equal(call.allowed((found.rows,), (found.keys,)), want)
            cases("meaning, one call after trimming", 1)


# Tiles


def configurations() -> Iterator[tuple[FlashArguments, int, int]]:
    lengths, sides = (1, 2, 3, 5, 8, 11), (0, 1, 3, 7, 12)
    for rows, keys, left, right in product(lengths, lengths, (-1, *sides), (-1, *sides)):
        yield FlashArguments("fa2", "dense", WindowArguments(left, right)), rows, keys
        yield FlashArguments("fa3", "dense", WindowArguments(left, right)), rows, keys
    wild = (None, -5, -2, 0, 3, 7)
    for rows, keys, left, right in product(lengths, lengths, wild, wild):
        yield FlashArguments("fa4", "dense", WindowArguments(left, right)), rows, keys


@pytest.mark.parametrize("tile_", [(1, 1), (2, 2), (4, 2), (2, 4), (3, 5)])
def test_the_blocks_a_kernel_visits_hold_every_pair(tile_: tuple[int, int], cases: Count) -> None:
    for call, rows, keys in configurations():
        allowed = call.allowed((rows,), (keys,))
        first, end = call.key_blocks(tile_, rows, keys)
        for m, row in enumerate(range(0, rows, tile_[0])):
            held = np.flatnonzero(allowed[row : row + tile_[0]].any(0)) // tile_[1]
            assert first[m] >= 0
            if held.size:
                assert (first[m], end[m]) <= (held.min(), -(-keys // tile_[1]))
                assert end[m] > held.max()
                assert first[m] <= held.min()
            assert end[m] - first[m] >= call.dialect.every_tile
        cases("tiles, blocks of keys", len(first))


@pytest.mark.parametrize("tile_", [(1, 1), (2, 2), (4, 2), (2, 4), (3, 5)])
def test_the_blocks_a_backward_visits_hold_every_pair(tile_: tuple[int, int], cases: Count) -> None:
    for call, rows, keys in configurations():
        allowed = call.allowed((rows,), (keys,))
        first, end = call.query_blocks(tile_, rows, keys)
        assert len(first) == -(-keys // tile_[1])
        for n, column in enumerate(range(0, keys, tile_[1])):
            held = np.flatnonzero(allowed[:, column : column + tile_[1]].any(1)) // tile_[0]
            assert 0 <= first[n] <= end[n]
            assert end[n] <= max(-(-rows // tile_[0]), first[n])
            if held.size:
                assert first[n] <= held.min()
                assert end[n] > held.max()
        cases("tiles, blocks of queries", len(first))


def test_the_blocks_of_a_backward_are_those_of_its_loop(cases: Count) -> None:
    """Every trimmed band, as arguments of each provider, in two tile shapes."""
    sides = (None, *range(9))
    for (rows, keys), left, right in product(product(range(1, 8), repeat=2), sides, sides):
        found = trim(Band(left, right), rows, keys)
        if found is None:
            continue
        shift = found.keys - found.rows
        window = (
            None if found.band.left is None else found.band.left + shift,
            None if found.band.right is None else found.band.right - shift,
        )
        for provider, tile_ in product(("aten", "fa4"), ((2, 3), (3, 2))):
            call = flash_arguments(
                provider, found.band, found.rows, found.keys, varlen=provider == "aten"
            )
            first, end = call.query_blocks(tile_, found.rows, found.keys)
            want = flash_oracle.query_blocks(found.rows, found.keys, *window, tile_)
            assert [list(range(a, b)) for a, b in zip(first, end, strict=True)] == want
            cases("tiles, loops of the backward", 1)


BACKWARD = {
    ("aten", "sm_80", 64): (128, 128),
    ("aten", "sm_90", 96): (64, 128),
    ("aten", "sm_90", 192): (64, 64),
    ("fa2", "sm_86", 32): (128, 128),
    ("fa2", "sm_89", 128): (64, 64),
    ("fa2", "sm_120", 256): (64, 32),
    ("fa3", "sm_80", 192): (64, 80),
    ("fa3", "sm_86", 128): (64, 96),
    ("fa3", "sm_90", 128): (64, 128),
    ("fa3", "sm_90", 256): (64, 80),
    ("fa4", "sm_90", 256): (64, 64),
    ("fa4", "sm_100", 128): (128, 128),
    ("fa4", "sm_120", 64): (64, 64),
}


@pytest.mark.parametrize(("provider", "on", "size"), BACKWARD)
def test_the_tiles_of_a_backward(provider: str, on: str, size: int) -> None:
    want = BACKWARD[provider, on, size]
    assert tile(provider, device.named(on), size, backward=True) == want


def test_the_blocks_of_the_seeds_own_example() -> None:
    """7,688 queries, 2,048 keys, causal from the top-left corner, tiles of 128 x 64."""
    call = flash_arguments("aten", Band(None, 0), 7688, 2048, varlen=True)
    assert call.describe() == "varlen window_size=(-1, 5640), max_seqlen_k=7688"
    first, end = call.key_blocks(tile("aten", device.named("sm_90"), 128), 7688, 2048)
    assert len(first) == 61
    assert not first.any()
    assert end[:17].tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 32]
    assert set(end[16:].tolist()) == {32}
    first, end = call.query_blocks(
        tile("aten", device.named("sm_90"), 128, backward=True), 7688, 2048
    )
    assert first.tolist() == [2 * n for n in range(16)]  # 128 keys in 64 queries
    assert set(end.tolist()) == {121}
    dense = flash_arguments("aten", Band(None, 0), 7688, 2048)
    assert dense.band(7688, 2048) == Band()  # 5640 >= 2048: unlimited, so every key is read

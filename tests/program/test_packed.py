"""Tests of the sizes that stand for many in costs."""

from __future__ import annotations

from typing import Any

import pytest

from nbattn.grids import PackedGrids, grids_of
from nbattn.program.packed import BUCKETS, buckets


def packed(sizes: Any, keys: Any = None) -> PackedGrids:
    grids = grids_of(sizes)
    return PackedGrids(grids, grids if keys is None else grids_of(keys))


def test_few_sizes_stand_for_themselves() -> None:
    found = buckets(packed([(4, 4), (0, 3), (2, 5), (4, 4)]))
    assert [tuple(one) for one in found] == [(0, 2, 1, 1.0), (2, 1, 1, 1.0)]


def test_many_sizes_share_buckets_with_all_grids_and_tokens() -> None:
    sizes = packed([(1 + n % 97, 1 + n % 89) for n in range(5000)])
    found = buckets(sizes)
    assert len(found) <= BUCKETS
    assert sum(one.grids for one in found) == 5000
    assert sum(one.sizes for one in found) == len(sizes.sizes.first)
    tokens = sum(one.grids * one.scale * sizes.sizes.query[one.number].prod() for one in found)
    assert tokens == pytest.approx(sizes.query.tokens, rel=1e-9)


def test_grids_without_keys_are_apart() -> None:
    lengths = [*range(1, 9)]
    found = buckets(packed(lengths, [0, 0, *lengths[2:]]))
    assert (found[0].number, found[0].grids) == (0, 2)
    assert len(found) <= BUCKETS + 1


def test_one_length_of_many_masks() -> None:
    assert len(buckets(packed([(2, 6), (3, 4), (6, 2), (4, 3), (1, 12)]))) == 1

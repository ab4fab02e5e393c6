"""Tests of the sizes of packed grids: conversions, sizes that differ, checks against masks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from work import lines

from nbattn import Axis, Grids, InputError, Mask, MaskError, grids_from
from nbattn.grids import PackedGrids, check, grids_of

SIZES = [(14, 14), (20, 33), (0, 5), (14, 14)]


def packed(sizes: Any, keys: Any = None) -> PackedGrids:
    grids = grids_of(sizes)
    return PackedGrids(grids, grids if keys is None else grids_of(keys))


@pytest.mark.parametrize(
    "given",
    [
        SIZES,
        tuple(map(list, SIZES)),
        np.array(SIZES, dtype=np.int32),
        torch.tensor(SIZES),
        grids_of(SIZES),
    ],
    ids=["tuples", "lists", "array", "tensor", "grids"],
)
def test_sizes_of_every_kind(given: Any) -> None:
    grids = grids_of(given, 2)
    assert grids.array.dtype == np.int64
    assert (grids.array == np.array(SIZES)).all()
    assert (len(grids), grids.rank, grids.tokens) == (4, 2, 14 * 14 * 2 + 20 * 33)
    assert grids.starts.tolist() == [0, 196, 856, 856, 1052]


def test_one_axis_takes_plain_lengths() -> None:
    assert grids_of([513, 87], 1) == grids_of([(513,), (87,)], 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_grids_at_all(rank: int) -> None:
    grids = grids_of([], rank)
    assert (len(grids), grids.rank, grids.tokens) == (0, rank, 0)
    assert grids.starts.tolist() == [0]


def test_equal_grids_are_one_key_of_a_dict() -> None:
    one, other = grids_of(SIZES), grids_of(np.array(SIZES))
    assert one == other
    assert hash(one) == hash(other)
    assert one != grids_of(SIZES[:3])
    assert grids_of([(2, 3)]) != grids_of([(3, 2)])
    assert grids_of([2, 3]) != grids_of([(2, 3)])
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    both = packed(SIZES, SIZES)
    assert both.is_self
    assert both == packed(SIZES)
    assert hash(both) == hash(packed(SIZES))
    assert both != packed(SIZES, SIZES[::-1])


def test_grids_cannot_change() -> None:
    grids = grids_of(SIZES)
    with pytest.raises(ValueError, match="read-only"):
        grids.array[0, 0] = 3


def test_repr_of_few_and_many() -> None:
    assert repr(grids_of(SIZES)) == "Grids(14x14, 20x33, 0x5, 14x14)"
    assert repr(grids_of([(2,)] * 9)) == "Grids(2, 2, 2, 2, … 9 grids)"


def test_sizes_that_differ_in_the_order_of_their_first_grids() -> None:
    sizes = packed(SIZES, [(14, 14), (20, 33), (1, 1), (7, 7)]).sizes
    assert sizes.query.tolist() == [[14, 14], [20, 33], [0, 5], [14, 14]]
    assert sizes.key.tolist() == [[14, 14], [20, 33], [1, 1], [7, 7]]
    assert packed([(2, 3), (3, 2), (1, 4)]).sizes.which.tolist() == [0, 1, 2]
    some, which = grids_of(SIZES).distinct()
    assert some.tolist() == [[14, 14], [20, 33], [0, 5]]
    assert which.tolist() == [0, 1, 2, 0]
    sizes = packed(SIZES).sizes
    assert sizes.first.tolist() == [0, 1, 2]
    assert sizes.count.tolist() == [2, 1, 1]


def test_lengths_whose_product_is_beyond_64_bits() -> None:
    far = 2**31 - 1
    sizes = packed([(0, far, far), (0, 1, 2), (0, far, far)]).sizes
    assert sizes.which.tolist() == [0, 1, 0]
    sizes = packed([(1, 1, 3), (1, 2, 3), (1, 1, 3)], [(0, far, far)] * 3).sizes
    assert sizes.which.tolist() == [0, 1, 0]


def test_ten_thousand_grids_take_no_loop() -> None:
    few = [(1 + n % 8, 7) for n in range(10_000)]
    mask = Mask.neighborhood((7, 7))

    def run() -> None:
        check(mask, packed(few), table=True)

    assert lines(run) < 2000


@pytest.mark.parametrize(
    ("given", "rank", "text"),
    [
        ([(14, 14, 2)], 2, "grids has shape [1, 3], not [G, 2]: one length per axis of the mask"),
        ((14, 14), 2, "grids has shape [2], not [G, 2]"),
        ([(14, 14), (20,)], 2, "grids: every grid has one whole number per axis."),
        ([(14.5, 14.0)], 2, "grids: every grid has one whole number per axis."),
        ([(3, -1), (2, 2)], 2, "grids: grid 0 has lengths (3, -1)."),
        ([(2**15, 2**15)] * 2, 2, "grids have more than 2147483647 tokens."),
        ([(2**20, 2**20)], 2, "grids have more than 2147483647 tokens."),
        ("14x14", 2, "grids is a str, not a list of sizes."),
        (7, 1, "grids is an int, not a list of sizes."),
        (grids_of([(2, 2)]), 1, "grids has shape [1, 2], not [G, 1]"),
    ],
)
def test_what_is_no_sizes(given: Any, rank: int, text: str) -> None:
    with pytest.raises(InputError) as raised:
        grids_of(given, rank)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("size", "fix"), [(14.0, "grids=torch.as_tensor(grids).long()."), (14.5, "")]
)
def test_no_size_is_rounded(size: float, fix: str) -> None:
    with pytest.raises(InputError) as raised:
        grids_of([(size, 14.0)], 2)
    assert raised.value.fix == fix


@pytest.mark.parametrize("kind", [list, np.array, lambda ends: torch.tensor(ends).int()])
def test_boundaries_of_documents(kind: Any) -> None:
    assert grids_from(kind([0, 5, 5, 9])) == grids_of([5, 0, 4], 1)
    assert len(grids_from(kind([0]))) == 0


@pytest.mark.parametrize("ends", [[], [1, 2], [0, 5, 3], [[0, 5]]])
def test_what_is_no_boundaries(ends: Any) -> None:
    with pytest.raises(InputError, match="are not boundaries"):
        grids_from(ends)


PLAIN, WRAP = Mask.sliding_window(2, 1), Mask(Axis(1, 1, border="wrap", dilation=2))
SHIFT = Mask(Axis(1, 1, border="shift", align="top-left"))
STRIDED = Mask(Axis(1, 1, stride=2, align="top-left"))


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "table", "text"),
    [
        (PLAIN, [4, 5, 6], [4, 6, 7], False, "grid 1: axis 0 (5 queries, 6 keys): the lengths dif"),
        (WRAP, [4, 6, 5], None, False, 'grid 2: axis 0 (5 queries, 5 keys): border="wrap" needs'),
        (WRAP, [4, 4], [4, 6], False, 'grid 1: axis 0 (4 queries, 6 keys): border="wrap" needs'),
        (WRAP, [6, 4], None, True, "grid 1: relative_bias: axis 0 has a circle of 2 keys"),
        (SHIFT, [4, 6], [4, 5], True, "grid 1: relative_bias: axis 0 moves windows"),
        (STRIDED, [4, 6], [4, 5], True, "grid 1: relative_bias: axis 0 moves windows"),
        (Mask.causal(), [4, 6], None, True, "grid 0: relative_bias: axis 0 has an unlimited side"),
    ],
)
def test_the_first_grid_that_breaks_a_rule(
    mask: Mask, queries: list[int], keys: list[int] | None, table: bool, text: str
) -> None:
    with pytest.raises(MaskError) as raised:
        check(mask, packed(queries, keys), table=table)
    assert text in str(raised.value)


def test_the_second_axis_breaks_a_rule_first() -> None:
    mask = Mask(Axis(1, 1), Axis(1, 1))
    with pytest.raises(MaskError, match=r"grid 1: axis 1 \(3 queries, 4 keys\)"):
        check(mask, packed([(2, 2), (5, 3), (4, 2)], [(2, 2), (5, 4), (5, 2)]))


def test_slopes_need_one_axis() -> None:
    with pytest.raises(MaskError, match="alibi_slopes: the mask has 2 axes"):
        check(Mask.neighborhood((3, 3)), packed([(4, 4)]), slopes=True)


def test_grids_are_public() -> None:
    assert isinstance(grids_of(SIZES), Grids)


def test_an_array_is_copied() -> None:
    sizes = np.array([[4, 5], [3, 3]])
    grids = grids_of(sizes)
    sizes[0] = 7
    assert grids.array.tolist() == [[4, 5], [3, 3]]


@pytest.mark.parametrize("sizes", [[(4, 5)], torch.tensor([[4, 5]]), np.array([[4, 5]])])
def test_the_class_takes_what_calls_take(sizes: Any) -> None:
    assert Grids(sizes) == grids_of([(4, 5)])


@pytest.mark.parametrize("sizes", [[(-1, 2)], [(1, 2), (3,)], "4x5", [(1.5, 2.0)]])
def test_the_class_refuses_what_calls_refuse(sizes: Any) -> None:
    with pytest.raises(InputError, match=r"^grids"):
        Grids(sizes)

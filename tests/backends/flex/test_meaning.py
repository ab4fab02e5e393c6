"""Tests of masks as FlexAttention's block masks, against the enumerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import few_examples
import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask

import nbattn
from nbattn import Axis, Mask, MaskError
from nbattn.backends.flex import meaning as flex
from nbattn.geometry import bind

Count = Callable[[str, int], None]


def function_matrix(blocks: BlockMask) -> np.ndarray[Any, Any]:
    """What torch makes of the mask function."""
    queries, keys = blocks.seq_lengths
    return create_mask(blocks.mask_mod, None, None, queries, keys, device="cpu")[0, 0].numpy()


def listed(counts: torch.Tensor | None, order: torch.Tensor | None) -> set[tuple[int, int]]:
    """The blocks that a pair of BlockMask's tensors lists, each once."""
    assert counts is not None
    assert order is not None
    found: list[tuple[int, int]] = []
    for row, (count, columns) in enumerate(zip(counts[0, 0], order[0, 0], strict=True)):
        assert sorted(columns.tolist()) == list(range(len(columns)))
        found += [(row, int(column)) for column in columns[: int(count)]]
    assert len(set(found)) == len(found)
    return set(found)


def check(mask: Mask, queries: Any, keys: Any, sizes: tuple[int, int]) -> None:
    """Function and blocks of a mask are those of the enumerator."""
    wanted = oracle.matrix(mask.axes, queries, keys)
    blocks = mask.to_flex(queries, keys, block=sizes)
    assert np.array_equal(function_matrix(blocks), wanted)
    counts = oracle.tile_counts(wanted, *sizes)
    full = {tuple(place) for place in np.argwhere(counts == sizes[0] * sizes[1]).tolist()}
    some = {tuple(place) for place in np.argwhere(counts > 0).tolist()}
    assert listed(blocks.full_kv_num_blocks, blocks.full_kv_indices) == full
    assert listed(blocks.kv_num_blocks, blocks.kv_indices) == some - full
    turned = {(row, column) for column, row in some - full}
    assert listed(blocks.q_num_blocks, blocks.q_indices) == turned  # what its backward visits
    lines = bind(mask, queries, keys)
    assert np.array_equal(flex.FlexArguments(lines, *sizes).counts(), counts)
    assert np.array_equal(flex.FlexArguments(lines, *sizes).allowed(queries, keys), wanted)


@few_examples.quick(100)
@given(oracle.masks(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_any_mask_has_the_function_and_the_blocks_of_the_enumerator(
    cases: Count, bound: Any, sizes: tuple[int, int]
) -> None:
    mask, queries, keys = bound
    assume(np.prod(queries) and np.prod(keys))
    check(mask, queries, keys, sizes)
    cases("flex", 1)


NAMED = [
    (Mask(Axis(5, 4, dilation=3, border="shift")), (50,), (50,), (8, 4)),
    (Mask(Axis(3, 3), Axis(2, 2, border="wrap")), (7, 9), (7, 9), (4, 8)),
    (Mask(Axis(2, 1, causal=False, border="wrap", dilation=2)), (24,), (24,), (16, 4)),
    (Mask(Axis(4, causal=True, prefix=3, align="bottom-right")), (20,), (33,), (8, 8)),
    (Mask.full(2), (8, 4), (4, 8), (8, 16)),  # every block full
    (Mask(Axis(0, causal=True, stride=4)), (21,), (21,), (4, 4)),  # rows without keys
    (Mask(Axis(1, 1, offset=40)), (9,), (9,), (4, 4)),  # no block at all
    (Mask.neighborhood((3, 2, 3), dilation=(1, 2, 1)), (4, 5, 6), (4, 5, 6), (16, 8)),
]


@pytest.mark.parametrize(("mask", "queries", "keys", "sizes"), NAMED)
def test_named_masks(mask: Mask, queries: Any, keys: Any, sizes: tuple[int, int]) -> None:
    check(mask, queries, keys, sizes)


def test_a_dilation_with_a_remainder_where_nattens_block_mask_is_wrong() -> None:
    """L 1021, K 191, d 2, blocks of 128: the classes are 511 and 510 long."""
    blocks = Mask.neighborhood(191, dilation=2).to_flex(1021)
    wanted = oracle.natten_axis(1021, 191, 1, 2, False)
    assert np.array_equal(function_matrix(blocks), wanted)
    counts = np.add.reduceat(np.add.reduceat(wanted.astype(int), range(0, 1021, 128), 0),
                             range(0, 1021, 128), 1)  # fmt: skip
    some = {tuple(place) for place in np.argwhere(counts > 0).tolist()}
    assert listed(blocks.kv_num_blocks, blocks.kv_indices) == some
    assert not listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)


def test_blocks_of_a_long_axis_need_no_dense_matrix() -> None:
    """A million tokens: all pairs would take a TiB."""
    blocks = Mask.sliding_window(255).to_flex(1 << 20, block=4096)
    assert blocks.kv_num_blocks[0, 0].tolist() == [1] + [2] * 255


def test_a_space_without_keys_is_refused() -> None:
    with pytest.raises(MaskError) as error:
        Mask.full().to_flex(4, 0)
    assert str(error.value) == (
        "a BlockMask of [4] queries and [0] keys has no blocks.\n"
        "  given: Mask(Axis())\n"
        "  fix:   nbattn.attention(query, key, value, mask), which supports empty axes"
    )


def test_a_block_without_tokens_is_refused() -> None:
    with pytest.raises(MaskError, match="block=0"):
        Mask.full().to_flex(4, block=0)


@pytest.mark.parametrize(("mask", "queries", "keys", "sizes"), NAMED[:5])
def test_flex_plans_are_proved(mask: Mask, queries: Any, keys: Any, sizes: Any) -> None:
    """With blocks of 128, several of which these spaces, made larger, have."""
    scale = 6 if mask.rank == 1 else 2
    queries, keys = ([scale * n for n in space] for space in (queries, keys))
    shapes = (1, *queries, 2, 16), (1, *keys, 2, 16)
    plan = nbattn.plan(mask, *shapes, dtype="float32", device="cpu", backend="flex")
    assert plan.verify()
    assert np.array_equal(plan.support(), oracle.matrix(mask.axes, queries, keys))
    assert "blocks of 128x128" in plan.explain()

"""Tests of the converters against other libraries' own masks, computed on a CPU.

Each test runs where its library is installed and is skipped with the reason elsewhere. `make
oracles` installs all of them, in the versions of the extra `oracles`, beside the environment of
development, and runs these tests. The package itself needs none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from native_library import NAMES
from outside_libraries import file_of, flash_attn_4, library

import nbattn
from nbattn import Mask
from nbattn.backends.flash.meaning import WindowArguments, flash4

Count = Callable[[str, int], None]
LENGTHS = (1, 2, 3, 5, 8)
SHAPES = tuple(product(LENGTHS, repeat=2))
SIDES = (None, 0, 1, 2, 4, 9)


def same(mask: Mask, queries: int, keys: int, want: torch.Tensor, offset: int = 0) -> None:
    found = mask.dense(queries, keys)
    assert np.array_equal(found, want.numpy()), (mask, queries, keys, offset)


# torch


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("causal_upper_left", Mask.causal("top-left")),
        ("causal_lower_right", Mask.causal("bottom-right")),
    ],
)
def test_the_causal_biases_of_torch(name: str, mask: Mask, cases: Count) -> None:
    bias = getattr(library("torch.nn.attention.bias"), name)
    for queries, keys in product(range(1, 13), repeat=2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of rows without keys, which are meant here
            same(mask, queries, keys, bias(queries, keys)._materialize())
        cases("outside, torch biases", 1)


# transformers: what its layers are handed, with the offset of a cache


@pytest.mark.parametrize("window", [None, 1, 2, 4, 9])
@pytest.mark.parametrize("causal", [True, False])
def test_the_masks_of_transformers(window: int | None, causal: bool, cases: Count) -> None:
    masks = library("transformers.masking_utils")
    way = "causal" if causal else "bidirectional"
    function = (
        getattr(masks, f"{way}_mask_function")
        if window is None
        else getattr(masks, f"sliding_window_{way}_mask_function")(window)
    )
    for (queries, keys), offset in product(SHAPES, (0, 1, 3)):
        # its own expansion over rows and keys, no shortcut to None
        made = masks.sdpa_mask(
            batch_size=1, q_length=queries, kv_length=keys, q_offset=offset,
            mask_function=function, allow_is_causal_skip=False, allow_is_bidirectional_skip=False,
        )  # fmt: skip
        mask = Mask.from_transformers(window, causal, offset)
        same(mask, queries, keys, made[0, 0], offset)
        if offset == keys - queries:
            same(Mask.from_transformers(window, causal), queries, keys, made[0, 0])
        cases("outside, transformers", 1)


# xformers: the biases as it materialises them


XFORMERS: dict[str, tuple[str, tuple[int, ...], Mask]] = {
    "causal": ("LowerTriangularMask", (), Mask.causal("top-left")),
    "causal, bottom-right": (
        "LowerTriangularFromBottomRightMask",
        (),
        Mask.causal("bottom-right"),
    ),
    "local causal": (
        "LowerTriangularFromBottomRightLocalAttentionMask",
        (3,),
        Mask.from_transformers(3),
    ),
    "local": ("LocalAttentionFromBottomRightMask", (2, 1), Mask.from_flash((2, 1))),
    "local, left": ("LocalAttentionFromBottomRightMask", (4, 0), Mask.from_flash((4, 0))),
}


@pytest.mark.parametrize("label", XFORMERS)
def test_the_biases_of_xformers(label: str, cases: Count) -> None:
    name, arguments, mask = XFORMERS[label]
    bias = getattr(file_of("xformers", "xformers/ops/fmha/attn_bias.py"), name)(*arguments)
    for queries, keys in SHAPES:
        same(mask, queries, keys, bias.materialize((queries, keys)) == 0)
        cases("outside, xformers", 1)


BLOCKS: dict[str, tuple[str, tuple[int, ...], Mask]] = {
    "all": ("", (), Mask.full()),
    "causal": ("make_causal", (), Mask.causal("top-left")),
    "causal, bottom-right": (
        "make_causal_from_bottomright",
        (),
        Mask.causal("bottom-right"),
    ),
    "local": ("make_local_attention", (3,), Mask.from_transformers(3, offset=0)),
    "local, bottom-right": (
        "make_local_attention_from_bottomright",
        (3,),
        Mask.from_transformers(3),
    ),
}


@pytest.mark.parametrize("label", BLOCKS)
def test_the_block_diagonal_biases_of_xformers(label: str, cases: Count) -> None:
    """Packed sequences, which are grids of one axis."""
    made, arguments, mask = BLOCKS[label]
    biases = file_of("xformers", "xformers/ops/fmha/attn_bias.py")
    for queries, keys in (([3, 5, 2], [3, 5, 2]), ([3, 1, 4], [6, 5, 4])):
        bias = biases.BlockDiagonalMask.from_seqlens(queries, keys)
        if made:
            bias = getattr(bias, made)(*arguments)
        plan = nbattn.plan(
            mask, (sum(queries), 1, 8), (sum(keys), 1, 8), dtype="float32", device="cpu",
            grids=queries, key_grids=keys,
        )  # fmt: skip
        want = bias.materialize((sum(queries), sum(keys))) == 0
        assert np.array_equal(plan.support(), want.numpy()), (queries, keys)
        cases("outside, xformers", 1)


# flash-attn 4: its reference in plain torch, a file that needs none of the package's GPU tools


def test_the_local_mask_of_flash_attn_4(cases: Count) -> None:
    masked = flash_attn_4().construct_local_mask
    for (queries, keys), left, right in product(SHAPES, SIDES, SIDES):
        if left is None and right is None:
            continue
        want = ~masked(queries, keys, (left, right))
        same(Mask.from_flash((left, right)), queries, keys, want)
        lo, hi = flash4(WindowArguments(left, right), queries, keys).rows(np.arange(queries), keys)
        column = np.arange(keys)
        expected = (column >= lo[:, None]) & (column < hi[:, None])
        assert np.array_equal(expected, want.numpy()), (queries, keys, left, right)
        cases("outside, flash-attn 4", 1)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_of_flash_attn_4(causal: bool, cases: Count) -> None:
    reference = flash_attn_4().attention_ref
    generator = torch.Generator().manual_seed(0)
    for (queries, keys), left, right in product(SHAPES, (None, 0, 2), (None, 0, 3)):
        made = [
            torch.randn(2, length, heads, 8, dtype=torch.float64, generator=generator)
            for length, heads in ((queries, 4), (keys, 2), (keys, 2))
        ]
        want, _ = reference(
            *made, causal=causal, window_size=(left, right), softcap=2.0, upcast=False
        )
        mask = Mask.from_flash((left, right), causal)
        for backend in ("flash-model:fa4", "tiled", *NAMES):
            found = nbattn.attention(*made, mask, softcap=2.0, backend=backend)
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
            cases("outside, flash-attn 4 values", 1)


def test_sinks_of_flash_attn_4() -> None:
    query, key, value = torch.randn(3, 2, 9, 4, 8)
    sink = torch.randn(4)
    want = flash_attn_4().attention_ref(query, key, value, causal=True, learnable_sink=sink)[0]
    found = nbattn.attention(query, key, value, Mask.causal(), sink=sink, backend="tiled")
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(("length", "chunk"), [(12, 4), (7, 7), (9, 12)])
def test_chunks_of_flash_attn_3(length: int, chunk: int) -> None:
    """As the tests of flash-attn 4 define them; a stride says the same where it divides."""
    chunks = ~flash_attn_4().construct_chunk_mask(length, length, chunk)
    mask = Mask(nbattn.Axis(chunk - 1, causal=True, stride=chunk))
    same(mask, length, length, chunks.tril())

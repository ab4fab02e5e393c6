"""Tests of ranges of keys: what attention takes, and what padding gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nbattn
from nbattn import InputError, Mask
from nbattn.key_ranges import key_range_from, standard


@pytest.mark.parametrize("space", [(5,), (3, 4), (2, 3, 4)])
def test_box_of_real_tokens_is_found(space: tuple[int, ...]) -> None:
    torch.manual_seed(len(space))
    for _ in range(50):
        ends = [sorted(torch.randint(0, size + 1, (2,)).tolist()) for size in space]
        padding = torch.zeros(1, *space, dtype=torch.bool)
        padding[(0, *(slice(*end) for end in ends))] = True
        expected = ends if padding.any() else [[0, 0]] * len(space)
        ranges = key_range_from(padding)
        assert ranges.dtype == torch.int32
        assert ranges.tolist() == [expected]


def test_axis_of_length_0_and_batch_of_0() -> None:
    assert key_range_from(torch.ones(2, 0, dtype=torch.bool)).tolist() == [[[0, 0]], [[0, 0]]]
    assert key_range_from(torch.ones(0, 3, 4, dtype=torch.bool)).shape == (0, 2, 2)


@pytest.mark.parametrize("hole", [(0, 1, 1), (1, 0, 0), (1, 2, 3)])
def test_hole_inside_or_at_a_corner_is_no_box(hole: tuple[int, int, int]) -> None:
    padding = torch.ones(2, 3, 4, dtype=torch.bool)
    padding[hole] = False
    with pytest.raises(InputError, match=f"sample {hole[0]} has 11 real tokens") as error:
        key_range_from(padding)
    assert "[0:3, 0:4]" in str(error.value)


def test_every_form_means_the_same() -> None:
    query = torch.randn(2, 9, 2, 8)
    plain = torch.tensor([[[1, 7]], [[0, 9]]], dtype=torch.int32)
    forms = [plain.tolist(), plain[:, 0].tolist(), plain.long(), plain[:, 0], plain[:, 0].short()]
    mask = Mask.sliding_window(2, 2)
    expected = nbattn.attention(query, query, query, mask, key_range=plain)
    for form in (*forms, ((((1, 7),)), ((0, 9),))):
        out = nbattn.attention(query, query, query, mask, key_range=form)
        assert torch.equal(out, expected)
    plan = nbattn.plan(mask, query.shape, dtype=query.dtype, device="cpu", key_range=True)
    assert torch.equal(plan.run(query, query, query, key_range=forms[1]), expected)


def test_pairs_for_two_axes_are_not_taken_for_one() -> None:
    query = torch.randn(2, 3, 3, 2, 8)
    with pytest.raises(InputError, match=r"not \[2, 2, 2\]"):
        nbattn.attention(query, query, query, Mask.full(rank=2), key_range=[[0, 3], [0, 2]])


def test_standard_form_is_not_copied() -> None:
    plain = torch.zeros(2, 1, 2, dtype=torch.int32)
    assert standard(plain, torch.zeros(2, 3, 1, 8)) is plain


def test_ranges_from_padding_in_a_compiled_graph() -> None:
    def padded(query: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        ranges = key_range_from(padding)
        return nbattn.attention(query, query, query, Mask.full(), key_range=ranges)

    query, padding = torch.randn(2, 6, 2, 8), torch.arange(6) < torch.tensor([[4], [6]])
    compiled = torch.compile(padded, fullgraph=True, backend="eager")
    assert torch.equal(compiled(query, padding), padded(query, padding))
    rows = [query[0, :4], query[1]]
    for row, out in zip(rows, padded(query, padding), strict=True):
        full = torch.nn.functional.scaled_dot_product_attention(
            query[:1].transpose(1, 2) if len(row) == 4 else query[1:].transpose(1, 2),
            row[None].transpose(1, 2),
            row[None].transpose(1, 2),
        )
        assert torch.allclose(out, full.transpose(1, 2)[0], atol=1e-5)


@pytest.mark.parametrize("query", [[1.0], None, np.zeros((1, 4, 2, 8))])
def test_a_query_that_is_no_tensor_is_answered_before_its_ranges(query: Any) -> None:
    key = torch.zeros(1, 4, 2, 8)
    given: dict[str, Any] = {
        "key_range": [[0, 2]],
        "extra_key": key,
        "extra_value": key,
        "extra_range": [[0, 2]],
    }
    with pytest.raises(InputError, match=r"^(query is|attention\(\) needs query)"):
        nbattn.attention(query, key, key, Mask.causal(), **given)


@pytest.mark.parametrize(("batch", "is_one"), [(2, True), (3, False)])
def test_one_range_of_all_is_two_numbers(batch: int, is_one: bool) -> None:
    tokens, extra = torch.zeros(batch, 4, 1, 8), torch.zeros(batch, 5, 1, 8)
    given = {"extra_key": extra, "extra_value": extra, "extra_range": torch.ones(batch).int()}
    with pytest.raises(InputError) as raised:
        nbattn.attention(tokens, tokens, tokens, Mask.causal(), **given)
    assert ("for one range of both" in raised.value.fix) == is_one

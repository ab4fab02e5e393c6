"""Tests of NATTEN's older functions: tables of biases, orders of arguments, nested tensors."""

from __future__ import annotations

from typing import Any

import neighborhood_gather_oracle as gather
import pytest
import torch
from torch import Tensor

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import fused, legacy


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_the_older_function_adds_a_bias_table() -> None:
    query, key, value = (random(2, 7, 9, 3, 4, seed=n) for n in range(3))
    rpb, extra = random(3, 5, 5, seed=3), random(2, 2, 3, 4, seed=4)
    found = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=rpb, scale=0.3, additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    first = [t.movedim(-2, 1) for t in (query * 0.3, key, value)]
    more = extra.transpose(1, 2)
    attn = gather.scores(*first[:2], 3, (2, 3), rpb=rpb, extra=more).softmax(-1)
    wanted = gather.weighted(attn, first[2], 3, (2, 3), extra=more).movedim(1, -2)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    without = fused.older_na2d(
        query, key, value, 3, (2, 3), additional_keys=extra, additional_values=extra
    )
    zero = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=torch.zeros_like(rpb), additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    torch.testing.assert_close(without, zero, rtol=1e-11, atol=1e-11)


def test_0_15_s_order_of_three_axes() -> None:
    """Four sizes in a row are depth and plane; later versions have a tensor in the third place."""
    query, key, more = (
        random(1, 2, 5, 6, 7, 4),
        random(1, 2, 5, 6, 7, 4, seed=1),
        random(1, 2, 3, 4),
    )
    wanted = natten.na3d_qk(query, key, (3, 5, 5), (1, 1, 1), more)
    for found in (
        natten.na3d_qk(query, key, 3, 5, 1, 1, more),
        natten.na3d_qk(
            query, key, kernel_size_d=3, kernel_size=5, dilation_d=None, dilation=1,
            additional_keys=more,
        ),
        natten.na3d_qk_with_bias(query, key, None, 3, 5, 1, 1, more),
        natten.natten3dqk(query, key, 3, 5, 1, 1, more),
    ):  # fmt: skip
        assert torch.equal(found, wanted)
    weights = wanted.softmax(-1)
    out = natten.na3d_av(weights, key, (3, 5, 5), 1, more)
    assert torch.equal(natten.na3d_av(weights, key, 3, 5, 1, 1, more), out)
    assert torch.equal(natten.natten3dav(weights, key, 3, 5, 1, 1, additional_values=more), out)


def test_scores_with_a_bias_by_its_older_name() -> None:
    query, bias = random(1, 2, 7, 9, 4), random(2, 5, 5, seed=1)
    wanted = natten.na2d_qk(query, query, 3, 2, rpb=bias)
    assert torch.equal(natten.na2d_qk_with_bias(query, query, bias, 3, 2), wanted)
    found = natten.na2d_qk_with_bias(query, query, bias=bias, kernel_size=3, dilation=2)
    assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_one_call_per_sample() -> None:
    samples = [random(1, 2, 7, 9, 4).detach(), random(2, 3, 8, 6, 8, seed=1).detach()]
    more = [random(1, 2, 3, 4).detach(), random(2, 3, 3, 8).detach()]
    nested, extra = (torch.nested.as_nested_tensor(tensors) for tensors in (samples, more))
    scores = natten.na2d_qk(nested, nested, kernel_size=3, dilation=2, additional_keys=extra)
    out = natten.na2d_av(scores.softmax(-1), nested, 3, 2, extra)
    pairs = zip(samples, more, scores.unbind(), out.unbind(), strict=True)
    for sample, tokens, score, rows in pairs:
        wanted = natten.na2d_qk(sample, sample, 3, 2, tokens)
        torch.testing.assert_close(score, wanted)
        torch.testing.assert_close(rows, natten.na2d_av(wanted.softmax(-1), sample, 3, 2, tokens))


@pytest.mark.parametrize("rank", [1, 2])
def test_autograd_functions_up_to_0_14(rank: int) -> None:
    """They take the dilation alone, or the kernel size before it, as the functions do."""
    space, table = (7, 9)[:rank], (5, 5)[:rank]
    query, key, rpb = random(1, 2, *space, 4), random(1, 2, *space, 4, seed=1), random(2, *table)
    products, sums = (
        legacy.AUTOGRAD_FUNCTIONS[f"NATTEN{rank}D{kind}Function"] for kind in ("QKRPB", "AV")
    )
    wanted = getattr(natten, f"natten{rank}dqkrpb")(query, key, rpb, 3, 2)
    for found in (products.apply(query, key, rpb, 2), products.apply(query, key, rpb, 3, 2)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    out = getattr(natten, f"natten{rank}dav")(wanted, key, 3, 2)
    torch.testing.assert_close(sums.apply(wanted, key, 2), out, rtol=0, atol=0)


@pytest.mark.parametrize("bias", ["a table", torch.tensor(1.0)])
def test_a_bias_that_is_no_table(bias: Any) -> None:
    query = torch.zeros(1, 2, 8, 9, 4)
    with pytest.raises(InputError):
        legacy.natten2dqkrpb(query, query, bias, 1)

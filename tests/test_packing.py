"""Tests of packed grids as arguments: shapes, jagged nested tensors, what a plan runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_oracle import gradients, one_by_one, packed

import nbattn
from nbattn import InputError, Mask, packing
from nbattn.grids import grids_of

MASK = Mask.neighborhood((3, 3))
LENGTHS = (5, 0, 7)


def nested(lengths: Any = LENGTHS, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 4, 8, generator=generator, dtype=torch.float64) for n in lengths]
    return torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
def test_a_nested_tensor_is_grids_of_one_axis(backend: str) -> None:
    query, key, value = (nested(seed=seed) for seed in range(3))
    out, lse = nbattn.attention(query, key, value, Mask.causal(), backend=backend, return_lse=True)
    assert out.offsets().tolist() == lse.offsets().tolist() == [0, 5, 5, 12]
    flat = [t.values().detach().requires_grad_() for t in (query, key, value)]
    wanted = one_by_one(flat, Mask.causal(), [(n,) for n in LENGTHS])
    found = out.values(), lse.values()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    grads = gradients(found, (query, key, value))
    for one, other in zip(grads, gradients(wanted, flat), strict=True):
        torch.testing.assert_close(one.values(), other)


def test_nested_keys_of_other_lengths() -> None:
    query, key = nested(), nested((6, 3, 7), seed=1)
    mask = Mask.causal("bottom-right")
    out = nbattn.attention(query, key, key, mask)
    for row, q, k in zip(out.unbind(), query.unbind(), key.unbind(), strict=True):
        torch.testing.assert_close(row, nbattn.attention(q[None], k[None], k[None], mask)[0])


def test_nested_values_of_other_lengths_than_keys() -> None:
    with pytest.raises(InputError, match="key and value are nested tensors of different lengths"):
        nbattn.attention(nested(), nested(), nested((5, 1, 6)), Mask.causal())


def test_a_nested_tensor_with_gaps() -> None:
    tensor = torch.nested.narrow(
        torch.randn(2, 6, 4, 8), 1, torch.tensor([0, 1]), torch.tensor([3, 4]), torch.jagged
    )
    with pytest.raises(InputError, match="ragged along N, without gaps"):
        nbattn.attention(tensor, tensor, tensor, Mask.causal())


def test_a_plan_runs_tensors_of_its_grids() -> None:
    sizes = [(5, 6), (3, 4)]
    tensors = packed(sizes)
    options = {"dtype": "float64", "device": "cpu", "training": True, "return_lse": True}
    plan = nbattn.plan(MASK, (42, 4, 8), (42, 2, 8), grids=sizes, **options)
    plan.warmup()
    found, wanted = plan.run(*tensors), one_by_one(tensors, MASK, sizes)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(InputError, match="grids have 42 tokens, query has 41"):
        plan.run(tensors[0][1:], *tensors[1:])


def test_plans_of_the_same_grids_are_one() -> None:
    sizes = [(5, 6), (3, 4)]
    shape, options = (42, 4, 8), {"device": "cpu", "dtype": "float32"}
    first = nbattn.plan(MASK, shape, grids=sizes, **options)
    assert nbattn.plan(MASK, shape, grids=grids_of(sizes), **options) is first
    assert nbattn.plan(MASK, shape, grids=sizes, key_grids=sizes, **options) is first
    assert nbattn.plan(MASK, shape, grids=sizes[::-1], **options) is not first
    assert first.to_dict()["request"]["grids"] == [[5, 6], [3, 4]]
    assert "2 grids of 2 sizes" in repr(first)


def test_a_trace_has_lists_of_lengths() -> None:
    traced = packing.TracedGrids([5, 6, 3, 4], [5, 6, 3, 4], 2, True)
    assert packing.grid_count(traced) == 2
    assert traced.spaces() == [((5, 6), (5, 6)), ((3, 4), (3, 4))]
    packing.check_shapes(MASK, traced, (42, 4, 8), (42, 2, 8), (42, 2, 8))
    with pytest.raises(InputError, match="grids have 42 tokens, key has 41"):
        packing.check_shapes(MASK, traced, (42, 4, 8), (41, 2, 8), (41, 2, 8))


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((42, 4, 8), (42, 3, 8), (42, 3, 8)), "4 query heads are no multiple of 3 key heads"),
        (((42, 4, 8), (42, 2, 6), (42, 2, 6)), "head_dim differs"),
        (((42, 4, 8), (42, 2, 8), (42, 1, 8)), "key and value differ"),
    ],
)
def test_heads_and_channels_that_do_not_fit(shapes: Any, text: str) -> None:
    query, key, value = map(torch.empty, shapes)
    with pytest.raises(InputError) as raised:
        nbattn.attention(query, key, value, MASK, grids=[(6, 7)])
    assert text in str(raised.value)
    assert not raised.value.fix  # those of tensors with a batch


def test_nested_tensors_and_a_mask_of_two_axes() -> None:
    query = nested((4, 3))
    with pytest.raises(InputError) as raised:
        nbattn.attention(query, query, query, MASK)
    text = "query is a nested tensor, which has one axis, and the mask 2."
    assert (raised.value.problem, raised.value.fix) == (text, "")


def test_nested_extra_keys_have_no_fix_without_them() -> None:
    query = nested((4, 3))
    with pytest.raises(InputError) as raised:
        nbattn.attention(query, query, query, Mask.full(rank=1), extra_key=query, extra_value=query)
    assert (raised.value.problem, raised.value.fix) == ("extra_key is a nested tensor.", "")


def test_nested_tensors_of_a_joint_attention_whose_keys_are_others() -> None:
    query, key = nested((4, 3)), nested((2, 5))
    extra = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    mask = Mask.full(rank=1)
    with pytest.raises(InputError) as raised:
        nbattn.joint_attention(query, key, key, mask, extra, extra, extra)
    assert "key_grids=nbattn.grids_from(key.offsets())" in raised.value.fix


@pytest.mark.parametrize(
    ("grids", "is_named"), [([0, 2, 5], True), ([1, 2, 5], False), ([0, 7, 3, 5], False)]
)
def test_boundaries_are_named_where_lengths_are_some(grids: list[int], is_named: bool) -> None:
    tokens = torch.empty(5, 4, 8)
    with pytest.raises(InputError) as raised:
        nbattn.attention(tokens, tokens, tokens, Mask.causal(), grids=grids)
    assert bool(raised.value.fix) == is_named


def test_ranges_of_one_axis_without_an_axis() -> None:
    query, key, value = (t.detach() for t in packed([(4,), (3,)]))
    mask, ranges = Mask.full(rank=1), [[0, 2], [1, 3]]
    found = nbattn.attention(query, key, value, mask, grids=[4, 3], key_range=ranges)
    options = {"key_range": torch.tensor(ranges)[:, None]}
    wanted, _ = one_by_one((query, key, value), mask, [(4,), (3,)], **options)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(InputError, match=r"key_range has shape \[1, 2\], not \[2, 1, 2\]"):
        nbattn.attention(query, key, value, mask, grids=[4, 3], key_range=[[0, 2]])


def test_configurations_and_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from nbattn.cli import main

    table = {"mask": "m", "query": [42, 4, 8], "grids": [[5, 6], [3, 4]], "dtype": "float32"}
    config = nbattn.load({"masks": {"m": {"neighborhood": {"kernel_size": [3, 3]}}},
                          "plans": {"p": table}})  # fmt: skip
    plan = config.plans["p"].plan(device="cpu")
    assert plan is nbattn.plan(MASK, (42, 4, 8), grids=[(5, 6), (3, 4)], dtype="float32",
                               device="cpu")  # fmt: skip
    words = ["plan", "--mask", "neighborhood((3, 3))", "--query", "42,4,8", "--device", "cpu"]
    assert main([*words, "--dtype", "float32", "--grids", "5x6,3x4", "--verify"]) == 0
    shown = capsys.readouterr().out
    assert plan.chosen.name in shown
    assert "exact" in shown
    broken = table | {"grids": [[5, 6]]}
    with pytest.raises(nbattn.ConfigError, match="grids have 30 tokens, query has 42"):
        nbattn.load({"masks": {"m": {"neighborhood": {"kernel_size": [3, 3]}}},
                     "plans": {"p": broken}})  # fmt: skip

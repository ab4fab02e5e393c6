"""Tests of grids of one size that run as a batch: which rows they are, and what is copied."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nbattn
from nbattn import Mask
from nbattn.backends import families, gathered
from nbattn.backends.inputs import Inputs
from nbattn.grids import PackedGrids, grids_of

SIZES = [(2, 3), (2, 3), (0, 4), (1, 2), (2, 3)]
GRIDS = grids_of(SIZES)
PACKED = PackedGrids(GRIDS, GRIDS)
MASK = Mask.neighborhood((3, 3))


def test_rows_of_each_size() -> None:
    first, second = gathered.parts(PACKED, torch.device("cpu"))
    assert (first.space, first.count, first.number) == ((2, 3), 3, 0)
    assert isinstance(first.queries, torch.Tensor)
    assert first.queries.tolist() == [*range(12), *range(14, 20)]
    assert isinstance(first.grids, torch.Tensor)
    assert first.grids.tolist() == [0, 1, 4]
    assert (second.space, second.count) == ((1, 2), 1)
    assert (second.queries, second.grids) == (slice(12, 14), slice(3, 4))


def test_grids_side_by_side_are_not_copied() -> None:
    grids = grids_of([(2, 3), (2, 3), (1, 2)])
    (first, second) = gathered.parts(PackedGrids(grids, grids), torch.device("cpu"))
    assert (first.queries, second.queries) == (slice(0, 12), slice(12, 14))
    query = torch.randn(14, 4, 8)
    inputs = Inputs(query, query, query, grids=PackedGrids(grids, grids))
    for part in (first, second):
        batch = gathered._inputs(inputs, part).query  # pyright: ignore[reportPrivateUsage]
        assert batch.untyped_storage().data_ptr() == query.untyped_storage().data_ptr()
        assert batch.shape == (part.count, *part.space, 4, 8)


def test_an_unknown_logsumexp_stays_unknown() -> None:
    """A backward by tiles after a forward that gave none."""
    query, key, value = (torch.randn(20, 4, 8, requires_grad=True) for _ in range(3))
    plan = nbattn.plan(
        MASK, (20, 4, 8), grids=SIZES, dtype="float32", device="cpu", backend="tiled", training=True
    )
    inputs = Inputs(query, key, value, scale=8**-0.5, grids=PACKED)
    out, lse = gathered.forward(plan.chosen.program, inputs, return_lse=True)  # pyright: ignore
    assert lse is not None
    unknown = torch.full((), math.nan).expand(lse.shape)
    grad = torch.randn_like(out)
    some, other = (
        gathered.backward(plan.chosen.program, inputs, out, one, grad, None)  # pyright: ignore
        for one in (lse, unknown)
    )
    torch.testing.assert_close(some.query, other.query)
    assert not torch.isnan(some.query).any()


def test_gradients_of_what_all_grids_share_have_its_dtype() -> None:
    query = torch.randn(20, 4, 8, dtype=torch.bfloat16)
    sink = torch.randn(4, dtype=torch.bfloat16, requires_grad=True)
    out = nbattn.attention(query, query, query, MASK, grids=SIZES, sink=sink, backend="tiled")
    (grad,) = torch.autograd.grad(out.float().square().sum(), sink)
    assert grad.dtype == torch.bfloat16
    double, exact = query.double(), sink.detach().double().requires_grad_()
    wanted = nbattn.attention(
        double, double, double, MASK, grids=SIZES, sink=exact, backend="reference"
    )
    (right,) = torch.autograd.grad(wanted.square().sum(), exact)
    torch.testing.assert_close(grad.double(), right, rtol=5e-2, atol=5e-2)


def test_gradients_of_what_all_grids_share_are_rounded_once() -> None:
    """A query with one key and a sink of the same score: its gradient is -8 / 4."""
    sizes = [(257,), (265,), (273,)]
    nothing, ones = (torch.full((795, 2, 8), x, dtype=torch.bfloat16) for x in (0.0, 1.0))
    sink = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    out = nbattn.attention(
        nothing, nothing, ones, Mask.sliding_window(0), grids=sizes, sink=sink, backend="tiled"
    )
    (grad,) = torch.autograd.grad(out, sink, ones)
    assert grad.tolist() == torch.full((2,), -2.0 * 795).bfloat16().tolist()


def test_a_logsumexp_that_no_size_has_is_none() -> None:
    """Not the memory that was made for it, which a backward would take for one."""
    query = torch.randn(20, 4, 8)
    options = {"grids": SIZES, "dtype": "float32", "device": "cpu", "backend": "tiled"}
    program = nbattn.plan(MASK, (20, 4, 8), **options).chosen.program  # pyright: ignore
    inputs = Inputs(query, query, query, scale=1.0, grids=PACKED)
    assert gathered.forward(program, inputs, return_lse=False)[1] is None  # pyright: ignore


def test_every_size_with_queries_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    program = nbattn.plan(
        MASK, (20, 4, 8), grids=SIZES, dtype="float32", device="cpu", backend="tiled"
    ).chosen.program
    assert program is not None
    arguments: Any = program.calls[0].arguments
    wanted = [arguments.of_size(number) for number in (0, 2)]
    seen: list[Any] = []
    runner = SimpleNamespace(warmup=seen.append)
    monkeypatch.setattr(families, "runner", lambda name: runner)
    gathered.warmup(program)
    assert seen == wanted


def test_no_extra_keys_have_gradients_of_none() -> None:
    query = torch.randn(20, 4, 8)
    extra = torch.zeros(len(SIZES), 0, 4, 8, requires_grad=True)
    named = {"extra_key": extra, "extra_value": extra, "grids": SIZES, "backend": "tiled"}
    out = nbattn.attention(query, query, query, MASK, **named)  # pyright: ignore
    (grad,) = torch.autograd.grad(out.sum(), extra)
    assert grad.shape == extra.shape

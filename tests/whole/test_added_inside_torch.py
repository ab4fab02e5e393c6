"""Tests of tables, slopes and ranges of extra keys inside torch: compile, export, vmap, bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_calls import BATCH, COMPILES, DIM, HEADS, KEY_HEADS, equal, inputs, random, train
from torch import Tensor

import nbattn
from nbattn import Axis, Mask

pytestmark = COMPILES
Count = Callable[[str, int], None]
MASK = Mask(Axis(3, 2))


def added(batch: int = BATCH) -> dict[str, Tensor]:
    """A table, slopes of samples, and a range of extra keys, none in the last sample."""
    return {
        "relative_bias": random(HEADS, 11, seed=3),
        "alibi_slopes": random(batch, HEADS, seed=4).abs(),
        "extra_key": random(batch, 3, KEY_HEADS, DIM, seed=5),
        "extra_value": random(batch, 3, KEY_HEADS, DIM, seed=6),
        "extra_range": torch.tensor([[1, 3]] * (batch - 1) + [[2, 2]], dtype=torch.int32),
    }


def attend(backend: str, *tensors: Tensor, names: tuple[str, ...] = tuple(added())) -> Any:
    named = dict(zip(names, tensors[3:], strict=True))
    return nbattn.attention(*tensors[:3], MASK, backend=backend, return_lse=True, **named)


def step(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """Results and gradients of all but the slopes, which have none."""
    slopes = tensors[4]

    def without(*rest: Tensor) -> Any:
        return function(*rest[:4], slopes, *rest[4:])

    return train(without, [*tensors[:4], *tensors[5:]])


@pytest.mark.parametrize(
    ("backend", "dynamic"), [("reference", False), ("tiled", False), ("tiled", True)]
)
def test_compiled_equals_eager(backend: str, dynamic: bool) -> None:
    def function(*tensors: Tensor) -> Any:
        return attend(backend, *tensors)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = [*inputs(), *added().values()]
    equal(step(compiled, tensors), step(function, tensors))


class Exported(torch.nn.Module):
    """Holds a table, as layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(added()["relative_bias"])

    def forward(self, *tensors: Tensor) -> Any:
        return attend("auto", *tensors[:3], self.table, *tensors[3:])


def test_exported_equals_eager() -> None:
    module = Exported()
    given = (*inputs(), *list(added().values())[1:])
    with torch.no_grad():
        equal(torch.export.export(module, given).module()(*given), module(*given))


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize(
    "mapped",
    [
        ("query",),
        ("query", "key", "value", "extra_range"),
        ("alibi_slopes",),
        ("relative_bias", "value"),
        ("query", "alibi_slopes", "relative_bias", "extra_key", "extra_value", "extra_range"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_vmap_equals_one_by_one(
    backend: str, mapped: tuple[str, ...], per_sample: bool, cases: Count
) -> None:
    """Slopes of samples are folded as samples are; those of heads, and tables, are shared."""
    names = ("query", "key", "value", *added())
    single = dict(zip(names, [*inputs(), *added().values()], strict=True))
    if not per_sample:
        single["alibi_slopes"] = single["alibi_slopes"][0]
    three = {
        name: torch.stack([t, t.flip(0), t]) if not t.is_floating_point() else
        torch.stack([t, 0.5 * t, 2 * t])
        for name, t in single.items() if name in mapped
    }  # fmt: skip

    def results(*tensors: Tensor) -> tuple[Tensor, ...]:
        table = tensors[3]

        def scalar(query: Tensor, table: Tensor) -> Tensor:
            out, lse = attend(backend, query, *tensors[1:3], table, *tensors[4:])
            return out.square().sum() + lse.clamp(min=-99).sum()

        grads = torch.func.grad(scalar, argnums=(0, 1))(tensors[0], table)
        return (*attend(backend, *tensors), *grads)

    dims = tuple(0 if name in mapped else None for name in names)
    given = [three.get(name, single[name]) for name in names]
    found = torch.vmap(results, in_dims=dims)(*given)
    one_by_one = [
        results(*[t[n] if d == 0 else t for t, d in zip(given, dims, strict=True)])
        for n in range(3)
    ]
    equal(found, [torch.stack(group) for group in zip(*one_by_one, strict=True)], 1e-5)
    cases("vmap, added", 1)


def test_jacobian_of_a_table() -> None:
    table, query = random(2, 5, dtype=torch.float64), random(1, 4, 2, 3, dtype=torch.float64)

    def function(table: Tensor, backend: str = "tiled") -> Tensor:
        mask = Mask(Axis(1, 1))
        return nbattn.attention(query, query, query, mask, relative_bias=table, backend=backend)

    found = torch.func.jacrev(function)(table)
    wanted = torch.autograd.functional.jacobian(lambda t: function(t, "reference"), table)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_bits_every_time(deterministic: bool) -> None:
    """The table's gradient is a sum over many pairs, always in one order."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        mask = Mask.neighborhood((7, 7))
        leaves = [random(2, 24, 20, HEADS, 16, seed=n).requires_grad_() for n in range(3)]
        table = random(HEADS, 13, 13, seed=9).requires_grad_()
        runs = []
        for _ in range(3):
            out = nbattn.attention(*leaves, mask, relative_bias=table, backend="tiled")
            runs.append([out, *torch.autograd.grad(out.square().sum(), [*leaves, table])])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("table", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_table_has_its_own_dtype(backend: str, table: torch.dtype) -> None:
    """Scores are float32, so a table of float32 is exact where the tensors are bfloat16."""
    query = random(1, 9, HEADS, 8).bfloat16()
    leaf = random(HEADS, 11, seed=1).to(table).requires_grad_()
    out = nbattn.attention(query, query, query, MASK, relative_bias=leaf, backend=backend)
    (grad,) = torch.autograd.grad(out.float().sum(), leaf)
    assert out.dtype == torch.bfloat16
    assert grad.dtype == table

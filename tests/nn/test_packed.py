"""Tests of the layer on packed grids: it is the layer on each grid."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbattn import InputError, Mask, NeighborhoodAttention

SIZES = [(5, 6), (3, 3), (0, 2), (8, 4)]
TOKENS = sum(map(prod, SIZES))
MASK = Mask.neighborhood((3, 3))


class Places(nn.Module):
    """A transform that depends on the position in the grid."""

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        def moved(tokens: Tensor) -> Tensor:
            rows, columns = (torch.arange(n) for n in tokens.shape[1:3])
            return tokens * (1 + rows[:, None, None, None] + 0.3 * columns[:, None, None])

        return moved(query), moved(key)

    def extra_key(self, key: Tensor) -> Tensor:
        return key


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"kv_heads": 1},
    "norm": {"qk_norm": True},
    "transform": {"qk_transform": Places()},
    "context": {"context_dim": 12},
    "channels first": {"layout": "channels_first"},
}


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", [*OPTIONS])
def test_the_layer_on_each_grid(name: str, hooked: bool) -> None:
    torch.manual_seed(0)
    layer = NeighborhoodAttention(16, 2, MASK, **OPTIONS[name]).double()
    if hooked:  # then projections are called once, for all tokens side by side
        for projection in layer.projections():
            projection.register_forward_hook(lambda module, given, result: result)
    channels = layer.context_dim or 16
    x = torch.randn(TOKENS, 16, dtype=torch.float64)
    context = torch.randn(TOKENS, channels).double() if layer.context_dim else None
    extra = torch.randn(len(SIZES), 2, channels).double()
    ranges = torch.tensor([[[0, 4], [1, 5]]] * len(SIZES))
    found = layer(x, context, grids=SIZES, extra_tokens=extra, key_range=ranges)
    parts: list[Tensor] = []
    start = 0
    for number, size in enumerate(SIZES):
        at = slice(start, start + prod(size))
        start = at.stop

        def grid(tokens: Tensor | None, at: slice = at, size: Any = size) -> Tensor | None:
            if tokens is None:
                return None
            made = tokens[at].unflatten(0, (1, *size))
            return made.movedim(-1, 1) if layer.layout == "channels_first" else made

        one = slice(number, number + 1)
        y = layer(grid(x), grid(context), extra_tokens=extra[one], key_range=ranges[one])
        y = y.movedim(1, -1) if layer.layout == "channels_first" else y
        parts.append(y.flatten(0, 2))
    torch.testing.assert_close(found, torch.cat(parts))


@pytest.mark.parametrize("name", ["plain", "norm", "context"])
def test_a_plan_is_the_plan_of_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn.planner import planner

    layer = NeighborhoodAttention(16, 2, MASK, **OPTIONS[name])
    shape = (TOKENS, 16), ((TOKENS, 12) if name == "context" else None)
    plan = layer.plan_for(*shape, grids=SIZES, extra_tokens=2, key_range=True)
    seen: list[Any] = []
    make = planner.make
    planner.forget()
    monkeypatch.setattr(planner, "make", lambda request: seen.append(request) or make(request))
    context = torch.randn(TOKENS, 12) if name == "context" else None
    ranges = torch.tensor([[[0, 4], [1, 5]]] * len(SIZES))
    extra = torch.randn(len(SIZES), 2, 12 if name == "context" else 16)
    layer(torch.randn(TOKENS, 16), context, grids=SIZES, extra_tokens=extra, key_range=ranges)
    assert plan.request in seen


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, [(4, 3)], []])
def test_registers_of_all_grids(sizes: Any, hooked: bool) -> None:
    layer = NeighborhoodAttention(16, 2, MASK, qk_norm=True).double()
    if hooked:
        layer.qkv.register_forward_hook(lambda *_: None)
    x, registers = torch.randn(sum(map(prod, sizes)), 16), torch.randn(1, 3, 16)
    x, registers = x.double(), registers.double().requires_grad_()
    options: dict[str, Any] = {"grids": sizes, "update_extra": True}
    found = layer(x, extra_tokens=registers, **options)
    wanted = layer(x, extra_tokens=registers.expand(len(sizes), -1, -1), **options)
    assert found[1].shape == (len(sizes), 3, 16)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    grads = [torch.autograd.grad(sum(t.square().sum() for t in both), registers)[0]
             for both in (found, wanted)]  # fmt: skip
    torch.testing.assert_close(*grads)


def test_nested_tensors_are_packed_grids() -> None:
    layer = NeighborhoodAttention(16, 2, Mask.causal())
    parts = [torch.randn(5, 16), torch.randn(3, 16)]
    with pytest.raises(InputError) as raised:
        layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    assert raised.value.problem == "x is a nested tensor; the layer takes packed grids."


def test_extra_tokens_of_other_grids() -> None:
    layer = NeighborhoodAttention(16, 2, MASK)
    with pytest.raises(InputError) as raised:
        layer(torch.randn(60, 16), grids=[(5, 6)] * 2, extra_tokens=torch.randn(3, 4, 16))
    text = "extra_tokens is [3, 4, 16], and there are 2 grids: it needs an entry for each, or one "
    assert raised.value.problem == f"{text}for all."


def test_no_grids_at_all() -> None:
    layer = NeighborhoodAttention(16, 2, MASK, qk_transform=Places())
    assert layer(torch.empty(0, 16), grids=[]).shape == (0, 16)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.randn(1, 5, 6, 16), "x is [1, 5, 6, 16], not [T, 16]: with grids"),
        (torch.randn(30, 12), "x is [30, 12], not [T, 16]"),
        (None, "x is None, not a tensor [T, 16]"),
        (torch.randn(29, 16), "grids have 30 tokens, query has 29"),
    ],
)
def test_tokens_that_do_not_fit(x: Any, text: str) -> None:
    layer = NeighborhoodAttention(16, 2, MASK)
    with pytest.raises(InputError) as raised:
        layer(x, grids=[(5, 6)])
    assert text in str(raised.value)


ONE = {"grids": [(5, 6)]}
TEXT = torch.randn(1, 2, 16)
REFUSED: dict[str, tuple[Callable[[NeighborhoodAttention], Any], str]] = {
    "nothing to update": (
        lambda layer: layer(torch.randn(30, 16), **ONE, update_extra=True),
        "update_extra=True, but there are no extra_tokens.",
    ),
    "a switch that is no bool": (
        lambda layer: layer(torch.randn(30, 16), **ONE, extra_tokens=TEXT, update_extra=1),
        "update_extra=1 is an int, not a bool.",
    ),
    "a transform that does not say what extra queries are": (
        lambda layer: layer(torch.randn(30, 16), **ONE, extra_tokens=TEXT, update_extra=True),
        "extra_tokens with a Places as qk_transform, which has no method extra_query for their "
        "queries.",
    ),
    "a shape of other channels": (
        lambda layer: layer.plan_for((30, 12), **ONE),
        "shape is [30, 12], not [T, 16]: with grids, the tokens of all.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_message_of_calls_that_do_not_fit(name: str) -> None:
    call, problem = REFUSED[name]
    transform = Places() if "transform" in name else None
    with pytest.raises(InputError) as raised:
        call(NeighborhoodAttention(16, 2, MASK, qk_transform=transform))
    assert raised.value.problem == problem


def test_a_layer_whose_keys_come_from_a_context() -> None:
    with pytest.raises(InputError, match="context is missing"):
        NeighborhoodAttention(16, 2, MASK, context_dim=12)(torch.randn(30, 16), grids=[(5, 6)])


def test_a_context_of_other_grids() -> None:
    layer = NeighborhoodAttention(16, 2, Mask.full(rank=2)).double()
    x, context = torch.randn(30, 16).double(), torch.randn(12, 16).double()
    found = layer(x, context, grids=[(5, 6)], key_grids=[(3, 4)])
    wanted = layer(x.view(1, 5, 6, 16), context.view(1, 3, 4, 16))
    torch.testing.assert_close(found, wanted.flatten(0, 2))


@pytest.mark.parametrize("per_grid", [False, True])
def test_documents_with_slopes(per_grid: bool) -> None:
    layer = NeighborhoodAttention(16, 2, Mask.causal()).double()
    lengths = [5, 9, 1]
    x, slopes = torch.randn(15, 16).double(), torch.rand((3, 2) if per_grid else (2,))
    found = layer(x, grids=lengths, alibi_slopes=slopes)
    parts = [
        layer(part[None], alibi_slopes=slopes[n] if per_grid else slopes)[0]
        for n, part in enumerate(x.split(lengths))
    ]
    torch.testing.assert_close(found, torch.cat(parts))
    assert not torch.allclose(found, layer(x, grids=lengths))


def test_a_transform_sees_keys_on_their_own_grids() -> None:
    layer = NeighborhoodAttention(16, 2, Mask.full(rank=2), qk_transform=Places()).double()
    grids, key_grids = [(5, 6), (2, 3)], [(3, 4), (6, 1)]
    x, context = torch.randn(36, 16).double(), torch.randn(18, 16).double()
    found = layer(x, context, grids=grids, key_grids=key_grids)
    wanted = [
        layer(query.unflatten(0, (1, *size)), key.unflatten(0, (1, *key_size))).flatten(0, 2)
        for query, key, size, key_size in zip(
            x.split([30, 6]), context.split([12, 6]), grids, key_grids, strict=True
        )
    ]
    torch.testing.assert_close(found, torch.cat(wanted))

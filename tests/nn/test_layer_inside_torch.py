"""Tests of the layer inside torch: compilers, autocast, checkpoints, functional calls, export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_calls import COMPILES
from small_layers import CROSS, PLANE, Recorder, build, case, random
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import nbattn

pytestmark = COMPILES


def train(layer: Callable[..., Tensor], *tokens: Tensor, **named: Any) -> list[Tensor]:
    """The output, the gradient of the first tensor, and those of the parameters."""
    owner: Any = layer if isinstance(layer, nn.Module) else None
    first, *rest = tokens
    first = first.detach().clone().requires_grad_()
    out = layer(first, *rest, **named)
    sources = [first, *(owner.parameters() if owner is not None else [])]
    return [out.detach(), *torch.autograd.grad((out.float() ** 2).sum(), sources)]


def same(found: list[Tensor], wanted: list[Tensor], limit: float = 1e-10) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)


@pytest.mark.parametrize("name", ["plane_context", "line_grouped_heads", "reference"])
def test_compiled_layer_equals_eager(name: str) -> None:
    layer, _, tokens, named = case(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (2, 1):
        given = [t[:batch] for t in tokens]
        rest = {key: t[:batch] for key, t in named.items()}
        same(train(compiled, *given, **rest), train(layer, *given, **rest))
    with torch.no_grad():
        same([compiled(*given, **rest)], [layer(*given, **rest)])


def test_a_batch_of_another_size_compiles_at_most_once_more() -> None:
    layer, counter = build(PLANE, kv_heads=2, qk_transform=Recorder()), CompileCounter()
    layer.qk_transform.forward = lambda query, key: (query * 2, key)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5, 7, 2):
        x = random(batch, 4, 5, 12)
        same([compiled(x)], [layer(x)])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_is_the_layer_in_that_dtype(compiled: bool) -> None:
    """Exactly: inputs are cast once, and nothing inside once more."""
    layer = build(CROSS, kv_heads=2).float()
    half = copy.deepcopy(layer).bfloat16()
    x, context, extra = (
        random(2, *space, 12, seed=n, dtype=torch.float32)
        for n, space in enumerate([(4, 5), (3, 7), (3,)])
    )
    wanted = train(half, x.bfloat16(), context.bfloat16(), extra_tokens=extra.bfloat16())
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    with torch.autocast("cpu", torch.bfloat16):
        out = run(x.requires_grad_(), context.bfloat16(), extra_tokens=extra)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wanted[0])
    (out.float() ** 2).sum().backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert {g.dtype for g in grads if g is not None} == {torch.float32}
    for one, other in zip(grads, wanted[1:], strict=True):  # sums of bfloat16 parts, rounded apart
        assert one is not None
        torch.testing.assert_close(
            one, other.float(), rtol=0.03, atol=0.03 * other.abs().max().item()
        )


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_layer_raises_the_error_of_a_mistake(fullgraph: bool) -> None:
    compiled = torch.compile(build(PLANE), fullgraph=fullgraph, backend="eager")
    kind = torch._dynamo.exc.Unsupported if fullgraph else nbattn.InputError
    message = r"x has 5 channels \[2, 4, 5, 5\], not 12"
    if fullgraph:
        message += r"|builtin repr \[.*FrozenDataClassVariable"  # torch 2.8 reports no more
    with pytest.raises(kind, match=message):
        compiled(random(2, 4, 5, 5))


def test_checkpointed_equals_plain() -> None:
    layer, _, tokens, named = case("solid_everything")
    wanted = train(layer, *tokens, **named)
    x = tokens[0].detach().clone().requires_grad_()
    out = checkpoint(layer, x, use_reentrant=False, **named)
    assert isinstance(out, Tensor)
    same([out, *torch.autograd.grad((out.float() ** 2).sum(), [x, *layer.parameters()])], wanted)


def test_functional_call_and_its_gradient() -> None:
    layer, x = build(PLANE, kv_heads=2), random(2, 4, 5, 12)
    other = {name: p.detach() * 0.5 for name, p in layer.named_parameters()}
    twin = copy.deepcopy(layer)
    twin.load_state_dict(other)
    assert torch.equal(functional_call(layer, other, (x,)), twin(x))
    found = grad(lambda state: (functional_call(layer, state, (x,)).float() ** 2).sum())(other)
    same(list(found.values()), train(twin, x)[2:])


def test_exported_with_a_dynamic_batch() -> None:
    layer, _, tokens, named = case("plane_context")
    batch = torch.export.Dim("batch", min=1, max=64)
    every = {0: batch}
    exported = torch.export.export(
        layer,
        tuple(tokens),
        named,
        dynamic_shapes={"x": every, "context": every, "extra_tokens": every, "key_range": every},
    )
    for size in (2, 1):
        given, rest = [t[:size] for t in tokens], {name: t[:size] for name, t in named.items()}
        same(train(exported.module(), *given, **rest), train(layer, *given, **rest))

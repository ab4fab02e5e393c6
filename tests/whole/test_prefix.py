"""Tests of prefix keys on every backend: the same mask, values and gradients, and their cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dense_attention
import numpy as np
import pytest
import torch
from native_library import backends
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.flex import run as flex
from nbattn.errors import counted
from nbattn.program.candidate import short_count

SINKS = Mask(Axis(255, causal=True, prefix=4, align="bottom-right"))
MASKS: dict[str, tuple[Mask, int, int]] = {
    "sinks": (Mask(Axis(4, causal=True, prefix=3)), 23, 23),
    "sinks, decode": (Mask(Axis(4, causal=True, prefix=3, align="bottom-right")), 5, 23),
    "global keys": (Mask(Axis(3, 2, prefix=4, align="top-left")), 19, 23),
    "shifted windows": (Mask(Axis(3, 3, border="shift", prefix=2)), 21, 21),
    "all keys": (Mask(Axis(2, 2, prefix=99, align="top-left")), 9, 11),
}
BACKENDS = backends(["tiled", "reference", "native", "flash-model:aten", "flash-model:fa4"])


def tensors(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (2, queries, 4, 8), "key": (2, keys, 2, 8), "value": (2, keys, 2, 8)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def allowed(mask: Mask, queries: int, keys: int) -> Tensor:
    """As the docstring of `Axis` defines it: the window without a prefix, and the first keys."""
    axis: Any = mask.axes[0]
    offset = keys - queries if axis.align == "bottom-right" else 0
    matrix = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        p = i + offset
        first, last = p - axis.left, p + axis.right
        if axis.border == "shift":
            moved = max(0, -first) - max(0, last - keys + 1)
            first, last = first + moved, last + moved
        for j in range(keys):
            sink = j < axis.prefix and (j <= p or not axis.causal)
            matrix[i, j] = sink or first <= j <= last
    return matrix


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_a_prefix_is_the_same_on_every_backend(
    name: str, backend: str, cases: Callable[[str, int], None]
) -> None:
    mask, queries, keys = MASKS[name]
    made = tensors(queries, keys)
    found = nbattn.attention(**made, mask=mask, backend=backend, return_lse=True)
    wanted = dense_attention.attend(**made, allowed=allowed(mask, queries, keys))
    upward = [torch.linspace(-1, 1, t.numel()).view_as(t).double() for t in wanted]
    grads = [torch.autograd.grad(t, [*made.values()], upward) for t in (found, wanted)]
    for one, other in zip([*found, *grads[0]], [*wanted, *grads[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    cases("prefix values", 1)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_prefix_is_the_same_in_flex(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask function without its compiler; its proof covers the blocks it visits."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    mask, queries, keys = MASKS[name]
    made = {side: t.detach() for side, t in tensors(queries, keys, torch.float32).items()}
    found = nbattn.attention(**made, mask=mask, backend="flex")
    matrix = allowed(mask, queries, keys)
    doubles: dict[str, Any] = {side: t.double() for side, t in made.items()}
    wanted, _ = dense_attention.attend(**doubles, allowed=matrix)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    shapes = made["query"].shape, made["key"].shape
    plan = nbattn.plan(mask, *shapes, dtype="float32", device="cpu", backend="flex")
    assert plan.verify()
    assert np.array_equal(plan.support(), matrix.numpy())


def test_a_window_and_its_sinks_merge_into_one_pass() -> None:
    """By hand, as a cache in two parts computes it: gradients too, through the logsumexps."""
    made = tensors(23, 23)
    query, key, value = made.values()
    one = nbattn.attention(query, key, value, Mask(Axis(4, causal=True, prefix=3)))
    first = Mask.causal("top-left")
    sinks = nbattn.attention(query, key[:, :3], value[:, :3], first, return_lse=True)
    rest = torch.tensor([[[3, 23]]] * 2, dtype=torch.int32)
    window = nbattn.attention(
        query, key, value, Mask(Axis(4, causal=True)), key_range=rest, return_lse=True
    )
    two, _ = nbattn.merge(*zip(sinks, window, strict=True))
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(t.square().sum(), [query, key, value]) for t in (one, two)]
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["flash", "flash-model:fa4", "flex", "tiled"])
def test_explain_shows_what_a_prefix_costs(backend: str) -> None:
    """Against the same window without one: more pairs, and for Flash, which adds a call, time."""
    plans = [
        nbattn.plan(mask, (1, 4096, 8, 64), device="sm_90", backend=backend)
        for mask in (SINKS, Mask.from_transformers(256))
    ]
    ours, bare = (plan.chosen.cost for plan in plans)
    assert ours is not None
    assert bare is not None
    # queries 256 … 4095 read 1, 2, 3, then 4 sinks beyond their windows, on 8 heads
    assert ours.useful_pairs - bare.useful_pairs == 8 * (1 + 2 + 3 + 4 * (4096 - 256 - 3))
    assert ours.computed_pairs > bare.computed_pairs
    assert (
        ours.estimate > bare.estimate
        if backend.startswith("flash")
        else ours.estimate >= bare.estimate
    )
    plan, text = plans[0], plans[0].explain()
    assert plan.verify()
    (line,) = (line for line in text.splitlines() if line.startswith("  chosen"))
    assert "estimated" in line
    assert f"computes {short_count(ours.computed_pairs)} scores, " in line
    assert f"% needed; {counted(ours.calls, 'call')}" in line


@pytest.mark.parametrize("provider", ["aten", "fa2", "fa3", "fa4"])
def test_flash_computes_a_prefix_by_one_more_call(provider: str) -> None:
    """The first keys by one call, the window over the others, joined; no pair is computed twice."""
    backend = f"flash-model:{provider}"
    plan = nbattn.plan(SINKS, (1, 4096, 8, 64), device="sm_90", backend=backend)
    window, sinks = sorted(plan.chosen.program.calls, key=lambda call: call.joins)
    assert "merge" in plan.chosen.traits
    lengths = {call.key.axes[0].length for call in (window, sinks)}
    assert lengths == {4, 4092}
    assert (window.joins, sinks.joins) == (False, True)

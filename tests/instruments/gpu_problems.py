"""Problems that GPU tests run: masks of every kind, tensors between guards, and what is compared.

Supports have no tolerance: zero queries give every key that a row reads the same weight, so one-hot
values show which keys were read, one-hot gradients which queries. Values are judged against
float64, by the rule of `judged_values`: relative to what the reference reaches on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import judged_values
import pytest
import torch
from judged_values import Feature, Shape
from torch import Tensor

import nbattn
from nbattn import Axis, Mask

Inputs = dict[str, Tensor]
Space = tuple[int, ...]
Problem = tuple[Mask, Space, Space]
DEVICE = "cuda"
HALVES = (torch.float16, torch.bfloat16)
hood = Mask.neighborhood
is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
needs_hopper = pytest.mark.skipif(not is_hopper, reason="wgmma needs a device of capability 9.0")


def family(dtype: torch.dtype, name: str) -> Any:
    """A dtype and an instruction set of the CUDA kernels as parameters of a test."""
    marks = [needs_hopper] if name == "wgmma" else []
    return pytest.param(dtype, name, marks=marks, id=f"{str(dtype)[6:]} {name}")


FAMILIES = [
    *(family(dtype, name) for name in ("mma", "wgmma") for dtype in HALVES),
    family(torch.float32, "simt"), family(torch.float64, "simt"),
]  # fmt: skip
# One dtype of each.
FEW_FAMILIES = [
    family(torch.bfloat16, "mma"), family(torch.bfloat16, "wgmma"), family(torch.float32, "simt")
]  # fmt: skip

PROBLEMS: dict[str, Problem] = {
    "1-D shift": (hood(65), (513,), (513,)),
    "1-D even, strided": (hood(64, stride=16), (520,), (520,)),
    "1-D dilated, remainder": (hood(21, dilation=3), (500,), (500,)),
    "1-D causal, tall": (Mask.causal("top-left"), (300,), (130,)),
    "1-D causal, wide, bottom-right": (Mask.causal(align="bottom-right"), (130,), (300,)),
    "1-D window, rows outside": (Mask(Axis(20, 10, offset=-50, align="top-left")), (300,), (200,)),
    "1-D wrap": (Mask(Axis(30, 20, border="wrap")), (400,), (400,)),
    "1-D wrap, dilated and strided": (
        Mask(Axis(9, 4, border="wrap", dilation=2, stride=5)), (200,), (200,)
    ),
    "1-D sinks": (Mask(Axis(50, causal=True, prefix=4)), (400,), (400,)),
    "1-D rows without keys": (Mask(Axis(1, causal=True, stride=5)), (77,), (77,)),
    "1-D full": (Mask.full(), (200,), (333,)),
    "1-D decode": (Mask.sliding_window(100, align="bottom-right"), (1,), (513,)),
    "2-D": (hood((7, 7)), (28, 28), (28, 28)),
    "2-D dilated, remainder": (hood((5, 7), dilation=(3, 2)), (29, 23), (29, 23)),
    "2-D strided": (hood((8, 6), stride=(4, 3)), (26, 31), (26, 31)),
    "2-D causal and wrap": (
        Mask(Axis(5, causal=True), Axis(6, 6, border="wrap")), (17, 24), (17, 24)
    ),
    "2-D cross": (
        Mask(Axis(2, 2, align="bottom-right"), Axis(9, 3, border="shift", align=4)),
        (9, 30), (14, 22),
    ),
    "2-D self-only axis": (Mask(Axis(0, 0), Axis(None, None)), (13, 60), (13, 60)),
    "3-D": (hood((3, 5, 5)), (8, 12, 12), (8, 12, 12)),
    "3-D video": (
        Mask(Axis(4, causal=True), Axis(2, 2, border="shift"), Axis(3, 3, border="wrap")),
        (7, 10, 12), (7, 10, 12),
    ),
}  # fmt: skip


def guarded(tensor: Tensor) -> Tensor:
    """The same numbers between bands of NaN, with a gap of NaN after every vector."""
    *rows, dim = tensor.shape
    wide = torch.full((math.prod(rows) + 64, dim + 8), float("nan"), dtype=tensor.dtype)
    view = wide.to(DEVICE)[32:-32, :dim].unflatten(0, rows)
    return view.copy_(tensor)


def random(
    problem: Problem,
    dtype: torch.dtype,
    dims: tuple[int, int] = (64, 64),
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
) -> Inputs:
    """q, k, v on the device, in memory with guards."""
    _, queries, keys = problem
    torch.manual_seed(0)
    made = {
        "query": torch.randn(batch, *queries, heads, dims[0], dtype=torch.float64),
        "key": torch.randn(batch, *keys, kv_heads, dims[0], dtype=torch.float64),
        "value": torch.randn(batch, *keys, kv_heads, dims[1], dtype=torch.float64),
    }
    return {name: guarded(t.to(dtype)).requires_grad_() for name, t in made.items()}


def results(attend: Callable[..., tuple[Tensor, Tensor]], made: Inputs) -> list[Tensor]:
    """Output, logsumexp, and the gradients of both."""
    out, lse = attend(**made)
    finite = torch.where(lse.isinf(), 0.0, lse)
    loss = (out * torch.ones_like(out).cumsum(1).sin()).sum() + (finite * 0.3).sum()
    leaves = [t for t in made.values() if t.requires_grad]
    return [out, lse, *torch.autograd.grad(loss.to(torch.float64), leaves)]


def ours(mask: Mask, backend: str, **named: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda **made: nbattn.attention(
        **made, mask=mask, backend=backend, return_lse=True, **named
    )


def judge(
    problem: Problem, made: Inputs, backend: str, require: tuple[str, ...] = (), **numbers: float
) -> None:
    """Output, logsumexp and gradients against float64, on the same numbers."""
    given = {name: t.detach() for name, t in made.items()}
    query, value = given["query"], given["value"]
    feature = Feature(numbers=numbers, lse=True)
    shape = Shape(query.shape[0], query.shape[-2], value_dim=value.shape[-1])
    grads = [t.to(DEVICE) for t in judged_values.upstream(problem, shape, query.dtype)]
    found = judged_values.run(problem[0], given, grads, feature, backend, require=require)
    judged_values.judge(
        found,
        judged_values.best_in_dtype(problem, given, grads, feature, backend),
        judged_values.by_definition(problem, given, grads, feature),
        query.dtype,
        judged_values.last_digit(given, feature),
    )


def one_hot(space: Space, first: int, width: int, dtype: torch.dtype) -> Tensor:
    """`[1, *space, 1, width]`: token `first + c` has a one in column c."""
    count = math.prod(space)
    probe = torch.zeros(count, width, dtype=dtype, device=DEVICE)
    places = torch.arange(first, min(first + width, count), device=DEVICE)
    probe[places, places - first] = 1
    return probe.reshape(1, *space, 1, width)


def supports(
    problem: Problem, dtype: torch.dtype, backend: str, width: int = 64, **route: Any
) -> tuple[Tensor, ...]:
    """Which keys rows attend to: by outputs, and by gradients of values, of keys and of queries."""
    route["backend"] = backend
    mask, queries, keys = problem
    query = torch.zeros(1, *queries, 1, width, dtype=dtype, device=DEVICE)
    key, value = (torch.zeros(1, *keys, 1, width, dtype=dtype, device=DEVICE) for _ in range(2))
    read, readers, moved, pulled = [], [], [], []

    def of_lse(queries: Tensor, keys: Tensor, leaf: Tensor) -> Tensor:
        _, lse = nbattn.attention(queries, keys, value, mask, return_lse=True, **route)
        (grad,) = torch.autograd.grad(lse, leaf, torch.where(lse.isinf(), 0.0, 1.0))
        return (grad != 0).flatten(0, -3)[:, 0]

    for first in range(0, math.prod(keys), width):
        out = nbattn.attention(query, key, one_hot(keys, first, width, dtype), mask, **route)
        read.append((out != 0).flatten(0, -3)[:, 0, : math.prod(keys) - first])
        leaf, probe = query.clone().requires_grad_(), one_hot(keys, first, width, dtype)
        pulled.append(of_lse(leaf, probe, leaf)[:, : math.prod(keys) - first])
    for first in range(0, math.prod(queries), width):
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        out = nbattn.attention(*leaves, mask, **route)
        upward = one_hot(queries, first, width, dtype)
        (grad,) = torch.autograd.grad(out, leaves[2], upward)
        assert grad.isfinite().all()
        readers.append((grad != 0).flatten(0, -3)[:, 0, : math.prod(queries) - first])
        leaf, probe = key.clone().requires_grad_(), one_hot(queries, first, width, dtype)
        moved.append(of_lse(probe, leaf, leaf)[:, : math.prod(queries) - first])
    return (
        torch.cat(read, 1), torch.cat(readers, 1).T, torch.cat(moved, 1).T, torch.cat(pulled, 1)
    )  # fmt: skip

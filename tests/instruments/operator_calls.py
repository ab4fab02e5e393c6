"""Calls of the operators: masks, inputs, extra arguments, and the result of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_library import NAMES
from torch import Tensor

from nbattn import Axis, Mask

# Of tests that compile: no graphs of other tests, and what torch's own compiler and forward AD warn
# of.
COMPILES = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]
BACKENDS = ("reference", "tiled", "sdpa", *NAMES)
ENGINES = ("tiled", "sdpa", *NAMES)
Tensors = dict[str, Tensor]
CAUSAL = Mask(Axis(causal=True))
WINDOW = Mask(Axis(3, 2))
PLANE = Mask(Axis(1, 1, border="shift"), Axis(2, causal=True))
BATCH, HEADS, KEY_HEADS, DIM = 2, 4, 2, 8


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(
    space: tuple[int, ...] = (12,), *, grad: bool = False, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Query, key, value."""
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [
        random(BATCH, *space, h, DIM, seed=n, dtype=dtype).requires_grad_(grad)
        for n, h in enumerate(heads)
    ]


def extras(space: tuple[int, ...] = (12,), dtype: torch.dtype = torch.float32) -> Tensors:
    """Every optional tensor."""
    box = [[1, length - 1] for length in space]
    return {
        "sink": random(HEADS, seed=3, dtype=dtype),
        "key_range": torch.tensor([box, [[0, length] for length in space]], dtype=torch.int32),
        "extra_key": random(BATCH, 2, KEY_HEADS, DIM, seed=4, dtype=dtype),
        "extra_value": random(BATCH, 2, KEY_HEADS, DIM, seed=5, dtype=dtype),
    }


MASKS: list[tuple[Mask, tuple[int, ...]]] = [
    (CAUSAL, (12,)),
    (Mask(Axis(causal=True, dilation=2)), (12,)),
    (WINDOW, (12,)),
    (PLANE, (4, 5)),
]


def equal(found: Any, want: Any, limit: float = 2e-6) -> None:
    found, want = (list(t) if isinstance(t, tuple | list) else [t] for t in (found, want))
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


# torch.compile


def train(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """The results of a function, then the gradients of its inputs."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    found = function(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    total = sum((n + 1) * (t.float() ** 2).sum() for n, t in enumerate(found))
    floating = [t for t in leaves if t.requires_grad]
    total.backward()
    return [*(t.detach() for t in found), *(t.grad for t in floating)]

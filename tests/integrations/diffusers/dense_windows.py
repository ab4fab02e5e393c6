"""Windows in an unmodified model of diffusers, by a dense boolean mask: what tests judge nbattn by.

A mask is made key by key by tests/instruments/oracle.py; the model's own call of
`scaled_dot_product_attention` gets it beside the padding that it has. Nothing here is nbattn's, and
the layers, and where the grid stands in the sequence, are written out in models.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import oracle
import torch
from integrations.diffusers.models import TEXT, Sizes, Small, double
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@cache
def window(axes: tuple[Any, ...], grid: Sizes) -> Tensor:
    """bool [tokens, tokens] of a grid."""
    return torch.from_numpy(np.ascontiguousarray(oracle.matrix(axes, grid, grid)))


def pairs(axes: tuple[Any, ...], grid: Sizes, before: int, tokens: int) -> Tensor:
    """bool [tokens, tokens] of a sequence in which a grid stands: all else is global."""
    found = torch.ones(tokens, tokens, dtype=torch.bool)
    end = before + len(window(axes, grid))
    found[before:end, before:end] = window(axes, grid)
    return found


class _Dense(TorchFunctionMode):
    """Gives the attention of the layer that runs a dense mask, once."""

    def __init__(self, grid: Sizes, before: int, text: str) -> None:
        super().__init__()
        self.grid, self.before, self.text = grid, before, text
        self.axes: tuple[Any, ...] | None = None
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is not functional.scaled_dot_product_attention or self.axes is None:
            return func(*args, **named)
        named |= dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
        tokens = named["query"].shape[-2]
        if named["key"].shape[-2] != tokens:  # images of an adapter
            return func(**named)
        allowed = pairs(self.axes, self.grid, self.before, tokens)
        if self.text == "keys":  # tokens beside the grid read no token of it
            in_grid = torch.arange(tokens) - self.before
            in_grid = (in_grid >= 0) & (in_grid < math.prod(self.grid))
            allowed &= in_grid[:, None] | ~in_grid
        padding = named.get("attn_mask")
        if padding is not None:
            assert padding.dtype is torch.bool
            allowed = allowed & padding
        self.calls += 1
        return func(**(named | {"attn_mask": allowed}))


@contextmanager
def windows(
    small: Small,
    model: nn.Module,
    size: Sizes,
    masks: Mapping[str, tuple[Any, ...] | None],
    *,
    text: str = "joint",
) -> Iterator[_Dense]:
    """Runs layers of a model, by name, with the windows of these axes."""
    mode = _Dense(small.grid(size), TEXT if small.text == "first" else 0, text)
    handles = []

    def begin(axes: tuple[Any, ...] | None) -> Any:
        def set_axes(*_: Any) -> None:
            mode.axes = axes

        return set_axes

    for name in small.layers:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(begin(masks.get(name))))
        handles.append(module.register_forward_hook(begin(None)))
    try:
        with mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()


def with_gradients(model: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """A model's output, and the gradients of all parameters and inputs."""
    inputs = {
        name: value.requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype is torch.float64 and name != "timestep"
    }
    model.zero_grad()
    with double():
        out = model(**arguments, return_dict=False)[0]
        out.sin().sum().backward()
    found = {"output": out.detach()}
    found |= {f"d {name}": value.grad for name, value in inputs.items() if value.grad is not None}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            found[name.replace("processor.", "")] = weight.grad.clone()
    return found


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )

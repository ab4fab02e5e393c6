"""Other libraries as tests find them: installed, in part, or by their documentation.

`make oracles` installs all of them. Where one needs a GPU, its own definition in plain torch takes
the place of its kernels: xformers' biases are added to scores as it materialises them, and
flash-attn's functions stand around `documented_flash`, or around the reference of flash-attn 4.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import documented_flash
import neighborhood_gather_oracle as gathered
import pytest
import torch
from torch import Tensor

Modules = dict[str, dict[str, Any]]  # the content of modules that take the place of others


def library(name: str) -> Any:
    """A module of another library, or a skipped test with the reason why it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} is not to be imported here: {error}")


def file_of(package: str, path: str) -> Any:
    """One file of a distribution as a module, without its neighbours, which want a GPU."""
    try:
        place = distribution(package).locate_file(path)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    name = f"only_{Path(path).stem}"
    spec = spec_from_file_location(name, str(place))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def flash_attn_4() -> Any:
    """The reference of flash-attn 4 in plain torch, a file that needs none of its GPU tools."""
    library("einops")
    return file_of("flash-attn-4", "flash_attn/cute/testing.py")


# Modules by the names that code imports, for `stand_in`


def xformers() -> Modules:
    """Its biases, and the attention that they are documented to be for."""
    biases = file_of("xformers", "xformers/ops/fmha/attn_bias.py")

    def memory_efficient_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None
    ) -> Tensor:
        query, key, value = (t.movedim(1, -2) for t in (query, key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if attn_bias is not None:
            scores = scores + attn_bias.materialize(tuple(scores.shape[-2:]))
        return (scores.softmax(-1) @ value).movedim(-2, 1)

    own = {"memory_efficient_attention": memory_efficient_attention}
    names = {"xformers": {}, "xformers.ops": own, "xformers.ops.fmha": {}}
    return {**names, "xformers.ops.fmha.attn_bias": vars(biases)}


def flash_attn() -> Modules:
    return {"flash_attn": documented_flash.functions()}


def flash_attn_around_its_reference() -> Modules:
    """flash-attn's functions around the reference of flash-attn 4."""
    reference = flash_attn_4().attention_ref

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: tuple[int, int],
        softcap: float, slopes: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sides = tuple(None if side < 0 else side for side in window)
        bias = None
        if slopes is not None:
            ends = key.shape[1] - query.shape[1]
            steps = torch.arange(key.shape[1]) - torch.arange(query.shape[1])[:, None] - ends
            bias = -torch.atleast_2d(slopes)[..., None, None] * steps.abs()
        named = {"causal": causal, "window_size": sides, "softcap": softcap, "attn_bias": bias}
        out, _, lse = reference(query, key, value, **named, return_lse=True)
        return out, lse

    return {"flash_attn": documented_flash.functions(attend)}


def natten_0_17() -> Modules:
    """Its functions, with windows that are listed query by query."""

    def natten2dqkrpb(
        query: Tensor, key: Tensor, rpb: Tensor, kernel_size: int, dilation: int
    ) -> Tensor:
        return gathered.scores(query, key, kernel_size, dilation, rpb=rpb)

    def natten2dav(attn: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
        return gathered.weighted(attn, value, kernel_size, dilation)

    def na2d(
        query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int, rpb: Tensor
    ) -> Tensor:
        query, key, value = (t.movedim(-2, 1) for t in (query, key, value))
        scaled = query * query.shape[-1] ** -0.5
        weights = natten2dqkrpb(scaled, key, rpb, kernel_size, dilation).softmax(-1)
        return natten2dav(weights, value, kernel_size, dilation).movedim(1, -2)

    own = {f.__name__: f for f in (natten2dqkrpb, natten2dav, na2d)}
    return {"natten": {}, "natten.functional": own}


def installed(name: str) -> Callable[[], Modules]:
    """A library that runs as it is."""

    def load() -> Modules:
        library(name)
        return {}

    return load


def natten() -> Modules:
    """NATTEN from 0.20 on, which has functions for CPUs."""
    if not library("natten").__version__.startswith("0.21"):
        pytest.skip("natten is of another generation")
    return {}


def stand_in(modules: Modules, patch: pytest.MonkeyPatch) -> None:
    """Makes modules importable until the patch is undone."""
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__dict__.update({n: v for n, v in content.items() if not n.startswith("__")})
        patch.setitem(sys.modules, name, module)

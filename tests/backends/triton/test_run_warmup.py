"""Tests that warming up asks for exactly the kernels that both passes launch afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_calls import EXTRA, HEADS, KEY_HEADS, inputs, program

import nbattn
from nbattn import Axis, Mask, geometry
from nbattn.backends.triton import run
from nbattn.backends.triton.meaning import circle, two_runs
from nbattn.backends.triton.tiles import Build
from nbattn.program.device import DEVICES

SPACE = (12, 20)
Compiled = tuple[Any, ...]


class Asked:
    """A launcher that keeps what must be compiled for it: kernels, options, and types by name."""

    def __init__(self) -> None:
        self.loaded: list[Compiled] = []
        self.launched: list[Compiled] = []

    def load(self, kernel: str, arguments: Mapping[str, Any], *options: Any) -> None:
        self.loaded.append((kernel, types(kernel, arguments), *options))

    def launch(self, kernel: str, grid: Any, arguments: Mapping[str, Any], *options: Any) -> None:
        self.launched.append((kernel, types(kernel, arguments), *options))


def types(kernel: str, arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The dtypes of a kernel's tensors, and the types of its numbers, whose values do not count."""
    module = pytest.importorskip(f"nbattn.backends.triton.kernels.{kernel}")
    names = getattr(module, kernel).arg_names

    def form(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype
        if isinstance(value, tuple):
            return tuple(map(form, value))
        return value if value is None or isinstance(value, torch.dtype) else type(value)

    return tuple((name, form(arguments.get(name))) for name in names if name != "V")


PLAIN = Build("bfloat16", 64, 64, 2)
CASES: dict[str, tuple[Mask, Build, tuple[int, ...]]] = {
    "plain": (Mask.neighborhood((5, 7)), PLAIN, SPACE),
    "float64, other values": (
        Mask.neighborhood((5, 7), dilation=2), Build("float64", 20, 36, 2), SPACE
    ),
    "float32 on a line": (Mask.sliding_window(9), Build("float32", 8, 8, 1), (70,)),
    "odd sizes": (Mask.sliding_window(9), Build("float16", 17, 24, 1), (70,)),
    "everything": (
        Mask.neighborhood((5, 7)),
        PLAIN._replace(softcap=True, key_range=True, extra=True, extra_range=True, table=True,
                       sink=True), SPACE,
    ),
    "a circle, a prefix": (
        Mask(Axis(2, 2, border="wrap"), Axis(3, causal=True, prefix=2)), PLAIN, SPACE
    ),
    "slopes": (Mask.sliding_window(9), Build("bfloat16", 32, 32, 1, slopes=True), (70,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_kernels_that_are_launched_are_those_that_were_loaded(name: str) -> None:
    mask, build, space = CASES[name]
    axes = geometry.bind(mask, space, space)
    build = build._replace(two_runs=two_runs(axes), circle=circle(axes))
    both, asked = program(mask, build, space, training=True), Asked()
    run.warmup(both, asked)
    given, grad = inputs(mask, build, space)
    out, lse = run.forward(both, given, return_lse=True, launcher=asked)
    assert lse is not None
    run.backward(both, given, out, lse, grad, None, launcher=asked)
    assert len(asked.launched) == 4 + build.extra + build.table
    assert asked.loaded == asked.launched


def test_a_plan_says_all_that_a_call_has() -> None:
    """Which optional tensors there are, sinks too, is part of what kernels are compiled for."""
    mask, build, space = CASES["everything"]
    plan = nbattn.plan(
        mask, (2, *space, HEADS, build.head_dim), (2, *space, KEY_HEADS, build.head_dim),
        dtype=build.dtype, device=replace(DEVICES["gfx942"], providers=("triton",)),
        backend="triton", training=True, sink=True, softcap=2.0, key_range=True,
        extra_keys=EXTRA, extra_range=True, relative_bias=True,
    )  # fmt: skip
    both, asked = plan.chosen.program, Asked()
    assert both is not None
    run.warmup(both, asked)
    given, grad = inputs(mask, build, space)
    out, lse = run.forward(both, given, return_lse=True, launcher=asked)
    assert lse is not None
    run.backward(both, given, out, lse, grad, None, launcher=asked)
    assert len(asked.launched) == 6
    assert asked.loaded == asked.launched


def test_inference_loads_the_forward_alone() -> None:
    mask, build, space = CASES["plain"]
    only, asked = program(mask, build, space, training=False), Asked()
    run.warmup(only, asked)
    given, _ = inputs(mask, build, space)
    run.forward(only, given, return_lse=False, launcher=asked)
    assert [kernel for kernel, *_ in asked.loaded] == ["forward"]
    assert asked.loaded == asked.launched


def test_lengths_and_windows_compile_nothing() -> None:
    """The same tiles for other lengths, windows, dilations, strides and alignments."""
    build = PLAIN._replace(rank=1)
    seen: list[list[Compiled]] = []
    for mask, length in (
        (Mask.sliding_window(9), 70),
        (Mask.sliding_window(1, 30), 128),
        (Mask.neighborhood(7, dilation=3), 513),
        (Mask.neighborhood(8, stride=4), 1),
        (Mask.causal("top-left"), 40),
    ):
        both, asked = program(mask, build, (length,), training=True), Asked()
        given, grad = inputs(mask, build, (length,))
        out, lse = run.forward(both, given, return_lse=True, launcher=asked)
        assert lse is not None
        run.backward(both, given, out, lse, grad, None, launcher=asked)
        seen.append(asked.launched)
    assert all(launched == seen[0] for launched in seen)

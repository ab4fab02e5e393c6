"""Tests of Triton's launcher: what it says where Triton is missing, how kernels are called, and
what Triton compiles for it, on a device that runs nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton_calls
import triton_driver
import triton_interpreter
from triton_driver import Device

from nbattn import BackendError, Mask
from nbattn.backends.triton import launch, run
from nbattn.backends.triton.launch import TritonLauncher
from nbattn.backends.triton.tiles import Build

needs_triton = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)
BUILD = Build("bfloat16", 16, 16, 1)


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the version of Triton, or None for none."""

    def install(version: str | None) -> None:
        module = ModuleType("triton")
        if version:
            module.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, "triton", module)
        found = None if version is None else object()
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
        launch.missing.cache_clear()

    yield install
    launch.missing.cache_clear()


def test_torch_of_intel_brings_the_triton_of_intel(
    version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version("3.5.1")
    assert str(launch.missing()).endswith('the kernels need 3.6: pip install "triton>=3.6"')
    launch.missing.cache_clear()
    monkeypatch.setattr(torch.version, "xpu", "20250301", raising=False)
    index = "https://download.pytorch.org/whl/xpu"
    assert str(launch.missing()).endswith(f"need 3.6: pip install -U torch --index-url {index}")


@pytest.mark.parametrize(
    ("installed", "problem"),
    [
        (None, "Triton, which torch's wheels for GPUs bring, is not installed"),
        ("", "Triton does not load: module 'triton' has no attribute '__version__'"),
        ("3.5.1", "Triton 3.5.1 is too old, the kernels need 3.6"),
    ],
)
def test_why_triton_cannot_run(version: Any, installed: str | None, problem: str) -> None:
    version(installed)
    assert launch.missing() == f"{problem}: {launch.fix()}"
    with pytest.raises(BackendError) as caught:
        TritonLauncher()
    assert (caught.value.problem, caught.value.fix) == (f"{problem}.", launch.fix())


@pytest.mark.parametrize("installed", ["3.6.0", "3.10.2", "4.0.0+rocm7"])
def test_versions_that_run(version: Any, installed: str) -> None:
    version(installed)
    assert launch.missing() is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of a kernel of the name "sample", and the devices that were current."""
    made: list[Any] = []

    class Sample:
        arg_names = ("query", "missing", "axes", "V")

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *given, **named: made.append((grid, given, named))

    module = SimpleNamespace(sample=Sample())
    monkeypatch.setitem(sys.modules, "nbattn.backends.triton.kernels.sample", module)
    launch._function.cache_clear()

    @contextlib.contextmanager
    def current(device: torch.device) -> Iterator[None]:
        made.append(device)
        yield

    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(device=current))
    return made


@needs_triton
def test_a_kernel_is_called_by_the_names_of_its_parameters(calls: list[Any]) -> None:
    query, variant, launcher = torch.zeros(3), object(), TritonLauncher()
    arguments = {"axes": (1, 2), "other": 5, "query": query}
    launcher.launch("sample", (4, 2), arguments, variant, 8, 3)  # pyright: ignore
    place, (grid, given, named) = calls
    assert place == query.device
    assert grid == (4, 2)
    assert given == (query, None, (1, 2), variant)
    assert named == {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}


@needs_triton
def test_an_empty_grid_launches_nothing(calls: list[Any]) -> None:
    TritonLauncher().launch("sample", (4, 0), {"query": torch.zeros(0)}, object(), 1, 1)  # pyright: ignore
    assert calls == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


def both_passes(mask: Mask, length: int, launcher: TritonLauncher) -> None:
    program = triton_calls.program(mask, BUILD, (length,), training=True)
    given, grad = triton_calls.inputs(mask, BUILD, (length,))
    out, lse = run.forward(program, given, return_lse=True, launcher=launcher)
    assert lse is not None
    run.backward(program, given, out, lse, grad, None, launcher=launcher)


KERNELS = ["forward", "delta", "grad_query", "grad_key"]
PROBLEMS = [
    (Mask.sliding_window(9), 70),
    (Mask.sliding_window(1, 30), 128),
    (Mask.neighborhood(7, dilation=3), 513),
    (Mask.neighborhood(8, stride=4), 1),
    (Mask.causal("top-left"), 40),
    (Mask.sliding_window(16), 16),
    (Mask.sliding_window(1 << 20), 1600),
    (Mask.full(), 33),
]


@needs_triton
def test_warming_up_compiles_all_and_lengths_compile_nothing(cache: Path) -> None:
    """By Triton's own decision of what is another kernel: no 1 and no multiple of 16 is one."""
    with triton_driver.device(cache) as device:
        launcher = TritonLauncher()
        first = triton_calls.program(PROBLEMS[0][0], BUILD, (70,), training=True)
        run.warmup(first, launcher)
        assert [name for name, _ in device.compiled] == KERNELS
        for mask, length in PROBLEMS:
            both_passes(mask, length, launcher)
        assert len(device.compiled) == len(KERNELS)
        assert [name for name, _ in device.launched] == KERNELS * len(PROBLEMS)


@needs_triton
def test_another_process_finds_kernels_in_tritons_cache(cache: Path) -> None:
    """The caches of this process are cleared in between."""
    seen: list[Device] = []
    for _ in range(2):
        with triton_driver.device(cache) as device:
            both_passes(*PROBLEMS[0], TritonLauncher())
        seen.append(device)
    assert [name for name, _ in seen[1].compiled] == KERNELS
    assert all(was_there for _, was_there in seen[1].compiled)

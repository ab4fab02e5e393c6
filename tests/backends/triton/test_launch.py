"""Tests of launches through Triton: what reaches a kernel, and what is said where none can run."""

from __future__ import annotations

import importlib
import importlib.util
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nbattn.backends.triton import launch
from nbattn.backends.triton.kernels.numbers import Variant
from nbattn.errors import BackendError

FIX = "torch's wheels for CUDA, ROCm and XPU bring it: pip install -U torch triton"
VARIANT = Variant(1, (1, 1, 16), (1, 1, 16), 16, 16)


@pytest.fixture(autouse=True)
def nothing_is_known() -> Iterator[None]:
    for known in (launch.missing, launch.launcher, launch._function):
        known.cache_clear()
    yield
    for known in (launch.missing, launch.launcher, launch._function):
        known.cache_clear()


def with_triton(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Triton is another module; None where there is none, an error where it does not load."""
    found = importlib.import_module

    def load(name: str) -> Any:
        if name == "triton" and isinstance(module, Exception):
            raise module
        return module if name == "triton" else found(name)

    spec = None if module is None else object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(importlib, "import_module", load)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (None, f"Triton is not installed: {FIX}"),
        (ImportError("no libtriton.so"), f"Triton does not load: no libtriton.so: {FIX}"),
        (
            types.SimpleNamespace(__version__="3.5.1"),
            f"Triton 3.5.1 is too old, the kernels need 3.6: {FIX}",
        ),
        (types.SimpleNamespace(__version__="3.6.0"), None),
        (types.SimpleNamespace(__version__="3.10.0+git7"), None),
    ],
    ids=["absent", "broken", "old", "oldest", "newer"],
)
def test_why_kernels_cannot_run(
    monkeypatch: pytest.MonkeyPatch, module: Any, text: str | None
) -> None:
    with_triton(monkeypatch, module)
    assert launch.missing() == text


def test_a_launcher_without_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with_triton(monkeypatch, None)
    with pytest.raises(BackendError) as error:
        launch.launcher()
    assert "Triton is not installed." in str(error.value)
    assert FIX in str(error.value)


class Kernel:
    """Takes the place of a compiled kernel, and records what it is called with."""

    def __init__(self) -> None:
        self.arg_names = ["query", "sink", "counts", "V"]
        self.calls: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **options: self.calls.append((grid, given, options))

    def warmup(self, *given: Any, grid: tuple[int, ...], **options: Any) -> None:
        self.calls.append((grid, given, options))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    with_triton(monkeypatch, types.SimpleNamespace(__version__="3.8.0"))
    monkeypatch.setattr(launch, "_function", lambda name: {"forward": made}[name])
    monkeypatch.setattr(torch, "get_device_module", lambda _: torch.cuda)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    return made


OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}


def test_arguments_reach_a_kernel_in_its_order(kernel: Kernel) -> None:
    """Absent ones are None, and those of other kernels are left out."""
    query = torch.zeros(2)
    given = {"counts": (1, 2), "terms": torch.ones(1), "query": query}
    launch.launcher().launch("forward", (5, 2), given, VARIANT, 4, 3)
    ((grid, found, options),) = kernel.calls
    assert grid == (5, 2)
    assert found[0] is query
    assert found[1:] == (None, (1, 2), VARIANT)
    assert options == OPTIONS


def test_a_grid_without_programs_launches_nothing(kernel: Kernel) -> None:
    launch.launcher().launch("forward", (5, 0), {"query": torch.zeros(2)}, VARIANT, 4, 3)
    assert not kernel.calls


def test_a_kernel_is_compiled_for_dtypes(kernel: Kernel) -> None:
    given = {"query": torch.float16, "sink": torch.float32, "counts": (1, 2)}
    launch.launcher().load("forward", given, VARIANT, 4, 3)
    assert kernel.calls == [((1,), (torch.float16, torch.float32, (1, 2), VARIANT), OPTIONS)]

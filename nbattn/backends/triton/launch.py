"""Launches the Triton kernels on torch's tensors and torch's current stream.

Triton compiles a kernel where it is first launched, and keeps the result in its own cache on disk.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from nbattn.errors import BackendError
from nbattn.packages import install_triton

if TYPE_CHECKING:
    from nbattn.backends.triton.kernels.numbers import Variant

OLDEST = (3, 6)  # the first Triton whose language has what the kernels use
_KERNELS = "nbattn.backends.triton.kernels"
_VARIANT = "V"  # the last parameter of every kernel


class Launcher(Protocol):
    """Runs kernels on tensors: `TritonLauncher`, or the interpreter's launcher in the tests."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: Mapping[str, Any],
        variant: Variant,
        warps: int,
        stages: int,
    ) -> None:
        """Run a kernel.

        Args:
            kernel: the name of its function and of its module, "forward".
            grid: numbers of programs; 0 launches nothing.
            arguments: by the names of the kernel's parameters; absent ones are None.
            variant: what it is compiled for.
            warps: of a program.
            stages: tiles of columns that are loaded at once.
        """
        ...

    def load(
        self, kernel: str, arguments: Mapping[str, Any], variant: Variant, warps: int, stages: int
    ) -> None:
        """Compile a kernel, so that its first launch does not have to; dtypes stand for tensors."""
        ...


def fix() -> str:
    """The command that installs Triton for the GPUs that torch is built for."""
    torch: Any = sys.modules.get("torch")
    return install_triton(
        "xpu" if getattr(getattr(torch, "version", None), "xpu", None) else "cuda"
    )


@cache
def missing() -> str | None:
    """Why Triton cannot run the kernels on this machine and its fix, in one line; None if it can.

    Does not load Triton's compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return f"Triton, which torch's wheels for GPUs bring, is not installed: {fix()}"
    try:
        version: str = importlib.import_module("triton").__version__
    except (ImportError, AttributeError) as error:
        return f"Triton does not load: {error}: {fix()}"
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"Triton {version} is too old, the kernels need {oldest}: {fix()}"
    return None


@cache
def launcher() -> Launcher:
    """The process's `TritonLauncher`.

    Raises:
        BackendError: Triton is not installed, does not load, or is too old.
    """
    return TritonLauncher()


class TritonLauncher:
    """Launches kernels on the tensors' device."""

    def __init__(self) -> None:
        if (problem := missing()) is not None:
            raise BackendError(f"{problem.removesuffix(f': {fix()}')}.", fix())
        self._torch: Any = importlib.import_module("torch")

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: Mapping[str, Any],
        variant: Variant,
        warps: int,
        stages: int,
    ) -> None:
        """Run a kernel on torch's current stream of the tensors' device; the first launch of a
        variant compiles it, or takes it from Triton's cache.
        """
        if not all(grid):
            return
        tensor = next(one for one in arguments.values() if hasattr(one, "data_ptr"))
        with self._torch.get_device_module(tensor.device).device(tensor.device):
            function, given = _called(kernel, arguments)
            function[grid](*given, variant, **_options(warps, stages))

    def load(
        self, kernel: str, arguments: Mapping[str, Any], variant: Variant, warps: int, stages: int
    ) -> None:
        """Compile a kernel for the current device, without running it."""
        function, given = _called(kernel, arguments)
        function.warmup(*given, variant, grid=(1,), **_options(warps, stages))


def _called(kernel: str, arguments: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """A kernel, and what it is called with in the order of its parameters."""
    function = _function(kernel)
    return function, [arguments.get(name) for name in function.arg_names if name != _VARIANT]


@cache
def _function(kernel: str) -> Any:
    return getattr(importlib.import_module(f"{_KERNELS}.{kernel}"), kernel)


def _options(warps: int, stages: int) -> dict[str, Any]:
    # products and sums may fuse, as everywhere in nbattn; Triton 3.9 warns where it is not said
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}

"""Launches the Triton kernels on torch's tensors and torch's current stream.

Triton compiles a kernel where it is first launched, and keeps the result in its own cache on disk.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from nbattn.errors import BackendError
from nbattn.packages import PIP

if TYPE_CHECKING:
    from nbattn.backends.triton.kernels.numbers import Variant

_KERNELS = "nbattn.backends.triton.kernels"
OLDEST = (3, 6)  # Triton with the language that the kernels are written in
FIX = "torch's wheels for CUDA, ROCm and XPU bring it; pip install -U triton"


class Launcher(Protocol):
    """Runs a kernel on tensors: `TritonLauncher`, or the interpreter's launcher in the tests."""

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
            kernel: the name of its function and module, "forward".
            grid: numbers of programs; a 0 launches nothing.
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


@cache
def missing() -> str | None:
    """Why Triton cannot run the kernels on this machine and its fix, in one line; None if it can.

    Does not import Triton.
    """
    from importlib import metadata

    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {FIX}"
    versions = [row.version for row in metadata.distributions() if row.name in _NAMES]

"""A GPU for Triton's launcher that runs nothing: kernels are compiled for it, and launches kept.

Triton itself decides which arguments make another kernel, so what is compiled, and when, is what a
GPU of that architecture would have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

NUMBER = 77  # of the device, by which Triton's functions keep their kernels


@dataclass
class Device:
    """What happened.

    Args:
        compiled: the name of each kernel that was new in this process, and whether Triton's cache
            on disk had it.
        launched: the name and the grid of each launch.
    """

    compiled: list[tuple[str, bool]] = field(default_factory=list)
    launched: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def driver(self, capability: int) -> Any:
        """Triton's driver of it."""
        from triton.backends.compiler import GPUTarget

        def launcher(source: Any, metadata: Any) -> Any:
            del source

            def launch(*given: Any) -> None:
                self.launched.append((metadata.name, given[:3]))

            return launch

        utils = SimpleNamespace(
            load_binary=lambda *_: (None, 1, 128, 0, 1024),  # no module that must be unloaded
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        )
        return SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: NUMBER,
            get_current_stream=lambda _: 0,
            launcher_cls=launcher,
            utils=utils,
        )


@contextlib.contextmanager
def device(cache: Path, capability: int = 90) -> Iterator[Device]:
    """The current device of Triton, without kernels; tensors of the CPU are on it."""
    import triton

    from nbattn.backends.triton import launch, run

    made = Device()
    functions = [launch._function(name) for name in (*run.FUNCTIONS.values(), "delta")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        patch.setattr(triton.runtime.driver, "_active", made.driver(capability))
        patch.setattr(
            triton.knobs.compilation, "listener",
            lambda *, src, cache_hit, **_: made.compiled.append((src.name, cache_hit)),
        )  # fmt: skip
        here = SimpleNamespace(device=lambda _: contextlib.nullcontext())
        patch.setattr(torch, "get_device_module", lambda _: here)
        for function in functions:
            function.device_caches.pop(NUMBER, None)
        yield made
        for function in functions:
            function.device_caches.pop(NUMBER, None)

"""Where NVRTC and CUDA's headers lie: by CuPy's finder, in torch's wheels, in a toolkit."""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from nbattn.errors import BackendError

HEADERS = ("cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp")  # that kernels include
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
# Of NVIDIA's wheels, below site-packages/nvidia: CUDA 13's, CUDA 12's.
_WHEEL_LIBRARIES, _WHEEL_HEADERS = (
    ("cu13/lib", "cuda_nvrtc/lib"),
    ("cu13/include", "cuda_runtime/include"),
)
_SYSTEM = "/usr/local/cuda"
FIX = 'pip install "nbattn[cuda13]"  # with a driver of CUDA 12: "nbattn[cuda12]"'


@cache
def library() -> str:
    """The path of NVRTC, or its name where only the system's loader knows the path.

    Raises:
        BackendError: it is nowhere.
    """
    found = _asked("load_nvidia_dynamic_lib", "nvrtc")
    if found is not None:
        return found.abs_path
    folders = [*_wheels(_WHEEL_LIBRARIES), *_toolkits("lib64"), *_toolkits("lib")]
    for path in (folder / name for folder in folders for name in _LIBRARIES):
        if path.is_file():
            return str(path)
    if name := ctypes.util.find_library("nvrtc"):
        return name
    raise BackendError(
        f"NVRTC, the run-time compiler of CUDA, is not installed: no {_LIBRARIES[0]} in the wheels "
        "of NVIDIA, CUDA_HOME or the system's libraries.",
        FIX,
    )


@cache
def headers() -> str:
    """The directory of CUDA's headers.

    Raises:
        BackendError: there is none.
    """
    beside = Path(library()).resolve().parent
    asked = _asked("find_nvidia_header_directory", "cudart")
    folders = [
        beside.parent / "include",
        *([Path(asked)] if asked else []),
        *_wheels(_WHEEL_HEADERS),
        *_toolkits("include"),
    ]
    for folder in folders:
        if all((folder / name).is_file() for name in HEADERS):
            return str(folder)
    raise BackendError(f"CUDA's headers are not installed: no {HEADERS[0]} for {library()}.", FIX)


@cache
def headers_digest() -> str:
    """SHA-256 of the headers that kernels include, in hexadecimal."""
    total = hashlib.sha256()
    for name in HEADERS:
        total.update(Path(headers(), name).read_bytes())
    return total.hexdigest()


def _asked(function: str, name: str) -> Any:
    """What `cuda.pathfinder`, which comes with CuPy, finds; None where either is missing."""
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        return getattr(pathfinder, function)(name)
    except Exception:  # its errors are of many kinds, and all mean that others have to be asked
        return None


def _wheels(below: tuple[str, ...]) -> Iterator[Path]:
    return (Path(entry, "nvidia", folder) for entry in sys.path if entry for folder in below)


def _toolkits(below: str) -> Iterator[Path]:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _SYSTEM]
    return (Path(root, below) for root in roots if root)

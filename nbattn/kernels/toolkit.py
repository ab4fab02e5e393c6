"""Finds NVRTC and CUDA's headers: by CuPy's finder, in torch's wheels, or in a CUDA toolkit."""

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
from nbattn.packages import install_line

# The headers that kernels include.
HEADERS = ("cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp")
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
# Folders of NVIDIA's wheels, below site-packages/nvidia: of CUDA 13, of CUDA 12.
_WHEEL_LIBRARIES, _WHEEL_HEADERS = (
    ("cu13/lib", "cuda_nvrtc/lib"),
    ("cu13/include", "cuda_runtime/include"),
)
_SYSTEM = "/usr/local/cuda"
FIX = f"{install_line('cuda13')}  # with a driver of CUDA 12: {install_line('cuda12')}"


@cache
def library() -> str:
    """The path of NVRTC, or its name if only the system's loader can find it.

    Raises:
        BackendError: NVRTC is not installed.
    """
    nvrtc = _pathfinder("load_nvidia_dynamic_lib", "nvrtc")
    if nvrtc is not None:
        return nvrtc.abs_path
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
        BackendError: they are not installed.
    """
    libraries = Path(library()).resolve().parent
    found_by_cupy = _pathfinder("find_nvidia_header_directory", "cudart")
    folders = [
        libraries.parent / "include",
        *([Path(found_by_cupy)] if found_by_cupy else []),
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


def _pathfinder(function: str, name: str) -> Any:
    """The result of `cuda.pathfinder`, which comes with CuPy; None if it finds nothing."""
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        return getattr(pathfinder, function)(name)
    except Exception:  # it raises errors of many kinds, and all mean: search elsewhere
        return None


def _wheels(below: tuple[str, ...]) -> Iterator[Path]:
    return (Path(entry, "nvidia", folder) for entry in sys.path if entry for folder in below)


def _toolkits(below: str) -> Iterator[Path]:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _SYSTEM]
    return (Path(root, below) for root in roots if root)

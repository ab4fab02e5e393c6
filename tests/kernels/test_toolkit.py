"""Tests of where NVRTC and its headers are found, and of the errors where they are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import probe_kernel
import pytest
from probe_kernel import needs_nvrtc

from nbattn.errors import BackendError
from nbattn.kernels import sources, toolkit


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = probe_kernel.write(tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    return folder


def test_where_nvrtc_is_missing(monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch)
    with pytest.raises(BackendError) as caught:
        toolkit.library.__wrapped__()
    assert str(caught.value) == (
        "NVRTC, the run-time compiler of CUDA, is not installed: no libnvrtc.so.13 in the wheels "
        "of NVIDIA, CUDA_HOME or the system's libraries.\n"
        '  fix:   pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
        '"nvidia-cuda-runtime>=13.0,<14"  # with a driver of CUDA 12: pip install '
        '"cupy-cuda12x>=14.2,<15" "nvidia-cuda-nvrtc-cu12>=12.6,<13" '
        '"nvidia-cuda-runtime-cu12>=12.6,<13"'
    )


def test_where_headers_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hide(monkeypatch)
    monkeypatch.setattr(toolkit, "library", lambda: str(tmp_path / "lib" / "libnvrtc.so.13"))
    with pytest.raises(BackendError) as caught:
        toolkit.headers.__wrapped__()
    assert str(caught.value) == (
        f"CUDA's headers are not installed: no cuda_fp16.h for {tmp_path}/lib/libnvrtc.so.13.\n"
        '  fix:   pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
        '"nvidia-cuda-runtime>=13.0,<14"  # with a driver of CUDA 12: pip install '
        '"cupy-cuda12x>=14.2,<15" "nvidia-cuda-nvrtc-cu12>=12.6,<13" '
        '"nvidia-cuda-runtime-cu12>=12.6,<13"'
    )


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of CUDA is anywhere."""
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(toolkit, "_SYSTEM", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(toolkit.ctypes.util, "find_library", lambda name: None)


@pytest.mark.parametrize(
    ("library", "headers"),
    [
        ("cu13/lib/libnvrtc.so.13", "cu13/include"),
        ("cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include"),
    ],
)
def test_wheels_are_found_without_cupy(
    library: str, headers: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    hide(monkeypatch)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    place(tmp_path / "nvidia", library, headers)
    assert toolkit.library.__wrapped__() == str(tmp_path / "nvidia" / library)
    monkeypatch.setattr(toolkit, "library", lambda: str(tmp_path / "nvidia" / library))
    assert toolkit.headers.__wrapped__() == str(tmp_path / "nvidia" / headers)


@needs_nvrtc
def test_without_cupy_the_wheel_compiles(probe: Path):
    """The library does not find its second half by itself."""
    code = (
        "import sys; sys.modules['cuda.pathfinder'] = None\n"
        f"sys.path.insert(0, {str(Path(probe_kernel.__file__).parent)!r})\n"
        "import pathlib, probe_kernel\n"
        "from nbattn.kernels import nvrtc, sources\n"
        f"sources.directory = lambda: pathlib.Path({str(probe)!r})\n"
        "print(nvrtc.compile(probe_kernel.variant(), '80').usage.registers)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "_SYSTEM"])
def test_a_toolkit_is_found(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hide(monkeypatch)
    place(tmp_path, "lib64/libnvrtc.so", "include")
    if variable == "_SYSTEM":
        monkeypatch.setattr(toolkit, "_SYSTEM", str(tmp_path))
    else:
        monkeypatch.setenv(variable, str(tmp_path))
    assert toolkit.library.__wrapped__() == str(tmp_path / "lib64/libnvrtc.so")
    monkeypatch.setattr(toolkit, "library", lambda: "libnvrtc.so.13")
    assert toolkit.headers.__wrapped__() == str(tmp_path / "include")


def place(root: Path, library: str, headers: str) -> None:
    (root / library).parent.mkdir(parents=True)
    (root / library).touch()
    (root / headers).mkdir(parents=True)
    for name in toolkit.HEADERS:
        (root / headers / name).touch()

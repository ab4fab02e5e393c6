"""Tests of what the doctor concludes: of machines with and without compilers and GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from nbattn.doctor import verdict
from nbattn.packages import install_line

H100 = {"name": "cuda:0", "model": "NVIDIA H100", "capability": [9, 0], "memory_bytes": 1 << 36}


def facts(
    cpu: tuple[str, ...] = ("native", "tiled"),
    gpu: tuple[str, ...] | None = None,
    build: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The facts of a machine on which these backends are usable; no GPU without `gpu`."""
    devices = [{"name": "cpu"}, *[H100] * (gpu is not None)]
    usable = [("cpu", name) for name in cpu] + [("cuda:0", name) for name in gpu or ()]
    return {
        "torch": {"version": "2.13", "cuda_build": build, "devices": devices},
        "packages": [],
        "backends": [{"name": n, "device": d, "usable": True} for d, n in usable],
        "kernels": {"CPU compiler": {"version": "g++"}, "CPU library": {"works": True}},
        "cache": {"path": "folder", "others_may_write": False},
        **more,
    }


def on(gpu: dict[str, Any], *usable: str) -> dict[str, Any]:
    """The facts of a machine with a GPU of another vendor than NVIDIA."""
    found = facts()
    found["torch"]["devices"].append(gpu)
    found["backends"] += [{"name": n, "device": gpu["name"], "usable": True} for n in usable]
    return found


MI300X = {"name": "cuda:0", "model": "AMD Instinct MI300X", "architecture": "gfx942"}
MAX = {"name": "xpu:0", "model": "Intel(R) Data Center GPU Max 1550", "memory_bytes": 1 << 36}
TRITON = 'pip install "triton>=3.6"  # for the Triton kernels'
# Triton of PyPI does not compile for Intel's GPUs, and torch of PyPI sees those of NVIDIA only.
INDEX = "https://download.pytorch.org/whl/xpu"
OF_INTEL = f"pip install -U torch --index-url {INDEX}  # for the Triton kernels"
NO_COMPILER = {"CPU compiler": {"error": "none"}, "CPU library": {"works": False}}
NOT_YET = {"CPU compiler": {"version": "g++"}, "CPU library": {"works": False}}
MACHINES = [
    (facts(), "CPU: ready, native kernels. GPU: none found.", []),
    (
        facts(kernels=NOT_YET),
        "CPU: ready, native kernels, compiled when first needed. GPU: none found.",
        [],
    ),
    (
        facts(("tiled",), kernels=NO_COMPILER),
        "CPU: ready, kernels in plain torch. GPU: none found.",
        [f"{install_line('native')}  # a C++ compiler for the CPU kernels"],
    ),
    (
        facts(gpu=("cuda", "sdpa"), build="13.0"),
        "CPU: ready, native kernels. GPU: NVIDIA H100 ready, the project's CUDA kernels.",
        [],
    ),
    (
        facts(gpu=("sdpa",), build="12.8"),
        "CPU: ready, native kernels. GPU: NVIDIA H100 ready, torch's kernels.",
        [f"{install_line('cuda12')}  # for the CUDA kernels"],
    ),
    (
        facts(gpu=(), build="13.0"),
        "CPU: ready, native kernels. GPU: NVIDIA H100 not ready.",
        [f"{install_line('cuda13')}  # for the CUDA kernels"],
    ),
    (
        facts(gpu=("triton", "sdpa"), build="13.0"),
        "CPU: ready, native kernels. GPU: NVIDIA H100 ready, the project's Triton kernels.",
        [f"{install_line('cuda13')}  # for the CUDA kernels"],
    ),
    (
        on(MI300X, "triton", "sdpa"),
        "CPU: ready, native kernels. GPU: AMD Instinct MI300X ready, the project's Triton kernels.",
        [],
    ),
    (
        on(MI300X, "sdpa"),
        "CPU: ready, native kernels. GPU: AMD Instinct MI300X ready, torch's kernels.",
        [TRITON],
    ),
    (
        on(MAX),
        f"CPU: ready, native kernels. GPU: {MAX['model']} not ready.",
        [OF_INTEL],
    ),
    (
        on({"name": "mps"}, "sdpa"),
        "CPU: ready, native kernels. GPU: mps ready, torch's kernels.",
        [],
    ),
    (
        facts((), torch={"error": "ImportError: x", "fix": "pip install torch"}),
        "CPU: not ready, torch does not work. GPU: unknown.",
        ["pip install torch"],
    ),
]


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(verdict, "_NVIDIA", tmp_path / "version")


@pytest.mark.parametrize(("found", "words", "advice"), MACHINES, ids=lambda one: str(one)[-60:])
def test_verdict_and_advice(found: dict[str, Any], words: str, advice: list[str]) -> None:
    assert " ".join(verdict.verdict(found).values()) == words
    assert verdict.advice(found) == advice


def test_a_gpu_that_torch_does_not_see(tmp_path: Any) -> None:
    (tmp_path / "version").write_text("NVRM")
    assert verdict.verdict(facts())["gpu"] == "GPU: one is here that this torch does not see."
    (line,) = verdict.advice(facts())
    assert line.startswith("pip install --force-reinstall torch  # a build for your GPU")
    assert verdict.advice(on(MI300X, "triton")) == []  # torch sees another one


def test_packages_and_the_cache_are_repaired_once() -> None:
    numpy = {"name": "numpy", "extras": [], "wanted": ">=2", "installed": "1.0"}
    numpy |= {"fits": False, "importable": True}
    yaml = {"name": "pyyaml", "extras": ["yaml"], "wanted": "", "installed": "6"}
    yaml |= {"fits": True, "importable": False}
    natten = {"name": "natten", "extras": ["natten"], "wanted": "==1", "installed": None}
    natten |= {"fits": None, "importable": None}  # optional and absent: nothing to do
    found = facts(packages=[numpy, yaml, natten], cache={"path": "a/b", "others_may_write": True})
    problem = "a/b is writable by others: chmod go-w a/b"
    found["kernels"]["cubins"] = found["kernels"]["other"] = {"problem": problem}
    advice = verdict.advice(found)
    assert advice[:2] == ['pip install "numpy>=2"', "pip install --force-reinstall pyyaml"]
    assert advice[2:] == ["chmod go-w a/b"]

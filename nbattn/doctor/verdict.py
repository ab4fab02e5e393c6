"""What the doctor concludes from the facts: whether CPU and GPU are ready, and what to do about it.

Every piece of advice occurs once, whatever number of backends it would help.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbattn.packages import install_line, install_triton

Report = dict[str, Any]
_NVIDIA = Path("/proc/driver/nvidia/version")  # there where a driver of NVIDIA is loaded


def verdict(facts: Report) -> Report:
    """Return a sentence for the CPU and one for the GPU.

    Args:
        facts: those of `doctor.report`.
    """
    return {"cpu": f"CPU: {_cpu(facts)}.", "gpu": f"GPU: {_gpu(facts)}."}


def _cpu(facts: Report) -> str:
    if "error" in facts["torch"]:
        return "not ready, torch does not work"
    usable = _usable(facts, "cpu")
    if "native" in usable:
        compiled = facts["kernels"]["CPU library"].get("works")
        return "ready, native kernels" + ("" if compiled else ", compiled when first needed")
    return "ready, kernels in plain torch" if "tiled" in usable else "not ready"


def _gpu(facts: Report) -> str:
    if "error" in facts["torch"]:
        return "unknown"
    others = [device for device in facts["torch"]["devices"] if device["name"] != "cpu"]
    if not others:
        return "one is here that this torch does not see" if _NVIDIA.is_file() else "none found"
    device = others[0]
    model = device.get("model", device["name"])
    usable = _usable(facts, device["name"])
    if "cuda" in usable:
        return f"{model} ready, the project's CUDA kernels"
    if "triton" in usable:
        return f"{model} ready, the project's Triton kernels"
    if not usable:
        return f"{model} not ready"
    return f"{model} ready, torch's kernels"


def _usable(facts: Report, device: str) -> set[str]:
    backends = facts["backends"] if isinstance(facts["backends"], list) else []
    return {one["name"] for one in backends if one["device"] == device and one["usable"]}


def advice(facts: Report) -> list[str]:
    """Return what the user should do, the most important first, each once."""
    torch = facts["torch"]
    if "error" in torch:
        return list(dict.fromkeys([*_required(facts), torch.get("fix") or _OF_CRASHES]))
    found = [*_required(facts), *_kernels(facts), *_wrong(facts), *_cache(facts)]
    return list(dict.fromkeys(found))


_OF_CRASHES = "python -X faulthandler -c 'import torch'  # shows where it stops"


def _required(facts: Report) -> Iterator[str]:
    """Packages that do not load, or are not of a version that fits."""
    for package in facts["packages"] if isinstance(facts["packages"], list) else []:
        is_needed = not package["extras"]
        wanted = f'pip install "{package["name"]}{package["wanted"]}"'
        if package["name"] == "torch" and "error" in facts["torch"]:
            continue  # has a fix of its own
        if (is_needed and package["installed"] is None) or package["fits"] is False:
            yield wanted
        elif package["importable"] is False:
            yield f"pip install --force-reinstall {package['name']}"


def _kernels(facts: Report) -> Iterator[str]:
    """Compilers and packages without which the project's own kernels do not run."""
    kernels = facts["kernels"]
    if "native" not in _usable(facts, "cpu") and "error" in kernels["CPU compiler"]:
        yield f"{install_line('native')}  # a C++ compiler for the CPU kernels"
    devices = [device for device in facts["torch"]["devices"] if "capability" in device]
    build = facts["torch"]["cuda_build"] or ""
    extra = "cuda12" if build.startswith("12") else "cuda13"
    if devices and "cuda" not in _usable(facts, devices[0]["name"]):
        yield f"{install_line(extra)}  # for the CUDA kernels"
    gpus = [one for one in facts["torch"]["devices"] if one["name"].startswith(("cuda", "xpu"))]
    others = [device["name"] for device in gpus if device not in devices]
    if others and "triton" not in _usable(facts, others[0]):
        kind = others[0].partition(":")[0]
        yield f"{install_triton(kind)}  # for the Triton kernels"
    if not devices and not others and _NVIDIA.is_file():
        yield "pip install --force-reinstall torch  # a build for your GPU: pytorch.org"


def _wrong(facts: Report) -> Iterator[str]:
    """Backends that fail in a way of their own."""
    for backend in facts["backends"] if isinstance(facts["backends"], list) else []:
        if backend.get("fix"):
            yield f"{backend['name']} on {backend['device']}: {backend['fix']}"


def _cache(facts: Report) -> Iterator[str]:
    """What keeps the cache from being used."""
    cache = facts["cache"]
    if "error" in cache:
        yield f"unset NBATTN_CACHE  # {cache['error']}"
    if cache.get("others_may_write"):
        yield f"chmod go-w {cache['path']}"
    for part in facts["kernels"].values():
        if "chmod go-w " in (problem := str(part.get("problem", ""))):
            yield "chmod go-w " + problem.partition("chmod go-w ")[2]

"""The second process of the doctor: it tries what may crash or hang, with a line before each part.

Without "--deep" it imports torch and tries the backends of the CPU whose kernels are ready; it
compiles and writes nothing.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nbattn import doctor
from nbattn.doctor import Report, guarded

_COMPILED = ("flex",)  # each run compiles for seconds
_OF_CUDA = ("launcher", "compiler", "compile", "cubins")
_SLOW = ("compile", "cubins")
_VENDORS = {"cuda": "NVIDIA", "hip": "AMD", "xpu": "Intel"}  # by Triton's names of its targets


def run() -> None:
    """Print, in the second process, one line before and one after each part that may crash."""
    words = sys.argv[1:]
    deep = "--deep" in words
    for key, part in _parts([word for word in words if word != "--deep"], deep):
        _emit({"at": key})
        _emit({key: part()})


def _emit(facts: Report) -> None:
    print(f"\n{doctor.MARK}{json.dumps(facts)}", flush=True)


def _parts(imports: list[str], deep: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    torch: Report = {}
    yield "torch", lambda: torch.update(_with_fix(_torch_facts)) or torch
    has_cuda = any("capability" in device for device in torch.get("devices", []))
    for part in doctor.KERNELS:
        if part in _OF_CUDA and not (deep or (has_cuda and part not in _SLOW)):
            continue
        if part == "Triton" and not (deep or _has_gpu(torch)):
            continue
        yield f"kernels: {part}", lambda p=part: guarded(lambda: kernels(p, torch, deep=deep))
    if "error" not in torch:
        for name in doctor.names():
            for device in torch["devices"]:
                where = device["name"]
                yield (
                    f"{name} on {where}",
                    lambda n=name, w=where: guarded(lambda: tried(n, w, deep)),
                )
    for name in imports:
        yield f"import {name}", lambda n=name: guarded(lambda: _import(n))


def _with_fix(part: Callable[[], Report]) -> Report:
    facts: Report = guarded(part)
    if "error" in facts:
        missing = facts["error"].endswith("No module named 'torch'")
        facts["fix"] = "pip install torch" if missing else "pip install --force-reinstall torch"
    return facts


def _import(name: str) -> str | None:
    """Import a package; return None, or the error."""
    result = guarded(lambda: importlib.import_module(name))
    return result["error"] if isinstance(result, dict) else None


def kernels(part: str, torch: Report, *, deep: bool) -> Report:
    """Check one part of the kernel tools: compilers, launcher, a compilation, the caches."""
    from nbattn.kernels import check, launch, nvrtc

    if part == "CPU compiler":
        return check.host_compiler()
    if part == "CPU library":
        return check.host_library() if deep else check.host_cached()
    if part == "Triton":
        return _triton(has_gpu=_has_gpu(torch))
    if part == "launcher":
        return {"missing": launch.missing()}
    if part == "compiler":
        return check.compiler()
    capabilities = [
        device["capability"] for device in torch.get("devices", []) if "capability" in device
    ]
    arch = nvrtc.arch_of((capabilities[0][0], capabilities[0][1])) if capabilities else "80"
    return check.compiles(arch) if part == "compile" else check.keeps(arch)


def _has_gpu(torch: Report) -> bool:
    """Return whether torch sees a GPU that Triton may know."""
    return any(one["name"].startswith(("cuda", "xpu")) for one in torch.get("devices", []))


def _triton(*, has_gpu: bool) -> Report:
    """Return Triton's version and the vendor of the GPU that it compiles for, or what is missing.

    Raises:
        Exception: Triton does not load.
    """
    from nbattn.backends import families

    if problem := families.family_of("triton").problem():
        return {"missing": problem}
    facts: Report = {"version": importlib.import_module("triton").__version__, "vendor": None}
    driver: Any = importlib.import_module("triton.runtime").driver
    try:
        target = driver.active.get_current_target()
    except Exception as error:  # it has no driver
        why = f"finds no GPU: {doctor.error_text(error)}" if has_gpu else "without a GPU"
        return {**facts, "problem": f"{facts['version']}, {why}"}
    return {**facts, "vendor": _VENDORS.get(target.backend, target.backend)}


def tried(backend: str, device: str, deep: bool) -> Report:
    """Run a backend, or without `deep`, where that would compile, only plan for it."""
    from nbattn.kernels import host

    is_ready = device == "cpu" and backend not in _COMPILED
    if backend == "native":
        is_ready = host.missing() is None and host.stored() is not None
    return ran(backend, device) if deep or is_ready else planned(backend, device)


def planned(backend: str, device: str) -> Report:
    """Return whether a backend takes a small attention on a device, without running it."""
    reason = _refusal(backend, device, training=True)
    if reason:
        return _refused(backend, device, reason, tried=False)
    return {"usable": True, "tried": False}


def _refused(backend: str, device: str, reason: str, *, tried: bool) -> Report:
    """Return the facts of a backend that does not take a small attention with its backward."""
    forward_only = not _refusal(backend, device, training=False)
    return {"usable": False, "tried": tried, "reason": reason, "forward_only": forward_only}


def _refusal(backend: str, device: str, *, training: bool) -> str:
    """Return why a backend does not take a small attention on a device; empty if it does."""
    import torch

    from nbattn import functional
    from nbattn.backends import families
    from nbattn.errors import NbattnError
    from nbattn.mask import Mask

    dtype = families.backend(backend).example_dtype
    here = torch.device(device)  # a name alone assumes packages that pip can add
    options: Any = {"dtype": dtype, "device": here, "training": training, "backend": backend}
    try:
        functional.plan(Mask.neighborhood(3), (1, 9, 2, 16), **options)
    except NbattnError as error:
        return _reason(error)
    return ""


def _reason(error: Any) -> str:
    """Return the reasons of a refusal in one line, without the candidates' names."""
    lines = [line.strip().partition(": ")[2] or line for line in error.problem.splitlines()]
    return "; ".join(dict.fromkeys(lines[1:])) or error.problem


def _torch_facts() -> Report:
    """Return the version, settings and devices of torch."""
    import torch

    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "xpu_build": getattr(torch.version, "xpu", None),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "backends": {
            name: guarded(query)
            for name, query in {
                "mkldnn": torch.backends.mkldnn.is_available,
                "mkl": torch.backends.mkl.is_available,
                "openmp": torch.backends.openmp.is_available,
                "cudnn": torch.backends.cudnn.version,
                "flash_sdp": torch.backends.cuda.flash_sdp_enabled,
                "mem_efficient_sdp": torch.backends.cuda.mem_efficient_sdp_enabled,
                "math_sdp": torch.backends.cuda.math_sdp_enabled,
                "cudnn_sdp": torch.backends.cuda.cudnn_sdp_enabled,
                "matmul_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
            }.items()
        },
        "devices": _devices(torch),
    }


def _devices(torch: Any) -> list[Report]:
    """List the CPU and the accelerators that torch supports; only NVIDIA's have a capability."""
    devices: list[Report] = [{"name": "cpu"}]
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        for number in range(module.device_count()):
            facts = module.get_device_properties(number)
            gpu = {"name": f"{kind}:{number}", "model": facts.name}
            if torch.version.hip:
                gpu["architecture"] = facts.gcnArchName.partition(":")[0]
            elif kind == "cuda":
                gpu["capability"] = [facts.major, facts.minor]
            devices.append({**gpu, "memory_bytes": facts.total_memory})
    if hasattr(torch, "mps") and torch.mps.is_available():
        devices.append({"name": "mps"})
    return devices


def ran(backend: str, device: str) -> Report:
    """Run a small attention, forward and backward, and compare it with the reference on the CPU."""
    from nbattn.errors import NbattnError

    try:
        results, expected = _results(backend, device), _results("reference", "cpu")
    except NbattnError as error:
        # its fix, another backend, repairs nothing
        return _refused(backend, device, _reason(error), tried=True)
    except Exception as error:
        fix = "report it with this output; select another backend with backend=."
        return {"usable": False, "tried": True, "reason": doctor.error_text(error), "fix": fix}
    errors = [float((a - b).abs().max()) for a, b in zip(results, expected, strict=True)]
    if not max(errors) <= 1e-2:  # TF32 rounds products to 10 bits; a wrong key is off by 0.1
        reason = f"wrong by {max(errors):.3g}"
        return {"usable": False, "tried": True, "reason": reason, "fix": "report it."}
    return {"usable": True, "tried": True, "max_error": max(errors)}


def _results(backend: str, device: str) -> list[Any]:
    """Return the output and the gradients of a small attention."""
    import torch

    from nbattn import functional
    from nbattn.backends import families
    from nbattn.mask import Mask

    attend: Any = functional.attention
    dtype = getattr(torch, families.backend(backend).example_dtype)
    torch.manual_seed(0)
    tensors = [torch.randn(1, 9, 2, 16).to(device, dtype).requires_grad_() for _ in range(3)]
    out = attend(*tensors, Mask.neighborhood(3), backend=backend)
    out.square().sum().backward()
    grads: list[Any] = [tensor.grad for tensor in tensors]
    return [tensor.detach().float().cpu() for tensor in (out, *grads)]

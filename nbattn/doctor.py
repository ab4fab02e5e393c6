"""Report what of nbattn works on this machine, and how to repair the rest; never raises.

This module imports only the standard library. A second process, which may crash or hang, loads
whatever may be broken: torch, every optional package, a small attention on every backend.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbattn import cache
from nbattn.version import __version__

Report = dict[str, Any]

SECONDS = 300  # time limit of the second process, which may compile kernels
VARIABLES = {"NBATTN_CACHE": "folder of costs and kernels, or off"}  # every one of nbattn's own
_IMPORT_NAMES = {
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "cupy-cuda12x": "cupy",
    "cupy-cuda13x": "cupy",
    "flash-attn-4": "flash_attn",
    "nvidia-cuda-nvrtc": "",
    "nvidia-cuda-runtime": "",
    "nvidia-cuda-nvrtc-cu12": "",
    "nvidia-cuda-runtime-cu12": "",
}
_KERNELS = ("launcher", "compiler", "compile", "cubins", "CPU compiler", "CPU library")
_MARK = "nbattn-doctor "
_FILES = 10_000


def report() -> Report:
    """Return all facts as plain data; a part that fails holds its error instead.

    Returns:
        Topic → facts: nbattn, python, machine, torch, packages, backends, kernels, environment,
        cache; and `usable`: whether at least one backend is usable.
    """
    packages = _guarded(_packages)
    names = [p["import_name"] for p in packages if p["installed"]] if _is_list(packages) else []
    findings = _guarded(
        lambda: _second_process([name for name in names if name and name != "torch"])
    )
    probed = findings if "error" not in findings else {"crash": findings["error"]}
    if _is_list(packages):
        for package in packages:
            package |= _loads(package, probed)
    backends = _guarded(lambda: _backends(probed))
    return {
        "nbattn": {"version": __version__, "path": str(Path(__file__).parent)},
        "python": _guarded(_python),
        "machine": _guarded(_machine),
        "torch": _torch(probed),
        "packages": packages,
        "backends": backends,
        "kernels": {part: probed.get(f"kernels: {part}", _untried(probed)) for part in _KERNELS},
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "cache": _guarded(_cache),
        "usable": _is_list(backends) and any(backend["usable"] for backend in backends),
    }


def _guarded(part: Callable[[], Any]) -> Any:
    """Return the result of a part, or {"error": text} for any exception."""
    try:
        return part()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"error": _text(error)}


def _text(error: BaseException) -> str:
    """Format an exception as one line, even where its `str` raises."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = ""
    return f"{type(error).__name__}: {words[:500]}" if words else type(error).__name__


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _python() -> Report:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
    }


def _machine() -> Report:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "platform": platform.platform(),
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.processor() or None,
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": _memory(),
        "memory_limit_bytes": _number(_first(r"^(\d+)", "/sys/fs/cgroup/memory.max")),
    }


def _first(pattern: str, path: str) -> str | None:
    """Return the first group of a pattern's match in a file; None without file or match."""
    try:
        match = re.search(pattern, Path(path).read_text("utf-8", "replace"))
    except OSError:
        return None
    return match[1].strip() if match else None


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _requirements() -> Iterator[tuple[str, str, str]]:
    """Yield every package that nbattn or an extra requires: (name, version range, extra)."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():  # a checkout, not the metadata of an older installation
        import tomllib

        table = tomllib.loads(project.read_text("utf-8"))["project"]
        requirements = [(text, "") for text in table["dependencies"]]
        extras = table["optional-dependencies"].items()
        requirements += [
            (text, extra) for extra, texts in extras if extra != "dev" for text in texts
        ]
    else:
        texts = importlib.metadata.requires("nbattn") or []
        parts = [re.split(r";\s*", text, maxsplit=1) for text in texts]
        requirements = [(part[0], _extra(part[1:])) for part in parts]
    for text, extra in requirements:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)", text)
        if match and match[1] != "nbattn" and extra != "dev":
            yield match[1].lower(), match[2].strip(), extra


def _extra(marker: list[str]) -> str:
    match = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker[0]) if marker else None
    return match[1] if match else ""


def _packages() -> list[Report]:
    """List every package once: required range, installed version, whether it is in the range."""
    packages: dict[str, Report] = {}
    for name, wanted, extra in _requirements():
        if name in packages:
            packages[name]["extras"] += [extra]
            continue
        installed = _installed(name)
        import_name = _IMPORT_NAMES.get(name, name.replace("-", "_"))
        packages[name] = {
            "name": name,
            "extras": [extra] if extra else [],
            "wanted": wanted,
            "installed": installed,
            "fits": _fits(wanted, installed) if installed else None,
            "import_name": import_name,
            "loaded": bool(import_name) and import_name in sys.modules,
        }
    return list(packages.values())


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(required: str, version: str) -> bool | None:
    """Whether a version is in a range such as ">=14.2,<15"; None if the range is not parsable."""
    signs: dict[str, Callable[[list[int], list[int]], bool]] = {
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a == b,
    }
    for part in filter(None, required.split(",")):
        match = re.match(r"(>=|<|==)\s*(\S+)", part.strip())
        if match is None:
            return None
        have, need = _numbers(version), _numbers(match[2])
        size = max(len(have), len(need))
        pad = [side + [0] * (size - len(side)) for side in (have, need)]
        if not signs[match[1]](*pad):
            return False
    return True


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in release[0].split(".")] if release else []


def _loads(package: Report, probed: Report) -> Report:
    """Return whether a package can be imported, and the error if not."""
    name = package["import_name"]
    if not package["installed"] or not name or name == "torch":
        torch = _torch(probed)
        loads = {"importable": "version" in torch, "error": torch.get("error")}
        return loads if name == "torch" else {"importable": None, "error": None}
    if f"import {name}" not in probed:
        return {"importable": None, "error": probed.get("crash", "was not tried")}
    error = probed[f"import {name}"]
    return {"importable": error is None, "error": error}


def _torch(probed: Report) -> Report:
    return probed.get("torch", _untried(probed))


def _untried(probed: Report) -> Report:
    return {"error": probed.get("crash", "was not tried")}


def _backends(probed: Report) -> list[Report]:
    """List every backend on every device: usable, or the reason, and a fix if there is one."""
    torch = _torch(probed)
    backends: list[Report] = []
    for name in _names():
        for device in [d["name"] for d in torch.get("devices", [])] or ["cpu"]:
            facts: Report = probed.get(f"{name} on {device}", {})
            if not facts:
                facts = {"usable": False, "reason": probed.get("crash", "was not tried")}
                facts["fix"] = "python -X faulthandler -c 'import torch' shows where it stops."
            if "error" in torch:
                facts = {"usable": False, "reason": torch["error"], "fix": torch.get("fix", "")}
            backends.append({"name": name, "device": device, "usable": False, **facts})
    return backends


def _names() -> list[str]:
    """The backends to try: every provider of each, and models once."""
    from nbattn.backends import families

    return [
        name
        for name in families.BACKENDS[1:]
        if ":" not in name or not families.backend(name).is_model
    ]


def _cache() -> Report:
    """Describe the cache folder and the measurements in it."""
    path = cache.directory()
    if path is None:
        return {"path": None, "exists": False}
    if not path.is_dir():
        return {"path": str(path), "exists": False}
    sizes: list[int] = []
    for folder, _, names in os.walk(path):
        sizes += [os.lstat(Path(folder, name)).st_size for name in names[: _FILES - len(sizes)]]
    mode = path.stat().st_mode
    return {
        "path": str(path),
        "exists": True,
        "files": len(sizes),
        "bytes": sum(sizes),
        "mode": stat.filemode(mode),
        "writable": os.access(path, os.W_OK),
        "others_may_write": bool(mode & (stat.S_IWGRP | stat.S_IWOTH)),
        "costs": _costs(),
    }


def _costs() -> str:
    """Describe the measurements of `nbattn tune`, or why the planner cannot use them."""
    from nbattn.planner import cost_table

    table = cost_table.table()
    dates = [f"{entry.fingerprint.device} on {entry.date}" for entry in table.entries]
    return table.problem or ", ".join(dates) or "nothing measured"


def _second_process(names: list[str]) -> Report:
    """Return the findings of a second process; "crash" describes an abnormal end."""
    paths = [path or str(Path.cwd()) for path in [str(Path(__file__).parents[1]), *sys.path]]
    command = [sys.executable, "-c", "from nbattn import doctor; doctor.probe()", *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=pipe, env=environment)
    try:
        output, errors = child.communicate(timeout=SECONDS)
        end = f"the process ended with status {child.returncode}" if child.returncode else ""
    except subprocess.TimeoutExpired:
        child.kill()
        output, errors = child.communicate()
        end = f"the process took longer than {SECONDS} s"
    said = errors.decode("utf-8", "replace").strip().splitlines()
    last = [line for line in said if not line.startswith("nbattn: ")][-1:]  # not of a compilation
    findings: Report = {}
    for line in output.decode("utf-8", "replace").splitlines():
        if line.startswith(_MARK):  # packages may print other lines
            with suppress(ValueError):
                findings |= json.loads(line.removeprefix(_MARK))
    at = findings.pop("at", "starting")
    return {**findings, "crash": ", ".join([f"{end} at: {at}", *last])} if end else findings


def probe() -> None:
    """Print, in the second process, one line before and one after each part that may crash."""
    for key, part in _probes(sys.argv[1:]):
        _emit({"at": key})
        _emit({key: part()})


def _emit(facts: Report) -> None:
    print(f"\n{_MARK}{json.dumps(facts)}", flush=True)


def _probes(names: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    torch: Report = {}
    yield "torch", lambda: torch.update(_guarded_facts(_torch_facts)) or torch
    if "error" not in torch:
        for name in _names():
            for device in torch["devices"]:
                where = device["name"]
                yield f"{name} on {where}", lambda n=name, w=where: _guarded(lambda: _try(n, w))
    for part in _KERNELS:
        yield f"kernels: {part}", lambda p=part: _guarded(lambda: _kernels(p, torch))
    for name in names:
        yield f"import {name}", lambda n=name: _guarded(lambda: _import(n))


def _guarded_facts(part: Callable[[], Report]) -> Report:
    facts: Report = _guarded(part)
    if "error" in facts:
        missing = facts["error"].endswith("No module named 'torch'")
        facts["fix"] = "pip install torch" if missing else "pip install --force-reinstall torch"
    return facts


def _import(name: str) -> str | None:
    """Import a package; return None, or the error."""
    result = _guarded(lambda: importlib.import_module(name))
    return result["error"] if isinstance(result, dict) else None


def _kernels(part: str, torch: Report) -> Report:
    """Check one part of the kernel tools: the launcher, NVRTC, a compilation, the caches."""
    from nbattn.kernels import check, launch, nvrtc

    if part == "CPU compiler":
        return check.host_compiler()
    if part == "CPU library":
        return check.host_library()
    if part == "launcher":
        return {"missing": launch.missing()}
    if part == "compiler":
        return check.compiler()
    capabilities = [
        device["capability"] for device in torch.get("devices", []) if "capability" in device
    ]
    arch = nvrtc.arch_of((capabilities[0][0], capabilities[0][1])) if capabilities else "80"
    return check.compiles(arch) if part == "compile" else check.keeps(arch)


def _torch_facts() -> Report:
    """Return the version, settings and devices of torch."""
    import torch

    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "backends": {
            name: _guarded(query)
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
    """List the CPU and the accelerators that torch supports."""
    devices: list[Report] = [{"name": "cpu"}]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": f"cuda:{number}",
                "model": facts.name,
                "capability": [facts.major, facts.minor],
                "memory_bytes": facts.total_memory,
            }
        )
    for kind in ("mps", "xpu"):
        if hasattr(torch, kind) and getattr(torch, kind).is_available():
            devices.append({"name": kind})
    return devices


def _try(backend: str, device: str) -> Report:
    """Run a small attention, forward and backward, and compare it with the reference on the CPU."""
    import torch

    from nbattn import functional
    from nbattn.backends import families
    from nbattn.errors import NbattnError
    from nbattn.mask import Mask

    attend: Any = functional.attention

    def run(name: str, location: str) -> list[Any]:
        dtype = getattr(torch, families.backend(backend).example_dtype)
        torch.manual_seed(0)
        tensors = [torch.randn(1, 9, 2, 16).to(location, dtype).requires_grad_() for _ in range(3)]
        out = attend(*tensors, Mask.neighborhood(3), backend=name)
        out.square().sum().backward()
        return [out.detach().float().cpu(), *(tensor.grad.float().cpu() for tensor in tensors)]  # pyright: ignore

    try:
        results, expected = run(backend, device), run("reference", "cpu")
    except NbattnError as error:
        lines = [line.strip().partition(": ")[2] or line for line in error.problem.splitlines()]
        reason = "; ".join(dict.fromkeys(lines[1:])) or error.problem
        return {"usable": False, "reason": reason}  # its fix, another backend, repairs nothing
    except Exception as error:
        fix = "report it with this output; select another backend with backend=."
        return {"usable": False, "reason": _text(error), "fix": fix}
    errors = [float((a - b).abs().max()) for a, b in zip(results, expected, strict=True)]
    if not max(errors) <= 1e-2:  # TF32 rounds products to 10 bits; a wrong key is off by 0.1
        return {"usable": False, "reason": f"wrong by {max(errors):.3g}", "fix": "report it."}
    return {"usable": True, "max_error": max(errors)}

"""Report what of nbattn works on this machine, and how to repair the rest; never raises.

This module imports only the standard library. A second process, which may crash or hang, loads
whatever may be broken: torch, every optional package, a small attention on every backend.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbattn import cache
from nbattn.doctor import verdict
from nbattn.version import __version__

Report = dict[str, Any]

SECONDS = 300  # time limit of the second process, which may compile kernels
VARIABLES = {"NBATTN_CACHE": "folder of costs and kernels, or off"}  # every one of nbattn's own
_OF_DEVELOPERS = ("dev", "docs")  # extras
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
KERNELS = ("CPU compiler", "CPU library", "Triton", "launcher", "compiler", "compile", "cubins")
MARK = "nbattn-doctor "
_FILES = 10_000


def report(*, deep: bool = False, at: Callable[[str], None] = lambda part: None) -> Report:
    """Return all facts as plain data; a part that fails holds its error instead.

    Args:
        deep: also compile kernels, run every backend on every device, and import every optional
            package; without it nothing is compiled or written, and it takes a second or two.
        at: called with the name of every part before it is tried.

    Returns:
        Topic → facts: deep, nbattn, python, machine, torch, packages, backends, kernels,
        environment, cache; `usable`: whether at least one backend is usable; and from
        `verdict.py` the verdict (a line for the CPU, one for the GPU) and the advice.
    """
    packages = guarded(_packages)
    imports = [p["import_name"] for p in packages if p["installed"]] if _is_list(packages) else []
    imports = [name for name in imports if name and name != "torch"] if deep else []
    findings = guarded(lambda: _second_process(["--deep"] * deep + imports, at))
    probed = findings if "error" not in findings else {"crash": findings["error"]}
    if _is_list(packages):
        for package in packages:
            package |= _loads(package, probed, deep)
    backends = guarded(lambda: _backends(probed))
    facts: Report = {
        "deep": deep,
        "nbattn": {"version": __version__, "path": str(Path(__file__).parents[1])},
        "python": guarded(_python),
        "machine": guarded(_machine),
        "torch": _torch(probed),
        "packages": packages,
        "backends": backends,
        "kernels": {part: probed.get(f"kernels: {part}", _untried(probed)) for part in KERNELS},
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "cache": guarded(_cache),
        "usable": _is_list(backends) and any(backend["usable"] for backend in backends),
    }
    facts["kernels"]["Triton"] |= {"installed": guarded(_triton)}
    facts["verdict"] = guarded(lambda: verdict.verdict(facts))
    facts["advice"] = guarded(lambda: verdict.advice(facts))
    return facts


def guarded(part: Callable[[], Any]) -> Any:
    """Return the result of a part, or {"error": text} for any exception."""
    try:
        return part()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"error": error_text(error)}


def error_text(error: BaseException) -> str:
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
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():  # a checkout, not the metadata of an older installation
        import tomllib

        table = tomllib.loads(project.read_text("utf-8"))["project"]
        requirements = [(text, "") for text in table["dependencies"]]
        extras = table["optional-dependencies"].items()
        requirements += [(text, extra) for extra, texts in extras for text in texts]
    else:
        texts = importlib.metadata.requires("nbattn") or []
        parts = [re.split(r";\s*", text, maxsplit=1) for text in texts]
        requirements = [(part[0], _extra(part[1:])) for part in parts]
    for text, extra in requirements:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)", text)
        if match and match[1] != "nbattn" and extra not in _OF_DEVELOPERS:
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


def _triton() -> str | None:
    """Return the version of Triton, by its source: torch's packages have distributions of it by
    several names.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    return _first(r"__version__ = ['\"](.+)['\"]", spec.origin)


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


def _loads(package: Report, probed: Report, deep: bool) -> Report:
    """Return whether a package can be imported, and the error if not; None if it was not tried."""
    name = package["import_name"]
    if not package["installed"] or not name or name == "torch":
        torch = _torch(probed)
        loads = {"importable": "version" in torch, "error": torch.get("error")}
        return loads if name == "torch" else {"importable": None, "error": None}
    if f"import {name}" not in probed:
        if not deep:
            return {"importable": None, "error": None}
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
    for name in names():
        for device in [d["name"] for d in torch.get("devices", [])] or ["cpu"]:
            facts: Report = probed.get(f"{name} on {device}", {})
            if not facts:
                facts = {"usable": False, "reason": probed.get("crash", "was not tried")}
                facts["fix"] = "python -X faulthandler -c 'import torch' shows where it stops."
            if "error" in torch:
                facts = {"usable": False, "reason": torch["error"], "fix": torch.get("fix", "")}
            backends.append({"name": name, "device": device, "usable": False, **facts})
    return backends


def names() -> list[str]:
    """The backends to try: every provider of each, and models once."""
    from nbattn.backends import families

    return [
        name
        for name in families.BACKENDS[1:]
        if ":" not in name or not families.backend(name).is_model
    ]


def _cache() -> Report:
    """Describe the cache folder, the only one that nbattn writes by itself, and what is in it."""
    path = cache.directory()
    if path is None or not path.is_dir():
        return {"path": path and str(path), "exists": False}
    contents = {
        entry.name: {"files": len(sizes), "bytes": sum(sizes)}
        for entry in sorted(path.iterdir())
        if (sizes := _sizes(entry)) or entry.is_dir()
    }
    mode = path.stat().st_mode
    return {
        "path": str(path),
        "exists": True,
        "files": sum(part["files"] for part in contents.values()),
        "bytes": sum(part["bytes"] for part in contents.values()),
        "contents": contents,
        "mode": stat.filemode(mode),
        "writable": os.access(path, os.W_OK),
        "others_may_write": bool(mode & (stat.S_IWGRP | stat.S_IWOTH)),
        "costs": _costs(),
    }


def _sizes(entry: Path) -> list[int]:
    """The sizes of a file, or of the files below a folder; of a link, its own."""
    if entry.is_symlink() or not entry.is_dir():
        return [entry.lstat().st_size]
    sizes: list[int] = []
    for folder, _, names in os.walk(entry):
        sizes += [os.lstat(Path(folder, name)).st_size for name in names[: _FILES - len(sizes)]]
    return sizes


def _costs() -> str:
    """Describe the measurements of `nbattn tune`, or why the planner cannot use them."""
    from nbattn.planner import cost_table

    table = cost_table.table()
    dates = [f"{entry.fingerprint.device} on {entry.date}" for entry in table.entries]
    return table.problem or ", ".join(dates) or "nothing measured"


def _second_process(words: list[str], at: Callable[[str], None]) -> Report:
    """Return the findings of a second process; "crash" describes an abnormal end."""
    paths = [path or str(Path.cwd()) for path in [str(Path(__file__).parents[2]), *sys.path]]
    command = [sys.executable, "-c", "from nbattn.doctor import probe; probe.run()", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    findings: Report = {}
    late = threading.Event()
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would stop the process
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, env=environment, **pipes) as child:
            timer = threading.Timer(SECONDS, lambda: (late.set(), child.kill()))
            timer.start()
            try:
                for line in child.stdout or ():
                    _note(line.decode("utf-8", "replace"), findings, at)
                child.wait()
            finally:
                timer.cancel()
                child.kill()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    end = f"the process ended with status {child.returncode}" if child.returncode else ""
    end = f"the process took longer than {SECONDS} s" if late.is_set() else end
    last = [line for line in said if not line.startswith("nbattn: ")][-1:]  # not of a compilation
    stopped = findings.pop("at", "starting")
    return {**findings, "crash": ", ".join([f"{end} at: {stopped}", *last])} if end else findings


def _note(line: str, findings: Report, at: Callable[[str], None]) -> None:
    """Adds what one line of the second process says; packages may print other lines."""
    if line.startswith(MARK):
        with suppress(ValueError):
            findings |= json.loads(line.removeprefix(MARK))
            at(str(findings.get("at", "")))

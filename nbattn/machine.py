"""Describe the environment of a measurement: processor, versions and date, as plain data."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

from nbattn.version import __version__

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, usable cores, memory, relevant instruction sets."""
    import torch

    flags = _cpu_fields().get("flags", "").split()
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "family_model": cpu_family(),
        "cores": cores(),
        "load_average": load(),
        "memory_gib": round(memory() / 2**30, 1),
        "flags": {flag: flag in flags for flag in _FLAGS},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions() -> dict[str, str | None]:
    """Return the versions of all packages that affect measurements."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "nbattn": __version__,
    }


def today() -> str:
    """Return the UTC date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def now() -> str:
    """Return the UTC time with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def cpu_model() -> str:
    """Return the processor's model name."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def cpu_family() -> str:
    """Return "family/model", since hypervisors may show one name for all; "/" if unknown."""
    return f"{_cpu_fields().get('cpu family', '')}/{_cpu_fields().get('model', '')}"


@cache
def _cpu_fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty without that file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cores() -> int:
    """Return the number of cores that this process can use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """Return the load average of the last minute; None where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(seconds: float = 0.2) -> float | None:
    """Return how many cores other programs use, measured over `seconds`; None where unknown."""
    before, start = _idle(), time.perf_counter()
    time.sleep(seconds)
    after, taken = _idle(), time.perf_counter() - start
    if before is None or after is None:
        return None
    return max(0.0, (os.cpu_count() or 1) - (after - before) / taken)


def _idle() -> float | None:
    """Return the idle and disk-wait seconds of all cores together; None where unknown."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def memory() -> int:
    """Return the bytes of main memory; 0 where unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0

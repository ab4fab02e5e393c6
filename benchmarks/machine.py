"""Where a benchmark ran: processor, versions and commit, for its JSON; and where that JSON goes."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import nbattn

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """The processor: model, cores this process may use, memory, instruction sets that matter."""
    flags = _cpu_field("flags").split()
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "family_model": f"{_cpu_field('cpu family')}/{_cpu_field('model')}",
        "cores": _cores(),
        "load_average": load(),
        "memory_gib": round(_memory() / 2**30, 1),
        "flags": {flag: flag in flags for flag in _FLAGS},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str | None]:
    """Of everything that has a say in the numbers; the commit where git knows it."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "nbattn": nbattn.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the sources, with "+" where the package differs from it; None without git."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "nbattn")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """The options that `destination` reads."""
    parser.add_argument("--output", type=Path, help=f"JSON; default: results/{default}")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def destination(options: argparse.Namespace, default: str) -> Path:
    """Where the JSON goes: no run replaces another unless told to.

    Raises:
        SystemExit: there is a file of that name.
    """
    path = options.output or RESULTS / default
    if path.exists() and not options.overwrite:
        raise SystemExit(f"{path} exists. --overwrite replaces it, --output names another.")
    return path


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def now() -> str:
    """The time, to the second, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write(path: Path, record: dict[str, Any]) -> None:
    """Write JSON as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """Programs that ran or waited for a core during the last minute; None where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0

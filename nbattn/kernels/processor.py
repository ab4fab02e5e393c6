"""Identifies what compiled code depends on at run time: the processor's features and the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

# Fields of /proc/cpuinfo that tell features: of x86, of ARM, of POWER, RISC-V and s390.
_FIELDS = (
    *("vendor_id", "cpu family", "model", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
    *("cpu", "isa", "uarch", "features"),
)
_CPUINFO = Path("/proc/cpuinfo")
_TEXTS = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
_BLOCK = 16 << 10  # bytes; the whole file is long, and slow to read, where cores are many


@cache
def identity() -> str:
    """All of it in one text: code that was compiled for another one may not run here."""
    libc = ""
    with suppress(AttributeError, ValueError, OSError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    facts = (sys.platform, platform.machine(), libc)
    return "\n".join([*facts, *(_cpuinfo() or _sysctl() or [platform.processor()])])


def _cpuinfo() -> list[str]:
    """The fields of the first processor; none on systems without that file."""
    try:
        with _CPUINFO.open("rb", buffering=0) as file:
            text = file.read(_BLOCK).decode(errors="replace")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    fields = {name.strip(): " ".join(sorted(value.split())) for name, _, value in pairs}
    return [f"{name}: {fields[name]}" for name in _FIELDS if name in fields]


def _sysctl() -> list[str]:
    """The same from macOS, without what this kind of processor does not have."""
    ask = getattr(ctypes.CDLL(None), "sysctlbyname", None) if os.name == "posix" else None
    if ask is None:
        return []
    found: list[str] = []
    for name in _TEXTS:
        size = ctypes.c_size_t(4096)
        value = ctypes.create_string_buffer(size.value)
        failed = ask(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
        if not failed:
            found.append(f"{name}: {value.value.decode(errors='replace')}")
    return found

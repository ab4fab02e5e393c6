"""Builds the kernels of CPUs for tests: quickly, or with the sanitizers of g++."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from emulator.build import directory

from nbattn.kernels import compilers, processor, sources

CPU = sources.host_directory()
_HERE = Path(__file__).resolve().parent
_FLAGS = tuple(flag for flag in compilers.FLAGS if flag not in ("-O3", "-shared"))
_SANITIZED = (
    *("-g1", "-fno-sanitize-recover=all"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
)
# Half of the time to compile. What they find ends in an access that the address sanitizer or the
# processor stops, or else is found by `make deep`, which has them.
_DEEP_ONLY = ("-fno-sanitize=null,object-size,pointer-overflow",)
KINDS = {
    "fast": ("-O0",),
    "sanitized": ("-O0", "-fsanitize=address,undefined", *_SANITIZED, *_DEEP_ONLY),
    "all sanitized": ("-O1", "-fsanitize=address,undefined", *_SANITIZED),
    "threads": ("-O1", "-g1", "-fsanitize=thread"),
}


@cache
def missing() -> str | None:
    """Why the sanitizers cannot be used on this machine; None if they can."""
    if sys.platform != "linux":
        return f"the sanitizers' tests run on Linux, not on {sys.platform}"
    if shutil.which("g++") is None:
        return "the sanitizers' tests need g++"
    names = ("libasan.so", "libubsan.so", "libtsan.so")
    lost = [name for name in names if not runtime(name).is_absolute()]
    return f"g++ has no {' and no '.join(lost)}" if lost else None


def runtime(name: str) -> Path:
    """The path of a library of g++; only its name if there is none."""
    asked = ["g++", f"-print-file-name={name}"]
    return Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())


def library(kind: str, folder: Path = CPU) -> Path:
    """The library of the kernels in `folder`, which a folder `cuda` lies beside."""
    text = sources.amalgamate(sources.HOST, folder)
    flags = (*_FLAGS, "-march=native", *KINDS[kind])
    known = hashlib.sha256(repr((text, flags, processor.identity(), _version())).encode())
    target = directory() / f"host-{known.hexdigest()[:24]}.so"
    if target.is_file():
        os.utime(target)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        Path(scratch, "kernels.cpp").write_text(text, "utf-8")
        # Two steps, since in one step g++ would link the sanitizer's library.
        _run(["g++", *flags, "-c", "kernels.cpp", "-o", "kernels.o"], scratch)
        _run(["g++", "-shared", "kernels.o", "-o", "built.so", "-lm"], scratch)
        Path(scratch, "built.so").replace(target)
    return target


def program(source: Path, flags: Sequence[str], target: Path) -> None:
    """Compiles an executable of one C++ file."""
    _run(["g++", "-std=c++17", "-pthread", "-g1", *flags, str(source), "-o", str(target)], ".")


@cache
def _version() -> str:
    done = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")

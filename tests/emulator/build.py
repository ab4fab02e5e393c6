"""Builds kernels for the CPU: g++ compiles the files of `cuda/` with the emulator in this folder.

The name of a library contains the hash of everything that it is built from. Libraries are in a
directory that only this user can write: `$XDG_CACHE_HOME/nbattn-emulator`, else below `~/.cache`,
else a temporary one.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from nbattn import cache as trust
from nbattn.errors import BackendError
from nbattn.kernels import sources, toolkit
from nbattn.kernels.variant import Variant

HERE = Path(__file__).resolve().parent
CUDA = sources.directory()
KEEP_DAYS = 14  # libraries that were not used for longer are deleted
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([\w./]+)"', re.MULTILINE)
_FLAGS = ("-std=c++17", "-march=x86-64-v3", "-fPIC", "-g1", "-DNB_EMULATOR")
# Uninitialised variables contain a pattern, so that results show their use.
_KERNEL = ("-x", "c++", "-Wall", "-Wno-unknown-pragmas", "-ftrivial-auto-var-init=pattern")
_FAST = ("-Og",)  # more optimisation takes longer to compile than it saves
# Compiled for the thread sanitizer but not linked with it: faults.cpp implements its hooks.
_CHECKED = (
    "-O1",
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds-strict,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)


@cache
def missing() -> str | None:
    """Why the emulator cannot be built on this machine; None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the emulator runs on x86-64 Linux, not on {sys.platform} {platform.machine()}"
    if not {"avx2", "f16c", "fma"} <= set(Path("/proc/cpuinfo").read_text().split()):
        return "the emulator needs a CPU with AVX2, F16C and FMA"
    for tool in ("g++", "addr2line"):
        if shutil.which(tool) is None:
            return f"the emulator needs {tool}: apt-get install g++ binutils"
    try:
        toolkit.headers()
    except BackendError as error:
        return str(error)
    return None


@cache
def runtime() -> Path:
    """The path of the library with the emulator itself."""
    return library(sorted(HERE.glob("*.cpp")), ("-O2", "-Wall", "-Wextra", f"-I{CUDA}"))


def kernel(variant: Variant, *, checked: bool, folder: Path = CUDA) -> Path:
    """The library of a kernel in `folder`; if `checked`, the emulator checks every access."""
    build_flags = (*_KERNEL, *(_CHECKED if checked else _FAST))
    flags = (*build_flags, *variant.options, f"-I{folder}", f"-I{CUDA}")
    return library([folder / variant.source], flags, ahead=headers(build_flags))


def library(paths: Sequence[Path], flags: Sequence[str], ahead: Path | None = None) -> Path:
    """A shared library, built if it is missing; several processes may call this at the same time.

    Args:
        ahead: a precompiled header to include first.

    Raises:
        RuntimeError: the compiler fails.
    """
    target = directory() / f"{paths[0].stem}-{_digest(paths, flags)}.so"
    if target.is_file():
        os.utime(target)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        first = ["-include", str(ahead.with_suffix(""))] if ahead else []
        # Two steps, since in one step g++ would link the sanitizer's library.
        _run([*_compile(flags), *first, "-c", *(str(path.resolve()) for path in paths)], scratch)
        _run(["g++", "-shared", *(f"{path.stem}.o" for path in paths), "-o", "built.so"], scratch)
        Path(scratch, "built.so").replace(target)
    return target


@cache
def headers(flags: tuple[str, ...]) -> Path:
    """The precompiled `emulator.h`, which halves the time to compile a kernel."""
    header = HERE / "emulator.h"
    target = directory() / f"emulator-{_digest([header], flags)}.h.gch"
    if target.is_file():
        os.utime(target)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        _run([*_compile(flags), "-c", "-x", "c++-header", str(header), "-o", "built.gch"], scratch)
        Path(scratch, "built.gch").replace(target)
    return target


def _compile(flags: Sequence[str]) -> list[str]:
    return ["g++", *_FLAGS, *flags, f"-I{HERE}", "-isystem", toolkit.headers()]


def _digest(paths: Sequence[Path], flags: Sequence[str]) -> str:
    """The hash of everything in a build, except the paths of its files."""
    options = [flag for flag in flags if not flag.startswith("-I")]
    total = hashlib.sha256(repr((*_version(), *_FLAGS, *options)).encode())
    for path in _closure(paths, [HERE, *(Path(flag[2:]) for flag in flags if flag[:2] == "-I")]):
        total.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:24]


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _closure(paths: Iterable[Path], folders: Sequence[Path]) -> Iterator[Path]:
    """The files and everything that they include from these folders, each once."""
    seen: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        for name in _INCLUDE.findall(path.read_text("utf-8")):
            places = [folder / name for folder in (path.parent, *folders)]
            waiting += [place for place in places if place.is_file()][:1]


@cache
def _version() -> tuple[str, str]:
    result = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0], toolkit.headers_digest()


@cache
def directory() -> Path:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "nbattn-emulator"
        trust.prepare(folder)
    except (trust.CacheError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix="nbattn-emulator-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    oldest = time.time() - KEEP_DAYS * 86400
    for path in (*folder.glob("*.so"), *folder.glob("*.gch")):
        if path.lstat().st_mtime < oldest:
            path.unlink(missing_ok=True)
    return folder

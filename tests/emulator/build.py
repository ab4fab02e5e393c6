"""Builds kernels for the CPU: g++ on the files of `cuda/`, against the emulator beside this file.

A library is named after the hash of all that goes into it, and lies in a directory that only this
user can write: `$XDG_CACHE_HOME/nbattn-emulator`, else below `~/.cache`, else a temporary one.
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
KEEP_DAYS = 14  # builds that nobody has used for longer go
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([\w./]+)"', re.MULTILINE)
_FLAGS = ("-std=c++17", "-march=x86-64-v3", "-fPIC", "-g1", "-DNB_EMULATOR")
# Variables that nobody has set hold a pattern, so that values show it.
_KERNEL = ("-x", "c++", "-Wall", "-Wno-unknown-pragmas", "-ftrivial-auto-var-init=pattern")
_FAST = ("-O1",)  # more takes longer to compile than it saves
# Compiled for the sanitizer of threads but not linked with it: faults.cpp has its hooks.
_CHECKED = (
    "-O1",
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds-strict,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)


@cache
def missing() -> str | None:
    """Why the emulator cannot be built here; None if it can."""
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
    """The emulator itself."""
    return library(sorted(HERE.glob("*.cpp")), ("-O2", "-Wall", "-Wextra", f"-I{CUDA}"))


def kernel(variant: Variant, *, checked: bool, folder: Path = CUDA) -> Path:
    """A kernel of a directory of sources; `checked` ones tell the emulator every access."""
    how = (*_KERNEL, *(_CHECKED if checked else _FAST))
    flags = (*how, *variant.options, f"-I{folder}", f"-I{CUDA}")
    return library([folder / variant.source], flags, ahead=_headers(how))


def library(paths: Sequence[Path], flags: Sequence[str], ahead: Path | None = None) -> Path:
    """A shared library, built unless it is there; several processes may ask for it at once.

    Args:
        ahead: a header that is included first, compiled already.

    Raises:
        RuntimeError: the compiler refuses.
    """
    target = _directory() / f"{paths[0].stem}-{_digest(paths, flags)}.so"
    if target.is_file():
        os.utime(target)
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        first = ["-include", str(ahead.with_suffix(""))] if ahead else []
        # Linked apart from compiling: doing both at once g++ would add the sanitizer's library.
        _run([*_compile(flags), *first, "-c", *(str(path.resolve()) for path in paths)], scratch)
        _run(["g++", "-shared", *(f"{path.stem}.o" for path in paths), "-o", "built.so"], scratch)
        Path(scratch, "built.so").replace(target)
    return target


@cache
def _headers(flags: tuple[str, ...]) -> Path:
    """`emulator.h` compiled ahead: half of what compiling a kernel takes."""
    header = HERE / "emulator.h"
    target = _directory() / f"emulator-{_digest([header], flags)}.h.gch"
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
    """Of all that goes into a build, but where files lie."""
    told = [flag for flag in flags if not flag.startswith("-I")]
    total = hashlib.sha256(repr((*_version(), *_FLAGS, *told)).encode())
    for path in _closure(paths, [HERE, *(Path(flag[2:]) for flag in flags if flag[:2] == "-I")]):
        total.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:24]


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _closure(paths: Iterable[Path], folders: Sequence[Path]) -> Iterator[Path]:
    """The files, and all that they include from these folders, each once."""
    seen: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        for name in _INCLUDE.findall(path.read_text("utf-8")):
            found = [folder / name for folder in (path.parent, *folders)]
            waiting += [place for place in found if place.is_file()][:1]


@cache
def _version() -> tuple[str, str]:
    said = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0], toolkit.headers_digest()


@cache
def _directory() -> Path:
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

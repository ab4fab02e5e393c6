"""Finds a C++ compiler for the kernels of CPUs: its command, version and flags.

In this order: $CXX, which is taken or is an error; g++, clang++ and c++ in $PATH; the package
`ziglang`, which is clang with a C library of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nbattn.errors import BackendError
from nbattn.packages import install_line

VARIABLE = "CXX"
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    # Nothing of a C++ library is used: the result needs the C library only.
    *("-nostdinc++", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
LIBRARIES = ("-lm",)  # behind the source
# GCC before 13 has no -nostdlib++. Unique symbols would keep a library from being unloaded.
_OF_GCC = ("-fno-gnu-unique", *(("-Wl,--as-needed",) if sys.platform != "darwin" else ()))
_OF_CLANG = ("-nostdlib++",)
_OLDEST = {"g++": 10, "clang++": 14, "Apple clang++": 14, "zig c++": 14}
_NAMES = ("g++", "clang++", "c++")
_SECONDS = 60  # more than any compiler needs to start
_XCODE = "/usr/bin/xcode-select"
ZIG = install_line("native")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that works.

    Args:
        name: its kind and version, "g++ 12.2".
        command: the program with its first arguments.
        flags: all flags in front of the source.
        identity: the hash of all that it defines: its version, its target and the instructions
            that it uses, wherever it is installed.
    """

    name: str
    command: tuple[str, ...]
    flags: tuple[str, ...]
    identity: str


class _UnfitError(Exception):
    """A compiler that cannot be used; the message is a part of a line."""


def find() -> Compiler:
    """The first compiler that can be used; starts it once.

    Raises:
        BackendError: there is none, with the reason against each; or $CXX is not one.
    """
    if sys.platform == "win32":
        raise BackendError(
            "the CPU kernels are compiled on Linux and macOS only", 'backend="tiled", or WSL'
        )
    if named := os.environ.get(VARIABLE, "").strip():
        return _named(named)
    reasons: list[str] = []
    for command in _commands():
        try:
            return examine(command)
        except _UnfitError as error:
            reasons.append(str(error))
    raise BackendError(
        "; ".join(["no C++ compiler for the CPU kernels", *dict.fromkeys(reasons)]), fix()
    )


def is_named() -> bool:
    """Whether $CXX names a compiler."""
    return bool(os.environ.get(VARIABLE, "").strip())


def fix() -> str:
    """How to install a compiler on this system."""
    own = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
    return f"{ZIG}  # or the system's own: {own}"


def examine(command: Sequence[str]) -> Compiler:
    """The compiler of a command, which is started once.

    Raises:
        _UnfitError: it does not work, or is too old.
    """
    native = _native()
    macros, problem = _macros([*command, native])
    if not macros:  # some do not know their own processor
        native = ""
        macros, _ = _macros(command)
    if not macros:
        raise _UnfitError(f"{_shown(command)} does not work: {problem}")
    kind, version = _kind(command, macros)
    name = f"{kind} {version[0]}.{version[1]}"
    if version[0] < _OLDEST[kind]:
        raise _UnfitError(
            f"{_shown(command)} is {name}, and {_OLDEST[kind]} is the oldest that works"
        )
    own = _OF_GCC if kind == "g++" else _OF_CLANG
    flags = (*FLAGS, *own, *([native] if native else []))
    text = "\n".join([name, *flags, *LIBRARIES, *sorted(macros.splitlines())])
    return Compiler(name, tuple(command), flags, hashlib.sha256(text.encode()).hexdigest())


def _named(text: str) -> Compiler:
    """The compiler that $CXX names, "ccache g++" for example."""
    remove = f"unset {VARIABLE}, and nbattn looks for a compiler itself"
    try:
        name, *rest = shlex.split(text)
        if (path := shutil.which(name)) is None:
            raise _UnfitError(f"there is no program {name}")
        return examine([str(Path(path).absolute()), *rest])
    except (_UnfitError, ValueError) as error:
        raise BackendError(f"{VARIABLE}={text!r}: {error}", remove) from None


def _commands() -> list[list[str]]:
    paths = [path for name in _NAMES if (path := shutil.which(name))]
    found = [str(Path(path).absolute()) for path in paths]  # they run in another folder
    if sys.platform == "darwin" and not _has_xcode():
        found = [path for path in found if not path.startswith("/usr/bin/")]
    commands = [[path] for path in found]
    spec = importlib.util.find_spec("ziglang")
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "zig").is_file():  # what `python -m ziglang` starts
            commands.append([str(Path(folder, "zig")), "c++"])
    return commands


def _has_xcode() -> bool:
    """Whether Apple's compilers are installed; without them, their names open a window."""
    try:
        return not subprocess.run([_XCODE, "-p"], capture_output=True, timeout=_SECONDS).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def _native() -> str:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return "-march=native" if is_x86 else "-mcpu=native"


def _macros(command: Sequence[str]) -> tuple[str, str]:
    """All that a compiler defines; or nothing, and the reason."""
    asked = [*command, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        with tempfile.TemporaryDirectory(prefix="nbattn-") as folder:
            done = run(asked, _SECONDS, Path(folder))
    except OSError as error:
        return "", error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {_SECONDS} s"
    if done.returncode or "#define __GNUC__ " not in done.stdout:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return "", last[0].strip() if last else f"it ended with status {done.returncode}"
    return done.stdout, ""


def run(command: Sequence[str], seconds: float, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a compiler in a folder, where zig's own files go too, with messages in English."""
    zig = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(folder))
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **zig},
        cwd=folder,
        timeout=seconds,
    )


def _kind(command: Sequence[str], macros: str) -> tuple[str, tuple[int, int]]:
    """The kind of a compiler, whatever it is called, and its version."""
    found: dict[str, str] = dict(re.findall(r"^#define (\w+) (\d+)$", macros, re.MULTILINE))
    if "__clang_major__" not in found:
        return "g++", (int(found["__GNUC__"]), int(found.get("__GNUC_MINOR__", 0)))
    version = int(found["__clang_major__"]), int(found.get("__clang_minor__", 0))
    if "__apple_build_version__" in found:
        return "Apple clang++", version
    return "zig c++" if Path(command[0]).name == "zig" else "clang++", version


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)

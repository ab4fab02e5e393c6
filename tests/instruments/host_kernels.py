"""Small kernels of CPUs, and programs that stand in for C++ compilers, for tests of their way."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from nbattn.errors import BackendError
from nbattn.kernels import compilers

FILES = {
    "cpu/kernels.cpp": """\
#include "lanes.h"
#include "../cuda/base.cuh"
#include <pthread.h>
#include <math.h>
#define NB_EXPORT extern "C" __attribute__((visibility("default")))
NB_EXPORT int nb_native_version(void) { return VERSION; }
NB_EXPORT int nb_native_lanes(void) { return LANES; }
NB_EXPORT void nb_native_run(const void* job) { *(float*)job = expf(*(float*)job); }
""",
    "cpu/lanes.h": '#pragma once\n#include "../cuda/params.h"\n#define LANES 16\n',
    "cuda/params.h": '#pragma once\n#include "base.cuh"\n',
    "cuda/base.cuh": '#pragma once\n#ifdef NB_EMULATOR\n#include "emulator.h"\n#endif\n'
    "#define VERSION 1\n",
}
COPY, SLEEP = (shutil.which(name) or name for name in ("cp", "sleep"))  # tests change $PATH
GNU = {"__GNUC__": "12", "__GNUC_MINOR__": "2", "__x86_64__": "1"}
CLANG = {"__GNUC__": "4", "__clang_major__": "15", "__clang_minor__": "0"}


def write(folder: Path) -> Path:
    """The sources, in `cpu` and `cuda`; the folder of both."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def fake(
    path: Path,
    macros: dict[str, str] = GNU,
    *,
    result: Path | None = None,
    refuses: str = "",
    before: str = "",
    says: str = "kernels.cpp:1: error: no",
) -> Path:
    """A compiler that writes down its arguments, defines macros, and copies its result.

    Args:
        path: the program; `path.log` gets a line for each of its starts.
        macros: what it defines.
        result: what it "compiles"; without, it fails.
        refuses: a flag that it does not know.
        before: a command in front of a compilation.
        says: its message when it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"#define {name} {value}\\n" for name, value in macros.items())
    copy = f'{COPY} "{result}" "$2"' if result else f"printf '{says}\\n' >&2; exit 1"
    script = [
        "#!/bin/sh",
        f'echo "$*" >> "{path}.log"',
        f'case " $* " in *" {refuses or "-none"} "*) echo "what is {refuses}?" >&2; exit 1;; esac',
        f"case \"$*\" in *-dM*) printf '{lines}'; exit 0;; esac",
        before,
        'while [ "$1" != -o ]; do shift; done',
        copy,
    ]
    path.write_text("\n".join(script) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def starts(path: Path) -> list[str]:
    """The arguments of all starts of a stand-in so far."""
    log = Path(f"{path}.log")
    return log.read_text().splitlines() if log.exists() else []


def compilations(path: Path) -> int:
    return sum(" -o " in line for line in starts(path))


def absent() -> str | None:
    try:
        compilers.find()
    except BackendError as error:
        return error.problem
    return None


needs_compiler = pytest.mark.skipif(absent() is not None, reason=str(absent()))

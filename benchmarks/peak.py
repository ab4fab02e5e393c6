"""The FMA peak of this machine in float32, by a loop that stays in registers (`peak.cpp`)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from nbattn import machine
from nbattn.timing import clock

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
_CHAINS, _STEPS, _RUNS = 12, 2_000_000, 7


def gflops(threads: int = 1) -> float | None:
    """Return the most GF/s of float32 multiply-adds of `threads` threads together, measured now
    with the clock that the benchmarks use for so many; None without a C++ compiler.
    """
    library = _library()
    if library is None:
        return None
    return max(_rate(library, lanes, threads) for lanes in _widths(library))


@cache
def facts() -> dict[str, Any] | None:
    """Describe the peak for a results file: GF/s of one and of all cores, and how it was found."""
    library = _library()
    if library is None:
        return None
    threads = sorted({1, machine.cores()})
    return {
        "gflops": {str(count): round(gflops(count) or 0.0, 1) for count in threads},
        "gflops_by_lanes": {
            str(lanes): round(_rate(library, lanes, 1), 1) for lanes in _widths(library)
        },
        "method": f"float32 FMAs in registers, {_CHAINS} chains, best of {_RUNS} runs, "
        f"{Path(_compiler() or '').name} {' '.join(FLAGS[:3])}",
    }


def _rate(library: ctypes.CDLL, lanes: int, threads: int) -> float:
    """Return the GF/s of one vector width."""
    steps = _STEPS * 16 // lanes

    def one(_: int = 0) -> None:  # ctypes releases the interpreter's lock
        library.run(lanes, ctypes.c_long(steps))

    with ThreadPoolExecutor(threads) as pool:

        def every() -> None:
            list(pool.map(one, range(threads)))

        action = one if threads == 1 else every
        action()
        seconds = min(clock(threads).time(action) for _ in range(_RUNS))
    return 2e-9 * lanes * _CHAINS * steps * threads / seconds


def _widths(library: ctypes.CDLL) -> list[int]:
    return [lanes for lanes in (4, 8, 16) if lanes <= library.widest()]


@cache
def _library() -> ctypes.CDLL | None:
    """Compile and load the loop; None where it cannot be compiled."""
    compiler = _compiler()
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        library = ctypes.CDLL(str(path))
    library.run.restype = ctypes.c_float
    return library


def _compiler() -> str | None:
    names = filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"])
    return next(filter(None, map(shutil.which, names)), None)


if __name__ == "__main__":
    print(facts() or "no C++ compiler")

"""Puts bugs into a copy of the kernels of CPUs and tells which checks catch each.

`cd tests && python -m native_checks.bugs [name…]` prints the table and fails if a check misses a
bug that it should catch. With `--first`, each bug is tried with only the first of its checks.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "instruments"))

import torch

from native_checks import build, checks, scenarios
from native_checks.bug_table import BUGS, Bug
from native_checks.children import in_child
from nbattn.kernels import host


def values(bug: Bug, folder: Path) -> str:
    """What the results of the bug's case are off."""
    library = loaded(folder)
    return in_child(lambda say: checks.values(library, bug.case, "heap", say))


def pairs(bug: Bug, folder: Path) -> str:
    """Pairs that the kernels use and the mask of the bug's case does not have, or the reverse."""
    library = loaded(folder)
    return in_child(lambda say: checks.pairs(library, bug.case, "heap", say))


def guards(bug: Bug, folder: Path) -> str:
    """A touch of memory beside a tensor; wrong results do not count."""
    library = loaded(folder)
    return in_child(lambda say: checks.touches(library, bug.case, say))


def sanitizer(bug: Bug, folder: Path) -> str:
    """What the address sanitizer reports."""
    return checks.sanitized(build.library("sanitized", folder), [bug.case])


def threads(bug: Bug, folder: Path) -> str:
    """The first scenario that fails."""
    host._library = loaded(folder)
    try:
        reports = ((one.__name__, in_child(one, 30)) for one in scenarios.SCENARIOS)
        return next((f"{name}: {report}" for name, report in reports if report), "")
    finally:
        host.forget()


def pool(bug: Bug, folder: Path) -> str:
    """What the pool's own program says."""
    return checks.pool(folder)


def races(bug: Bug, folder: Path) -> str:
    """What the thread sanitizer reports."""
    return checks.pool(folder, "-fsanitize=thread") or checks.raced(folder, [bug.case])


# V values, S support, G guard pages, A address sanitizer, T scenarios with threads, P the pool
# alone, R races by the thread sanitizer.
CATCHERS: dict[str, Callable[[Bug, Path], str]] = {
    "V": values,
    "S": pairs,
    "G": guards,
    "A": sanitizer,
    "T": threads,
    "P": pool,
    "R": races,
}
OF_TENSORS, OF_THREADS = "VSGA", "TPR"


def loaded(folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.library("fast", folder)))
    library.nb_native_run.argtypes = (ctypes.c_void_p,)
    library.nb_native_run.restype = None
    return library


def mutated(bug: Bug, folder: Path) -> Path:
    """Copies the kernels and puts the bug into the copy."""
    target = folder / "cpu"
    shutil.copytree(build.CPU, target)
    shutil.copytree(build.CPU.parent / "cuda", folder / "cuda")
    text = (target / bug.path).read_text("utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(
            f"{bug.name}: {bug.path} has its text {text.count(bug.old)} times, not once"
        )
    (target / bug.path).write_text(text.replace(bug.old, bug.new), "utf-8")
    return target


def reports_by_check(bug: Bug, catchers: str) -> dict[str, str]:
    """Check → its report, of the checks that catch the bug."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = mutated(bug, Path(scratch))
        reports = dict[str, str]()
        for catcher in catchers:  # a sanitizer takes long to compile
            if catcher not in "AR" or catcher in bug.catch or not any(reports.values()):
                reports[catcher] = CATCHERS[catcher](bug, folder)
    return {catcher: report for catcher, report in reports.items() if report}


def here() -> list[Bug]:
    """The bugs whose text this machine compiles."""
    features = {"", *Path("/proc/cpuinfo").read_text("utf-8").split()}
    return [bug for bug in BUGS if bug.needs in features]


def main(names: list[str], *, first: bool) -> int:
    """Prints the table and returns the number of bugs that a check misses but should catch."""
    torch.set_num_threads(1)
    chosen = [bug for bug in here() if not names or bug.name in names]
    missed = 0
    for bug in chosen:
        wanted = bug.catch[0] if first else bug.catch
        every = OF_THREADS if set(bug.catch) <= set(OF_THREADS) else OF_TENSORS
        reports = reports_by_check(bug, wanted if first else every)
        missing = "".join(catcher for catcher in wanted if catcher not in reports)
        missed += bool(missing or not reports)
        text = next(iter(reports.values()), "nothing")
        flag = f"MISSED BY {missing or 'ALL'}: " if missing or not reports else ""
        print(f"{bug.name:45} {''.join(reports):5} {flag}{text}", flush=True)
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="bugs; default: all")
    parser.add_argument("--first", action="store_true", help="only the first check of each")
    arguments = parser.parse_args()
    sys.exit(bool(main(arguments.names, first=arguments.first)))

"""Settings of every test run: hypothesis profiles, one thread per worker, and counts of cases."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = ["instruments"]  # what tests judge with has no tests of its own
CASES = pytest.StashKey[Counter[str]]()
YOUNG = 20_000  # objects between two collections: Python's 700 are for programs that hold little

# No clock decides: neither a deadline of an example nor how long drawing one takes.
settings.register_profile("clockless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "quick", settings.get_profile("clockless"), max_examples=200, derandomize=True
)
settings.register_profile(
    "deep", settings.get_profile("clockless"), max_examples=5000, derandomize=False
)


def kept_libraries() -> Path:
    """Where runs keep the compiled kernels of CPUs for the next, under the hash of all that they
    are made of, as the emulator's are kept: a compilation takes as long as a thousand tests.
    """
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "nbattn-tests"


def copied(source: Path, target: Path) -> None:
    """Copies the files that a folder lacks, for this user only, the newest four."""
    with contextlib.suppress(OSError):  # without them, kernels are compiled
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = [path for path in source.iterdir() if path.is_file() and path.name[:1] != "."]
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[-4:]:
            if not (target / path.name).exists():
                part = target / f".{path.name}-{os.getpid()}"
                part.touch(mode=0o600)
                shutil.copyfile(path, part)
                part.replace(target / path.name)
        for old in sorted(target.iterdir(), key=lambda path: path.stat().st_mtime)[:-4]:
            old.unlink()


def end(folder: Path) -> None:
    """Keeps the libraries of a run, and deletes the rest of its cache."""
    copied(folder / "libraries", kept_libraries())
    shutil.rmtree(folder, ignore_errors=True)


# No plan depends on what a user has measured, and the processes of a run share a cache: each kernel
# is compiled once. A variable that is set wins.
if "NBATTN_CACHE" not in os.environ:
    os.environ["NBATTN_CACHE"] = tempfile.mkdtemp(prefix="nbattn-tests-")
    copied(kept_libraries(), Path(os.environ["NBATTN_CACHE"], "libraries"))
    atexit.register(end, Path(os.environ["NBATTN_CACHE"]))
# What the processes of a run tell one another.
if "NBATTN_TEST_RUN" not in os.environ:
    os.environ["NBATTN_TEST_RUN"] = tempfile.mkdtemp(prefix="nbattn-run-")
    atexit.register(shutil.rmtree, os.environ["NBATTN_TEST_RUN"], ignore_errors=True)
# Torch's compiler takes the processor's word for its vectors, and compiles no probes of them.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# Figures of examples open no window.
os.environ["MPLBACKEND"] = "agg"
# Output is piped, 100 columns wide; xdist's workers say that theirs is a terminal of 80.
for variable in ("COLUMNS", "LINES"):
    os.environ.pop(variable, None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CASES] = Counter()
    gc.disable()  # while modules and tests are loaded, all of which stay
    if hasattr(config, "workerinput"):
        # One thread for each worker, before torch is imported, and for its children: threads that
        # wait for a core beside another worker take ten times as long as one.
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now stays: no collection needs to look at it again
    gc.set_threshold(YOUNG)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def cases(pytestconfig: pytest.Config) -> Callable[[str, int], None]:
    """`cases(group, n)` adds n to the cases that a group of tests has run.

    One test may try a thousand masks; the summary prints the totals, so that a sweep that has
    become empty is seen. Under hypothesis call `cases(group, 1)` in each example.
    """
    totals = pytestconfig.stash[CASES]

    def add(group: str, n: int) -> None:
        totals[group] += n

    return add


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile without graphs of other tests."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def refusals_without_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that try what is often refused: each fix takes as long as several plans, and
    `tests/planner/test_remedies.py` judges them.
    """
    monkeypatch.setattr("nbattn.planner.remedies.fix", lambda request, ask: "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cases"] = dict(session.config.stash[CASES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})  # a worker that crashed has none
    node.config.stash[CASES].update(output.get("cases", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals = terminalreporter.config.stash[CASES]
    if totals:
        text = " · ".join(f"{group} {totals[group]:,}" for group in sorted(totals))
        terminalreporter.write_line(f"cases: {text}")

"""The checks of the kernels alone: what each reports of a library of theirs."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from emulator.problem import Problem as Common
from emulator.problem import Tensors

from native_checks import build, replay
from native_checks.cases import AVERAGES, CASES, LOUD, PROBED
from native_checks.children import Say, in_child
from native_checks.problem import (
    LOG2E,
    Problem,
    case_of,
    expected_results,
    judge,
    judge_probe,
    make,
    make_probe,
    probes,
    results_of,
)  # fmt: skip
from native_checks.replay import Case
from nbattn import Axis, Mask

ADDRESS = ("libasan.so", "libubsan.so")
TSAN = "die_after_fork=0:exitcode=66:halt_on_error=1"
SIGNS = ("ERROR: ", "runtime error", "WARNING: ThreadSanitizer", "FATAL: ")  # of sanitizers
SECONDS = 120  # CPU time of a child process
WAIT = 600  # seconds for a child process that waits, or a machine that has other work
Expected = tuple[Tensors, Tensors]


@cache
def known(name: str) -> tuple[Tensors, Expected]:
    """The inputs of a case, and its results in its dtype and in double."""
    made = make(CASES[name])
    if name in AVERAGES:  # some values below the least normal half
        made["value"][:, :20] *= 2.0**-16
    if name in LOUD:  # the power of an entry is infinite
        made["relative_bias"].fill_(128 / LOG2E)
    return made, expected_results(CASES[name], made)


@cache
def probed(name: str) -> tuple[tuple[Problem, Tensors], ...]:
    """The two probes of a case, with their inputs."""
    pairs = zip(probes(CASES[name]), (True, False), strict=True)
    return tuple((p, make_probe(p, of_keys=of_keys)) for p, of_keys in pairs)


@cache
def stain(dtype: torch.dtype) -> Case:
    """A problem of NaN alone, which fills the kernels' own memory with it."""
    common = Common(Mask(Axis(299, 299, align="top-left")), (16,), (300,), dtype=dtype, heads=1,
                    head_dim=256, value_dim=256, table=True)  # fmt: skip
    p = Problem(common, ((1, 1, 1, 16),) * 3, ((1, 1, 1, 1),) * 3)
    made = {name: torch.full_like(tensor, torch.nan) for name, tensor in make(p).items()}
    return case_of("stain", p, made)


@cache
def own_stain(name: str) -> Case:
    """A case with NaN for all numbers, which leaves them where the case finds its memory: its
    forward comes last.
    """
    made = {n: t.clone() for n, t in known(name)[0].items()}
    for tensor in made.values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    case = case_of(f"stain of {name}", CASES[name], made)
    return case._replace(steps=(*case.steps, case.steps[0]))


@cache
def recorded(name: str) -> Case:
    """A case as a process without torch runs it."""
    return case_of(name, CASES[name], known(name)[0])


@cache
def recorded_probes(name: str) -> list[Case]:
    """The probes of a case; none if it has too many pairs."""
    if name not in PROBED:
        return []
    return [case_of(f"{name}, probe", p, made) for p, made in probed(name)]


def shortened(case: Case, tensor: str) -> Case:
    """The case with a tensor that ends two bytes before its shape does."""
    if tensor in case.inputs:
        data = case.inputs[tensor]
        cut = {tensor: data._replace(memory=data.memory[:-2])}
        return case._replace(inputs=case.inputs | cut)
    steps = [
        step._replace(writes={n: size - 2 * (n == tensor) for n, size in step.writes.items()})
        for step in case.steps
    ]
    return case._replace(steps=tuple(steps))


def judge_all(name: str, raw: dict[str, bytes]) -> None:
    """Raises AssertionError if a result of a case is wrong or was not written."""
    made, expected = known(name)
    found = results_of(CASES[name], made, raw)
    judge(CASES[name], found, expected)
    if name in AVERAGES:
        wide = made["value"].float()
        average = ((wide[:, 1:] + wide[:, :-1]) / 2).to(found["out"].dtype)
        wrong = (found["out"][:, 1:] != average).sum().item()
        assert not wrong, f"{wrong} averages are not the nearest number"


def judge_pairs(name: str, raws: Sequence[dict[str, bytes]]) -> None:
    """Raises AssertionError if the probes of a case show other pairs than its mask's."""
    for (p, made), raw, of_keys in zip(probed(name), raws, (True, False), strict=True):
        judge_probe(p, made, results_of(p, made, raw), of_keys=of_keys)


class DiedError(AssertionError):
    """A child process died."""


def replayed(
    cases: Sequence[Case], places: Iterable[str], library: Path, preload: Sequence[str] = ()
) -> dict[str, list[dict[str, bytes]]]:
    """The outputs of the cases at each place, computed in a new process.

    Raises:
        DiedError: the process died; the message says where, and what it printed last.
    """
    environment = os.environ | {
        "LD_PRELOAD": ":".join(str(build.runtime(name)) for name in preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=1",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "TSAN_OPTIONS": TSAN,
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "cases"), Path(folder, "results")
        source.write_bytes(pickle.dumps(list(cases)))
        names = [str(library), str(source), str(target), *places]
        done = subprocess.run(
            [sys.executable, replay.__file__, *names], env=environment, capture_output=True,
            text=True, errors="replace", preexec_fn=limit, timeout=WAIT,
        )  # fmt: skip
        if done.returncode:
            raise DiedError(_end_of(done.returncode, done.stderr))
        return pickle.loads(target.read_bytes())


def limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_of(status: int, log: str) -> str:
    """What a process was doing when it died, and why."""
    lines = log.splitlines()
    place = next((line for line in reversed(lines) if ", pass " in line), "before the first pass")
    errors = [line for line in lines if any(sign in line for sign in SIGNS)]
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    frames = [line.strip() for line in lines if " in nb::" in line][:1]
    return ": ".join([place, how, *errors[:1], *frames])


def values(library: ctypes.CDLL, name: str, place: str, say: Say) -> None:
    """Runs a case and judges its results."""
    replay.run(library, stain(CASES[name].common.accumulator), "heap", say)
    replay.run(library, own_stain(name), "heap", say)
    judge_all(name, replay.run(library, recorded(name), place, say))


def pairs(library: ctypes.CDLL, name: str, place: str, say: Say) -> None:
    """Runs the probes of a case and judges them."""
    if probes := recorded_probes(name):
        replay.run(library, stain(torch.float32), "heap", say)
        judge_pairs(name, [replay.run(library, probe, place, say) for probe in probes])


def touches(library: ctypes.CDLL, name: str, say: Say) -> None:
    """Runs a case in pages where a touch of anything but a tensor kills the process."""
    for place in ("end", "start"):
        replay.run(library, recorded(name), place, say)


def guarded(library: ctypes.CDLL, name: str) -> str:
    """Runs and judges a case and its probes between pages that may not be touched."""

    def action(say: Say) -> None:
        for place in ("end", "start"):
            values(library, name, place, say)
            pairs(library, name, place, say)

    return in_child(action)


def cut_short(library: ctypes.CDLL, name: str, tensor: str) -> str:
    """Runs a case with a tensor that is shorter than its shape says."""
    short = shortened(recorded(name), tensor)
    return in_child(lambda say: replay.run(library, short, "end", say))


def sanitized(library: Path, names: Iterable[str]) -> str:
    """What the address sanitizer says of cases in a new process; empty if nothing."""
    every = [one for name in names for one in (recorded(name), *recorded_probes(name))]
    return _report_of(every, library, ADDRESS)


def raced(folder: Path, names: Iterable[str]) -> str:
    """The same of the thread sanitizer."""
    every = [recorded(name) for name in names]
    return _report_of(every, build.library("threads", folder), ("libtsan.so",))


def _report_of(every: Sequence[Case], library: Path, preload: Sequence[str]) -> str:
    try:
        replayed(every, ("heap",), library, preload)
    except DiedError as error:
        return str(error)
    return ""


def pool(folder: Path, *flags: str) -> str:
    """What the program of the pool alone says is wrong; empty if nothing."""
    source = Path(__file__).with_name("pool_stress.cpp")
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "stress")
        build.program(source, ("-O1", *flags, f"-I{folder}"), target)
        environment = os.environ | {"TSAN_OPTIONS": TSAN}
        done = subprocess.run(
            [target], env=environment, capture_output=True, text=True, timeout=WAIT
        )
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip("= ")]
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
    return " ".join([*lines[:1], how]).strip() or f"status {done.returncode}"

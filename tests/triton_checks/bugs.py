"""Puts bugs into copies of the Triton kernels and of what launches them; tells what catches each.

`cd tests && python -m triton_checks.bugs [name…]` prints the table, and fails if a check misses a
bug that it should catch. Kernels run in Triton's interpreter, which has no threads: a barrier that
is missing between them is caught by none of this.
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "instruments"))

import packed_calls
import torch
import triton_problems
from emulator.problem import Problem, Tensors, expected_results, judge, make
from packed_cases import CASES as PACKED
from triton_interpreter import FOLDER, KernelError, Launcher

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.inputs import Inputs
from nbattn.backends.triton import run as real_run
from nbattn.program.device import DEVICES
from triton_checks.bug_table import BUGS, RUN, Bug

DEVICE = replace(DEVICES["sm_90"], providers=("triton",))
CASES = triton_problems.CASES
GRIDS = "grids:"
GRID_CASES = {
    "small plane": packed_calls.Case(
        Mask(Axis(2, 1, dilation=2), Axis(1, 1)), [(3, 4), (1, 1), (0, 5), (5, 3)]
    ),
    # one query on an axis of two classes
    "small cube": packed_calls.Case(
        Mask(Axis(1, 1, dilation=2), Axis(1, 1), Axis(1, 1)), [(1, 2, 2), (1, 2, 2), (1, 2, 3)]
    ),
    "prefix": PACKED["prefix"],
}
LEAVES = ("query", "key", "value", "extra_key", "extra_value", "relative_bias")


def path_of(bug: Bug) -> Path:
    """The file that a bug changes."""
    return FOLDER.parent / "run.py" if bug.module == RUN else FOLDER / f"{bug.module}.py"


def changed_run(bug: Bug) -> Any:
    """The module that launches kernels, with the bug."""
    text = path_of(bug).read_text("utf-8")
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.name}: run.py has its text {text.count(bug.old)} times, not once")
    module = types.ModuleType("nbattn.backends.triton.changed_run")
    sys.modules[module.__name__] = module
    exec(compile(text.replace(bug.old, bug.new), bug.name, "exec"), module.__dict__)
    return module


@cache
def made_for(case: str) -> tuple[Tensors, tuple[Tensors, Tensors]]:
    """Inputs of a case and its results."""
    p = CASES[case]
    made = make(p)
    return made, expected_results(p, made)


def by_backend(p: Problem, made: Tensors, run: Any, launcher: Launcher) -> Tensors:
    """Everything through the module that launches kernels, in the planner's tiles."""
    plan = nbattn.plan(
        p.mask, made["query"].shape, made["key"].shape, value_dim=p.value_dim, dtype=p.dtype,
        device=DEVICE, training=True, backend="triton", extra_keys=p.extra, sink=p.sink,
        softcap=p.softcap or None, key_range="key_range" in made,
        extra_range="extra_range" in made, relative_bias=p.table, alibi_slopes=p.slopes > 0,
    )  # fmt: skip
    program = plan.chosen.program
    assert program is not None
    named: dict[str, Any] = {
        name: tensor for name, tensor in made.items() if not name.startswith("grad")
    }
    scale = p.head_dim**-0.5 if p.scale is None else p.scale
    inputs = Inputs(**named, scale=scale, softcap=p.softcap or None)
    out, lse = run.forward(program, inputs, return_lse=True, launcher=launcher)
    upward = made["grad_out"], made["grad_lse"]
    grads = run.backward(program, inputs, out, lse, *upward, launcher=launcher)
    found = {f"grad_{name}": getattr(grads, name) for name in LEAVES if name in made}
    return {"out": out, "lse": lse} | found


def run_case(case: str, run: Any, launcher: Launcher, *, by_run: bool) -> None:
    """Runs and judges a case.

    Raises:
        AssertionError: a value is wrong.
        KernelError: an access is.
    """
    if case.startswith(GRIDS):
        packed = GRID_CASES[case.removeprefix(GRIDS)]
        options: dict[str, Any] = {"backend": "triton", "device": DEVICE}
        program = packed_calls.program_of(packed, torch.float64, **options)
        made = packed_calls.drawn(packed, torch.float64)
        packed_calls.check(run, program, packed, made, launcher=launcher)
        return
    p = CASES[case]
    made, expected = made_for(case)
    solved = by_backend(p, made, run, launcher) if by_run else None
    judge(p, solved or triton_problems.solve(p, launcher, made), expected)


def report_of(bug: Bug | None, case: str, *, by_run: bool) -> tuple[str, str]:
    """What caught a bug and its report; empty without one."""
    change = () if bug is None or bug.module == RUN else ((bug.module, bug.old, bug.new),)
    run = changed_run(bug) if bug is not None and bug.module == RUN else real_run
    launcher = Launcher(check=True, overflow=case == "far", changes=change)
    try:
        run_case(case, run, launcher, by_run=by_run)
    except KernelError as error:
        return "A", str(error)
    except AssertionError as error:
        text = (str(error) or "an assertion").splitlines()[0]
        return ("O" if "overflow" in text else "V"), text
    return "", ""


def main(names: list[str]) -> int:
    """Print the table and return the number of bugs that are not caught as they should be."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    missed, correct = 0, set[tuple[str, bool]]()
    for bug in [bug for bug in BUGS if not names or bug.name in names]:
        setting = bug.case, bug.module == RUN
        if setting not in correct:
            correct.add(setting)
            if (wrong := report_of(None, bug.case, by_run=setting[1]))[0]:
                raise SystemExit(f"without a bug, {bug.case}: {wrong[1]}")
        caught, text = report_of(bug, bug.case, by_run=setting[1])
        missed += caught != bug.catch
        flag = "" if caught == bug.catch else f"NOT BY {bug.catch}: "
        print(f"{bug.name:45} {caught:2} {flag}{text or 'nothing'}", flush=True)
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="bugs; default: all")
    sys.exit(bool(main(parser.parse_args().names)))

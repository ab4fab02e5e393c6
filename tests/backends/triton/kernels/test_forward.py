"""Tests of the Triton kernels alone, launch by launch in the interpreter: forward and gradients
against float64, with arguments that are computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import triton_interpreter
from emulator.problem import expected_results, judge, make
from triton_interpreter import KernelError, Launcher
from triton_problems import CASES, run, solve

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)

Count = Callable[[str, int], None]
# Those that reach what others do not; the rest are deep.
QUICK = {
    "cube", "extras", "far", "few", "full-prefix", "full-range", "full-ring", "groups",
    "laps", "nothing", "odd", "outside", "ragged", "slopes-ahead", "table-circle", "table-packed",
}  # fmt: skip
OVERFLOW = {"far", "few", "outside"}  # numbers that are negative or large


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.deep) for n in CASES]
)
def test_all_results_of_a_problem(name: str, cases: Count) -> None:
    """No access is outside of the tensors, and nothing is stored twice."""
    p = CASES[name]
    made = make(p)
    found = solve(p, Launcher(check=True, overflow=name in OVERFLOW), made)
    judge(p, found, expected_results(p, made))
    cases("Triton kernels alone", 1)


def test_accesses_outside_of_tensors_are_found() -> None:
    """By the launcher: a row more, a channel more, and an element that is stored twice."""
    p = CASES["plain"]
    made = make(p)
    rows = ("tile", "rows = clamp(row_hi - first, 0, ROWS)\n    lo,", "rows = ROWS\n    lo,")
    with pytest.raises(KernelError, match=r"forward loads .* elements outside of its tensors"):
        run(p, Launcher(check=True, changes=(rows,)), "forward", made)
    heads = ("forward", "V) + place.head\n    store", "V)\n    store")
    with pytest.raises(KernelError, match="forward stores an element twice"):
        run(p, Launcher(check=True, changes=(heads,)), "forward", made)

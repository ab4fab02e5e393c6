"""Tests of packed grids in the CUDA kernels, run by the emulator on CPU tensors: the bits of each
grid alone, one launch per kernel, and one table on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import packed_calls
import pytest
import torch
from emulator import build
from emulator.launcher import Launcher
from packed_calls import Case
from packed_cases import CASES

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.cuda import run
from nbattn.program.parts import PackedCall
from nbattn.program.program import ByIdentity

Count = Callable[[str, int], None]
needs_emulator = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
QUICK = {  # each compiles kernels of its own
    ("dilated", torch.bfloat16), ("slopes", torch.bfloat16), ("keys alone", torch.float32),
    ("none", torch.bfloat16),
}  # fmt: skip
EVERY = [
    pytest.param(*each, marks=[] if each in QUICK else pytest.mark.deep)
    for each in product(CASES, (torch.bfloat16, torch.float32))
]


@needs_emulator
@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_all_grids_have_the_bits_of_each_alone(name: str, dtype: torch.dtype, cases: Count) -> None:
    """Every access is checked: races of the parameters in shared memory, too."""
    case = CASES[name]
    program = packed_calls.program_of(case, dtype, backend="cuda", device="sm_90")
    made = packed_calls.drawn(case, dtype)
    packed_calls.check(run, program, case, made, launcher=Launcher("check"))
    cases("cuda packed grids", len(case.grids))


@needs_emulator
@pytest.mark.parametrize("count", [31, 33, 1100])
def test_a_block_finds_its_grid_among_many(count: int, cases: Count) -> None:
    """Every third grid is empty."""
    sizes = [(0 if n % 3 == 1 else 1 + n % 40,) for n in range(count)]
    case = Case(Mask(Axis(2, 1)), sizes, heads=1)
    program = packed_calls.program_of(case, torch.float32, backend="cuda", device="sm_90")
    made, launcher = packed_calls.drawn(case, torch.float32), Launcher()
    found = packed_calls.solved(run, program, case, made, launcher=launcher)
    assert launcher.counts.launches == 4
    exact = nbattn.attention(
        *(made[name] for name in ("query", "key", "value")), case.mask, scale=0.3, grids=sizes,
        backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(found["out"], exact, rtol=1e-4, atol=1e-5)
    cases("cuda packed grids", count)


def test_one_table_on_the_device() -> None:
    case = CASES["documents"]
    program = packed_calls.program_of(case, torch.float32, backend="cuda", device="sm_90")
    call = program.calls[0].arguments
    assert isinstance(call, PackedCall)
    tables = [run._table(ByIdentity(call), 5, torch.device("cpu")) for _ in range(2)]
    assert tables[0] is tables[1]
    assert len(tables[0]) == 8 * len(case.grids)

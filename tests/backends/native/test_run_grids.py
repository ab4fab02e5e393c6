"""Tests of packed grids in the native kernels: the bits of each grid alone, on any number of
threads, and nothing touched but the tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import packed_calls
import pytest
import torch
from native_checks import build, checks
from native_checks.replay import Case as Recorded
from native_checks.replay import Data, Step
from native_library import needs_library
from packed_calls import Case
from packed_cases import CASES, MANY, PLANE
from torch import Tensor
from work import lines

import nbattn
from nbattn import Axis, Grids, Mask
from nbattn.backends.native import run
from nbattn.kernels import layout
from nbattn.planner import planner

Count = Callable[[str, int], None]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
PLANS = 80_000  # lines of Python for a plan of many grids
pages = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps pages as Linux does")
sanitizers = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever the test sets is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_all_grids_have_the_bits_of_each_alone(name: str, dtype: torch.dtype, cases: Count) -> None:
    case = CASES[name]
    program = packed_calls.program_of(case, dtype, backend="native")
    packed_calls.check(run, program, case, packed_calls.drawn(case, dtype))
    cases("native packed grids", len(case.grids))


@needs_library
def test_thousands_of_grids(cases: Count) -> None:
    program = packed_calls.program_of(MANY, torch.float32, backend="native")
    packed_calls.check(run, program, MANY, packed_calls.drawn(MANY, torch.float32))
    cases("native packed grids", len(MANY.grids))


@needs_library
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["plane", "documents", "large"])
def test_any_number_of_threads(name: str) -> None:
    """One of the cases is larger than the caches, so that rows are asked for before they are used;
    in another, the only long axis is cut into slabs that run in turn.
    """
    large = Case(Mask.sliding_window(30, 0), [(1500,), (20,), (1200,)], heads=8, kv_heads=4, dim=64)
    case = replace(CASES[name], extra=0) if name != "large" else replace(large, value_dim=64)
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_num_threads(1)
        program = packed_calls.program_of(case, dtype, backend="native")
        made = packed_calls.drawn(case, dtype)
        wanted = packed_calls.solved(run, program, case, made)
        for count in (2, 5):
            torch.set_num_threads(count)
            found = packed_calls.solved(run, program, case, made)
            assert all(torch.equal(found[n], tensor) for n, tensor in wanted.items())


@needs_library
def test_slabs_of_grids_run_in_two_phases() -> None:
    """Grids that have one slab, and grids that have many."""
    case = Case(Mask.sliding_window(5, 0), [(2000,), (7,), (900,)], heads=1)
    program = packed_calls.program_of(case, torch.float32, backend="native")
    kernels = program.calls[0].arguments.kernels  # pyright: ignore[reportAttributeAccessIssue]
    tiles = kernels.grad_all or kernels.forward
    phased = replace(
        kernels, grad_query=None, grad_key=None, grad_all=tiles._replace(slab=(1, 1, 1))
    )
    call = replace(program.calls[0].arguments, kernels=phased)  # pyright: ignore
    program = replace(program, calls=(replace(program.calls[0], arguments=call),))
    packed_calls.check(run, program, case, packed_calls.drawn(case, torch.float32))


def compare(mask: Mask, grids: Any, **more: Tensor) -> None:
    """Values and all gradients against the definition."""
    tokens = sum(torch.Size(size).numel() for size in grids)
    made = [torch.randn(tokens, 2, 16, dtype=torch.float64).requires_grad_() for _ in range(3)]
    leaves = [*made, *(t for t in more.values() if t.requires_grad)]
    grad = torch.randn(tokens, 2, 16, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for backend in ("native", "reference"):
        out = nbattn.attention(*made, mask, grids=grids, backend=backend, **more)
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@needs_library
@pytest.mark.parametrize("times", [1, 40])
def test_one_table_of_relative_positions(times: int) -> None:
    """Its gradient is the sum over all grids."""
    compare(
        Mask(Axis(2, 2, dilation=2), Axis(3, 3, border="shift")), PLANE * times,
        relative_bias=normal(2, 9, 13),
    )  # fmt: skip


@needs_library
def test_slopes_and_ranges_of_extra_keys_of_each_grid() -> None:
    grids, mask = [(28,), (1,), (0,), (100,), (5,)] * 3, Mask.sliding_window(9, 0)
    compare(mask, grids, alibi_slopes=torch.rand(15, 2), relative_bias=normal(2, 19))
    compare(mask, grids, alibi_slopes=torch.rand(2))
    ranges = torch.tensor([[n % 3, n % 6] for n in range(15)], dtype=torch.int32)
    extras = [normal(15, 5, 2, 16) for _ in range(2)]
    compare(mask, grids, extra_key=extras[0], extra_value=extras[1], extra_range=ranges)


def test_a_table_for_each_circle_is_refused() -> None:
    plan = nbattn.plan(
        Mask(Axis(2, 2, border="wrap")), (12, 2, 16), grids=[(5,), (7,)], dtype=torch.float32,
        relative_bias=True,
    )  # fmt: skip
    (native,) = (one for one in plan.candidates if one.backend == "native" and one.reasons)
    assert native.reasons[0].text == (
        'relative_bias of packed grids needs axes without border="wrap": each circle has its own '
        "table"
    )


def recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorded, dict[str, bytes]]:
    """A case as a process without torch runs it, and the bytes of its outputs."""
    case, dtype = CASES[name], torch.float32
    program = packed_calls.program_of(case, dtype, backend="native")
    made = packed_calls.drawn(case, dtype)
    inputs: dict[str, Data] = {}
    steps: list[Step] = []
    results: dict[str, Tensor] = {}

    def record(numbers: bytes, tensors: dict[str, Tensor]) -> None:
        ran(numbers, tensors)
        grads = [n for n in tensors if n.startswith("grad_") and n[5:] in packed_calls.GRADIENTS]
        if not steps:
            written = ["out", "lse"]
        elif "delta" not in tensors:
            written = grads
        elif len(steps) == 1:
            written = ["grad_query", "delta"]
        else:
            written = [name for name in grads if name != "grad_query"]
        for name, tensor in tensors.items():
            if name not in grads and name not in results and name not in written:
                inputs[name] = Data(bytes_of(tensor), tensor.nbytes)
        results.update({name: tensors[name] for name in written})
        steps.append(Step(numbers, {name: tensors[name].nbytes for name in written}))

    ran = run._run
    monkeypatch.setattr(run, "_run", record)
    packed_calls.solved(run, program, replace(case, strided=False), made)
    wanted = {name: bytes_of(tensor) for name, tensor in results.items()}
    return Recorded(name, inputs, tuple(steps), layout.POINTERS), wanted


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def replay(places: tuple[str, ...], library: Path, preload: tuple[str, ...], patch: Any) -> None:
    names = ("plane", "dilated", "documents", "cross", "keys alone")
    every: list[tuple[Recorded, dict[str, bytes]]] = []
    for name in names:
        with patch.context() as changed:
            every.append(recorded(name, changed))
    found = checks.replayed([case for case, _ in every], places, library, preload)
    for place in places:
        for (_, wanted), results in zip(every, found[place], strict=True):
            assert results.keys() == wanted.keys()
            for name, given in results.items():
                one, other = (
                    torch.frombuffer(bytearray(b), dtype=torch.float32)
                    for b in (given, wanted[name])
                )
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pages
@sanitizers
def test_between_pages_that_may_not_be_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(("end", "start"), build.library("fast"), (), monkeypatch)


@pytest.mark.deep
@sanitizers
def test_with_the_address_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(("heap",), build.library("sanitized"), checks.ADDRESS, monkeypatch)


@pytest.mark.parametrize("training", [False, True])
def test_many_grids_are_planned_by_a_few(training: bool) -> None:
    """As many lines of Python for all sizes that differ as for few."""
    for distinct in (4, 10_000):
        sizes = torch.randint(4, 60, (distinct, 2))[torch.arange(10_000) % distinct]
        grids = Grids(sizes.numpy())
        planner.forget()
        shape = (grids.tokens, 2, 32)
        given = {"grids": grids, "dtype": torch.float32, "training": training}
        plan = partial(nbattn.plan, Mask.neighborhood((3, 3)), shape, backend="native", **given)
        count = lines(plan)
        assert count < PLANS * (1 + 3 * training)

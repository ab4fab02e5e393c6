"""Tests of running Flash programs: which rows kernels write, and what is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flash_stand_ins
import pytest
import torch
from flash_cases import MASKS, attention_by_adapter, compare, part_of, tensors, unpadded_case

import nbattn
from nbattn import BackendError, Mask
from nbattn.backends.dense.meaning import NoMask
from nbattn.backends.flash import adapters as flash_backend
from nbattn.program.program import AxisView, Call, Program, View

Count = Callable[[str, int], None]
Space = tuple[int, ...]
PROVIDERS = ("aten", "fa2", "fa3", "fa4")
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack", "pad")


@pytest.mark.usefixtures("providers", "refusals_without_fixes")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("label", MASKS)
def test_kernels_write_their_rows_into_the_output(label: str, provider: str, cases: Count) -> None:
    """One piece of the output per call, at its own rows; nothing is copied there."""
    mask, queries, keys = MASKS[label]
    for strategy in ("translate", "trim", "split"):
        try:
            program, inputs, want = unpadded_case(
                mask, queries, keys, backend=f"flash-model:{provider}", require=(strategy,)
            )
        except BackendError:
            continue
        flash_stand_ins.WRITTEN.clear()
        out, _ = flash_backend.forward(program, inputs, return_lse=True)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
        if (len(program.calls) == 1 and program.calls[0].query.covers(inputs.space)) or any(
            call.joins for call in program.calls
        ):
            assert not flash_stand_ins.WRITTEN
            continue
        rows = [call.query.rows_of(out) for call in program.calls]
        if any(part is None for part in rows):  # residues of two samples in the batch
            continue
        if provider == "aten" and not hasattr(torch.ops.aten, flash_backend._WRITES):
            assert not flash_stand_ins.WRITTEN  # torch before 2.12 has no operator that does
            continue
        places = [(part.data_ptr(), part.shape, part.stride()) for part in rows]
        given = [(one.data_ptr(), one.shape, one.stride()) for one in flash_stand_ins.WRITTEN]
        assert given == places
        assert all(part_of(one, out) for one in flash_stand_ins.WRITTEN)
        cases(f"flash rows, {provider} written in place", len(rows))


def test_no_extra_keys_round_like_none() -> None:
    """A sink is merged before the output is rounded, with 0 extra keys, too."""
    query = torch.randn(2, 40, 2, 32).half()
    none = torch.empty(2, 0, 2, 32, dtype=torch.float16)
    options = {"sink": torch.randn(2), "backend": "flash-model", "return_lse": True}
    run = partial(nbattn.attention, query, query, query, Mask.sliding_window(3), **options)
    for found, expected in zip(run(extra_key=none, extra_value=none), run(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("providers")
def test_rows_that_a_kernel_cannot_write_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of another size, packed rows of several samples, a torch without the operator."""
    mask, queries, keys = MASKS["rows outside"]
    attend = attention_by_adapter("aten", mask, "trim", queries, keys)  # heads of 5, values of 3
    compare(mask, queries, keys, tensors(queries, keys), {}, attend, lse_gradient=False)
    program, inputs, want = unpadded_case(
        mask, queries, keys, backend="flash-model:aten", require=("virtual-pad",)
    )
    found, _ = flash_backend.forward(program, inputs, return_lse=True)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    monkeypatch.setattr(flash_backend, "_WRITES", "of another version")
    program, inputs, want = unpadded_case(
        mask, queries, keys, backend="flash-model:aten", require=("trim",)
    )
    found, _ = flash_backend.forward(program, inputs, return_lse=True)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    assert not flash_stand_ins.WRITTEN


def test_a_call_that_is_merged_writes_no_rows_of_its_own() -> None:
    halves = [View((AxisView(start, 3),)) for start in (0, 3)]
    whole = Program(tuple(Call(half, half, NoMask()) for half in halves))
    assert whole.writes_all((6,))
    first, second = whole.calls
    assert not Program((first, replace(second, joins=True))).writes_all((6,))


@pytest.mark.usefixtures("refusals_without_fixes")
@pytest.mark.parametrize("provider", ["aten", "fa4"])
@pytest.mark.parametrize("label", MASKS)
def test_rows_that_no_call_writes_are_zero(label: str, provider: str) -> None:
    """In memory that is NaN until it is written."""
    mask, queries, keys = MASKS[label]
    made = {name: t.detach() for name, t in tensors(queries, keys).items()}
    want, want_lse = nbattn.attention(**made, mask=mask, backend="reference", return_lse=True)
    torch.use_deterministic_algorithms(True)
    try:
        for strategy in STRATEGIES:
            try:
                found, lse = nbattn.attention(
                    **made, mask=mask, backend=f"flash-model:{provider}", require=(strategy,),
                    return_lse=True,
                )  # fmt: skip
            except BackendError:
                continue
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
            torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
    finally:
        torch.use_deterministic_algorithms(False)

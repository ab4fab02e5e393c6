"""Tests of candidates that gather grids of one size: their costs, reasons and programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.program.costs import tensor_bytes

MASK = Mask.neighborhood((7, 7))


def plan(sizes: Any, **options: Any) -> Plan:
    tokens = sum(a * b for a, b in sizes)
    options = {"dtype": "float32", "device": "cpu", "backend": "tiled", **options}
    return nbattn.plan(MASK, (tokens, 4, 32), grids=sizes, **options)


def ordinary(size: tuple[int, int], batch: int, **options: Any) -> Any:
    options = {"dtype": "float32", "device": "cpu", "backend": "tiled", **options}
    return nbattn.plan(MASK, (batch, *size, 4, 32), **options).chosen


def test_grids_of_one_size_cost_what_their_batch_does() -> None:
    chosen = plan([(14, 14)] * 8).chosen
    wanted = ordinary((14, 14), 8).cost
    assert chosen.name == "tiled/gather"
    assert chosen.cost == wanted


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_several_sizes_cost_their_sum_and_copies(training: bool, packed: bool) -> None:
    """Copies are contiguous, however the tokens lie."""
    found = plan([(14, 14), (20, 33), (14, 14)], training=training, packed=packed)
    cost = found.chosen.cost
    parts = [ordinary((14, 14), 2, training=training), ordinary((20, 33), 1, training=training)]
    assert cost is not None
    assert cost.useful_pairs == sum(part.cost.useful_pairs for part in parts)
    copied = 2 * (1 + 2 * training) * tensor_bytes(found.request)
    assert cost.bytes == sum(part.cost.bytes for part in parts) + copied
    assert cost.calls == sum(part.cost.calls for part in parts)
    launches = 4 * (1 + 2 * training) * 2  # of q, k, v and the output, for both sizes
    device = found.request.device
    wanted = sum(part.cost.estimate for part in parts) + copied / device.bandwidth
    assert cost.estimate == pytest.approx(wanted + launches * device.launch)


def test_sizes_of_as_many_tokens_cost_as_many_calls() -> None:
    """One of six stands for all: what is computed is a batch of it, what is started is not."""
    sizes = [(2, 6), (6, 2), (3, 4), (4, 3), (1, 12), (12, 1)]
    found = plan(sizes, backend="auto", require=("tiled",))
    one, cost = ordinary((2, 6), 6).cost, found.chosen.cost
    assert cost is not None
    assert cost.calls == 6 * one.calls
    device = found.request.device
    copied = 2 * tensor_bytes(found.request) / device.bandwidth
    started = (5 * one.calls + 4 * 6) * device.launch
    assert cost.estimate == pytest.approx(one.estimate + started + copied)


def test_sizes_that_differ_are_copied_whatever_their_layout() -> None:
    mask, shape = Mask(Axis(dilation=4)), (160, 4, 32)

    def made(grids: Any, packed: bool) -> Any:
        options = {"dtype": "float32", "device": "cpu", "backend": "sdpa", "packed": packed}
        return nbattn.plan(mask, shape, grids=grids, **options).chosen

    for grids, alike in (([80, 80], False), ([64, 96], True)):
        packed, contiguous = (made(grids, layout) for layout in (True, False))
        assert (packed.cost == contiguous.cost) == alike
        programs = (one.program.calls[0].arguments.of_size(0) for one in (packed, contiguous))
        assert (next(programs) == next(programs)) == alike


def test_families_that_take_grids_gather_none() -> None:
    found = plan([(9, 9), (12, 12)], backend="auto", device="sm_90", dtype="float16")
    names = {candidate.name for candidate in found.candidates}
    assert "cuda/window+mma" in names
    assert "sdpa/gather" in names
    assert "cuda/gather" not in names


def test_explain_says_that_costs_are_those_of_some() -> None:
    text = plan([(7 + n, 9) for n in range(40)], backend="auto", forbid=("native",)).explain()
    assert "40 sizes of grids (costs are those of 2), each gathered into a batch" in text


def test_a_named_backend_is_asked_about_every_size() -> None:
    sizes = [(9, 9)] * 4 + [(9, n) for n in range(1, 9)] + [(0, 3)]
    with pytest.raises(BackendError) as raised:
        plan([*sizes, (1500, 1500)], backend="sdpa")
    assert "sdpa/gather: grids of 1500x1500:" in str(raised.value)
    assert plan(sizes, backend="sdpa").verify()


def test_a_reason_that_all_sizes_have_names_none() -> None:
    with pytest.raises(BackendError) as raised:
        plan([(9, 9), (8, 8)], backend="cuda")
    assert "runs on cuda, not on cpu" in str(raised.value)
    assert "grids of" not in raised.value.problem


def test_strategies_that_are_required_and_forbidden() -> None:
    sizes = [(9, 9), (12, 12)]
    assert plan(sizes, backend="auto", require=("gather",)).chosen.strategy == "gather"
    assert plan(sizes, backend="auto", forbid=("gather",)).chosen.strategy != "gather"
    with pytest.raises(BackendError, match="does not use 'mask'"):
        plan(sizes, backend="sdpa", require=("mask",))


def test_each_size_leaves_out_what_is_forbidden() -> None:
    """As the plan says, and not only when it runs."""
    sizes = [(9, 9), (12, 12)]
    for names, few in ((("split",), [(8, 9), (9, 9)]), (("mask",), [(8, 9), (9, 9)])):
        found = plan(few, backend="sdpa", forbid=names)
        (arguments,) = (call.arguments for call in found.chosen.program.calls)  # pyright: ignore
        for number in (0, 1):
            candidate = arguments.candidate(number)  # pyright: ignore
            assert {candidate.strategy, *candidate.traits}.isdisjoint(names)
    with pytest.raises(BackendError, match=r"sdpa/gather: .*uses 'dense', which is forbidden"):
        plan(sizes, backend="sdpa", forbid=("dense", "mask"))
    with pytest.raises(BackendError) as raised:
        plan(sizes, backend="sdpa", forbid=("mask",))  # split is for few rows
    assert "sdpa/gather: grids of 12x12: uses 'mask', which is forbidden" in str(raised.value)
    assert raised.value.fix == "forbid=()"
    assert plan(sizes, backend="auto", forbid=("dense", "mask")).chosen.backend != "sdpa"


def test_a_forbidden_backend_is_said_once() -> None:
    with pytest.raises(BackendError) as raised:
        plan([(9, 9), (12, 12)], backend="sdpa", forbid=("sdpa",))
    assert str(raised.value).count("which is forbidden") == 1


def test_sizes_that_come_again_have_a_plan() -> None:
    some = plan([(9, 9)] * 5 + [(8, 8)]).chosen.program
    more = plan([(9, 9)] * 7 + [(8, 9)]).chosen.program
    assert some is not None
    assert more is not None
    one, other = (program.calls[0].arguments.of_size(0) for program in (some, more))  # pyright: ignore
    assert one is other


def test_a_size_that_auto_finds_refused_runs_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs look at some sizes; a backend may refuse another one when it runs."""
    sizes = [(8, 9), (9, 9)]
    found = plan(sizes, backend="auto", require=("sdpa",))
    (arguments,) = (call.arguments for call in found.chosen.program.calls)  # pyright: ignore
    make = planner.make

    def refusing(request: Any) -> Plan:
        if request.backend == "sdpa" and request.query_space == (9, 9):
            raise BackendError("no")
        return make(request)

    monkeypatch.setattr(planner, "make", refusing)
    assert [arguments.candidate(n).runner for n in (0, 1)] == ["sdpa", "tiled"]  # pyright: ignore
    named = replace(arguments, request=replace(found.request, backend="sdpa"))  # pyright: ignore
    with pytest.raises(BackendError):
        named.candidate(1)


def test_grids_without_queries_have_a_plan() -> None:
    for sizes in ([], [(0, 4)]):
        found = plan(sizes)
        assert found.verify()
        assert found.support().shape == (0, 0)
        assert torch.is_tensor(found.run(*torch.empty(3, 0, 4, 32)))

"""Tests of running plans: an eager call runs one plan, and a given plan runs itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_calls import CAUSAL, close, tensors
from torch.utils._python_dispatch import TorchDispatchMode

import nbattn
from nbattn import BackendError, Mask, execute
from nbattn.kernels import host
from nbattn.planner import notices, planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature
from nbattn.program.device import DEVICES

# Plans that run themselves.


@pytest.fixture
def plans_that_ran(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that were run forward and backward; and no other is made."""
    found: list[Plan] = []
    forward, backward = execute.forward, execute.backward

    def spy(run: Any) -> Any:
        def spied(plan: Plan, *rest: Any, **named: Any) -> Any:
            found.append(plan)
            return run(plan, *rest, **named)

        return spied

    monkeypatch.setattr(execute, "forward", spy(forward))
    monkeypatch.setattr(execute, "backward", spy(backward))
    return found


OWN = replace(DEVICES["cpu"], flops=(("float32", 1.0), ("float64", 1.0)), source="mine")


@pytest.mark.parametrize(
    "named",
    [{"packed": True}, {"device": OWN}, {"require": ("mask",)}, {"return_lse": True}, {}],
    ids=str,
)
def test_a_plan_runs_itself(named: dict[str, Any], plans_that_ran: list[Plan]) -> None:
    given = tensors()
    options = {"dtype": "float64", "device": "cpu", "training": True, **named}
    plan = nbattn.plan(CAUSAL, given[0].shape, given[1].shape, **options)
    assert plan.verify()
    leaves = [t.requires_grad_() for t in given]
    out = plan.run(*leaves)
    first = out[0] if isinstance(out, tuple) else out
    torch.autograd.grad(first.sum(), leaves)
    assert len(plans_that_ran) == 2
    assert all(one is plan for one in plans_that_ran)


def test_an_eager_call_plans_once(
    monkeypatch: pytest.MonkeyPatch, plans_that_ran: list[Plan]
) -> None:
    looked: list[Signature] = []
    look_up = planner.planned_to_run
    monkeypatch.setattr(
        planner, "planned_to_run", lambda facts: looked.append(facts) or look_up(facts)
    )
    planner.KNOWN_CALLS.clear()
    leaves = [t.requires_grad_() for t in tensors()]
    torch.autograd.grad(nbattn.attention(*leaves, CAUSAL).sum(), leaves)
    assert len(looked) == 1
    assert plans_that_ran[0] is plans_that_ran[1]


def test_a_plan_checks_its_numbers_as_attention_does() -> None:
    given = tensors()
    plan = nbattn.plan(CAUSAL, given[0].shape, given[1].shape, dtype="float64", device="cpu")
    for wrong in ({"scale": float("nan")}, {"scale": "2"}, {"scale": True}, {"softcap": 0.0}):
        with pytest.raises(nbattn.errors.InputError) as refused:
            plan.run(*given, **wrong)
        with pytest.raises(nbattn.errors.InputError) as expected:
            nbattn.attention(*given, CAUSAL, **wrong)
        assert refused.value.problem == expected.value.problem


def test_a_plan_runs_under_autocast() -> None:
    given = [t.float() for t in tensors()]
    plan = nbattn.plan(CAUSAL, given[0].shape, given[1].shape, dtype="bfloat16", device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        out = plan.run(*given)
    assert torch.equal(out, plan.run(*(t.bfloat16() for t in given)))
    query, key, value = given
    with torch.autocast("cpu", torch.bfloat16):
        for wrong in ({"return_lse": True}, {"extra_key": 1.0}):
            with pytest.raises(nbattn.errors.InputError):
                plan.run(query, key, value, **wrong)
        for run in (plan.run, lambda *t: nbattn.attention(*t, CAUSAL)):
            with pytest.raises(nbattn.errors.InputError, match="key is a list, not a tensor"):
                run(query, [1], value)


def test_plan_run_refuses_vmap_and_fullgraph_compilers() -> None:
    given = tensors()
    plan = nbattn.plan(CAUSAL, given[0].shape, given[1].shape, dtype="float64", device="cpu")
    refusal = r"(?s)a plan runs its own program.*fix:.*nbattn\.attention\(query, key, value, mask\)"
    with pytest.raises(BackendError, match=refusal):
        torch.func.vmap(plan.run)(*(torch.stack([t]) for t in given))
    with pytest.raises(Exception, match="a plan runs its own program"):
        torch.compile(plan.run, fullgraph=True, backend="eager")(*given)
    broken = torch.compile(lambda *t: plan.run(*t) * 2, backend="eager")  # runs it outside
    close(broken(*given), plan.run(*given) * 2)
    torch._dynamo.reset()


def test_auto_runs_another_backend_where_its_kernels_turn_out_not_to_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> object:
        raise host._failure

    mask, tensors = Mask.neighborhood(5), [torch.randn(1, 40, 2, 8) for _ in range(3)]
    plan = nbattn.plan(mask, (1, 40, 2, 8), dtype=torch.float32, training=True, device="cpu")
    assert plan.chosen.runner == "native"
    want = nbattn.attention(*tensors, mask, backend="reference")
    monkeypatch.setattr(host, "_failure", BackendError("a header is missing", "apt install it."))
    monkeypatch.setattr(host, "library", broken)
    monkeypatch.setattr(notices, "_GIVEN", set())
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with pytest.warns(RuntimeWarning, match="native/window does not work here, tiled/tile runs"):
        out = plan.run(*leaves)
    torch.testing.assert_close(out, want)
    out.sum().backward()  # the forward gave no logsumexp, so that tiles compute it again
    assert all(leaf.grad is not None for leaf in leaves)
    chosen = nbattn.plan(mask, (1, 40, 2, 8), dtype=torch.float32, backend="native", device="cpu")
    with pytest.raises(BackendError, match="a header is missing"):
        chosen.run(*(tensor.detach() for tensor in tensors))


# What a backward asks of a logsumexp.


class Elements(TorchDispatchMode):
    """The most elements that an operation reads."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            read = (arg.numel() for arg in args if isinstance(arg, torch.Tensor))
            self.most = max(self.most, *read, 0)
        return func(*args, **(kwargs or {}))


def test_a_known_logsumexp_is_known_by_one_number() -> None:
    """An operation on all of it would leave torch's threads waiting in a loop, on cores that the
    gradients need.
    """
    known = torch.zeros(2, 300, 400, 4)
    known[1:] = torch.nan
    unknown = torch.full((2, 5, 4), torch.nan)
    with Elements() as elements:
        assert not execute._is_unknown(known)
    assert elements.most == 1
    assert execute._is_unknown(unknown)
    unknown[1, 2, 3] = 0
    assert not execute._is_unknown(unknown)
    assert not execute._is_unknown(unknown[:0])


@pytest.mark.parametrize("training", [False, True])
def test_a_profiler_shows_what_runs(training: bool) -> None:
    given = [t.requires_grad_(training) for t in tensors()]
    shapes = given[0].shape, given[1].shape
    name = nbattn.plan(CAUSAL, *shapes, backend="sdpa", device="cpu").chosen.name
    nbattn.attention(*given, CAUSAL, backend="sdpa")  # the next one is a known call
    with torch.profiler.profile() as profile:
        out = nbattn.attention(*given, CAUSAL, backend="sdpa")
        if training:
            torch.autograd.grad(out.sum(), given)
        nbattn.attention(*(t.detach() for t in given), CAUSAL, backend="tiled")
    shown = sorted(
        event.name for event in profile.events() or () if event.name.startswith("nbattn: ")
    )
    backward = [f"nbattn: {name} backward"] if training else []
    assert shown == [f"nbattn: {name}", *backward, "nbattn: tiled/tile"]

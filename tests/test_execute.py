"""Owns the check of plans that run: an eager call runs one, a given one runs itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import nbattn
from nbattn import BackendError, Mask, execute
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature
from nbattn.program.device import DEVICES

LIMIT = 1e-10
CAUSAL, WINDOW = Mask.causal(), Mask.sliding_window(3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(queries: int = 7, keys: int = 7, seed: int = 0) -> list[Tensor]:
    sizes = ((2, queries, 4, 4), (2, keys, 2, 4), (2, keys, 2, 4))
    return [drawn(*size, seed=seed + n) for n, size in enumerate(sizes)]


def close(found: Any, wanted: Any) -> None:
    found, wanted = (t if isinstance(t, (tuple, list)) else (t,) for t in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, (tuple, list)):
            close(one, other)
            continue
        assert one.shape == other.shape
        assert not one.numel() or (one - other).abs().max() <= LIMIT


# Plans that run themselves.


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
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
def test_a_plan_runs_itself(named: dict[str, Any], ran: list[Plan]) -> None:
    given = tensors()
    options = {"dtype": "float64", "device": "cpu", "training": True, **named}
    plan = nbattn.plan(CAUSAL, given[0].shape, given[1].shape, **options)
    assert plan.verify()
    leaves = [t.requires_grad_() for t in given]
    out = plan.run(*leaves)
    first = out[0] if isinstance(out, tuple) else out
    torch.autograd.grad(first.sum(), leaves)
    assert len(ran) == 2
    assert all(one is plan for one in ran)


def test_an_eager_call_plans_once(monkeypatch: pytest.MonkeyPatch, ran: list[Plan]) -> None:
    looked: list[Signature] = []
    look_up = planner.planned
    monkeypatch.setattr(planner, "planned", lambda facts: looked.append(facts) or look_up(facts))
    planner.KNOWN_CALLS.clear()
    leaves = [t.requires_grad_() for t in tensors()]
    torch.autograd.grad(nbattn.attention(*leaves, CAUSAL).sum(), leaves)
    assert len(looked) == 1
    assert ran[0] is ran[1]


def test_a_given_plan_and_what_cannot_follow_it() -> None:
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

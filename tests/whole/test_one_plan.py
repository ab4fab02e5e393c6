"""Tests that a forward and its backward fit together when their plans differ: other batches,
strides, layouts or cost tables, and the logsumexp between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from native_library import NAMES, backends
from plan_calls import CAUSAL, WINDOW, close, drawn, tensors
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nbattn
from nbattn import Axis, BackendError, Mask, MaskError, autograd, execute, known_calls, ops
from nbattn.backends.inputs import Inputs
from nbattn.geometry import bind
from nbattn.planner import planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature

Count = Callable[[str, int], None]
BACKENDS = ("auto", "tiled", "sdpa", "flash-model", *NAMES)


def attend(mask: Mask, backend: str = "auto", **named: Any) -> Callable[..., Tensor]:
    return lambda *given: nbattn.attention(*given, mask, backend=backend, **named)


def masks(count: int) -> Iterator[tuple[Mask, int, int]]:
    """Random masks of one axis with lengths they fit, rows without keys among them."""
    rng = random.Random(11)
    while count:
        border, causal = rng.choice(("clip", "clip", "shift", "wrap")), rng.random() < 0.4
        queries = rng.randint(1, 9)
        keys = queries if border == "wrap" else rng.randint(1, 9)
        try:
            mask = Mask(
                Axis(
                    rng.choice((0, 1, 2, 5, None)),
                    0 if causal else rng.choice((0, 1, 3, None)),
                    dilation=rng.choice((1, 1, 2, 3)),
                    stride=rng.choice((1, 1, 2, 3)),
                    causal=causal,
                    align=rng.choice(("top-left", "bottom-right", rng.randint(-3, 3))),
                    border=border,
                    prefix=rng.choice((0, 0, 2)),
                )
            )
            bind(mask, queries, keys)
        except MaskError:
            continue
        count -= 1
        yield mask, queries, keys


# Plans that are made apart.


@pytest.fixture(params=["families", "tables"])
def operators_with_other_plans(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every plan prefers another backend than the one before: as with another batch, other strides,
    another device's data or a cost table that came in between.
    """
    turn = [0]
    make = planner.make

    def other(signature: Signature) -> Plan:
        turn[0] += 1
        plan = make(signature.request())
        accepted = [candidate for candidate in plan.candidates if not candidate.reasons]
        chosen = accepted[turn[0] % len(accepted)]
        if request.param == "tables":  # cheapest by a time, as a table has it
            assert chosen.cost is not None
            timed = replace(chosen, cost=replace(chosen.cost, measured=1e-9))
            rest = [candidate for candidate in plan.candidates if candidate is not chosen]
            return replace(plan, chosen=timed, candidates=(timed, *rest))
        return replace(plan, chosen=chosen)

    monkeypatch.setattr(planner, "planned", other)
    monkeypatch.setattr(known_calls, "look_up", lambda key: None)


SUBSETS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


@pytest.mark.usefixtures("operators_with_other_plans")
def test_transforms_whose_operators_plan_differently(cases: Count) -> None:
    """jacrev, vmap of grad and of vjp over every subset of inputs, against the reference."""
    for number, (mask, queries, keys) in enumerate(masks(120)):
        given = tensors(queries, keys, seed=number)
        ours, wanted = attend(mask), attend(mask, "reference")
        if number % 6 == 0 and queries * keys:
            close(
                torch.func.jacrev(ours, argnums=(0, 1, 2))(*given),
                torch.func.jacrev(wanted, argnums=(0, 1, 2))(*given),
            )
        at = SUBSETS[number % len(SUBSETS)]
        dims = tuple(0 if n in at else None for n in range(3))
        stacked = [torch.stack([t, -t, 2 * t]) if n in at else t for n, t in enumerate(given)]

        def gradients(run: Callable[..., Tensor]) -> Callable[..., Any]:
            return torch.func.grad(lambda *x: run(*x).sin().sum(), argnums=(0, 1, 2))

        def pullback(run: Callable[..., Tensor]) -> Callable[..., Any]:
            return lambda *x: torch.func.vjp(run, *x)[1](run(*x).cos())

        for transform in (gradients, pullback):
            found = torch.func.vmap(transform(ours), in_dims=dims)(*stacked)
            close(found, torch.func.vmap(transform(wanted), in_dims=dims)(*stacked))
            cases("one plan: transforms", 1)


def test_batched_gradients_of_the_logsumexp_alone() -> None:
    for backend in ("auto", "tiled", "flash-model", *NAMES):
        leaves = [t.requires_grad_() for t in tensors()]
        upward = torch.stack([drawn(2, 7, 4, seed=n) for n in range(3)])
        found, wanted = (
            torch.autograd.grad(
                nbattn.attention(*leaves, CAUSAL, backend=name, return_lse=True)[1],
                leaves[:2], upward, is_grads_batched=True,
            )
            for name in (backend, "reference")
        )  # fmt: skip
        close(found, wanted)


def test_batched_gradients_of_an_eager_call(cases: Count) -> None:
    for backend in BACKENDS:
        leaves = [t.requires_grad_() for t in tensors()]
        upward = torch.stack([drawn(2, 7, 4, 4, seed=n) for n in range(3)])
        found, wanted = (
            torch.autograd.grad(
                attend(CAUSAL, name)(*leaves), leaves, upward, is_grads_batched=True
            )
            for name in (backend, "reference")
        )
        close(found, wanted)
        cases("one plan: batched gradients", 1)


# Saved tensors.


def turned(tensor: Tensor) -> Tensor:
    """The same numbers, the last axis outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "cloned": lambda t: t.clone(),
    "turned": lambda t: turned(t) if t.dim() else t,
}


def gradients(function: Callable[..., Tensor], given: list[Tensor], *upward: Tensor) -> Any:
    leaves = [t.detach().requires_grad_() for t in given]
    out = function(*leaves)
    out.backward(*(upward or (torch.ones_like(out),)))
    return [t.grad for t in leaves]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_change_strides(hook: str, cases: Count) -> None:
    for number, (mask, queries, keys) in enumerate(masks(60)):
        given = [
            (turned if number % 2 else torch.clone)(t) for t in tensors(queries, keys, seed=number)
        ]
        wanted = gradients(attend(mask, "reference"), given)
        with torch.autograd.graph.saved_tensors_hooks(HOOKS[hook], lambda t: t):
            found = gradients(attend(mask), given)
        close(found, wanted)
        cases("one plan: hooks", 1)


def test_hooks_that_change_device_or_dtype_are_refused() -> None:
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t.to("meta"),
        lambda t: t.float() if t.is_floating_point() else t,
    )
    for change in changes:
        leaves = [t.requires_grad_() for t in tensors()]
        with torch.autograd.graph.saved_tensors_hooks(change, lambda t: t):
            out = nbattn.attention(*leaves, WINDOW, backend="tiled")
        if change(leaves[0]).is_meta:
            continue  # the operator's fake answers, and autograd refuses a gradient without numbers
        with pytest.raises(
            BackendError, match=r"(?s)saved tensors are torch\..*in the backward.*fix:"
        ):
            out.sum().backward()


def strided_checkpoint(mask: Mask, given: list[Tensor], *, reentrant: bool) -> Any:
    """A checkpoint whose second forward finds other strides than its first."""
    calls = [0]

    def run(*inner: Tensor) -> Tensor:
        calls[0] += 1
        change = turned if calls[0] % 2 else torch.clone
        return nbattn.attention(*map(change, inner), mask)

    return gradients(lambda *t: checkpoint(run, *t, use_reentrant=reentrant), given)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_with_other_strides(reentrant: bool, cases: Count) -> None:
    for number, (mask, queries, keys) in enumerate(masks(60)):
        given = tensors(queries, keys, seed=number)
        wanted = gradients(attend(mask, "reference"), given)
        close(strided_checkpoint(mask, given, reentrant=reentrant), wanted)
        cases("one plan: checkpoints", 1)


@pytest.mark.usefixtures("operators_with_other_plans")
def test_a_checkpoint_whose_second_forward_has_another_plan(cases: Count) -> None:
    """The first plan's backward is given what the second forward saved, NaN for a logsumexp too."""
    for number, (mask, queries, keys) in enumerate(masks(60)):
        given = tensors(queries, keys, seed=number)
        run = attend(mask)
        found = gradients(lambda *t, run=run: checkpoint(run, *t, use_reentrant=False), given)
        close(found, gradients(attend(mask, "reference"), given))
        cases("one plan: checkpoints", 1)


# The logsumexp that is saved.


def kept_lse(mask: Mask, given: list[Tensor], backend: str, *, training: bool = True) -> Tensor:
    """What the forward operator leaves for its backward."""
    options = ops.Options(mask.code(), [], [], 0.5, None, backend, "", training, False, False)
    return ops.FORWARD(*given, *(None,) * (len(ops.TENSORS) - 3), *options)[1]


def test_the_operators_save_the_true_logsumexp(cases: Count) -> None:
    for number, (mask, queries, keys) in enumerate(masks(100)):
        given = tensors(queries, keys, seed=number)
        _, wanted = nbattn.attention(*given, mask, scale=0.5, backend="reference", return_lse=True)
        for backend in BACKENDS:
            try:
                found = kept_lse(mask, given, backend)
            except BackendError:
                continue
            assert not found.isnan().any()
            assert torch.equal(found.isinf(), wanted.isinf())
            close(found.nan_to_num(neginf=0.0), wanted.nan_to_num(neginf=0.0))
            cases("one plan: logsumexps", 1)
    assert kept_lse(CAUSAL, tensors(), "auto", training=False).numel() == 0


@pytest.mark.parametrize("backend", backends(["tiled", "sdpa", "native"]))
def test_nan_lse_selects_a_backend_that_recomputes_it(backend: str) -> None:
    given, upward = tensors(), drawn(2, 7, 4, 4, seed=9)
    inputs = Inputs(*given, scale=0.5)
    plan = planned(inputs, CAUSAL)
    (chosen,) = (
        candidate
        for candidate in plan.candidates
        if candidate.runner == backend and candidate.strategy != "mask"
    )
    out, lse = nbattn.attention(*given, CAUSAL, scale=0.5, backend="reference", return_lse=True)
    wanted = gradients(attend(CAUSAL, "reference", scale=0.5), given, upward)
    for known in (lse, execute.unknown_lse(given[0])):
        found = execute.backward(replace(plan, chosen=chosen), inputs, out, known, upward, None)
        close((found.query, found.key, found.value), wanted)


def planned(inputs: Inputs, mask: Mask, **named: Any) -> Plan:
    options: dict[str, Any] = {
        **{"backend": "auto", "require": (), "forbid": (), "training": True},
        **{"deterministic": False, "return_lse": False},
    }
    return execute.planned(mask, inputs, **options | named)


def test_transformed_and_traced_calls_are_not_plain() -> None:
    assert autograd.is_plain((drawn(2), None, torch.nn.Parameter(drawn(2))))
    assert not autograd.is_plain((drawn(2).to("meta"),))
    seen: list[bool] = []
    torch.func.vmap(lambda t: (seen.append(autograd.is_plain((t,))), t)[1])(drawn(2, 2))
    assert seen == [False]


def test_compiled_backwards(cases: Count) -> None:
    """Compiled autograd sees the backward as one step, too."""
    for backend in BACKENDS:
        given = tensors()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            found = gradients(attend(CAUSAL, backend), given)
        close(found, gradients(attend(CAUSAL, "reference"), given))
        cases("one plan: compiled backwards", 1)
    torch._dynamo.reset()

"""Tests of derivatives: which are refused, what is saved for them, checkpoints and inference."""

from __future__ import annotations

import pytest
import torch
from operator_calls import BACKENDS, CAUSAL, COMPILES, DIM, ENGINES, equal, inputs, random, train
from torch import Tensor
from torch.autograd import forward_ad, gradgradcheck
from torch.utils.checkpoint import checkpoint

import nbattn
import nbattn.functional  # defines the operators
from nbattn import BackendError, autograd

pytestmark = COMPILES


@pytest.mark.parametrize("backend", ENGINES)
def test_forward_derivatives_are_refused(backend: str) -> None:
    """A tangent that is silently zero would be a wrong answer."""

    query, *rest = inputs()

    def function(query: Tensor) -> Tensor:
        return nbattn.attention(query, *rest, CAUSAL, backend=backend)

    refusal = r"(?s)forward-mode derivatives.*fix:.*backend=\"reference\""
    transforms = [
        lambda: torch.func.jvp(function, (query,), (torch.ones_like(query),)),
        lambda: torch.func.jacfwd(function)(query),
        lambda: torch.func.hessian(lambda q: function(q).sum())(query),
        lambda: torch.func.vmap(torch.func.jacfwd(function))(torch.stack([query, query])),
    ]
    for transform in transforms:
        with pytest.raises(BackendError, match=refusal):
            transform()
    for grad in (False, True):
        with forward_ad.dual_level():
            leaf = query.detach().requires_grad_(grad)
            dual = forward_ad.make_dual(leaf, torch.ones_like(query))
            with pytest.raises(BackendError, match=refusal):
                function(dual)
    with forward_ad.dual_level():  # nothing of this call has a tangent
        equal(function(query), function(query))


def test_forward_derivatives_of_the_reference() -> None:
    query, key, value = inputs(dtype=torch.float64)
    tangent = random(*query.shape, seed=5, dtype=torch.float64)

    def function(query: Tensor) -> Tensor:
        return nbattn.attention(query, key, value, CAUSAL, backend="reference")

    _, found = torch.func.jvp(function, (query,), (tangent,))
    step = 1e-6
    want = (function(query + step * tangent) - function(query - step * tangent)) / (2 * step)
    assert (found - want).abs().max() < 1e-8


# Derivatives of derivatives.


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("wanted", [0, 1, 2, "upward"])
def test_error_of_second_derivatives_names_the_reference(backend: str, wanted: int | str) -> None:
    leaves = inputs(grad=True)
    out = nbattn.attention(*leaves, CAUSAL, backend=backend)
    upward = torch.ones_like(out).requires_grad_()
    grads = torch.autograd.grad(out, leaves, upward, create_graph=True)
    plain = nbattn.attention(*leaves, CAUSAL, backend=backend)
    equal(grads, torch.autograd.grad(plain, leaves, torch.ones_like(out)))
    target = upward if wanted == "upward" else leaves[wanted]
    with pytest.raises(BackendError, match=r'backend="reference"'):
        torch.autograd.grad(sum((grad**2).sum() for grad in grads), target)


@pytest.mark.parametrize("backend", ENGINES)
def test_func_hessians_are_refused(backend: str) -> None:
    def loss(query: Tensor) -> Tensor:
        return (nbattn.attention(query, *inputs()[1:], CAUSAL, backend=backend) ** 2).sum()

    with pytest.raises(RuntimeError):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(inputs()[0])


def test_the_reference_can_be_differentiated_twice() -> None:
    leaves = inputs(grad=True, dtype=torch.float64)
    out = nbattn.attention(*leaves, CAUSAL, backend="reference")
    (grad,) = torch.autograd.grad((out**2).sum(), leaves[0], create_graph=True)
    second = torch.autograd.grad(grad.square().sum(), leaves)
    assert all(t.abs().max() > 0 for t in second)
    small = [t[:1, :4, :1, :2].detach().requires_grad_() for t in leaves]
    assert gradgradcheck(lambda *t: nbattn.attention(*t, CAUSAL, backend="reference"), small)


# Memory: checkpoints and saved tensors.


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints(backend: str, reentrant: bool) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors, CAUSAL, backend=backend)

    def checkpointed(*tensors: Tensor) -> Tensor:
        return checkpoint(function, *tensors, use_reentrant=reentrant)

    equal(train(checkpointed, inputs()), train(function, inputs()))


@pytest.mark.parametrize("backend", ENGINES)
def test_only_inputs_and_results_are_saved(backend: str) -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    leaves = inputs(grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = nbattn.attention(*leaves, CAUSAL, backend=backend)
    assert len(saved) <= 5  # q, k, v, out, lse: nothing with a side of Nq x Nk
    numbers = sum(t.numel() for t in leaves) + out.numel() + out.numel() // DIM
    assert sum(t.numel() for t in saved) <= numbers
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        del saved[:]
        nbattn.attention(*leaves, CAUSAL, backend=backend)
    assert not saved


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend: str) -> None:
    want = nbattn.attention(*inputs(), CAUSAL, backend=backend)
    with torch.inference_mode():
        out = nbattn.attention(*inputs(), CAUSAL, backend=backend)
        assert out.is_inference()
        assert torch.equal(out, want)
    leaves = inputs(grad=True)
    with torch.inference_mode():
        assert torch.equal(nbattn.attention(*leaves, CAUSAL, backend=backend), want)


def test_only_requested_inputs_get_a_gradient() -> None:
    for backend in BACKENDS:
        for wanted in range(3):
            tensors = inputs()
            tensors[wanted].requires_grad_()
            nbattn.attention(*tensors, CAUSAL, backend=backend).sum().backward()
            assert [t.grad is not None for t in tensors] == [n == wanted for n in range(3)]


@pytest.mark.parametrize("grad", [False, True])
def test_empty_lists_may_arrive_as_none(grad: bool) -> None:
    """AOTInductor's programs call the operator so."""
    query, key, value = (tensor.requires_grad_(grad) for tensor in inputs()[:3])
    absent = [None] * 7
    options = (CAUSAL.code(), None, None, DIM**-0.5, None, "auto", "", grad, False, False)
    out, _ = autograd._differentiable(query, key, value, *absent, *options)
    equal(out, nbattn.attention(query, key, value, CAUSAL))
    assert out.requires_grad is grad

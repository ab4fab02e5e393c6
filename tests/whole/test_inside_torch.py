"""Tests of attention inside torch: compile, autocast, func, switches and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_library import NAMES
from operator_calls import (
    BACKENDS,
    BATCH,
    CAUSAL,
    COMPILES,
    DIM,
    ENGINES,
    HEADS,
    MASKS,
    PLANE,
    WINDOW,
    equal,
    extras,
    inputs,
    random,
    train,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import nbattn
import nbattn.functional  # defines the operators
from nbattn import Axis, Mask
from nbattn.planner import planner

pytestmark = COMPILES
Count = Callable[[str, int], None]


COMPILED = {"reference": MASKS[2:3], "tiled": MASKS[1::2], "sdpa": MASKS[3:]}


# Lengths that are constants are also in the next test, and in those of autocast.
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.deep), True])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_attention_equals_eager(backend: str, dynamic: bool, cases: Count) -> None:
    for mask, space in COMPILED[backend]:
        torch._dynamo.reset()

        def function(*tensors: Tensor, mask: Mask = mask) -> Tensor:
            return nbattn.attention(*tensors, mask, backend=backend) * 2

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        longer = tuple(length + 2 for length in space)  # without `dynamic` compiled as if alone
        for shape in (space, longer)[: 1 + dynamic]:
            equal(train(compiled, inputs(shape)), train(function, inputs(shape)))
            cases("compile", 1)
        with torch.no_grad():
            equal(compiled(*inputs(space)), function(*inputs(space)))


@pytest.mark.parametrize(
    ("backend", "dynamic"), [("reference", False), ("tiled", False), ("tiled", True)]
)
def test_compiled_with_everything_equals_eager(backend: str, dynamic: bool) -> None:
    names = list(extras())

    def function(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> Any:
        return nbattn.attention(
            query, key, value, WINDOW, scale=0.4, softcap=3.0, backend=backend, return_lse=True,
            **dict(zip(names, rest, strict=True)),
        )  # fmt: skip

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = [*inputs(), *extras().values()]
    equal(train(compiled, tensors), train(function, tensors))


def test_inductor_equals_eager() -> None:
    """With producers and consumers of other layouts around the operator."""

    def function(x: Tensor, weight: Tensor) -> Tensor:
        packed = (x @ weight).unflatten(-1, (3, HEADS, DIM)).relu()
        query, key, value = packed.unbind(2)
        return nbattn.attention(query, key, value, WINDOW, backend="tiled").flatten(-2).sin()

    tensors = [random(BATCH, 12, 16), random(16, 3 * HEADS * DIM, seed=1)]
    compiled = torch.compile(function, fullgraph=True)
    equal(train(compiled, tensors), train(function, tensors), 1e-5)


class Layer(torch.nn.Module):
    """Holds its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = WINDOW
        self.masks = {CAUSAL: 1.0, WINDOW: 2.0}

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = nbattn.attention(query, key, value, self.mask, backend="tiled")
        return out * self.masks[self.mask]


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.deep), "tiled"])
def test_masks_inside_a_compiled_function(backend: str) -> None:
    layer = Layer()
    # The compiler of torch 2.8 does not look masks up in a dict: it breaks the graph there.
    whole = not torch.__version__.startswith("2.8.")
    equal(train(torch.compile(layer, fullgraph=whole, backend="aot_eager"), inputs()),
          train(layer, inputs()))  # fmt: skip

    def argument(mask: Mask, *tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors, mask, backend=backend)

    compiled = torch.compile(argument, fullgraph=True, backend="aot_eager")
    for mask in (WINDOW, CAUSAL, WINDOW):
        equal(compiled(mask, *inputs()), argument(mask, *inputs()))

    def constructed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = Mask(Axis(query.shape[1] // 4, 1, border="shift", dilation=2))
        named = Mask.neighborhood(3) if query.dim() == 4 else Mask.full()
        first = nbattn.attention(query, key, value, mask, backend=backend)
        return first + nbattn.attention(query, key, value, named, backend=backend)

    compiled = torch.compile(constructed, fullgraph=True, backend="aot_eager")
    equal(train(compiled, inputs()), train(constructed, inputs()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_shape_compiles_at_most_once_more(backend: str) -> None:
    counter = CompileCounter()

    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors, CAUSAL, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    before = 0
    for length in (12, 17, 23, 31, 12, 40):
        compiled(*inputs((length,)))
        assert counter.frame_count <= before + 1
        before = counter.frame_count
    assert counter.frame_count <= 2  # static, then one graph for all lengths
    for _ in range(3):
        compiled(*inputs((19,)))
    assert counter.frame_count == before


# autocast


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_is_attention_in_that_dtype(
    backend: str, dtype: torch.dtype, compiled: bool
) -> None:
    """Exactly: nothing inside an engine may be cast once more."""

    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors, CAUSAL, backend=backend)

    run = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    plain = function(*(t.to(dtype) for t in inputs()))
    leaves = inputs(grad=True)
    with torch.autocast("cpu", dtype):
        out = run(*leaves)
        assert torch.equal(out, plain)
    if backend == "reference" and compiled:
        return  # torch traces a compiled backward under the autocast around it
    upward = random(*out.shape, seed=9).to(dtype)
    grads = torch.autograd.grad(out, leaves, upward)
    halves = [t.detach().to(dtype).requires_grad_() for t in leaves]
    wanted = torch.autograd.grad(function(*halves), halves, upward)
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, want.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_float64_and_keeps_the_sink(backend: str) -> None:
    exact = inputs(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = nbattn.attention(*exact, CAUSAL, backend=backend)
        sunk = nbattn.attention(*inputs(), CAUSAL, backend=backend, sink=torch.full((HEADS,), 1.01))
    assert torch.equal(out, nbattn.attention(*exact, CAUSAL, backend=backend))
    halves = [t.bfloat16() for t in inputs()]
    sink = torch.full((HEADS,), 1.01)
    assert torch.equal(sunk, nbattn.attention(*halves, CAUSAL, backend=backend, sink=sink))


# torch.func


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_is_autograd(backend: str) -> None:
    def loss(*tensors: Tensor) -> Tensor:
        return (nbattn.attention(*tensors, CAUSAL, backend=backend) ** 2).sum()

    leaves = inputs(grad=True)
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    equal(torch.func.grad(loss, argnums=(0, 1, 2))(*inputs()), wanted)
    equal(torch.func.vjp(loss, *inputs())[1](torch.ones(())), wanted)


def looped(function: Callable[..., Any], dims: list[int | None], tensors: list[Tensor]) -> Any:
    """What vmap means."""
    size = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    parts = []
    for n in range(size):
        one = [t if d is None else t.select(d, n) for t, d in zip(tensors, dims, strict=True)]
        found = function(*one)
        parts.append(found if isinstance(found, tuple) else (found,))
    return tuple(torch.stack(group) for group in zip(*parts, strict=True))


def mapped(tensors: list[Tensor], at: list[int], dim: int) -> tuple[list[Tensor], list[int | None]]:
    """Three variants of the tensors at some places, stacked at a dimension."""
    given, dims = [], []
    for n, tensor in enumerate(tensors):
        scales = (1, 1, 1) if tensor.dtype == torch.int32 else (1.0, 0.5, -2.0)
        variants = [tensor * scale for scale in scales]
        if tensor.dtype == torch.int32:
            variants = [tensor, tensor + 1, tensor.flip(0)]
        given.append(torch.stack(variants, dim) if n in at else tensor)
        dims.append(dim if n in at else None)
    return given, dims


PLACES = [*([n] for n in range(7)), [0, 1, 2], [1, 2], [3, 5], list(range(7))]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("at", PLACES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "tiled", *NAMES])
def test_vmap_over_any_inputs(backend: str, at: list[int], dim: int, cases: Count) -> None:
    names = list(extras())

    def function(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> Any:
        return nbattn.attention(
            query, key, value, WINDOW, backend=backend, return_lse=True,
            **dict(zip(names, rest, strict=True)),
        )  # fmt: skip

    tensors, dims = mapped([*inputs(), *extras().values()], at, dim)
    found = torch.func.vmap(function, in_dims=tuple(dims))(*tensors)
    equal(found, looped(function, dims, tensors))

    def gradients(*tensors: Tensor) -> Any:
        def loss(*tensors: Tensor) -> Tensor:
            out, lse = function(*tensors)
            return (out**2).sum() + lse.sin().sum()

        return torch.func.grad(loss, argnums=(0, 1, 2, 3, 5, 6))(*tensors)

    found = torch.func.vmap(gradients, in_dims=tuple(dims))(*tensors)
    equal(found, looped(gradients, dims, tensors), 1e-5)
    cases("vmap", 2)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("at", [[0], [1, 2], [3], list(range(7))], ids=str)
def test_vmap_over_no_elements(backend: str, at: list[int]) -> None:
    """Results have the shapes of one element, after an axis of length 0."""
    names = list(extras())

    def function(*tensors: Tensor) -> Any:
        rest = dict(zip(names, tensors[3:], strict=True))
        return nbattn.attention(*tensors[:3], WINDOW, backend=backend, return_lse=True, **rest)

    def gradients(*tensors: Tensor) -> Any:
        def loss(*tensors: Tensor) -> Tensor:
            return function(*tensors)[0].sum()

        return torch.func.grad(loss, argnums=(0, 1, 2, 3, 5, 6))(*tensors)

    tensors, dims = mapped([*inputs(), *extras().values()], at, 1)
    empty = [t if d is None else t.narrow(d, 0, 0) for t, d in zip(tensors, dims, strict=True)]
    for run in (function, gradients):
        found = torch.func.vmap(run, in_dims=tuple(dims))(*empty)
        expected = torch.func.vmap(run, in_dims=tuple(dims))(*tensors)
        assert [t.shape for t in found] == [(0, *t.shape[1:]) for t in expected]


@pytest.mark.parametrize("at", [[0], [1, 2], [0, 1, 2], [3], [0, 1, 2, 3]], ids=str)
def test_vmap_of_sdpa(at: list[int]) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors[:3], CAUSAL, backend="sdpa", sink=tensors[3])

    def gradients(*tensors: Tensor) -> Any:
        return torch.func.grad(lambda *t: (function(*t) ** 2).sum(), argnums=(0, 1, 2, 3))(*tensors)

    tensors, dims = mapped([*inputs(), extras()["sink"]], at, 0)
    for run in (function, gradients):
        equal(torch.func.vmap(run, in_dims=tuple(dims))(*tensors), looped(run, dims, tensors), 1e-5)


@pytest.mark.parametrize("backend", ["reference", "tiled", *NAMES])
def test_vmap_inside_autograd_and_twice(backend: str) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors, WINDOW, backend=backend)

    stacked = [torch.stack([t, 2 * t]) for t in inputs()]
    equal(train(torch.func.vmap(function), stacked),
          train(lambda *t: looped(function, [0, 0, 0], list(t))[0], stacked), 1e-5)  # fmt: skip
    twice = [torch.stack([t, -t, 3 * t]) for t in stacked]
    found = torch.func.vmap(torch.func.vmap(function))(*twice)
    rows = [zip(*row, strict=True) for row in zip(*twice, strict=True)]
    want = torch.stack([torch.stack([function(*one) for one in row]) for row in rows])
    equal(found, want)


# Switches and threads.


@pytest.mark.parametrize("backend", ["sdpa", "tiled", "flash-model", *NAMES])
def test_the_default_device_does_not_matter(backend: str) -> None:
    """What a first call keeps for later ones is made on the CPU, or where its tensors are."""
    mask = Mask(Axis(2, 1, prefix=2))
    tensors = [t.float() for t in inputs((9,))]
    planner.forget()
    with torch.device("meta"):
        first = nbattn.attention(*tensors, mask, backend=backend)
    equal(first, nbattn.attention(*tensors, mask, backend="reference"), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_deterministic_switch(backend: str) -> None:
    def once() -> list[Tensor]:
        return train(lambda *t: nbattn.attention(*t, PLANE, backend=backend), inputs((9, 8)))

    plain = once()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = once(), once()
    finally:
        torch.use_deterministic_algorithms(False)
    equal(first, plain)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_threads_at_once(backend: str) -> None:
    """Each with shapes and masks that the other has not planned yet, forward and backward."""
    failures: list[str] = []
    start = threading.Barrier(2)

    def work(first: int) -> None:
        start.wait()
        for length in range(first, first + 24, 2):
            for mask in (WINDOW, CAUSAL, Mask(Axis(length // 2, 1))):
                tensors = inputs((length,))
                found = train(lambda *t, m=mask: nbattn.attention(*t, m, backend=backend), tensors)
                results.append((length, mask, found))

    def guarded(first: int) -> None:
        try:
            work(first)
        except BaseException as error:
            failures.append(repr(error))

    results: list[tuple[int, Mask, list[Tensor]]] = []
    threads = [threading.Thread(target=guarded, args=(first,)) for first in (20, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(results) == 72
    for length, mask, found in results:
        want = train(
            lambda *t, m=mask: nbattn.attention(*t, m, backend="reference"), inputs((length,))
        )
        equal(found, want, 2e-5)


@pytest.mark.parametrize(("backend", "dynamic"), [("tiled", False), ("sdpa", True)])
def test_one_tensor_as_query_key_and_value(backend: str, dynamic: bool) -> None:
    """Compilers refuse a tensor that an autograd function is given twice."""

    def function(x: Tensor) -> Tensor:
        return nbattn.attention(x, x, x, CAUSAL, backend=backend)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    leaf = torch.randn(2, 12, 2, 8, requires_grad=True)
    upward = torch.randn(2, 12, 2, 8)
    found, wanted = compiled(leaf), function(leaf)
    equal(found, wanted)
    equal(*(torch.autograd.grad(out, leaf, upward)[0] for out in (found, wanted)))


@pytest.mark.parametrize("backend", ENGINES)
def test_an_output_may_be_modified_in_place(backend: str) -> None:
    leaf = torch.randn(2, 12, 2, 8, requires_grad=True)
    out = nbattn.attention(leaf * 1, leaf, leaf, Mask.full(), backend=backend)
    assert not out._is_view()
    out += 1.0

"""Owns how attention behaves inside torch: operators, compile, autocast, func, export, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import nbattn
import nbattn.functional  # defines the operators
from nbattn import Axis, BackendError, Mask

pytestmark = [  # what torch's own compiler and forward AD warn of
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]
Count = Callable[[str, int], None]
Tensors = dict[str, Tensor]

BACKENDS = ("reference", "tiled", "sdpa")
ENGINES = ("tiled", "sdpa")
CAUSAL = Mask(Axis(causal=True))
WINDOW = Mask(Axis(3, 2))
PLANE = Mask(Axis(1, 1, border="shift"), Axis(2, causal=True))
BATCH, HEADS, KEY_HEADS, DIM = 2, 4, 2, 8


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(
    space: tuple[int, ...] = (12,), *, grad: bool = False, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Query, key, value."""
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [
        random(BATCH, *space, h, DIM, seed=n, dtype=dtype).requires_grad_(grad)
        for n, h in enumerate(heads)
    ]


def extras(space: tuple[int, ...] = (12,), dtype: torch.dtype = torch.float32) -> Tensors:
    """Every optional tensor."""
    box = [[1, length - 1] for length in space]
    return {
        "sink": random(HEADS, seed=3, dtype=dtype),
        "key_range": torch.tensor([box, [[0, length] for length in space]], dtype=torch.int32),
        "extra_key": random(BATCH, 2, KEY_HEADS, DIM, seed=4, dtype=dtype),
        "extra_value": random(BATCH, 2, KEY_HEADS, DIM, seed=5, dtype=dtype),
    }


MASKS: list[tuple[Mask, tuple[int, ...]]] = [
    (CAUSAL, (12,)),
    (Mask(Axis(causal=True, dilation=2)), (12,)),
    (WINDOW, (12,)),
    (PLANE, (4, 5)),
]


def equal(found: Any, want: Any, limit: float = 2e-6) -> None:
    found, want = (list(t) if isinstance(t, tuple | list) else [t] for t in (found, want))
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The operators themselves.


def options(mask: Mask, backend: str, **changed: Any) -> tuple[Any, ...]:
    """The arguments of the operators after the tensors, in the order of the schema."""
    given = {"mask": mask.code(), "grids": [], "key_grids": [], "scale": 0.3, "softcap": None,
             "backend": backend, "traits": "", "training": True, "deterministic": False,
             "return_lse": True}  # fmt: skip
    return tuple((given | changed).values())


ABSENT = (None,) * 3  # extra_range, relative_bias, alibi_slopes: no backend takes them yet


COMBINATIONS = [
    ("tiled", CAUSAL, (), {}),
    ("tiled", WINDOW, ("sink", "key_range", "extra_key", "extra_value"), {"softcap": 2.0}),
    ("tiled", PLANE, ("key_range",), {"return_lse": False}),
    ("tiled", WINDOW, (), {"training": False, "return_lse": False}),
    ("tiled", WINDOW, (), {"training": False}),
    ("sdpa", CAUSAL, (), {"return_lse": False}),
    ("sdpa", CAUSAL, ("sink", "extra_key", "extra_value"), {"return_lse": False}),
    ("sdpa", Mask(Axis(causal=True, dilation=2)), ("sink",), {"return_lse": False}),
    ("sdpa", Mask(Axis(causal=True, offset=-3)), (), {"return_lse": False}),
    ("sdpa", Mask(Axis(1, 0, stride=2)), (), {"return_lse": False}),
    ("sdpa", WINDOW, (), {"return_lse": False}),
    ("sdpa", PLANE, (), {"training": False}),
    ("auto", PLANE, (), {}),
]


def operands(mask: Mask, names: tuple[str, ...], dtype: torch.dtype) -> list[Tensor | None]:
    space = (12,) if mask.rank == 1 else (4, 5)
    optional = extras(space, dtype)
    given = [optional[n] if n in names else None for n in extras(space)]
    return [*inputs(space, dtype=dtype), *given, *ABSENT]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("backend", "mask", "names", "changed"), COMBINATIONS)
def test_operators_pass_opcheck(
    backend: str, mask: Mask, names: tuple[str, ...], changed: dict[str, Any], dtype: torch.dtype,
    cases: Count,
) -> None:  # fmt: skip
    tensors, rest = operands(mask, names, dtype), options(mask, backend, **changed)
    torch.library.opcheck(torch.ops.nbattn.forward.default, (*tensors, *rest))
    cases("opcheck", 1)
    training, _, return_lse = rest[-3:]
    if not training:
        return
    out, lse = torch.ops.nbattn.forward(*tensors, *rest)
    grad_lse = random(*lse.shape, seed=8) if return_lse else None
    arguments = (random(*out.shape, seed=7).to(dtype), grad_lse, out, lse, *tensors, *rest)
    torch.library.opcheck(torch.ops.nbattn.backward.default, arguments)
    cases("opcheck", 1)


LAYOUTS = {
    "contiguous": lambda t: t,
    "heads first": lambda t: t.movedim(-2, 1).contiguous().movedim(1, -2),
    "expanded": lambda t: t[:1].expand(t.shape),
    "reversed": lambda t: t.permute(*range(t.dim())[::-1]).contiguous().permute(
        *range(t.dim())[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ENGINES)
def test_outputs_are_fresh_and_as_the_fakes_say(backend: str, layout: str, cases: Count) -> None:
    for mask, space in MASKS:
        for names in ((), ("sink", "extra_key", "extra_value")):
            if backend == "sdpa" and names and mask in (WINDOW, PLANE):
                continue
            for shape in (space, (1,) * len(space), (0,) * len(space)):
                optional = extras(shape)
                tensors = [LAYOUTS[layout](t) for t in inputs(shape)]
                optional |= {n: LAYOUTS[layout](optional[n]) for n in ("extra_key", "extra_value")}
                tensors += [optional[n] if n in names else None for n in optional]
                tensors += ABSENT
                rest = options(mask, backend, return_lse=False)
                try:
                    real = torch.ops.nbattn.forward(*tensors, *rest)
                except BackendError:
                    assert backend == "sdpa"
                    continue
                grad = torch.ones(()).expand(real[0].shape)
                grads = torch.ops.nbattn.backward(grad, None, *real, *tensors, *rest)
                with FakeTensorMode() as mode:
                    fakes = [None if t is None else mode.from_tensor(t) for t in tensors]
                    fake = torch.ops.nbattn.forward(*fakes, *rest)
                    up = mode.from_tensor(grad)
                    fake_grads = torch.ops.nbattn.backward(up, None, *fake, *fakes, *rest)
                kept = {t.untyped_storage().data_ptr() for t in tensors if t is not None} - {0}
                for found, like in zip((*real, *grads), (*fake, *fake_grads), strict=True):
                    assert found.shape == like.shape
                    assert found.dtype == like.dtype
                    assert found.stride() == like.stride()
                    assert found.untyped_storage().data_ptr() not in kept
                cases("operators, strides", 1)


# torch.compile


def train(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """The results of a function, then the gradients of its inputs."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    found = function(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    total = sum((n + 1) * (t.float() ** 2).sum() for n, t in enumerate(found))
    floating = [t for t in leaves if t.requires_grad]
    total.backward()
    return [*(t.detach() for t in found), *(t.grad for t in floating)]


COMPILED = {"reference": MASKS[2:3], "tiled": MASKS[1::2], "sdpa": MASKS[3:]}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_equals_eager(backend: str, dynamic: bool, cases: Count) -> None:
    for mask, space in COMPILED[backend]:
        torch._dynamo.reset()

        def function(*tensors: Tensor, mask: Mask = mask) -> Tensor:
            return nbattn.attention(*tensors, mask, backend=backend) * 2

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for shape in (space, tuple(length + 2 for length in space)):
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


@pytest.mark.parametrize("backend", ["reference", "tiled"])
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
@pytest.mark.parametrize("backend", ["reference", "tiled"])
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


@pytest.mark.parametrize("at", [[0], [1, 2], [0, 1, 2], [3], [0, 1, 2, 3]], ids=str)
def test_vmap_of_sdpa(at: list[int]) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return nbattn.attention(*tensors[:3], CAUSAL, backend="sdpa", sink=tensors[3])

    def gradients(*tensors: Tensor) -> Any:
        return torch.func.grad(lambda *t: (function(*t) ** 2).sum(), argnums=(0, 1, 2, 3))(*tensors)

    tensors, dims = mapped([*inputs(), extras()["sink"]], at, 0)
    for run in (function, gradients):
        equal(torch.func.vmap(run, in_dims=tuple(dims))(*tensors), looped(run, dims, tensors), 1e-5)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
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
def test_second_derivatives_name_who_can(backend: str, wanted: int | str) -> None:
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


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    for backend in BACKENDS:
        for wanted in range(3):
            tensors = inputs()
            tensors[wanted].requires_grad_()
            nbattn.attention(*tensors, CAUSAL, backend=backend).sum().backward()
            assert [t.grad is not None for t in tensors] == [n == wanted for n in range(3)]


# Export, fakes, meta, counts.


@pytest.mark.parametrize("backend", ENGINES)
def test_the_operator_by_itself_is_differentiable(backend: str) -> None:
    """Exported graphs hold it without the autograd function around it, whatever mode they had."""
    found, wanted = inputs(grad=True), inputs(grad=True)
    given = options(CAUSAL, backend, scale=DIM**-0.5, training=False, return_lse=False)
    out, _ = torch.ops.nbattn.forward(*found, *(None,) * 4, *ABSENT, *given)
    want = nbattn.attention(*wanted, CAUSAL, backend=backend)
    equal(
        torch.autograd.grad(out.sin().sum(), found), torch.autograd.grad(want.sin().sum(), wanted)
    )
    with torch.no_grad():
        out, _ = torch.ops.nbattn.forward(*found, *(None,) * 4, *ABSENT, *given)
    assert not out.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return nbattn.attention(query, key, value, CAUSAL, backend=backend)

    length = torch.export.Dim("length", min=2, max=64)
    shapes = ({1: length},) * 3
    exported = torch.export.export(Module(), tuple(inputs()), dynamic_shapes=shapes)
    for size in (12, 20):
        equal(exported.module()(*inputs((size,))), Module()(*inputs((size,))))


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize("device", ["cuda", "cpu", "meta"])
def test_fakes_and_meta_tensors_have_the_right_shapes(
    device: str, backend: str, return_lse: bool
) -> None:
    trained = (
        device != "cuda"
    )  # torch without CUDA aborts where a fake CUDA tensor needs a gradient

    def run() -> list[Any]:
        sizes = [(BATCH, 12, HEADS, DIM), (BATCH, 9, KEY_HEADS, DIM), (BATCH, 9, KEY_HEADS, 5)]
        tensors = [
            torch.empty(size, device=device, dtype=torch.bfloat16, requires_grad=trained)
            for size in sizes
        ]
        found = nbattn.attention(*tensors, WINDOW, backend=backend, return_lse=return_lse)
        out, lse = found if isinstance(found, tuple) else (found, None)
        if trained:
            out.float().sum().backward()
        return [out, lse, *(t.grad for t in tensors), tensors]

    if device == "meta":
        out, lse, *grads, tensors = run()
    else:
        with FakeTensorMode():
            out, lse, *grads, tensors = run()
    assert out.shape == (BATCH, 12, HEADS, 5)
    assert out.dtype == torch.bfloat16
    assert out.device.type == device
    assert lse is None or (lse.shape == (BATCH, 12, HEADS) and lse.dtype == torch.float32)
    for grad, tensor in zip(grads, tensors, strict=True):
        assert (grad is not None) == trained
        assert grad is None or (grad.shape, grad.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("backend", ENGINES)
def test_counted_operations_are_those_of_the_pairs(backend: str) -> None:
    for mask, space in MASKS:
        leaves = inputs(space, grad=True)
        pairs = int(mask.dense(space).sum())
        with FlopCounterMode(display=False) as counter:
            out = nbattn.attention(*leaves, mask, backend=backend)
        forward = 2 * BATCH * HEADS * pairs * (DIM + DIM)
        assert counter.get_total_flops() == forward
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == 2.5 * forward


def test_extra_keys_and_value_sizes_are_counted() -> None:
    query, key, _ = inputs()
    optional = extras()
    value = random(BATCH, 12, KEY_HEADS, 5)
    with FlopCounterMode(display=False) as counter:
        nbattn.attention(
            query, key, value, WINDOW, backend="tiled", extra_key=optional["extra_key"],
            extra_value=optional["extra_value"][..., :5],
        )  # fmt: skip
    pairs = int(WINDOW.dense(12).sum()) + 12 * 2
    assert counter.get_total_flops() == 2 * BATCH * HEADS * pairs * (DIM + 5)


# Switches and threads.


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

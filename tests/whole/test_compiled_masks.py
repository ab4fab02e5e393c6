"""Tests of masks whose numbers a compiler or exporter does not know: the number of graphs, values,
errors, and training of exported graphs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.fx.experimental import sym_node

import nbattn
from nbattn import Axis, Mask, MaskError, NeighborhoodAttention

pytestmark = pytest.mark.usefixtures("fresh_compiler")
Count = Callable[[str, int], None]
STEPS, CACHE = range(64, 264, 5), 300
# Torch 2.8's compiler shows no text of our errors with `fullgraph`, and needs a switch to capture
# lengths that come from data.
OLD = not hasattr(sym_node, "DynamicInt")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def graphs(
    function: Callable[..., Tensor], calls: Sequence[tuple[Any, ...]], backend: str = "eager",
    **named: Any,
) -> int:  # fmt: skip
    """How many graphs the calls take; each equals the eager one."""
    counter = CompileCounter() if backend == "eager" else CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=counter, **named)
    with torch.no_grad():
        for call in calls:
            close(compiled(*call), function(*call))
    return counter.frame_count


# A decode against a static cache.


def step(query: Tensor, key: Tensor, mask: Mask) -> Tensor:
    return nbattn.attention(query, key, key, mask)


def window(position: Any) -> Mask:
    return Mask.sliding_window(63, align=position)


DECODES: dict[str, tuple[Callable[..., Tensor], Callable[[int], Any]]] = {
    "offset": (lambda q, k, at: step(q, k, window(at)), lambda at: at),
    "mask made outside": (step, window),
    "transformers": (lambda q, k, at: step(q, k, Mask.from_transformers(32, offset=at)),
                     lambda at: at),
    "axis": (lambda q, k, at: step(q, k, Mask(Axis(at // 2, causal=True, align=at))),
             lambda at: at),
    "prefix": (lambda q, k, at: step(q, k, Mask(Axis(9, 0, prefix=at // 3, align=at))),
               lambda at: at),
}  # fmt: skip


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", DECODES)
def test_a_static_cache_decodes_in_two_graphs(
    name: str, dynamic: bool | None, cases: Count
) -> None:
    function, argument_at = DECODES[name]
    key = random(1, CACHE, 2, 8)
    calls = [(random(1, 1, 2, 8, seed=at), key, argument_at(at)) for at in STEPS]
    assert graphs(function, calls, dynamic=dynamic) <= 2
    cases("compiled decode steps", len(STEPS))


def between(query: Tensor, key: Tensor, position: int) -> Tensor:
    """Other operations before and after."""
    return step(query.sin(), key, window(position)).cos()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_decoding_through_other_compilers(backend: str) -> None:
    key = random(1, CACHE, 2, 8)
    calls = [(random(1, 1, 2, 8, seed=at), key, at) for at in range(64, 76)]
    assert graphs(between, calls, backend) <= 2


@pytest.mark.deep  # CPUs have no graphs to replay: inductor, as above
def test_decoding_with_reduced_overhead() -> None:
    torch._dynamo.utils.counters.clear()
    key = random(1, CACHE, 2, 8)
    compiled = torch.compile(between, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for at in range(64, 76):
            query = random(1, 1, 2, 8, seed=at)
            close(compiled(query, key, at), between(query, key, at))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


# Windows and lengths that change.

SCHEDULES: dict[str, Callable[[Tensor, int], Mask]] = {
    "window": lambda x, n: Mask.sliding_window(n, n),
    "neighborhood": lambda x, n: Mask.neighborhood(n, dilation=2),
    "dilation": lambda x, n: Mask(Axis(2, 3, dilation=n, border="shift")),
    "stride": lambda x, n: Mask(Axis(9, 9, stride=n)),
    "a share of the length": lambda x, n: Mask.sliding_window(x.shape[1] // 4, x.shape[1] // 4),
}


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_two_graphs(name: str, dynamic: bool | None) -> None:
    def function(x: Tensor, number: int) -> Tensor:
        return nbattn.attention(x, x, x, SCHEDULES[name](x, number))

    calls = [(random(1, 40 + number * (number % 2), 2, 8), number) for number in range(2, 20)]
    assert graphs(function, calls, dynamic=dynamic) <= 3 - bool(dynamic)


def test_a_schedule_held_by_a_module() -> None:
    """Integers of modules are constants for torch.compile, unless it is configured otherwise."""

    class Layer(nn.Module):
        mask = Mask.sliding_window(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nbattn.attention(x, x, x, self.mask)

    layer, counter = Layer(), CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True), torch.no_grad():
        for number in range(3, 20):
            layer.mask = Mask.sliding_window(number, number)
            close(compiled(random(1, 40, 2, 8)), layer(random(1, 40, 2, 8)))
    assert counter.frame_count <= 2


# Numbers that are known only when the graph runs.


@pytest.fixture
def capture_scalars() -> Iterator[None]:
    config: Any = torch._dynamo.config
    with config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=OLD):
        yield


def unbacked(tensor: Tensor, at: int = 0) -> Any:
    return (tensor + 0)[at].item()


def of_a_length(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    length = unbacked(n)
    torch._check(length >= 2)
    torch._check(length <= x.shape[1])
    return x[:, :length], length


def some_queries(x: Tensor, n: Tensor) -> Tensor:
    part, length = of_a_length(x, n)
    mask = Mask.sliding_window(length // 2, 1, align="bottom-right")
    return nbattn.attention(part, x, x, mask).sum(1)


def every_position(x: Tensor, n: Tensor) -> Tensor:
    part, length = of_a_length(x, n)
    return nbattn.attention(part, part, part, Mask.sliding_window(length // 2, 1)).sum(1)


def some_samples(x: Tensor, n: Tensor) -> Tensor:
    part = x[(torch.arange(x.shape[0]) < n).nonzero().squeeze(1)]
    return nbattn.attention(part, part, part, Mask.sliding_window(2, 1)).sum((0, 1))


UNBACKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "offset": lambda x, n: step(x[:, :1], x, window(unbacked(n))),
    "sides": lambda x, n: step(x, x, Mask(Axis(unbacked(n), unbacked(n) + 1, border="shift"))),
    "prefix": lambda x, n: step(x, x, Mask(Axis(1, 0, causal=True, prefix=unbacked(n)))),
    "plane": lambda x, n: step(x.unflatten(1, (5, -1)), x.unflatten(1, (5, -1)),
                               Mask(Axis(1, 1), Axis(unbacked(n), 0, align=1))),
    "length": every_position,
    "queries": some_queries,
    "batch": some_samples,
    "reference": lambda x, n: nbattn.attention(x, x, x, Mask(Axis(unbacked(n), 1)),
                                               backend="reference"),
}  # fmt: skip


@pytest.mark.usefixtures("capture_scalars")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", UNBACKED)
def test_unbacked_numbers_take_one_graph(name: str, backend: str) -> None:
    x = random(6, 20, 2, 8)
    calls = [(x, torch.tensor([n])) for n in (3, 5, 4)]
    assert graphs(UNBACKED[name], calls, backend) == 1


@pytest.mark.usefixtures("capture_scalars")
def test_the_operator_checks_what_a_compiler_could_not() -> None:
    """A side below 0 is no other way to write an unlimited one."""

    def function(x: Tensor, n: Tensor) -> Tensor:
        return step(x, x, Mask.sliding_window(unbacked(n), 1))

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    x = random(1, 20, 2, 8)
    close(compiled(x, torch.tensor([3])), function(x, torch.tensor([3])))
    for run, number in product((function, compiled), (-5, -1, -(2**31), 2**40)):
        with pytest.raises(MaskError, match=r"(?s)left=.*fix:.*left=None for all"):
            run(x, torch.tensor([number]))


WRONG: dict[str, tuple[Callable[[int], Any], int]] = {
    "stride=5 is larger than kernel_size=3": (lambda n: Mask.neighborhood(3, stride=n), 5),
    "right=4": (lambda n: Axis(1, n, causal=True), 4),
    "prefix=4 and dilation=5": (lambda n: Axis(3, 0, dilation=n + 1, prefix=n), 4),
    "align=2 and offset=4": (lambda n: Axis(3, 0, align=2, offset=n), 4),
    "left=-4 is below 0": (lambda n: Axis(-n, 0), 4),
}


@pytest.mark.parametrize("text", WRONG)
def test_errors_about_symbolic_numbers_show_them(text: str) -> None:
    make, wrong = WRONG[text]

    def function(x: Tensor, n: int) -> Tensor:
        make(n)
        return x + n

    with pytest.raises(MaskError, match=text):
        make(wrong)
    compiled = torch.compile(function, fullgraph=not OLD, dynamic=True, backend="eager")
    with pytest.raises(Exception, match=text):
        compiled(random(2), wrong)


@pytest.mark.parametrize("given", ["align", "window"])
def test_gradients_through_symbolic_masks(given: str) -> None:
    masks = {
        "align": lambda n: Mask(Axis(4, 2, align=n)),
        "window": lambda n: Mask(Axis(n, n, border="shift")),
    }

    def function(x: Tensor, number: int) -> Tensor:
        return nbattn.attention(x, x.cos(), x, masks[given](number))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for number in (2, 3, 7):
        leaf = random(2, 20, 2, 8).requires_grad_()
        found, wanted = (
            torch.autograd.grad(run(leaf, number).sin().sum(), leaf)[0]
            for run in (compiled, function)
        )
        close(found, wanted)


# Errors keep their fix.

LAYER = NeighborhoodAttention(8, 2, Mask.causal())
SCALE, SOFTCAP = 1e20, 1e-20  # numbers of a module are symbolic with dynamic=True

BAD: dict[str, Callable[[Tensor], Any]] = {
    "Axis(3, 3, causal=True)": lambda x: Mask(Axis(x.shape[1], 3, causal=True)),
    "Mask.neighborhood(3, stride=5)": lambda x: step(x, x, Mask.neighborhood(3, stride=5)),
    "rank": lambda x: step(x, x, Mask.neighborhood((3, 3))),
    "heads": lambda x: step(x[:, :, :1], x, Mask.causal()),
    "scale": lambda x: nbattn.attention(x, x, x, Mask.causal(), scale=float("inf")),
    "softcap": lambda x: nbattn.attention(x, x, x, Mask.causal(), softcap=-SCALE),
    "backend": lambda x: nbattn.attention(x, x, x, Mask.causal(), backend="best"),
    "layer": lambda x: LAYER(x),
    "unknown": lambda x: nbattn.attention(x, x, x, Mask.causal(), retrun_lse=True),
    "places": lambda x: step(x, x, Mask.neighborhood(7, 7)),  # pyright: ignore
}
# Where torch leaves its graph, it compiles what is called one by one, for seconds. The numbers of
# these are symbolic then; the others run as they do without `dynamic`.
TWICE = ("Axis(3, 3, causal=True)", "softcap")


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.deep), True])
@pytest.mark.parametrize("name", BAD)
def test_errors_raised_while_tracing_keep_their_fix(name: str, dynamic: bool) -> None:
    x = random(1, 20, 2, 8)
    with pytest.raises(nbattn.NbattnError) as eager:
        BAD[name](x)
    assert eager.value.fix
    eager_again = not dynamic or name in TWICE
    if OLD and name == "unknown" and dynamic:
        pytest.skip("torch 2.8 cannot trace how the error is made")
    for fullgraph in (False,) if OLD else (False, True)[not eager_again :]:
        torch._dynamo.reset()
        compiled = torch.compile(BAD[name], fullgraph=fullgraph, dynamic=dynamic, backend="eager")
        with pytest.raises(Exception) as traced:  # noqa: PT011
            compiled(x)
        if fullgraph:  # what dynamo makes of it
            text = str(traced.value).replace("\\\\'", "'").replace("\\'", "'")
            assert eager.value.fix.splitlines()[0][:40] in text
        else:
            assert type(traced.value) is type(eager.value)
            assert traced.value.fix == eager.value.fix


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.deep), True])
def test_errors_describe_numbers_that_a_tracer_cannot_print(dynamic: bool) -> None:
    def function(x: Tensor, scale: float, softcap: float) -> Tensor:
        return nbattn.attention(x, x, x, Mask.causal(), scale=scale, softcap=softcap)

    torch._dynamo.reset()
    compiled = torch.compile(function, dynamic=dynamic, backend="eager")
    with pytest.raises(nbattn.InputError, match="times softcap") as raised:
        compiled(random(1, 20, 2, 8), SCALE, SOFTCAP)
    assert raised.value.fix.endswith(", or softcap=None.")


# Exported graphs train.


class Window(nn.Module):
    """A window that depends on the length, through plain attention."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        query = self.proj(x).unflatten(-1, (4, 8))
        mask = Mask.sliding_window(x.shape[1] // 4, 2)
        return nbattn.attention(query, query.cos(), query, mask, return_lse=True)[0]


class Plane(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = NeighborhoodAttention(32, 4, Mask.neighborhood((3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    return [out, *torch.autograd.grad(out.sin().sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize(
    ("strict", "dynamic"),
    [
        (False, False),
        (False, True),
        pytest.param(True, False, marks=pytest.mark.deep),
        (True, True),
    ],
)
@pytest.mark.parametrize("kind", [Window, Plane])
def test_exported_graphs_train(kind: type[nn.Module], strict: bool, dynamic: bool) -> None:
    module, space = kind(), (12,) if kind is Window else (6, 7)
    x = random(2, *space, 32)
    names = {n: torch.export.Dim(f"size{n}", min=4, max=64) for n in range(1, 1 + len(space))}
    shapes = ({0: torch.export.Dim("batch", min=1, max=64), **names},) if dynamic else None
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    larger = random(3, *(length + 2 for length in space), 32)
    for program in (exported, torch.export.load(file)):
        for given in (x, larger) if dynamic else (x,):
            for found, wanted in zip(
                gradients(program.module(), given), gradients(module, given), strict=True
            ):
                close(found, wanted)


def test_a_traced_layer_runs_and_trains() -> None:
    """`torch.jit.trace`, which fvcore and TensorBoard call."""
    layer, x = Plane(), random(2, 6, 7, 32)
    traced = torch.jit.trace(layer, x, check_trace=True)
    for found, wanted in zip(gradients(traced, x), gradients(layer, x), strict=True):
        close(found, wanted)

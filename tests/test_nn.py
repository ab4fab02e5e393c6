"""Owns the layer: values and gradients against a hand-written one, state, plans, messages, misuse."""

# ruff: noqa: E501  the texts stand here as users see them

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from dense_attention import inside
from oracle import axis_matrix, box, natten_matrix
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import nbattn
from nbattn import Axis, Mask, NbattnError, NeighborhoodAttention, execute
from nbattn.planner import planner

pytestmark = [  # what torch's own compiler warns of
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]
State = dict[str, Tensor]
LINE = Mask(Axis(3, 1))
PLANE = Mask(Axis(1, 1, border="shift"), Axis(2, causal=True))
CROSS_LINE = Mask(Axis(3, 1, align="top-left"))
CROSS = Mask(Axis(1, 1, border="shift", align="top-left"), Axis(2, causal=True, align="top-left"))
SOLID = Mask(
    Axis(1, causal=True), Axis(1, 1, border="wrap"), Axis(1, 2, border="shift", dilation=2)
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(mask: Mask = LINE, dim: int = 12, heads: int = 4, **options: Any) -> Any:
    """A float64 layer with weights large enough that every mistake shows."""
    layer = NeighborhoodAttention(dim, heads, mask, **options).double()
    for n, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=100 + n) * 0.5
    return layer


def matrix_of(mask: Mask, queries: tuple[int, ...], keys: tuple[int, ...]) -> Tensor:
    """bool [Nq, Nk] by the enumerator."""
    sizes = zip(mask.axes, queries, keys, strict=True)
    return torch.from_numpy(box([axis_matrix(*size) for size in sizes]))


def by_hand(
    state: State, matrix: Tensor, heads: int, kv_heads: int, x: Tensor,
    context: Tensor | None = None, *, extra_tokens: Tensor | None = None,
    key_range: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The layer head by head, from rows of its matrices and a dense mask [Nq, Nk]."""
    weight, bias = state["qkv.weight"], state.get("qkv.bias")
    dim = weight.shape[0] // (heads + 2 * kv_heads)

    def rows(tokens: Tensor, head: int) -> Tensor:
        """The head-th block of rows, applied to [B, N, C]."""
        part = slice(head * dim, head * dim + dim)
        flat = torch.einsum("bnc,dc->bnd", tokens, weight[part])
        return flat if bias is None else flat + bias[part]

    source = x if context is None else context
    reads = matrix.expand(x.shape[0], -1, -1)
    if key_range is not None:
        reads = reads & inside(key_range, source.shape[1:-1])[:, None]
    tokens, source = x.flatten(1, -2), source.flatten(1, -2)
    if extra_tokens is not None:
        source = torch.cat([source, extra_tokens], dim=1)
        reads = nn.functional.pad(reads, (0, extra_tokens.shape[1]), value=True)
    parts = []
    for head in range(heads):
        own = head * kv_heads // heads
        query, key = rows(tokens, head), rows(source, heads + own)
        value = rows(source, heads + kv_heads + own)
        scores = torch.einsum("bqd,bkd->bqk", query, key) / dim**0.5
        weights = torch.where(reads, scores.exp(), 0.0)
        total = weights.sum(2, keepdim=True)
        parts.append((weights / torch.where(total == 0, 1.0, total)) @ value)
    out = torch.cat(parts, dim=2) @ state["proj.weight"].T + state["proj.bias"]
    return out.reshape(x.shape)


CASES: dict[str, tuple[Mask, tuple[int, ...], tuple[int, ...] | None, dict[str, Any], str]] = {
    "line": (LINE, (11,), None, {}, ""),
    "line_grouped_heads": (LINE, (11,), None, {"kv_heads": 2}, ""),
    "line_one_key_head_of_odd_size": (LINE, (9,), None, {"kv_heads": 1, "head_dim": 5}, "extra"),
    "line_shorter_context": (Mask.causal("bottom-right"), (9,), (5,), {}, ""),
    "line_longer_context": (
        CROSS_LINE,
        (5,),
        (9,),
        {"kv_heads": 2, "qkv_bias": False},
        "extra range",
    ),
    "line_rows_without_keys": (Mask(Axis(1, 0, offset=-3)), (7,), None, {}, ""),
    "plane": (PLANE, (4, 5), None, {"kv_heads": 2}, "range"),
    "plane_extra": (PLANE, (4, 5), None, {"head_dim": 6}, "extra"),
    "plane_context": (CROSS, (4, 5), (3, 7), {"kv_heads": 2}, "extra range"),
    "plane_no_extra_tokens_at_all": (PLANE, (4, 5), None, {}, "none"),
    "solid": (SOLID, (3, 4, 6), None, {}, ""),
    "solid_everything": (SOLID, (2, 3, 5), None, {"kv_heads": 2, "head_dim": 4}, "extra range"),
    "solid_context": (Mask.full(3), (2, 3, 1), (1, 2, 5), {"kv_heads": 1}, "extra"),
    "reference": (CROSS, (4, 5), (3, 7), {"kv_heads": 2, "backend": "reference"}, "extra range"),
    "tiled": (CROSS, (4, 5), (3, 7), {"kv_heads": 2, "backend": "tiled"}, "extra range"),
}


def case(name: str) -> tuple[Any, Tensor, list[Tensor], dict[str, Any]]:
    """Layer, dense mask, positional tensors and named ones."""
    mask, space, keys, options, given = CASES[name]
    layer = build(mask, **options)
    tokens = [random(2, *space, 12)] + ([] if keys is None else [random(2, *keys, 12, seed=1)])
    named: dict[str, Any] = {}
    if "extra" in given or "none" in given:
        named["extra_tokens"] = random(2, 3 if "extra" in given else 0, 12, seed=2)
    if "range" in given:
        boxes = [[[0, n] for n in keys or space], [[1, max(1, n - 1)] for n in keys or space]]
        named["key_range"] = torch.tensor(boxes, dtype=torch.int32)
    return layer, matrix_of(mask, space, keys or space), tokens, named


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_layer_by_hand(
    name: str, cases: Callable[[str, int], None]
) -> None:
    layer, matrix, tokens, named = case(name)
    leaves = [*tokens, *(t for t in named.values() if t.is_floating_point())]
    leaves = [t.requires_grad_() for t in leaves]
    found = layer(*tokens, **named)
    state = dict(layer.named_parameters())
    wanted = by_hand(state, matrix, layer.num_heads, layer.kv_heads, *tokens, **named)
    upward = random(*found.shape, seed=9)
    sources = [*leaves, *state.values()]
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(found, sources, upward),
        torch.autograd.grad(wanted, sources, upward),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        cases("layer, gradients", 1)


def test_a_query_that_reads_nothing_gives_the_bias_of_the_projection() -> None:
    layer, _, tokens, _ = case("line_rows_without_keys")
    assert torch.equal(layer(*tokens)[:, 0], layer.proj.bias.expand(2, 12))


def test_an_empty_batch() -> None:
    assert build(PLANE)(torch.zeros(0, 4, 5, 12).double()).shape == (0, 4, 5, 12)


# The projection.


def seen_by_attention(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What forward hands to attention()."""
    calls: list[dict[str, Any]] = []

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Mask, **named: Any) -> Tensor:
        calls.append({"query": query, "key": key, "value": value, **named})
        return nbattn.attention(query, key, value, mask, **named)

    monkeypatch.setattr("nbattn.nn.attention", spy)
    return calls


@pytest.mark.parametrize("space", [(6,), (4, 5), (2, 3, 4)])
def test_query_key_and_value_are_contiguous_whatever_comes_in(
    space: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = seen_by_attention(monkeypatch)
    layer = build(Mask.full(len(space)), kv_heads=2)
    channels_first = random(2, 12, *space).movedim(1, -1)
    sliced = random(2, *space, 24)[..., ::2]
    for x in (
        random(2, *space, 12),
        channels_first,
        sliced,
        random(1, *space, 12).expand(2, *[-1] * (len(space) + 1)),
    ):
        layer(x, extra_tokens=random(2, 12, 3).mT)
        tensors = [
            calls[-1][name] for name in ("query", "key", "value", "extra_key", "extra_value")
        ]
        assert all(t.is_contiguous() for t in tensors)
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == 5


class Doubled(nn.Module):
    """A parametrisation that counts how often it is computed."""

    times = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.times += 1
        return 2 * weight


def test_hooks_and_parametrisations_see_one_call_of_the_projection() -> None:
    layer, matrix, tokens, named = case("plane_context")
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    state["qkv.weight"] *= 2
    nn.utils.parametrize.register_parametrization(layer.qkv, "weight", Doubled())
    doubled, seen = layer.qkv.parametrizations.weight[0], []
    doubled.times = 0
    layer.qkv.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    found = layer(*tokens, **named)
    torch.testing.assert_close(found, by_hand(state, matrix, 4, 2, *tokens, **named))
    assert (doubled.times, seen) == (1, [5])


def test_natten_weights_load_unchanged() -> None:
    """Rows of q, of k, of v, each head by head; masks as NATTEN's."""
    heads, dim, channels, space = 3, 4, 12, (6, 7)
    named = ("q", "k", "v")
    weights = {
        (n, h): random(dim, channels, seed=10 * i + h) * 0.4
        for i, n in enumerate(named)
        for h in range(heads)
    }
    biases = {
        (n, h): random(dim, seed=50 + 10 * i + h) for i, n in enumerate(named) for h in range(heads)
    }
    state = {
        "qkv.weight": torch.cat([weights[n, h] for n in named for h in range(heads)]),
        "qkv.bias": torch.cat([biases[n, h] for n in named for h in range(heads)]),
        "proj.weight": random(channels, channels, seed=90),
        "proj.bias": random(channels, seed=91),
    }
    mask = Mask.neighborhood((3, 2), dilation=(2, 1), stride=(1, 2), is_causal=(False, True))
    layer = NeighborhoodAttention(channels, heads, mask).double()
    assert list(layer.state_dict()) == list(state)
    assert [t.shape for t in layer.state_dict().values()] == [t.shape for t in state.values()]
    layer.load_state_dict(state)

    x = random(2, *space, channels, seed=99)
    matrix = torch.from_numpy(natten_matrix(space, (3, 2), (1, 2), (2, 1), (False, True)))
    outputs = []
    for h in range(heads):
        q, k, v = (x.flatten(1, 2) @ weights[n, h].T + biases[n, h] for n in named)
        scores = (q @ k.mT / dim**0.5).masked_fill(~matrix, float("-inf"))
        outputs.append(scores.softmax(-1) @ v)
    wanted = torch.cat(outputs, -1) @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(layer(x), wanted.reshape(x.shape), rtol=1e-11, atol=1e-11)


def test_dropout_acts_on_the_projection_and_in_training_only() -> None:
    torch.manual_seed(0)
    layer, plain, x = build(proj_drop=0.5), build(), random(8, 11, 12)
    out, want = layer.train()(x), plain(x)
    dropped = out == 0
    assert 0.4 < dropped.double().mean() < 0.6
    torch.testing.assert_close(out[~dropped], 2 * want[~dropped])
    assert torch.equal(layer.eval()(x), want)
    assert not build(proj_drop=1).train()(x).any()


# The transform.


class Recorder(nn.Module):
    """Doubles queries, negates keys, remembers what it saw; strided results of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += [tuple(query.shape), tuple(key.shape)]
        return (2 * query).mT.contiguous().mT.double(), -key

    def extra_key(self, key: Tensor) -> Tensor:
        self.seen.append(tuple(key.shape))
        return 3 * key


def test_a_transform_changes_queries_keys_and_extra_keys_and_no_value() -> None:
    layer, matrix, tokens, named = case("plane_context")
    layer.qk_transform = Recorder()
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    assert list(state) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    found = layer(*tokens, **named)
    assert layer.qk_transform.seen == [(2, 4, 5, 4, 3), (2, 3, 7, 2, 3), (2, 3, 2, 3)]
    for name in ("qkv.weight", "qkv.bias"):  # rows: 4 heads of q, 2 of k, 2 of v
        state[name][:12] *= 2
        state[name][12:18] *= -1
    named["extra_tokens"] = named["extra_tokens"].clone()
    plain = by_hand(state, matrix, 4, 2, *tokens, **named)
    assert not torch.allclose(found, plain)  # extra keys: not negated, but three times as large
    grid = {**named, "extra_tokens": None}
    torch.testing.assert_close(
        layer(*tokens, **grid), by_hand(state, matrix, 4, 2, *tokens, **grid)
    )
    query, key, value, extra_key, extra_value = layer.qkv(*tokens, named["extra_tokens"])
    out = nbattn.attention(
        2 * query, -key, value, layer.mask, key_range=named["key_range"],
        extra_key=3 * extra_key, extra_value=extra_value, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(found, layer.proj(out.flatten(-2)))


def test_what_a_transform_returns_is_brought_back_to_the_layers_dtype_and_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = seen_by_attention(monkeypatch)
    layer = build(qk_transform=Recorder()).bfloat16()
    layer(
        random(2, 11, 12, dtype=torch.bfloat16), extra_tokens=random(2, 1, 12, dtype=torch.bfloat16)
    )
    for name in ("query", "key", "extra_key"):
        assert calls[0][name].dtype == torch.bfloat16
        assert calls[0][name].is_contiguous()


# State.


def test_state_holds_tensors_only_and_no_mask() -> None:
    layer = build(kv_heads=2, proj_drop=0.1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = NeighborhoodAttention(12, 4, PLANE, kv_heads=2).double()  # another mask: same weights
    other.load_state_dict(state)
    assert list(state) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    assert state["qkv.weight"].shape == (12 + 6 + 6, 12)
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), layer.parameters(), strict=True)
    )


def test_copies_and_pickles_behave_the_same() -> None:
    layer, x = build(PLANE, kv_heads=2, backend="tiled", qkv_bias=False), random(2, 4, 5, 12)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.mask == layer.mask
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)


def test_made_on_meta_and_filled_later() -> None:
    layer, x = build(PLANE, kv_heads=2), random(2, 4, 5, 12)
    with torch.device("meta"):
        empty = NeighborhoodAttention(12, 4, PLANE, kv_heads=2).double()
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert empty(x.to("meta")).shape == x.shape
    assert empty.plan_for(x.shape, device="cpu") == layer.plan_for(x.shape)
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(layer.state_dict(), assign=True)
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    assert torch.equal(assigned(x), layer(x))


def test_repr_shows_the_constructor() -> None:
    assert repr(build(PLANE, 12, 4)).splitlines()[1].strip() == (
        "12, 4, Mask(Axis(1, 1, border='shift'), Axis(2, 0, causal=True))"
    )
    layer = build(LINE, 12, 4, kv_heads=2, head_dim=5, backend="tiled")
    assert layer.extra_repr() == "12, 4, Mask(Axis(3, 1)), kv_heads=2, head_dim=5, backend='tiled'"


# Plans.


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[nbattn.Plan]:
    """The plans that calls look up."""
    found: list[nbattn.Plan] = []
    planned = execute.planner.planned

    def spy(*arguments: Any) -> nbattn.Plan:
        found.append(planned(*arguments))
        return found[-1]

    monkeypatch.setattr(execute.planner, "planned", spy)
    planner.KNOWN_CALLS.clear()
    return found


@pytest.mark.parametrize("name", [n for n in CASES if n != "reference"])
def test_plan_for_is_the_plan_that_forward_and_backward_use(
    name: str, plans: list[nbattn.Plan]
) -> None:
    layer, _, tokens, named = case(name)
    extra = named.get("extra_tokens")
    facts = {
        "extra_tokens": 0 if extra is None else extra.shape[1],
        "key_range": "key_range" in named,
    }
    shapes = [t.shape for t in tokens]
    layer(*tokens, **named).sum().backward()
    (made,) = plans  # the backward has the forward's
    assert made == layer.plan_for(*shapes, **facts)
    assert plans[0].request.training
    assert plans[0].request.layout == "contiguous"
    with torch.no_grad():
        layer(*tokens, **named)
        assert plans[-1] == layer.plan_for(*shapes, **facts)
    assert not plans[-1].request.training


def test_plan_for_where_a_plan_depends_on_more_than_shapes(plans: list[nbattn.Plan]) -> None:
    layer = build(PLANE, kv_heads=2, qk_transform=Recorder()).float()
    x, shape = random(2, 4, 5, 12, dtype=torch.float32), (2, 4, 5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        assert plans[-1] == layer.plan_for(shape)
        assert plans[-1].request.dtype == "bfloat16"
    layer.requires_grad_(False)
    layer(x)
    assert plans[-1] == layer.plan_for(list(shape))
    assert not plans[-1].request.training
    layer(x.requires_grad_())
    assert plans[-1] == layer.plan_for(shape, training=True)
    layer.qkv.bias.requires_grad_(True)
    layer(x.detach())
    assert plans[-1] == layer.plan_for(shape)
    assert plans[-1].request.training
    layer.backend = "tiled"
    assert layer.plan_for(shape).request.backend == "tiled"
    other = layer.plan_for(shape, dtype="float16", device="sm_90", training=False).request
    assert (other.dtype, other.device.name, other.training) == ("float16", "sm_90", False)


# Inside torch.


def train(layer: Callable[..., Tensor], *tokens: Tensor, **named: Any) -> list[Tensor]:
    """The output, the gradient of the first tensor, and those of the parameters."""
    owner: Any = layer if isinstance(layer, nn.Module) else None
    first, *rest = tokens
    first = first.detach().clone().requires_grad_()
    out = layer(first, *rest, **named)
    sources = [first, *(owner.parameters() if owner is not None else [])]
    return [out.detach(), *torch.autograd.grad((out.float() ** 2).sum(), sources)]


def same(found: list[Tensor], wanted: list[Tensor], limit: float = 1e-10) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["plane_context", "line_grouped_heads", "reference"])
def test_compiled_equals_eager(name: str) -> None:
    layer, _, tokens, named = case(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (2, 1):
        given = [t[:batch] for t in tokens]
        rest = {key: t[:batch] for key, t in named.items()}
        same(train(compiled, *given, **rest), train(layer, *given, **rest))
    with torch.no_grad():
        same([compiled(*given, **rest)], [layer(*given, **rest)])


@pytest.mark.usefixtures("fresh_compiler")
def test_a_batch_of_another_size_compiles_at_most_once_more() -> None:
    layer, counter = build(PLANE, kv_heads=2, qk_transform=Recorder()), CompileCounter()
    layer.qk_transform.forward = lambda query, key: (query * 2, key)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5, 7, 2):
        x = random(batch, 4, 5, 12)
        same([compiled(x)], [layer(x)])
    assert counter.frame_count <= 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_is_the_layer_in_that_dtype(compiled: bool) -> None:
    """Exactly: inputs are cast once, and nothing inside once more."""
    layer = build(CROSS, kv_heads=2).float()
    half = copy.deepcopy(layer).bfloat16()
    x, context, extra = (
        random(2, *space, 12, seed=n, dtype=torch.float32)
        for n, space in enumerate([(4, 5), (3, 7), (3,)])
    )
    wanted = train(half, x.bfloat16(), context.bfloat16(), extra_tokens=extra.bfloat16())
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    with torch.autocast("cpu", torch.bfloat16):
        out = run(x.requires_grad_(), context.bfloat16(), extra_tokens=extra)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wanted[0])
    (out.float() ** 2).sum().backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert {g.dtype for g in grads if g is not None} == {torch.float32}
    for one, other in zip(grads, wanted[1:], strict=True):  # sums of bfloat16 parts, rounded apart
        assert one is not None
        torch.testing.assert_close(
            one, other.float(), rtol=0.03, atol=0.03 * other.abs().max().item()
        )


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_mistake_is_told_from_inside_a_compiled_layer(fullgraph: bool) -> None:
    compiled = torch.compile(build(PLANE), fullgraph=fullgraph, backend="eager")
    kind = torch._dynamo.exc.Unsupported if fullgraph else nbattn.InputError
    told = r"x has 5 channels \[2, 4, 5, 5\], not 12"
    if fullgraph:
        told += r"|builtin repr \[.*FrozenDataClassVariable"  # all that torch 2.8 has to say
    with pytest.raises(kind, match=told):
        compiled(random(2, 4, 5, 5))


def test_checkpointed_equals_plain() -> None:
    layer, _, tokens, named = case("solid_everything")
    wanted = train(layer, *tokens, **named)
    x = tokens[0].detach().clone().requires_grad_()
    out = checkpoint(layer, x, use_reentrant=False, **named)
    assert isinstance(out, Tensor)
    same([out, *torch.autograd.grad((out.float() ** 2).sum(), [x, *layer.parameters()])], wanted)


def test_functional_call_and_its_gradient() -> None:
    layer, x = build(PLANE, kv_heads=2), random(2, 4, 5, 12)
    other = {name: p.detach() * 0.5 for name, p in layer.named_parameters()}
    twin = copy.deepcopy(layer)
    twin.load_state_dict(other)
    assert torch.equal(functional_call(layer, other, (x,)), twin(x))
    found = grad(lambda state: (functional_call(layer, state, (x,)).float() ** 2).sum())(other)
    same(list(found.values()), train(twin, x)[2:])


def test_exported_with_a_dynamic_batch() -> None:
    layer, _, tokens, named = case("plane_context")
    batch = torch.export.Dim("batch", min=1, max=64)
    every = {0: batch}
    exported = torch.export.export(
        layer,
        tuple(tokens),
        named,
        dynamic_shapes={"x": every, "context": every, "extra_tokens": every, "key_range": every},
    )
    for size in (2, 1):
        given, rest = [t[:size] for t in tokens], {name: t[:size] for name, t in named.items()}
        same(train(exported.module(), *given, **rest), train(layer, *given, **rest))


# Messages.


class Plain(nn.Module):
    """A transform of queries and keys alone."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any] = lambda q, k: (q, k)) -> None:
        super().__init__()
        self.change = change

    def forward(self, query: Tensor, key: Tensor) -> Any:
        return self.change(query, key)


def t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


PLAIN = NeighborhoodAttention(64, 4, Mask.neighborhood((3, 3)))
NAMES = {
    "np": np,
    "torch": torch,
    "t": t,
    "Layer": NeighborhoodAttention,
    "Axis": Axis,
    "Mask": Mask,
    "Plain": Plain,
    "mask": LINE,
    "layer": PLAIN,
    "x": t(2, 6, 7, 64),
    "line": NeighborhoodAttention(8, 2, LINE),
    "ring": NeighborhoodAttention(8, 2, Mask(Axis(1, 1, border="wrap"))),
    "plain": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain()),
    "wide": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: (q, k[:, 1:]))),
    "single": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: q)),
    "nothing": NeighborhoodAttention(8, 2, LINE, qk_transform=Plain(lambda q, k: (q, None))),
}

TABLE = """
Layer(64, 4, (7, 7))
    InputError: mask is a tuple, not an nbattn.Mask.
      fix:   mask=nbattn.Mask(nbattn.Axis(3, 3), …).

Layer(64, 4, "encoder")
    InputError: mask is a str, not an nbattn.Mask.
      fix:   mask=nbattn.Mask(nbattn.Axis(3, 3), …).

Layer(64, 4, Axis(3, 3))
    InputError: mask is an Axis, not an nbattn.Mask.
      fix:   mask=nbattn.Mask(nbattn.Axis(3, 3), …).

Layer(0, 4, mask)
    InputError: dim=0 is below 1.
      fix:   dim is a whole number >= 1.

Layer(True, 1, mask)
    InputError: dim=True is a bool, not an integer.
      fix:   dim is a whole number >= 1.

Layer(64.0, 4, mask)
    InputError: dim=64.0 is a float, not an integer.
      fix:   dim is a whole number >= 1.

Layer("64", 4, mask)
    InputError: dim='64' is a str, not an integer.
      fix:   dim is a whole number >= 1.

Layer(64, 0, mask)
    InputError: num_heads=0 is below 1.
      fix:   num_heads is a whole number >= 1.

Layer(64, None, mask)
    InputError: num_heads=None is a NoneType, not an integer.
      fix:   num_heads is a whole number >= 1.

Layer(64, 7, mask)
    InputError: dim=64 is no multiple of num_heads=7.
      fix:   head_dim=9, or a num_heads that divides 64.

Layer(4, 8, mask)
    InputError: dim=4 is no multiple of num_heads=8.
      fix:   head_dim=1, or a num_heads that divides 4.

Layer(64, 4, mask, head_dim=0)
    InputError: head_dim=0 is below 1.
      fix:   head_dim is a whole number >= 1.

Layer(64, 4, mask, head_dim=16.0)
    InputError: head_dim=16.0 is a float, not an integer.
      fix:   head_dim is a whole number >= 1.

Layer(64, 8, mask, kv_heads=3)
    InputError: num_heads=8 is no multiple of kv_heads=3.
      fix:   a kv_heads that divides 8; query head h uses key head h // (H // Hk).

Layer(64, 4, mask, kv_heads=8)
    InputError: num_heads=4 is no multiple of kv_heads=8.
      fix:   a kv_heads that divides 4; query head h uses key head h // (H // Hk).

Layer(64, 4, mask, kv_heads=0)
    InputError: kv_heads=0 is below 1.
      fix:   kv_heads is a whole number >= 1.

Layer(64, 4, mask, kv_heads=False)
    InputError: kv_heads=False is a bool, not an integer.
      fix:   kv_heads is a whole number >= 1.

Layer(64, 4, mask, qkv_bias=1)
    InputError: qkv_bias=1 is an int, not a bool.
      fix:   qkv_bias=True or qkv_bias=False.

Layer(64, 4, mask, proj_drop=1.5)
    InputError: proj_drop=1.5 is not a probability.
      fix:   0 <= proj_drop <= 1.

Layer(64, 4, mask, proj_drop=-0.1)
    InputError: proj_drop=-0.1 is not a probability.
      fix:   0 <= proj_drop <= 1.

Layer(64, 4, mask, proj_drop=float("nan"))
    InputError: proj_drop=nan is not a probability.
      fix:   0 <= proj_drop <= 1.

Layer(64, 4, mask, proj_drop=True)
    InputError: proj_drop=True is a bool, not a number.
      fix:   0 <= proj_drop <= 1.

Layer(64, 4, mask, proj_drop="0.1")
    InputError: proj_drop='0.1' is a str, not a number.
      fix:   0 <= proj_drop <= 1.

Layer(64, 4, mask, backend="triton")
    InputError: backend='triton' is not known.
      fix:   one of 'auto', 'reference', 'sdpa', 'tiled', 'flash', 'flash:aten', 'flash:fa2', 'flash:fa3', 'flash:fa4', 'flash-model', 'flash-model:aten', 'flash-model:fa2', 'flash-model:fa3', 'flash-model:fa4', 'cuda', 'flex', 'natten'.

Layer(64, 4, mask, backend=None)
    InputError: backend=None is not known.
      fix:   one of 'auto', 'reference', 'sdpa', 'tiled', 'flash', 'flash:aten', 'flash:fa2', 'flash:fa3', 'flash:fa4', 'flash-model', 'flash-model:aten', 'flash-model:fa2', 'flash-model:fa3', 'flash-model:fa4', 'cuda', 'flex', 'natten'.

Layer(64, 4, mask, qk_transform=torch.nn.functional.normalize)
    InputError: qk_transform is a function, not a torch.nn.Module.
      fix:   a Module whose forward(query, key) returns both.

Layer(64, 4, mask, qk_transform=torch.nn.RMSNorm)
    InputError: qk_transform is a type, not a torch.nn.Module.
      fix:   a Module whose forward(query, key) returns both.

layer(None)
    InputError: x is None, not a tensor.
      fix:   x as [B, X, Y, 64].

layer([[1.0]])
    InputError: x is a list, not a tensor.
      fix:   x as [B, X, Y, 64].

layer(x.to_sparse())
    InputError: x is a sparse or nested tensor.
      fix:   x dense and padded, with key_range=.

layer(torch.nested.nested_tensor([x[0], x[1, 1:]], layout=torch.jagged))
    InputError: x is a sparse or nested tensor.
      fix:   x dense and padded, with key_range=.

layer(t(2, 42, 64))
    InputError: x has 3 dimensions [2, 42, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x as [B, X, Y, 64].

layer(t(2, 6, 7, 4, 16))
    InputError: x has 5 dimensions [2, 6, 7, 4, 16], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x as [B, X, Y, 64].

layer(t(2, 6, 7, 32))
    InputError: x has 32 channels [2, 6, 7, 32], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x as [B, X, Y, 64].

layer(t(2, 64, 6, 7))
    InputError: x has 7 channels [2, 64, 6, 7], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   x.movedim(1, -1): channels come last.

layer(x.half())
    InputError: x is float16, the layer float32.
      fix:   x.to(torch.float32).

layer(x.long())
    InputError: x is int64, the layer float32.
      fix:   x.to(torch.float32).

layer(x.to("meta"))
    InputError: x is on meta, the layer on cpu.
      fix:   x.to('cpu').

layer(x, x[0])
    InputError: context has 3 dimensions [6, 7, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   context as [B, X, Y, 64].

layer(x, x[..., :1])
    InputError: context has 1 channel [2, 6, 7, 1], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   context as [B, X, Y, 64].

layer(x, x[:1])
    InputError: batch differs: 2 in x, 1 in context.
      given: x [2, 6, 7, 64] context [1, 6, 7, 64]
      fix:   the same batch in both.

layer(x, x.double())
    InputError: context is float64, the layer float32.
      fix:   context.to(torch.float32).

layer(x, extra_tokens=t(3, 64))
    InputError: extra_tokens has 2 dimensions [3, 64], not 3.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   extra_tokens as [B, E, 64].

layer(x, extra_tokens=t(1, 3, 64))
    InputError: batch differs: 2 in x, 1 in extra_tokens.
      given: x [2, 6, 7, 64] extra_tokens [1, 3, 64]
      fix:   the same batch in both.

layer(x, extra_tokens=t(2, 64, 3))
    InputError: extra_tokens has 3 channels [2, 64, 3], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   extra_tokens as [B, E, 64].

layer(x, extra_tokens=4)
    InputError: extra_tokens is an int, not a tensor.
      fix:   extra_tokens as [B, E, 64].

layer(x, key_range=t(2, 2, 2))
    InputError: key_range is float32, not int32.
      fix:   key_range.int().

layer(x, key_range=t(2, 2).int())
    InputError: key_range has shape [2, 2], not [2, 2, 2].
      fix:   key_range: [start, stop) per sample and axis, [2, 2, 2].

ring(t(1, 6, 8), t(1, 5, 8))
    MaskError: axis 0 (6 queries, 5 keys): border="wrap" needs as many queries as keys.
      given: Mask(Axis(1, 1, border='wrap'))
      fix:   border="clip" and an align allow different lengths, or give axis 0 one length.

line(t(1, 1, 8), t(1, 40, 8))
    MaskError: axis 0 (1 query, 40 keys): the lengths differ, and align=None does not align queries with keys.
      given: Mask(Axis(3, 1))
      fix:   Mask(Axis(3, 1, align='bottom-right')) puts the last query on the last key, as Flash and KV caches do (one query against a cache: align="bottom-right"); or Mask(Axis(3, 1, align='top-left')) puts query 0 on key 0, as SDPA's is_causal does.

plain(t(1, 6, 8), extra_tokens=t(1, 2, 8))
    InputError: extra_tokens with a Plain as qk_transform, which has no method extra_key for their keys.
      fix:   give it the method: def extra_key(self, key): return key.

plain.plan_for((1, 6, 8), extra_tokens=2)
    InputError: extra_tokens with a Plain as qk_transform, which has no method extra_key for their keys.
      fix:   give it the method: def extra_key(self, key): return key.

wide(t(1, 6, 8))
    InputError: qk_transform made the key [1, 6, 2, 4] into [1, 5, 2, 4].
      fix:   a result of the same shape.

nothing(t(1, 6, 8))
    InputError: qk_transform made the key [1, 6, 2, 4] into a NoneType.
      fix:   a result of the same shape.

single(t(1, 6, 8))
    InputError: a Plain as qk_transform returned a Tensor, not two tensors.
      fix:   return query, key.

layer.plan_for(64)
    InputError: shape is an int, not a shape.
      fix:   shape=x.shape.

layer.plan_for("2, 6, 7, 64")
    InputError: shape is a str, not a shape.
      fix:   shape=x.shape.

layer.plan_for((2, 6, 64))
    InputError: shape has 3 dimensions [2, 6, 64], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   shape as [B, X, Y, 64].

layer.plan_for((2, 6.0, 7, 64))
    InputError: shape[1]=6.0 is a float, not an integer.
      fix:   shape[1] is a whole number >= 0.

layer.plan_for((2, 6, -7, 64))
    InputError: shape[2]=-7 is below 0.
      fix:   shape[2] is a whole number >= 0.

layer.plan_for((2, 6, 7, 4, 16))
    InputError: shape has 5 dimensions [2, 6, 7, 4, 16], not 4.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   shape as [B, X, Y, 64].

layer.plan_for((2, 6, 7, 64), (1, 6, 7, 64))
    InputError: batch differs: 2 in shape, 1 in context_shape.
      given: shape [2, 6, 7, 64] context_shape [1, 6, 7, 64]
      fix:   the same batch in both.

layer.plan_for((2, 6, 7, 64), (2, 6, 7, 32))
    InputError: context_shape has 32 channels [2, 6, 7, 32], not 64.
      given: Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))
      fix:   context_shape as [B, X, Y, 64].

layer.plan_for((2, 6, 7, 64), extra_tokens=-1)
    InputError: extra_tokens=-1 is below 0.
      fix:   extra_tokens is a whole number >= 0.

layer.plan_for((2, 6, 7, 64), key_range=1)
    InputError: key_range=1 is an int, not a bool.
      fix:   key_range=True or key_range=False.

layer.plan_for((2, 6, 7, 64), training=1)
    InputError: training=1 is an int, not a bool.
      fix:   training=True or training=False.

layer.plan_for((2, 6, 7, 64), dtype="float8")
    InputError: dtype=float8 is not supported.
      fix:   one of float16, bfloat16, float32, float64.
"""
BLOCKS = [block.split("\n", 1) for block in TABLE.strip().split("\n\n")]
MESSAGES = {call: dedent(text).strip() for call, text in BLOCKS}


@pytest.mark.parametrize(("call", "text"), MESSAGES.items(), ids=MESSAGES)
def test_a_mistake_is_told_in_these_words(call: str, text: str) -> None:
    with pytest.raises(NbattnError) as error:
        eval(call, NAMES)
    assert f"{type(error.value).__name__}: {error.value}" == text
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_a_mistake_is_found_before_anything_else_is_done() -> None:
    assert len(BLOCKS) == len(MESSAGES) >= 60
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(nbattn.InputError, match="x is int64"),
    ):
        PLAIN(t(2, 6, 7, 64).long())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(nbattn.InputError, match="x is float64"),
    ):
        PLAIN(t(2, 6, 7, 64).double())
    with pytest.raises(TypeError, match="takes from 2 to 3 positional"):
        PLAIN(t(2, 6, 7, 64), None, t(2, 3, 64))  # extra tokens go by name

"""Tests of the layer: against one written by hand, transforms, state, copies and plans."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_attention import inside
from oracle import natten_matrix
from small_layers import CASES, CROSS, LINE, PLANE, Recorder, State, build, case, random
from torch import Tensor, nn

import nbattn
from nbattn import Mask, NeighborhoodAttention, execute
from nbattn.backends.inputs import layout_of
from nbattn.planner import planner

pytestmark = [  # what torch's own compiler warns of
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


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


@pytest.mark.parametrize("name", CASES)
def test_layer_equals_a_hand_written_layer(name: str, cases: Callable[[str, int], None]) -> None:
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


def test_query_without_keys_gives_the_bias_of_the_projection() -> None:
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

    monkeypatch.setattr("nbattn.nn.layer.attention", spy)
    return calls


@pytest.mark.parametrize("space", [(6,), (4, 5), (2, 3, 4)])
def test_self_attention_takes_views_of_one_result(
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
        parts = [calls[-1][name] for name in ("query", "key", "value")]
        assert len({t.untyped_storage().data_ptr() for t in parts}) == 1
        assert layout_of(*parts) == "packed"
        extras = [calls[-1][name] for name in ("extra_key", "extra_value")]
        assert all(t.is_contiguous() for t in extras)


def test_query_key_and_value_are_contiguous_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = seen_by_attention(monkeypatch)
    x, context = random(2, 5, 12), random(2, 6, 12)
    options = {"norm": {"qk_norm": True}, "transform": {"qk_transform": Recorder()}}
    for given in ({}, *options.values(), {"context_dim": 12}):
        layer = build(Mask.full(), kv_heads=2, **given)
        for tokens in ((x, context), (x,)):
            if len(tokens) == 2 or given not in ({}, {"context_dim": 12}):
                layer(*tokens)
                parts = (calls[-1][name] for name in ("query", "key", "value"))
                assert all(t.is_contiguous() for t in parts)
    assert len(calls) == 6


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
    layer.qkv.register_forward_hook(lambda module, given, result: seen.append(result.shape))
    found = layer(*tokens, **named)
    torch.testing.assert_close(found, by_hand(state, matrix, 4, 2, *tokens, **named))
    assert (doubled.times, seen) == (1, [(2, 4 * 5 + 3 * 7 + 3, 24)])  # all tokens side by side


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
    parts = [layer.qkv(t).unflatten(-1, (8, 3)) for t in (*tokens, named["extra_tokens"])]
    query, key, value = parts[0][..., :4, :], parts[1][..., 4:6, :], parts[1][..., 6:, :]
    extra_key, extra_value = parts[2][..., 4:6, :], parts[2][..., 6:, :]
    out = nbattn.attention(
        2 * query, -key, value, layer.mask, key_range=named["key_range"],
        extra_key=3 * extra_key, extra_value=extra_value, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(found, layer.proj(out.flatten(-2)))


def test_results_of_a_transform_get_the_dtype_and_layout_of_the_layer(
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


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[nbattn.Plan]:
    """The plans that calls look up."""
    found: list[nbattn.Plan] = []
    planned = execute.planner.planned_to_run

    def spy(*arguments: Any) -> nbattn.Plan:
        found.append(planned(*arguments))
        return found[-1]

    monkeypatch.setattr(execute.planner, "planned_to_run", spy)
    planner.KNOWN_CALLS.clear()
    return found


# Options.


def by_parts(layer: Any, x: Tensor, context: Tensor, extra: Tensor | None = None) -> Tensor:
    """The layer by attention with a scale, from its own matrices, with norms by their formula."""
    dim, heads = layer.head_dim, (layer.num_heads, layer.kv_heads, layer.kv_heads)
    if layer.context_dim is None:
        weights, biases = (t.split([n * dim for n in heads]) for t in layer.qkv.parameters())
    else:
        keys = [t.chunk(2) for t in layer.kv.parameters()]
        weights, biases = ((t, *k) for t, k in zip(layer.q.parameters(), keys, strict=True))

    def heads_of(part: int, tokens: Tensor) -> Tensor:
        found = (tokens @ weights[part].T + biases[part]).unflatten(-1, (-1, dim))
        if layer.q_norm is None or part == 2:
            return found
        gain = (layer.q_norm, layer.k_norm)[part].weight
        return gain * found / (found.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    query, key, value = heads_of(0, x), heads_of(1, context), heads_of(2, context)
    extras: dict[str, Any] = {}
    if extra is not None:
        extra = extra.expand(len(x), -1, -1)
        extras = {"extra_key": heads_of(1, extra), "extra_value": heads_of(2, extra)}
    out = nbattn.attention(
        query, key, value, layer.mask, scale=layer.scale, backend="reference", **extras
    )
    return layer.proj(out.flatten(-2))


OPTIONS: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.3},
    "a scale of zero": {"scale": 0},
    "norm": {"qk_norm": True},
    "own context": {"context_dim": 7},
    "everything": {"scale": -0.3, "qk_norm": True, "context_dim": 5, "kv_heads": 2, "head_dim": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_options(name: str, layout: str, plans: list[nbattn.Plan]) -> None:
    layer = build(CROSS, layout=layout, **OPTIONS[name])
    channels = layer.context_dim or 12
    x, context, registers = random(2, 4, 5, 12), random(2, 3, 7, channels), random(1, 3, channels)
    wanted = by_parts(layer, x, context, registers)
    tokens = [x, context]
    if layout == "channels_first":
        tokens = [t.movedim(-1, 1).contiguous() for t in tokens]
        wanted = wanted.movedim(-1, 1)
    found = layer(*tokens, extra_tokens=registers)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    shapes = [t.shape for t in tokens]
    assert plans[-1] == layer.plan_for(*shapes, extra_tokens=3)
    if layer.context_dim is None:
        square = build(PLANE, layout=layout, **OPTIONS[name])
        wanted = by_parts(square, x, x)
        square(tokens[0])
        assert plans[-1] == square.plan_for(shapes[0])
        given = wanted.movedim(-1, 1) if layout == "channels_first" else wanted
        torch.testing.assert_close(square(tokens[0]), given, rtol=1e-11, atol=1e-11)


def test_one_token_is_planned_as_it_runs(plans: list[nbattn.Plan]) -> None:
    """Parts of one row are contiguous tensors."""
    layer = build(LINE)
    for batch, length in ((1, 1), (2, 1), (1, 2), (0, 3)):
        layer(random(batch, length, 12))
        assert plans[-1] == layer.plan_for((batch, length, 12))


def test_registers_get_the_gradients_of_the_whole_batch() -> None:
    layer, x = build(PLANE), random(2, 4, 5, 12)
    one, each = random(1, 3, 12), random(1, 3, 12).repeat(2, 1, 1)
    one.requires_grad_()
    each.requires_grad_()
    found, wanted = layer(x, extra_tokens=one), layer(x, extra_tokens=each)
    torch.testing.assert_close(found, wanted)
    upward = random(*found.shape, seed=3)
    (grad,) = torch.autograd.grad(found, one, upward)
    (grads,) = torch.autograd.grad(wanted, each, upward)
    torch.testing.assert_close(grad, grads.sum(0, keepdim=True))


def test_channels_first_copies_nothing() -> None:
    layer, image = build(PLANE, layout="channels_first"), random(2, 12, 4, 5)
    out = layer(image)
    assert out.shape == image.shape
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_state_of_the_options() -> None:
    assert list(build(qk_norm=True).state_dict())[2:4] == ["q_norm.weight", "k_norm.weight"]
    names = list(build(context_dim=5, qkv_bias=False).state_dict())
    assert names == ["q.weight", "kv.weight", "proj.weight", "proj.bias"]


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    layer = NeighborhoodAttention(
        12, 4, LINE, qk_norm=True, context_dim=5, device="meta", dtype=torch.bfloat16
    )
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    named = NeighborhoodAttention(12, 4, LINE, dtype="float64", device=torch.device("cpu"))
    assert {p.dtype for p in named.parameters()} == {torch.float64}


def test_norms_train_under_autocast_in_the_dtype_of_their_gains() -> None:
    layer = build(PLANE, qk_norm=True).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(random(2, 4, 5, 12, dtype=torch.float32))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.q_norm.weight.grad.dtype == torch.float32


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


def test_layer_made_on_meta_and_filled_later() -> None:
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
    options = {"scale": 0.5, "qk_norm": True, "context_dim": 5, "layout": "channels_first"}
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    assert build(LINE, 12, 4, **options).extra_repr() == f"12, 4, Mask(Axis(3, 1)), {shown}"


# Plans.


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
    assert plans[0].request.layout == ("packed" if len(tokens) == 1 else "contiguous")
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

"""Tests of the layer with extra tokens that are updated, and with a table of relative positions:
against one written by hand, plans, state, tools, and what it refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_attention import inside
from operator_calls import COMPILES
from small_layers import CROSS, LINE, PLANE, SOLID, build, matrix_of, random
from torch import Tensor, fx, nn

import nbattn
from nbattn import InputError, Mask, NeighborhoodAttention, execute
from nbattn.config import LayerConfig
from nbattn.planner import planner
from nbattn.planner.joint_plan import JointPlan

pytestmark = COMPILES


class Scaled(nn.Module):
    """A transform with another factor for everything it is given."""

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * query, -key

    def extra_key(self, key: Tensor) -> Tensor:
        return 3 * key

    def extra_query(self, query: Tensor) -> Tensor:
        return -0.5 * query


def normed(tokens: Tensor, norm: Any) -> Tensor:
    if norm is None:
        return tokens
    return norm.weight * tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def by_hand(
    layer: Any, x: Tensor, context: Tensor | None, extra: Tensor, key_range: Tensor | None = None,
    extra_range: Tensor | None = None, alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """All tokens in one dense softmax, head by head, from the layer's own matrices."""
    source = x if context is None else context
    space, keys = x.shape[1:-1], source.shape[1:-1]
    extra = extra.expand(len(x), -1, -1)
    own = [layer.qkv] if layer.context_dim is None else [layer.q, layer.kv]
    weight, bias = (torch.cat([getattr(m, n) for m in own]) for n in ("weight", "bias"))
    heads, dim = (layer.num_heads, layer.kv_heads, layer.kv_heads), layer.head_dim
    weights, biases = (t.split([n * dim for n in heads]) for t in (weight, bias))
    count = extra.shape[1]

    def made(part: int, tokens: Tensor) -> Tensor:
        found = tokens.flatten(1, -2) @ weights[part].T + biases[part]
        found = found.unflatten(-1, (-1, dim))
        return found if part == 2 else normed(found, (layer.q_norm, layer.k_norm)[part])

    factors = (2, -1, -0.5, 3) if layer.qk_transform is not None else (1, 1, 1, 1)
    query = torch.cat([factors[0] * made(0, x), factors[2] * made(0, extra)], 1)
    key = torch.cat([factors[1] * made(1, source), factors[3] * made(1, extra)], 1)
    value = torch.cat([made(2, source), made(2, extra)], 1)
    reads = nn.functional.pad(matrix_of(layer.mask, space, keys), (0, count, 0, count), value=True)
    reads = reads.repeat(len(x), 1, 1)
    if key_range is not None:
        reads[:, :, : reads.shape[2] - count] &= inside(key_range, keys)[:, None]
    if extra_range is not None:
        reads[:, :, reads.shape[2] - count :] &= inside(extra_range[:, None], (count,))[:, None]
    table = torch.zeros(heads[0], *reads.shape[1:], dtype=torch.float64)
    if layer.rpb is not None:
        places = [torch.cartesian_prod(*map(torch.arange, size)) for size in (space, keys)]
        steps = places[1][None] - places[0][:, None]  # [Nq, Nk, rank]
        middle = torch.tensor(layer.rpb.shape[1:]) // 2
        at = (steps + middle).clamp(min=torch.zeros_like(middle), max=2 * middle).unbind(-1)
        table = nn.functional.pad(layer.rpb[:, *at], (0, count, 0, count))
    if alibi_slopes is not None:  # of one axis, in self-attention
        at = torch.arange(space[0], dtype=torch.float64)
        linear = -alibi_slopes[:, None, None] * (at[:, None] - at).abs()
        table = table + nn.functional.pad(linear, (0, count, 0, count))
    parts: list[Tensor] = []
    for head in range(heads[0]):
        group = head * heads[1] // heads[0]
        scores = torch.einsum("bqd,bkd->bqk", query[:, :, head], key[:, :, group])
        scores = scores * (dim**-0.5 if layer.scale is None else layer.scale) + table[head]
        weights_ = scores.masked_fill(~reads, float("-inf")).softmax(-1)
        parts.append(weights_ @ value[:, :, group])
    out = torch.cat(parts, 2) @ layer.proj.weight.T + layer.proj.bias
    grid, extras = out.split([out.shape[1] - count, count], 1)
    return grid.unflatten(1, space), extras


NEAR = Mask.neighborhood((3, 2))
PLACED = ("key_range", "extra_range", "alibi_slopes")
CASES: dict[str, tuple[Mask, tuple[int, ...], tuple[int, ...] | None, dict[str, Any], str]] = {
    "line": (LINE, (11,), None, {"kv_heads": 2}, ""),
    "line_of_as_many_extra_tokens": (LINE, (3,), None, {}, ""),
    "line_slopes": (LINE, (11,), None, {"kv_heads": 2}, "slopes, padded"),
    "plane": (PLANE, (4, 5), None, {"kv_heads": 1, "head_dim": 5}, ""),
    "plane_norm": (PLANE, (4, 5), None, {"qk_norm": True, "scale": 0.4}, "range"),
    "plane_transform": (PLANE, (4, 5), None, {"qk_norm": True, "qk_transform": Scaled()}, ""),
    "plane_registers": (PLANE, (4, 5), None, {}, "shared"),
    "plane_context": (CROSS, (4, 5), (3, 7), {"kv_heads": 2}, "range"),
    "plane_own_context": (CROSS, (4, 5), (3, 7), {"context_dim": 12, "qk_norm": True}, "shared"),
    "solid": (SOLID, (2, 3, 6), None, {"kv_heads": 2}, "range"),
    "tiled": (PLANE, (4, 5), None, {"backend": "tiled"}, ""),
    "padded_text": (PLANE, (4, 5), None, {}, "padded"),
    "table": (NEAR, (4, 5), None, {"relative_bias": True}, "range"),
    "reference": (NEAR, (4, 5), None, {"backend": "reference", "relative_bias": True}, "padded"),
}


def case(name: str) -> tuple[Any, list[Tensor], dict[str, Any]]:
    mask, space, keys, options, given = CASES[name]
    layer = build(mask, **options)
    tokens = [random(2, *space, 12)] + ([] if keys is None else [random(2, *keys, 12, seed=1)])
    named: dict[str, Any] = {"extra_tokens": random(1 if "shared" in given else 2, 3, 12, seed=2)}
    if "range" in given:
        boxes = [[[0, n] for n in keys or space], [[1, max(1, n - 1)] for n in keys or space]]
        named["key_range"] = torch.tensor(boxes, dtype=torch.int32)
    if "slopes" in given:
        named["alibi_slopes"] = torch.tensor([0.5, 0.25, 1.5, 0.0])
    if "padded" in given:
        named["extra_range"] = torch.tensor([[0, 1], [1, 3]], dtype=torch.int32)
    return layer, tokens, named


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


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", CASES)
def test_layer_equals_a_hand_written_layer(
    name: str, layout: str, plans: list[nbattn.Plan], cases: Callable[[str, int], None]
) -> None:
    layer, tokens, named = case(name)
    leaves = [t.requires_grad_() for t in (*tokens, named["extra_tokens"])]
    x, context = tokens[0], tokens[1] if len(tokens) > 1 else None
    ranges = {name: named.get(name) for name in PLACED}
    wanted = by_hand(layer, x, context, named["extra_tokens"], **ranges)
    layer.layout = layout
    given = [t.movedim(-1, 1) for t in tokens] if layout == "channels_first" else tokens
    found = layer(*given, **named, update_extra=True)
    shapes = [t.shape for t in given]
    flags = {n: True for n in PLACED if n in named}
    plan = layer.plan_for(*shapes, extra_tokens=3, update_extra=True, **flags)
    assert isinstance(plan, JointPlan)
    if layer.backend != "reference":  # which needs no plan
        assert [*plan.parts()] == plans
    if layout == "channels_first":
        found = (found[0].movedim(1, -1), found[1])
    sources = [*leaves, *layer.parameters()]
    upward = [random(*t.shape, seed=9 + n) for n, t in enumerate(wanted)]
    grads = (torch.autograd.grad(results, sources, upward) for results in (found, wanted))
    pairs = [*zip(found, wanted, strict=True), *zip(*grads, strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    cases("layer, joint", len(pairs))


def test_the_grid_is_the_same_without_the_update() -> None:
    for name in ("plane", "plane_norm", "plane_transform", "plane_context"):
        layer, tokens, named = case(name)
        found, _ = layer(*tokens, **named, update_extra=True)
        torch.testing.assert_close(found, layer(*tokens, **named), rtol=1e-12, atol=1e-12)


def test_no_extra_tokens_and_an_empty_batch() -> None:
    layer, x = build(PLANE), random(2, 4, 5, 12)
    found, extra = layer(x, extra_tokens=x.new_zeros(2, 0, 12), update_extra=True)
    torch.testing.assert_close(found, layer(x))
    assert extra.shape == (2, 0, 12)
    shapes = [t.shape for t in layer(x[:0], extra_tokens=x.new_zeros(0, 3, 12), update_extra=True)]
    assert shapes == [(0, 4, 5, 12), (0, 3, 12)]


@pytest.mark.parametrize("hooked", [False, True])
def test_packed_grids_are_the_grids_one_by_one(hooked: bool) -> None:
    layer, grids = build(Mask.neighborhood((3, 3)), qk_norm=True), [(4, 5), (3, 3)]
    if hooked:
        layer.proj.register_forward_hook(lambda *_: None)
    packed, extra = random(29, 12), random(2, 3, 12, seed=1)
    found, of_extra = layer(packed, extra_tokens=extra, update_extra=True, grids=grids)
    for n, (part, grid) in enumerate(zip(packed.split([20, 9]), grids, strict=True)):
        x = part.unflatten(0, grid)[None]
        one, other = layer(x, extra_tokens=extra[n : n + 1], update_extra=True)
        wanted = found.split([20, 9])[n].unflatten(0, grid)[None]
        torch.testing.assert_close(one, wanted, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(other, of_extra[n : n + 1], rtol=1e-11, atol=1e-11)


# The table.


def test_the_table_is_a_parameter_of_nattens_name_shape_and_values() -> None:
    torch.manual_seed(0)
    layer = NeighborhoodAttention(64, 16, Mask.neighborhood((7, 5)), relative_bias=True)
    names = ["rpb", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    assert list(layer.state_dict()) == names
    assert layer.rpb.shape == (16, 13, 9)
    assert 0.018 < layer.rpb.std() < 0.022
    assert layer.rpb.mean().abs() < 0.002
    assert layer.rpb.requires_grad
    assert build(PLANE).rpb is None
    other = NeighborhoodAttention(
        64, 16, Mask.neighborhood((7, 5)), relative_bias=True, device="meta", dtype="bfloat16"
    )
    assert (other.rpb.device.type, other.rpb.dtype) == ("meta", torch.bfloat16)


def test_weights_of_natten_with_a_table_load_and_mean_the_same() -> None:
    """Entry [h, j - i + K - 1] is added to the score of query i and key j; NATTEN's names."""
    heads, dim, space, kernel = 3, 4, (6, 7), (3, 5)
    state = {
        "rpb": random(heads, 5, 9, seed=1),
        "qkv.weight": random(36, 12, seed=2) * 0.4,
        "qkv.bias": random(36, seed=3),
        "proj.weight": random(12, 12, seed=4),
        "proj.bias": random(12, seed=5),
    }
    options: dict[str, Any] = {"relative_bias": True, "backend": "reference"}
    layer = NeighborhoodAttention(12, heads, Mask.neighborhood(kernel), **options).double()
    assert [t.shape for t in layer.state_dict().values()] == [t.shape for t in state.values()]
    layer.load_state_dict(state)
    x = random(2, *space, 12, seed=6)
    query, key, value = (
        (x @ state["qkv.weight"].T + state["qkv.bias"]).unflatten(-1, (3, heads, dim)).unbind(3)
    )
    wanted = torch.empty(2, *space, heads, dim, dtype=torch.float64)
    for i in range(space[0]):
        for j in range(space[1]):
            rows, columns = (
                range(s, s + k)
                for s, k in (
                    (min(max(i - 1, 0), space[0] - 3), 3),
                    (min(max(j - 2, 0), space[1] - 5), 5),
                )
            )
            at = [(a, b) for a in rows for b in columns]
            for h in range(heads):
                scores = torch.stack(
                    [
                        (query[:, i, j, h] * key[:, a, b, h]).sum(-1) / dim**0.5
                        + state["rpb"][h, a - i + 2, b - j + 4]
                        for a, b in at
                    ],
                    -1,
                )
                near = torch.stack([value[:, a, b, h] for a, b in at], 1)
                wanted[:, i, j, h] = (scores.softmax(-1)[..., None] * near).sum(1)
    wanted = wanted.flatten(-2) @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(layer(x), wanted, rtol=1e-11, atol=1e-11)


def test_a_layer_with_a_table_is_shown_copied_and_configured() -> None:
    mask = Mask.neighborhood((3, 3))
    layer = NeighborhoodAttention(12, 4, mask, relative_bias=True)
    assert layer.extra_repr() == f"12, 4, {mask!r}, relative_bias=True"
    assert torch.equal(copy.deepcopy(layer).rpb, layer.rpb)
    built = LayerConfig(mask=mask, dim=12, num_heads=4, relative_bias=True).build()
    assert built.rpb.shape == (4, 5, 5)
    config = {"masks": {"a": {"neighborhood": {"kernel_size": [3, 3]}}}, "layers": {}}
    config["layers"]["b"] = {"mask": "a", "dim": 12, "num_heads": 4, "relative_bias": True}
    assert nbattn.load(config).layers["b"].build().rpb is not None


def test_a_plan_knows_the_table() -> None:
    layer = NeighborhoodAttention(12, 4, NEAR, relative_bias=True, backend="reference")
    request = layer.plan_for((1, 4, 5, 12)).request
    assert request.relative_bias
    assert request.training
    layer.qkv.requires_grad_(False)
    assert layer.plan_for((1, 4, 5, 12)).request.training
    layer.rpb.requires_grad_(False)
    assert not layer.plan_for((1, 4, 5, 12)).request.training


def test_a_mask_without_a_table() -> None:
    text = r"relative_bias: axis 1 has an unlimited side, for which a table has no size"
    with pytest.raises(InputError, match=text):
        NeighborhoodAttention(12, 4, Mask(nbattn.Axis(1, 1), nbattn.Axis(2)), relative_bias=True)


# Tools.


def test_hooks_see_one_call_of_each_projection() -> None:
    layer, tokens, named = case("plane_context")
    wanted = layer(*tokens, **named, update_extra=True)
    seen: list[tuple[int, ...]] = []
    for module in (layer.qkv, layer.proj):
        module.register_forward_hook(lambda module, given, result: seen.append(result.shape))
    found = layer(*tokens, **named, update_extra=True)
    assert seen == [(2, 4 * 5 + 3 * 7 + 3, 24), (2, 4 * 5 + 3, 12)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["q", "kv"])
def test_registers_where_one_of_two_projections_has_a_hook(name: str) -> None:
    layer, x, context = build(CROSS, context_dim=12), random(2, 4, 5, 12), random(2, 3, 7, 12)
    named = {"extra_tokens": random(1, 3, 12, seed=2), "update_extra": True}
    wanted = layer(x, context, **named)
    getattr(layer, name).register_forward_hook(lambda *_: None)
    for one, other in zip(layer(x, context, **named), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_of_both_results() -> None:
    layer = build(PLANE, proj_drop=1.0).train()
    found = layer(random(2, 4, 5, 12), extra_tokens=random(2, 3, 12), update_extra=True)
    assert not any(t.any() for t in found)


def test_torch_fx_takes_it_as_one_step() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = build(PLANE)

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            y, text = self.attn(x, extra_tokens=text, update_extra=True)
            return y.sum((1, 2)) + text.sum(1)

    net, given = Net(), (random(2, 4, 5, 12), random(2, 3, 12))
    traced = fx.symbolic_trace(net)
    assert torch.equal(traced(*given), net(*given))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["attn"]


@pytest.mark.parametrize("name", ["plane_norm", "plane_registers", "plane_context"])
def test_compiled_layer_equals_eager(name: str) -> None:
    layer, tokens, named = case(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = [f(*tokens, **named, update_extra=True) for f in (compiled, layer)]
    sources = [*layer.parameters()]
    grads = [torch.autograd.grad(sum((t**2).sum() for t in r), sources) for r in results]
    for one, other in zip([*results[0], *grads[0]], [*results[1], *grads[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_exports() -> None:
    layer, tokens, named = case("plane_norm")
    program = torch.export.export(layer, tuple(tokens), named | {"update_extra": True})
    found = program.module()(*tokens, **named, update_extra=True)
    for one, other in zip(found, layer(*tokens, **named, update_extra=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_autocast() -> None:
    layer, x = build(PLANE, qk_norm=True).float(), random(2, 4, 5, 12, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, extra_tokens=x[:, 0], update_extra=True)
    wanted = layer(x, extra_tokens=x[:, 0], update_extra=True)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.3)


# What is refused.


def test_an_update_that_has_nothing_to_update_or_is_no_bool() -> None:
    layer, x = build(PLANE), random(2, 4, 5, 12)
    with pytest.raises(InputError) as caught:
        layer(x, update_extra=True)
    assert caught.value.problem == "update_extra=True, but there are no extra_tokens."
    for call in (
        lambda: layer(x, extra_tokens=x[:, 0], update_extra=1),
        lambda: layer.plan_for(x.shape, extra_tokens=3, update_extra=1),
    ):
        with pytest.raises(InputError, match="update_extra=1 is an int, not a bool"):
            call()


def test_a_transform_needs_a_method_for_extra_queries() -> None:
    class Half(Scaled):
        extra_query = None

    layer, x = build(PLANE, qk_transform=Half()), random(2, 4, 5, 12)
    assert layer(x, extra_tokens=x[:, 0]).shape == x.shape
    for call in (
        lambda: layer(x, extra_tokens=x[:, 0], update_extra=True),
        lambda: layer.plan_for(x.shape, extra_tokens=3, update_extra=True),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "no method extra_query for their queries" in caught.value.problem
        assert caught.value.fix == (
            "type(layer.qk_transform).extra_query = lambda self, query: query, which leaves them "
            "as they are."
        )


def test_extra_tokens_with_channels_of_their_own_have_no_queries() -> None:
    layer = build(CROSS, context_dim=7)
    given = random(2, 4, 5, 12), random(2, 3, 7, 7)
    for call in (
        lambda: layer(*given, extra_tokens=random(2, 3, 7), update_extra=True),
        lambda: layer.plan_for(*(t.shape for t in given), extra_tokens=3, update_extra=True),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "extra tokens have context_dim=7 channels, and queries come from 12" in str(
            caught.value
        )
        assert "nbattn.joint_attention(query, key, value, layer.mask" in caught.value.fix


def test_a_range_without_extra_tokens() -> None:
    with pytest.raises(InputError, match="extra_range is given, but there are no extra keys"):
        build(PLANE)(random(2, 4, 5, 12), extra_range=[[0, 1]] * 2)

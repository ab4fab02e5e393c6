"""nbattn in the place of NATTEN: functions, modules and weights of both generations, install and
uninstall, and transformers' DiNAT against attention in plain torch.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import dense_attention
import natten_slots
import oracle
import pytest
import torch
from torch import Tensor, nn

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import dinat, fused, modules


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    natten.restore_dinat()
    natten.uninstall()
    assert not natten.is_installed()


WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {"kernel_size": 6, "stride": 4}),
    ((17,), {"kernel_size": 5, "dilation": 3}),
    ((17,), {"kernel_size": 4, "stride": 3, "is_causal": True}),
    ((9,), {"kernel_size": 9, "is_causal": True}),
    ((9, 11), {"kernel_size": (4, 3), "stride": (2, 1), "dilation": (2, 3)}),
    ((9, 8), {"kernel_size": (3, 8), "is_causal": (True, False)}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "stride": (1, 2, 3), "dilation": (1, 3, 2)}),
]
DEFAULTS = {"stride": 1, "dilation": 1, "is_causal": False}


@pytest.mark.parametrize(("space", "window"), WINDOWS)
@pytest.mark.parametrize("extra", [0, 2])
def test_todays_functions_are_the_published_mask(space, window, extra, cases) -> None:
    """Values, logsumexp and all gradients, with fewer key heads and another value size."""
    given = {
        "query": random(2, *space, 4, 8),
        "key": random(2, *space, 2, 8, seed=1),
        "value": random(2, *space, 2, 5, seed=2),
    }
    if extra:
        given["extra_key"] = random(2, extra, 2, 8, seed=3)
        given["extra_value"] = random(2, extra, 2, 5, seed=4)
    renamed = {name.replace("extra_", "additional_"): t for name, t in given.items()}
    named = {n + "s" if n.startswith("additional") else n: t for n, t in renamed.items()}
    function = getattr(natten, f"na{len(space)}d")
    found = function(**named, **window, scale=0.7, return_lse=True)
    full = DEFAULTS | window
    allowed = torch.from_numpy(
        oracle.natten_matrix(
            space, full["kernel_size"], full["stride"], full["dilation"], full["is_causal"]
        )
    )
    wanted = dense_attention.attend(**given, allowed=allowed, scale=0.7)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    upward = [random(*t.shape, seed=7).detach() for t in wanted]
    grads = [torch.autograd.grad(t, list(given.values()), upward) for t in (found, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    cases("natten functions", 1)


def test_a_scale_of_zero_is_no_default() -> None:
    query, value = random(1, 9, 1, 4).detach(), random(1, 9, 1, 4, seed=1).detach()
    found = natten.na1d(query, query, value, 3, scale=0.0)
    torch.testing.assert_close(found[0, 4], value[0, 3:6].mean(0))


def test_positional_arguments_stand_where_each_generation_has_them() -> None:
    query = random(1, 12, 12, 2, 4).detach()
    today = natten.na2d(query, query, query, 3, 2, 4)
    assert torch.equal(today, natten.na2d(query, query, query, 3, stride=2, dilation=4))
    before = fused.older_na2d(query, query, query, 3, 4)
    assert torch.equal(before, natten.na2d(query, query, query, 3, dilation=4))
    assert not torch.equal(before, natten.na2d(query, query, query, 3, stride=3))


def test_the_older_function_adds_a_bias_table() -> None:
    query, key, value = (random(2, 7, 9, 3, 4, seed=n) for n in range(3))
    rpb, extra = random(3, 5, 5, seed=3), random(2, 2, 3, 4, seed=4)
    found = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=rpb, scale=0.3, additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    first = [t.movedim(-2, 1) for t in (query * 0.3, key, value)]
    more = extra.transpose(1, 2)
    attn = natten_slots.scores(*first[:2], 3, (2, 3), rpb=rpb, extra=more).softmax(-1)
    wanted = natten_slots.weighted(attn, first[2], 3, (2, 3), extra=more).movedim(1, -2)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    without = fused.older_na2d(
        query, key, value, 3, (2, 3), additional_keys=extra, additional_values=extra
    )
    zero = fused.older_na2d(
        query, key, value, 3, (2, 3), rpb=torch.zeros_like(rpb), additional_keys=extra,
        additional_values=extra,
    )  # fmt: skip
    torch.testing.assert_close(without, zero, rtol=1e-11, atol=1e-11)


def test_attention_and_merge_join_halves_with_exact_gradients() -> None:
    query, key = random(1, 10, 2, 4), random(1, 12, 2, 4, seed=1)
    whole = natten.attention(query, key, key)
    halves = [natten.attention(query, k, k, return_lse=True) for k in key.split(6, dim=1)]
    out, _ = natten.merge_attentions(*zip(*halves, strict=True))
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(t.square().sum(), (query, key)) for t in (out, whole)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    causal = natten.attention(query, query, query, is_causal=True)
    wanted, _ = dense_attention.attend(query, query, query, torch.ones(10, 10).tril().bool())
    torch.testing.assert_close(causal, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 7)])
def test_causal_attention_of_two_lengths_is_top_left(queries: int, keys: int) -> None:
    query, key = random(1, queries, 2, 4), random(1, keys, 2, 4, seed=1)
    found = natten.attention(query, key, key, is_causal=True)
    wanted, _ = dense_attention.attend(query, key, key, torch.ones(queries, keys).tril().bool())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_tunes_changes_nothing() -> None:
    query = random(1, 12, 12, 2, 4).detach()
    tuned = natten.na2d(
        query, query, query, 3, q_tile_shape=(8, 8), kv_tile_shape=(8, 8), torch_compile=True,
        backward_q_tile_shape=(8, 8), backward_kv_tile_shape=(8, 8), backward_kv_splits=(1, 1),
        backward_use_pt_reduction=True, run_persistent_kernel=False, kernel_schedule="coop",
        attention_kwargs={"q_tile_size": 64, "backend": None}, backend="tiled",
    )  # fmt: skip
    torch.testing.assert_close(tuned, natten.na2d(query, query, query, 3))


LINE, PLANE = torch.zeros(1, 9, 2, 4), torch.zeros(1, 8, 9, 2, 4)
REFUSED = {
    "NATTEN's kernel": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, backend="cutlass-fna"),
        "backend='cutlass-fna' is not one of nbattn's, and nbattn never replaces a named "
        "kernel by another.",
    ),
    "kwargs that change": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, attention_kwargs={"is_causal": True}),
        "attention_kwargs has 'is_causal', which would change the result.",
    ),
    "other spaces": (
        lambda: natten.na1d(LINE, LINE[:, :5], LINE[:, :5], 3),
        "query is [1, 9, 2, 4], key [1, 5, 2, 4]: their spaces differ.",
    ),
    "rank": (
        lambda: natten.na2d(LINE, LINE, LINE, 3),
        "query is [1, 9, 2, 4], not of 5 dimensions.",
    ),
    "window": (
        lambda: natten.na2d(PLANE, PLANE, PLANE, (9, 3)),
        "axis 0: kernel_size 9 x dilation 1 = 9 is more than its 8 tokens.",
    ),
    "no tensor": (
        lambda: natten.neighborhood_attention_generic(LINE, [1], LINE, 3),
        "key is a list, not a tensor.",
    ),
    "keys without values": (
        lambda: natten.na1d(LINE, LINE, LINE, 3, additional_keys=LINE[:, :2]),
        "additional_values is missing.",
    ),
    "values without keys": (
        lambda: fused.older_na2d(
            PLANE, PLANE, PLANE, 3, rpb=torch.zeros(2, 5, 5), additional_values=LINE[:, :2]
        ),
        "additional_keys is missing.",
    ),
    "a plane as a sequence": (
        lambda: natten.attention(PLANE, PLANE, PLANE),
        "query is [1, 8, 9, 2, 4], not of 4 dimensions.",
    ),
    "packed": (
        lambda: natten.attention(LINE, LINE, LINE, seqlens_Q=torch.tensor([4, 5])),
        "seqlens_Q is given: packed sequences are not supported.",
    ),
    "xformers": (
        lambda: fused.older_na1d(LINE, LINE, LINE, 3, xformers_kwargs={"p": 0.1}),
        "xformers_kwargs={'p': 0.1} is not supported.",
    ),
    "heads": (
        lambda: natten.NeighborhoodAttention1D(10, 3, 3),
        "10 channels are no multiple of 3 heads.",
    ),
    "channels": (
        lambda: natten.NeighborhoodAttention2D(8, 2, 3)(torch.zeros(1, 8, 9, 7)),
        "x is [1, 8, 9, 7].",
    ),
    "bias and causal": (
        lambda: modules.OlderNeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True),
        "rel_pos_bias with a causal axis: NATTEN has no such module.",
    ),
    "generation": (
        lambda: natten.install(generation="0.19"),
        "generation='0.19' is not known.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_in_words(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.problem == text
    assert error.value.fix


# Modules.


def plain(x: Tensor, weights: dict[str, Tensor], heads: int, window: dict[str, Any]) -> Tensor:
    """A module's forward from its weights alone, row by row of NATTEN's layout."""
    channels, space = x.shape[-1], x.shape[1:-1]
    parts = weights["qkv.weight"].split(channels), weights["qkv.bias"].split(channels)
    query, key, value = (
        (x @ weight.T + bias).unflatten(-1, (heads, -1)).movedim(-2, 1)
        for weight, bias in zip(*parts, strict=True)
    )
    query = query * (channels // heads) ** -0.5
    attn = natten_slots.scores(query, key, **window, rpb=weights.get("rpb")).softmax(-1)
    found = natten_slots.weighted(attn, value, **window).movedim(1, -2).flatten(-2)
    assert found.shape == (x.shape[0], *space, channels)
    return found @ weights["proj.weight"].T + weights["proj.bias"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("generation", ["today", "older", "older with bias"])
def test_modules_load_natten_named_weights(rank: int, generation: str) -> None:
    space, channels, heads = ((9,), (7, 8), (4, 6, 5))[rank - 1], 8, 2
    weights = {
        "qkv.weight": random(3 * channels, channels),
        "qkv.bias": random(3 * channels, seed=1),
        "proj.weight": random(channels, channels, seed=2),
        "proj.bias": random(channels, seed=3),
    }
    window = {"kernel_size": 3, "dilation": (1, 2, 1)[:rank] if rank > 1 else 2}
    named: dict[str, Any] = {}
    if generation == "older with bias":
        weights["rpb"] = random(heads, *(5,) * rank, seed=4)
        named["rel_pos_bias"] = True
    prefix = "" if generation == "today" else "Older"
    kind = getattr(modules, f"{prefix}NeighborhoodAttention{rank}D")
    module = kind(channels, heads, **window, **named).double()
    assert set(module.state_dict()) == set(weights)
    module.load_state_dict({name: t.detach() for name, t in weights.items()})
    x = random(2, *space, channels, seed=5)
    found, wanted = module(x), plain(x, weights, heads, window)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-9, atol=1e-9)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(twin(x), found)
    assert f"kernel_size={(3,) * rank}" in repr(module)


@pytest.mark.parametrize("space", [(9, 11), (4, 11), (4, 5)])
def test_modules_of_0_14_pad_what_is_smaller_than_their_window(space: tuple[int, int]) -> None:
    """With zeros on the right, before the projections; the padding is attended to."""
    channels, heads = 8, 2
    torch.manual_seed(0)
    module = modules.OldestNeighborhoodAttention2D(channels, heads, 3, 2).double()
    weights = {name: t.detach() for name, t in module.named_parameters()}
    assert list(weights["rpb"].shape) == [heads, 5, 5]
    x = random(2, *space, channels)
    padded = torch.zeros(2, *(max(length, 6) for length in space), channels).double()
    padded[:, : space[0], : space[1]] = x
    wanted = plain(padded, weights, heads, {"kernel_size": 3, "dilation": 2})
    torch.testing.assert_close(module(x), wanted[:, : space[0], : space[1]])
    without = modules.OldestNeighborhoodAttention1D(channels, heads, 5, None, False)
    assert set(without.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert without(x[:, 0, :2].float()).shape == (2, 2, channels)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    with pytest.raises(InputError, match=r"x is \[2, 9\]"):
        module(x[:, 0, :1, 0].expand(2, 9))


def test_attention_dropout_is_applied() -> None:
    torch.manual_seed(0)
    module = modules.OlderNeighborhoodAttention2D(8, 2, 3, attn_drop=0.5, proj_drop=0.0)
    x = torch.randn(1, 6, 6, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_a_scale_given_to_a_module_is_used() -> None:
    module = natten.NeighborhoodAttention1D(8, 2, 3, qk_scale=0.0)
    _, _, value = module.heads(x := torch.randn(1, 5, 8))
    wanted = module.proj(value[:, 1:4].mean(1).flatten(-2))
    torch.testing.assert_close(module(x)[:, 2], wanted)


# Signatures.


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_todays_signatures_are_those_of_0_21(rank: int) -> None:
    window = ["kernel_size", "stride", "dilation", "is_causal"]
    tiles = ["q_tile_shape", "kv_tile_shape", "backward_q_tile_shape", "backward_kv_tile_shape"]
    wanted = ["query", "key", "value", *window, "scale", "additional_keys", "additional_values"]
    wanted += ["attention_kwargs", "backend", *tiles, "backward_kv_splits"]
    wanted += ["backward_use_pt_reduction", "run_persistent_kernel", "kernel_schedule"]
    wanted += ["torch_compile", "return_lse"]
    assert [*inspect.signature(getattr(natten, f"na{rank}d")).parameters] == wanted
    kind = getattr(natten, f"NeighborhoodAttention{rank}D")
    given = ["embed_dim", "num_heads", *window, "qkv_bias", "qk_scale", "proj_drop"]
    assert [*inspect.signature(kind).parameters] == given


# Transformers' DiNAT.


def dense_forward(self: Any, hidden: Tensor, output_attentions: Any = False) -> tuple[Tensor, ...]:
    """DiNAT's attention in plain torch: all pairs, the enumerator's mask, the bias looked up."""
    batch, rows, columns, channels = hidden.shape
    heads, size = self.num_attention_heads, self.attention_head_size
    query, key, value = (
        part(hidden).reshape(batch, rows * columns, heads, size).transpose(1, 2)
        for part in (self.query, self.key, self.value)
    )
    kernel, step = self.kernel_size, self.dilation
    allowed = torch.from_numpy(oracle.natten_matrix((rows, columns), kernel, 1, step, False))
    y, x = (t.flatten() // step for t in torch.meshgrid(
        torch.arange(rows), torch.arange(columns), indexing="ij"))  # fmt: skip
    table = [(t[None] - t[:, None] + kernel - 1).clamp(0, 2 * kernel - 2) for t in (y, x)]
    scores = query @ key.mT / size**0.5 + self.rpb[:, table[0], table[1]]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    found = (weights @ value).transpose(1, 2).reshape(batch, rows, columns, channels)
    return (found,)


@pytest.fixture
def dinat_model(clean: None) -> Any:
    pytest.importorskip("transformers")
    natten.install(replace=True)
    natten.repair_dinat()
    from transformers import DinatConfig, DinatForImageClassification

    torch.manual_seed(0)
    config = DinatConfig(
        embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 8], kernel_size=3,
        dilations=[[1, 4], [1, 3], [2]], num_labels=5, layer_scale_init_value=0.5,
        drop_path_rate=0.0,
    )  # fmt: skip
    model = DinatForImageClassification(config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("rpb"):
            nn.init.normal_(parameter)
    return model


def test_dinat_runs_and_trains_as_in_plain_torch(
    dinat_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps 13x18, 7x9 and 4x5: odd, dilations that divide nothing, the last ones below K d."""
    model, labels = dinat_model.train(), torch.tensor([1, 3])
    x = random(2, 3, 52, 72)
    results = []
    attention = sys.modules[dinat._MODULE].NeighborhoodAttention
    seen: list[tuple[int, ...]] = []

    def watched(self: Any, hidden: Tensor, output_attentions: Any = False) -> tuple[Tensor, ...]:
        seen.append((*hidden.shape[1:3], self.dilation))
        return dense_forward(self, hidden)

    for forward in (attention.forward, watched):
        monkeypatch.setattr(attention, "forward", forward)
        model.zero_grad()
        out = model(x, labels=labels)
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((out.logits, grads))
    assert seen == [(13, 18, 1), (13, 18, 4), (7, 9, 1), (9, 9, 3), (6, 6, 2)]
    (found, ours), (wanted, theirs) = results
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-8, atol=1e-10, msg=name)
        if name.endswith("rpb"):
            assert grad.abs().sum() > 0


def test_dinat_gives_its_weights_when_asked(dinat_model: Any) -> None:
    out = dinat_model.eval()(random(1, 3, 52, 72), output_attentions=True)
    assert out.attentions[0].shape[-1] == 9
    torch.testing.assert_close(out.attentions[0].sum(-1).mean().item(), 1.0)


def test_without_the_repair_dinat_fails_as_with_any_natten(dinat_model: Any) -> None:
    """Its heads are [B, X, Y, H, D]; should this pass one day, the repair may go."""
    natten.restore_dinat()
    with pytest.raises(InputError, match=r"rpb is|is more than its"):
        dinat_model(random(1, 3, 52, 72))

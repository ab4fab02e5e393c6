"""Tests of tensor parallelism: two processes with half of the heads each are one with all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from small_layers import CROSS, PLANE, build, random
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from nbattn import InputError, Mask
from nbattn.nn import HeadParallel
from nbattn.nn.parallel import rows_by_rank

HEADS = {"qkv": (24, 12, 12), "q": (24,), "kv": (12, 12)}  # rows of each part


class Gain(nn.Module):
    """A transform with a parameter that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(random(6))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query * self.gain, key * self.gain

    def extra_key(self, key: Tensor) -> Tensor:
        return key * self.gain

    def extra_query(self, query: Tensor) -> Tensor:
        return query * self.gain


class Net(nn.Module):
    """A layer inside of a model."""

    def __init__(self, mask: Mask, **options: Any) -> None:
        super().__init__()
        self.attn = build(mask, kv_heads=2, head_dim=6, **options)

    def forward(self, x: Tensor, *more: Tensor, **named: Any) -> Tensor:
        found = self.attn(x, *more, **named)
        if not isinstance(found, tuple):
            return x + found
        return torch.cat([(x + found[0]).flatten(1, -2), found[1]], 1)


X, CONTEXT, WORDS = random(2, 4, 5, 12), random(2, 3, 7, 12, seed=1), random(2, 3, 7, 7, seed=2)
REGISTERS = random(1, 3, 12, seed=3)
CASES: dict[str, tuple[Net, tuple[Tensor, ...], dict[str, Any]]] = {
    "self": (Net(PLANE), (X,), {}),
    "norm": (Net(PLANE, qk_norm=True), (X,), {"extra_tokens": REGISTERS}),
    "transform": (Net(CROSS, qk_transform=Gain()), (X, CONTEXT), {"extra_tokens": REGISTERS}),
    "words": (
        Net(CROSS, context_dim=7, qk_norm=True, qkv_bias=False),
        (X, WORDS),
        {"extra_tokens": random(2, 3, 7)},
    ),
    "updated": (
        Net(CROSS, qk_norm=True, qk_transform=Gain()),
        (X, CONTEXT),
        {"extra_tokens": REGISTERS, "update_extra": True},
    ),
    "table": (
        Net(Mask.neighborhood((3, 3)), relative_bias=True, backend="reference"),
        (X,),
        {"extra_tokens": REGISTERS, "update_extra": True},
    ),
}


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(net: nn.Module, mesh: Any) -> Any:
    plan = {"attn": HeadParallel(), "attn.proj": RowwiseParallel()}
    return parallelize_module(copy.deepcopy(net), mesh, plan)


def results(net: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> list[Tensor]:
    """The output and the gradients of inputs and parameters, in the order of a state dict."""
    given = tuple(t.clone().requires_grad_() for t in given)
    out = net(*given, **named)
    (out * random(*out.shape, seed=9)).sum().backward()
    found = [out.detach(), *(t.grad for t in given)]
    for name, parameter in net.named_parameters():
        grad, kind = whole(parameter.grad), name.split(".")[1]
        if isinstance(parameter, DTensor) and kind in HEADS:
            grad = grad[rows_by_rank(HEADS[kind], 2).argsort()]
        found.append(grad)
    return found


def compare(net: Net, given: tuple[Tensor, ...], named: dict[str, Any], mesh: Any) -> None:
    parallel = sharded(net, mesh)
    assert (parallel.attn.num_heads, parallel.attn.kv_heads) == (2, 1)
    assert parallel.attn.proj.weight.to_local().shape == (12, 12)
    for found, wanted in zip(
        results(parallel, given, named), results(net, given, named), strict=True
    ):
        assert wanted.any()
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


def states(net: Net, given: tuple[Tensor, ...], named: dict[str, Any], mesh: Any) -> None:
    """A state dict has the rows of one process, and fills a model on ranks, or without memory."""
    parallel, wanted = sharded(net, mesh), net(*given, **named)
    state = parallel.state_dict()
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(whole(state[name]), t) for name, t in net.state_dict().items())
    options = StateDictOptions(full_state_dict=True)
    full = get_model_state_dict(parallel, options=options)
    empty, filled = sharded(copy.deepcopy(net).to("meta"), mesh), sharded(net, mesh)
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in (*empty.parameters(), *filled.parameters()):
            parameter.zero_()
    empty.load_state_dict(state)
    set_model_state_dict(filled, full, options=options)
    for model in (empty, filled):
        torch.testing.assert_close(model(*given, **named), wanted)


def refusals(mesh: Any) -> None:
    net, hint = CASES["self"][0], r'\{"attn": nbattn.nn.HeadParallel\(\), "attn.proj"'
    for style in (ColwiseParallel(), ColwiseParallel(use_local_output=False)):
        cut = parallelize_module(copy.deepcopy(net), mesh, {"attn.qkv": style})
        with pytest.raises(InputError, match=f"cuts q from k and v(?s:.*){hint}"):
            cut(X)
    without = parallelize_module(copy.deepcopy(net), mesh, {"attn": HeadParallel()})
    with pytest.raises(InputError, match=r"layer\.proj is whole"):
        without(X)
    with pytest.raises(InputError, match=r"layer\.proj is whole"):
        without.attn(X.flatten(0, 2), grids=[(8, 5)])
    with pytest.raises(InputError, match=f"HeadParallel is on a Linear(?s:.*){hint}"):
        parallelize_module(copy.deepcopy(net), mesh, {"attn.qkv": HeadParallel()})
    with pytest.raises(InputError, match="2 ranks cannot share 3 key heads evenly"):
        parallelize_module(build(PLANE, heads=3), mesh, HeadParallel())
    with pytest.raises(InputError, match="another tool has changed it"):
        parallelize_module(without.attn, mesh, HeadParallel())


def compiled(net: Net, given: tuple[Tensor, ...], mesh: Any) -> None:
    """One graph forward, whose parameters that all heads share have summed gradients."""
    parallel = sharded(net, mesh)
    parallel.compile(backend="aot_eager", fullgraph=True)
    for found, wanted in zip(results(parallel, given, {}), results(net, given, {}), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


def on_a_sharded_model(net: Net) -> None:
    """FSDP of what is sharded by heads already."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "heads"))
    parallel = fully_shard(sharded(net, mesh["heads"]), mesh=mesh["data"])
    found, wanted = parallel(X), net(X)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    net.zero_grad()
    wanted.square().sum().backward()
    for name in ("q_norm", "k_norm"):
        one, other = getattr(parallel.attn, name).weight.grad, getattr(net.attn, name).weight.grad
        torch.testing.assert_close(whole(one), other)
    assert torch.equal(whole(parallel.state_dict()["attn.qkv.weight"]), net.attn.qkv.weight)


def slopes_of_own_heads(rank: int, mesh: Any) -> None:
    """Each rank gives the slopes of its heads; those of all heads do not fit."""
    net, tokens = Net(Mask.causal()), random(2, 9, 12)
    slopes = torch.tensor([0.5, 0.25, 1.5, 0.125])
    own = {"alibi_slopes": slopes.chunk(2)[rank]}
    found = results(sharded(net, mesh), (tokens,), own)
    wanted = results(net, (tokens,), {"alibi_slopes": slopes})
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    with pytest.raises(InputError, match=r"alibi_slopes has shape \[4\], not \[2\]"):
        sharded(net, mesh)(tokens, alibi_slopes=slopes)


def work(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    slopes_of_own_heads(rank, mesh)
    for case in CASES.values():
        compare(*case, mesh)
    for name in ("self", "words", "table"):
        states(*CASES[name], mesh)
    compiled(Net(CROSS, qk_norm=True, qk_transform=Gain()), (X, CONTEXT), mesh)
    refusals(mesh)
    on_a_sharded_model(CASES["norm"][0])
    net = CASES["self"][0]
    shared = DTensor.from_local(X, mesh, [Replicate()])
    torch.testing.assert_close(sharded(net, mesh).attn(shared), net.attn(X))
    plan = sharded(net, mesh).attn.plan_for(X.shape).request
    assert (plan.heads, plan.kv_heads) == (2, 1)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
def test_two_processes_are_one() -> None:
    ranks.run(work)


def test_the_style_shows_its_arguments() -> None:
    assert repr(HeadParallel(input_layouts=Replicate())) == "HeadParallel(input_layouts=R)"


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_every_rank_has_the_rows_of_its_heads(ranks: int) -> None:
    """Heads of two rows: 12 of q, 6 of k, 6 of v."""
    names = [f"{part}{row // 2}" for part, rows in (("q", 24), ("k", 12), ("v", 12))
             for row in range(rows)]  # fmt: skip
    chunks = rows_by_rank([24, 12, 12], ranks).chunk(ranks)
    for rank, chunk in enumerate(chunks):
        keys = range(6 * rank // ranks, 6 * (rank + 1) // ranks)
        queries = range(2 * keys.start, 2 * keys.stop)
        wanted = [f"q{n}" for n in queries] + [f"{part}{n}" for part in "kv" for n in keys]
        assert [names[row] for row in chunk[::2]] == wanted
        assert [names[row] for row in chunk[1::2]] == wanted

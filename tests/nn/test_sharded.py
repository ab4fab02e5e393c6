"""Tests of layers whose tokens ranks share: outputs and all gradients are those of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from small_layers import build, random
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from nbattn import Axis, InputError, Mask
from nbattn.nn import HeadParallel, SpaceParallel

EVERYWHERE = Replicate()
PLANE = Mask(Axis(2, 1), Axis(1, 2, border="shift"))
CACHED = Mask(Axis(2, 1, align="bottom-right"), Axis(1, 2))
SPACE = (7, 6)  # chunks of 7 are 4 and 3
RANGES = torch.tensor([[[0, 7], [1, 6]], [[2, 7], [0, 6]], [[0, 5], [0, 3]]]).int()
BOTH = (Shard(1), Shard(2))


class Positions(nn.Module):
    """A transform that depends on positions in the space, and has a parameter and a buffer."""

    def __init__(self, rotates: bool = False) -> None:
        super().__init__()
        self.gain, self.table = nn.Parameter(random(6, seed=1)), nn.Buffer(random(6, seed=2))
        self.rotates = rotates

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.moved(query), self.moved(key)

    def moved(self, tokens: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, dtype=tokens.dtype) for n in tokens.shape[1:3])
        places = (rows[:, None] + 0.3 * columns)[..., None, None]
        if not self.rotates:
            return tokens * (places.cos() * self.table + self.gain)
        turned = torch.cat([tokens[..., 3:], -tokens[..., :3]], -1)
        return turned * (places * self.table).sin() * self.gain + tokens

    def extra_key(self, key: Tensor) -> Tensor:
        return key * self.gain

    def extra_query(self, query: Tensor) -> Tensor:
        return query * self.gain * self.table


class Net(nn.Module):
    """A layer inside of a model."""

    def __init__(self, mask: Mask = PLANE, **options: Any) -> None:
        super().__init__()
        self.attn = build(mask, head_dim=6, **options)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.attn(*given, **named)


def everything(mask: Mask = PLANE, *, rotates: bool = False, **options: Any) -> Net:
    return Net(mask, kv_heads=2, qk_norm=True, qk_transform=Positions(rotates), **options)


X, CONTEXT = random(3, *SPACE, 12), random(3, *SPACE, 12, seed=1)
WORDS, REGISTERS = random(3, 2, 12, seed=3), random(1, 2, 12, seed=4)
Make = Callable[[nn.Module, DeviceMesh], nn.Module]


def placed(tensor: Tensor, mesh: DeviceMesh, placements: Any) -> Any:
    """A tensor that all ranks have, distributed without sending it."""
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


def replicated(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """All parameters as distributed tensors that every rank has."""
    return distribute_module(net, mesh)


def styled(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(net, mesh, {"attn": SpaceParallel()})


def of_local_tokens(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    style = SpaceParallel(shard=("first", "second"), space=SPACE)
    return parallelize_module(net, mesh, {"attn": style})


def with_heads(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Rows of the space on one dimension of the mesh, heads on the other."""
    style = SpaceParallel(shard=("first", None), space=SPACE)
    net = parallelize_module(net, mesh["first"], {"attn": style})
    plan = {"attn": HeadParallel(), "attn.proj": RowwiseParallel()}
    return parallelize_module(net, mesh["second"], plan)


# The model, how ranks share it, its inputs with their placements, and named arguments.
Case = tuple[Net, Make, list[tuple[Tensor, Any]], dict[str, Any]]
ROWS, SAMPLES = (Shard(1), EVERYWHERE), (Shard(0), Shard(1))
CASES: dict[str, Case] = {
    "plain": (Net(), replicated, [(X, BOTH)], {}),
    "all": (
        everything(relative_bias=True),
        *(replicated, [(X, BOTH), (CONTEXT, BOTH)]),
        {"extra_tokens": WORDS, "key_range": RANGES},
    ),
    "all, samples and rows": (
        everything(relative_bias=True),
        *(styled, [(X, SAMPLES), (CONTEXT, SAMPLES)]),
        {"extra_tokens": WORDS, "key_range": RANGES},
    ),
    "samples": (
        everything(),
        *(replicated, [(X, (Shard(0), EVERYWHERE))]),
        {"extra_tokens": WORDS, "update_extra": True},
    ),
    "extra tokens that are queries": (
        everything(),
        *(styled, [(X, SAMPLES)]),
        {"extra_tokens": REGISTERS, "update_extra": True},
    ),
    "channels first": (
        Net(qk_norm=True, layout="channels_first"),
        replicated,
        [(X.movedim(-1, 1).contiguous(), (Shard(2), Shard(3)))],
        {},
    ),
    "decoding": (
        everything(CACHED),
        styled,
        [(X[:, :2].contiguous(), (EVERYWHERE, Shard(2))), (CONTEXT, BOTH)],
        {"extra_tokens": WORDS},
    ),
    "local tokens": (
        everything(relative_bias=True, rotates=True),
        *(of_local_tokens, [(X, BOTH), (CONTEXT, BOTH)]),
        {"extra_tokens": WORDS, "key_range": RANGES},
    ),
    "local tokens, and queries of all": (
        everything(),
        *(of_local_tokens, [(X, BOTH)]),
        {"extra_tokens": REGISTERS, "update_extra": True},
    ),
    "heads": (
        everything(relative_bias=True),
        *(with_heads, [(X, ROWS), (CONTEXT, ROWS)]),
        {"extra_tokens": WORDS},
    ),
    "local tokens and heads": (
        everything(relative_bias=True),
        *(with_heads, [(X, ROWS), (CONTEXT, ROWS)]),
        {"extra_tokens": WORDS, "update_extra": True},
    ),
    "empty parts": (
        Net(Mask(Axis(2, 1), Axis(1, 2)), qk_norm=True),
        *(styled, [(X[:, :1, :3].contiguous(), BOTH)]),
        {"extra_tokens": WORDS},
    ),
}


def results(net: nn.Module, given: list[Any], named: dict[str, Any], weights: Any) -> list[Any]:
    """Outputs, and gradients of inputs, of extra tokens and of parameters, by name."""
    extra = {n: t.clone().requires_grad_() for n, t in named.items() if n == "extra_tokens"}
    given = [t.requires_grad_() for t in given]
    found: Any = net(*given, **{**named, **extra})
    found = list(found) if isinstance(found, tuple) else [found]
    torch.autograd.backward(found, [weights(n, part) for n, part in enumerate(found)])
    grads = [*(t.grad for t in (*given, *extra.values()))]
    return [*found, *grads, {n: p.grad for n, p in net.named_parameters()}]


def compare(name: str, mesh: DeviceMesh) -> None:
    net, make, inputs, named = CASES[name]
    is_local = name.startswith("local")
    wanted = results(
        copy.deepcopy(net),
        [t.clone() for t, _ in inputs],
        named,
        lambda n, part: random(*part.shape, seed=9 + n),
    )
    model = make(copy.deepcopy(net), mesh)
    own = [placed(t, mesh, p) for t, p in inputs]
    own = [t.to_local().contiguous() if is_local else t for t in own]

    def weights(n: int, part: Any) -> Any:
        whole = random(*wanted[n].shape, seed=9 + n)
        if isinstance(part, DTensor):
            return placed(whole, mesh, part.placements)
        return whole if n else placed(whole, mesh, inputs[0][1]).to_local()

    found = results(model, own, named, weights)
    outputs = len(found) - len(inputs) - ("extra_tokens" in named) - 1
    if not is_local:
        assert found[0].placements == inputs[0][1]
    sides = [inputs[0][1], *[None] * (outputs - 1), *(p for _, p in inputs), None]
    for one, other, side in zip(found[:-1], wanted[:-1], sides, strict=False):
        if isinstance(one, DTensor):
            one = one.full_tensor()
        elif side is not None:
            other = placed(other, mesh, side).to_local()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for parameter, grad in wanted[-1].items():
        if make is with_heads and ".qkv." in parameter:
            continue  # rows in another order: tests/nn/test_parallel.py
        one = found[-1][parameter]
        one = one.full_tensor() if isinstance(one, DTensor) else one
        torch.testing.assert_close(one, grad, rtol=1e-12, atol=1e-12, msg=parameter)


class Block(nn.Module):
    """Attention and a perceptron, both with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = everything().attn
        self.mlp = nn.Linear(12, 12).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


def in_tools(mesh: DeviceMesh) -> None:
    """FSDP on all ranks, which sums shares itself; FSDP on the samples' dimension, and a
    checkpoint, of a layer that has summed.
    """
    torch.manual_seed(0)
    one, x = Block(), random(4, *SPACE, 12)
    one(x).square().sum().backward()
    own = placed(x, mesh, SAMPLES).to_local()

    def check(net: nn.Module, ranks: int, names: str = "") -> None:
        for (name, p), q in zip(net.named_parameters(), one.parameters(), strict=True):
            grad: Any = p.grad
            grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
            if name.startswith(names):
                torch.testing.assert_close(grad * ranks, q.grad, rtol=1e-10, atol=1e-12)

    def shared(sums: bool) -> Any:
        style = SpaceParallel(shard=("second", None), space=SPACE, sum_gradients=sums)
        return parallelize_module(copy.deepcopy(one), mesh["second"], {"attn": style})

    one_copy = {p: q.grad for p, q in one.named_parameters()}
    assert all(grad is not None for grad in one_copy.values())
    everyone = mesh["first", "second"]._flatten("everyone")
    net = shared(sums=False)
    net.zero_grad()
    fully_shard(net, mesh=everyone)
    net(own).square().sum().backward()
    check(net, 4)  # FSDP takes the mean
    net = shared(sums=True)
    net.zero_grad()
    fully_shard(net, mesh=mesh["first"])
    net(own).square().sum().backward()
    check(net, 2, "attn")
    net = copy.deepcopy(shared(sums=True))
    net.zero_grad()
    rows = placed(x, mesh, (EVERYWHERE, Shard(1))).to_local()
    found: Any = checkpoint(net, rows, use_reentrant=False)
    found.square().sum().backward()
    check(net, 1, "attn")


def updated_without_sums(mesh: DeviceMesh) -> None:
    """Two layers that update extra tokens, whose gradients the ranks leave to another tool: the
    first layer's are shares, too. Of local tokens and of distributed ones.
    """
    net = nn.ModuleList([build(PLANE), build(PLANE)])

    def loss(layers: nn.ModuleList, x: Any, words: Any) -> tuple[Any, Any]:
        for layer in layers:
            x, words = layer(x, extra_tokens=words, update_extra=True)
        return x.square().sum(), words.square().sum()

    one = copy.deepcopy(net)
    sum(loss(one, X, WORDS)).backward()
    for is_local in (True, False):
        given = {"shard": ("first", "second"), "space": SPACE} if is_local else {}
        layers, x = copy.deepcopy(net), placed(X, mesh, BOTH)
        for layer in layers:
            parallelize_module(layer, mesh, SpaceParallel(sum_gradients=False, **given))
        words = WORDS if is_local else placed(WORDS, mesh, (EVERYWHERE, EVERYWHERE))
        of_grid, of_words = loss(layers, x.to_local() if is_local else x, words)
        (of_grid + of_words / (4 if is_local else 1)).backward()
        for p, q in zip(layers.parameters(), one.parameters(), strict=True):
            assert p.grad is not None
            torch.distributed.all_reduce(p.grad)
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)


def compiled(rank: int) -> None:
    """One graph, forward and backward."""
    del rank
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("first", "second"))
    net = of_local_tokens(Net(qk_norm=True, relative_bias=True), mesh)
    own = placed(X, mesh, BOTH).to_local()
    net(own).square().sum().backward()
    wanted = [(p, p.grad) for p in net.parameters()]
    net.zero_grad()
    torch.compile(net, backend="aot_eager", fullgraph=True)(own).square().sum().backward()
    for parameter, grad in wanted:
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-12)


def refusals(mesh: DeviceMesh) -> None:
    """What is wrong on some ranks only is told to all; the fixes are in tests/fixes."""
    own = placed(X, mesh, BOTH).to_local()
    rank = torch.distributed.get_rank()
    net = of_local_tokens(copy.deepcopy(CASES["plain"][0]), mesh)
    with pytest.raises(InputError if rank == 0 else Exception, match="x has 3 positions on axis 0"):
        net(own[:, :3] if rank == 0 else own)
    with pytest.raises(InputError, match=r"x is distributed, and the layer's qkv\.weight is not"):
        Net()(placed(X, mesh, BOTH))
    with pytest.raises(InputError, match="which ranks cannot share"):
        net(X.flatten(0, 2), grids=[(7, 6)] * 3)


def work(rank: int) -> None:
    del rank
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("first", "second"))
    for name in CASES:
        compare(name, mesh)
    in_tools(mesh)
    updated_without_sums(mesh)
    refusals(mesh)


def test_ranks_are_one_process() -> None:
    ranks.run(work, 4)


@pytest.mark.deep
def test_one_graph_has_the_exchange() -> None:
    ranks.run(compiled, 4, seconds=300)


def test_the_style_shows_its_arguments() -> None:
    style = SpaceParallel(shard="x", space=12, sum_gradients=False)
    assert repr(style) == "SpaceParallel(shard='x', space=12, sum_gradients=False)"

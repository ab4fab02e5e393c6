"""Tests of attention across ranks inside of models: with checkpoints, compilers, autocast and FSDP
on one mesh of data and context, a model on four ranks is the model in one process. Quick tests of
compiled exchanges are in test_sharded.py, of two ranks.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import nbattn.distributed
from nbattn import Axis, Mask

MASK = Mask(Axis(2, 2, border="shift"), Axis(2, 1, border="wrap"))
SPACE = (13, 8)  # 13 rows: chunks of 7 and 6
SAME = 1e-12


class Block(nn.Module):
    """A transformer's block over a plane, on one rank or on several."""

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mesh: DeviceMesh | None) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if mesh is None:
            found = nbattn.attention(query, key, value, MASK)
        else:
            options: dict[str, Any] = {"mesh": mesh, "shard": ("context", None), "space": SPACE}
            found = nbattn.distributed.attention(query, key, value, MASK, **options)
        x = x + self.out(found.flatten(-2))
        return x + self.mlp(x)


class Net(nn.Module):
    """A block, which can be computed again in the backward pass."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
        for block in self.blocks:
            again = self.checkpointed
            x = checkpoint(block, x, mesh, use_reentrant=False) if again else block(x, mesh)
        return x


def whole() -> tuple[Net, Tensor]:
    """The model in one process with its gradients, and its input."""
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(4, *SPACE, 16, dtype=torch.float64)
    net(x).square().mean().backward()
    return net, x


def mesh_of_four() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))


def part(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """A rank's samples and rows."""
    x = x.chunk(2)[mesh.get_local_rank("data")]
    return x.chunk(2, 1)[mesh.get_local_rank("context")]


def summed(net: nn.Module) -> list[Tensor]:
    """The gradients of all ranks' losses."""
    grads: list[Tensor] = []
    for parameter in net.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        grads.append(parameter.grad)
    return grads


def furthest(found: list[Tensor], model: nn.Module) -> float:
    grads = [parameter.grad for parameter in model.parameters()]
    return max(
        float((a - b).abs().max()) for a, b in zip(found, grads, strict=True) if b is not None
    )


def four_ways(rank: int) -> dict[str, float]:
    """The largest error of the parameters' gradients, of each way to run the model."""
    del rank
    reference, x = whole()
    mesh, found = mesh_of_four(), {}
    own = part(x, mesh)

    def loss(net: Any) -> Tensor:
        return net(own, mesh).square().sum() / x.numel()

    for name, net in {
        "plain": Net(),
        "checkpointed": Net(checkpointed=True),
    }.items():
        net.double().load_state_dict(reference.state_dict())
        loss(net).backward()
        found[name] = furthest(summed(net), reference)
    net = copy.deepcopy(reference)
    net.zero_grad()
    everyone = mesh._flatten("everyone")
    for block in net.blocks:
        fully_shard(block, mesh=everyone)
    fully_shard(net, mesh=everyone)
    (loss(net) * everyone.size()).backward()  # FSDP takes the mean over ranks
    grads = [parameter.grad.full_tensor() for parameter in net.parameters()]  # pyright: ignore
    found["fsdp"] = furthest(grads, reference)
    return found


def test_a_model_on_four_ranks_is_the_model_in_one_process():
    for found in ranks.run(four_ways, 4):
        assert set(found) == {"plain", "checkpointed", "fsdp"}
        assert max(found.values()) < SAME, found


def in_bfloat16(rank: int) -> float:
    """The largest difference of outputs under autocast; and keys travel in its dtype."""
    del rank
    reference, x = whole()
    reference, x, mesh = reference.float(), x.float(), mesh_of_four()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = reference(part(x, mesh), mesh), part(reference(x), mesh)
    return float((found - expected).abs().max())


def test_autocast_is_that_of_one_process():
    assert max(ranks.run(in_bfloat16, 4)) < 1e-2


def compiled(rank: int, backend: str) -> float:
    del rank
    reference, x = whole()
    mesh, net = mesh_of_four(), copy.deepcopy(reference)
    net.zero_grad()
    run: Any = torch.compile(net, backend=backend, fullgraph=True)
    (run(part(x, mesh), mesh).square().sum() / x.numel()).backward()
    return furthest(summed(net), reference)


@pytest.mark.deep
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_with_its_exchange(backend: str):
    assert max(ranks.run(compiled, 4, backend, seconds=300)) < SAME

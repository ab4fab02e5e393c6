"""Tests of the layer in two processes: DDP and FSDP2 give the gradients of one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from nbattn import Axis, Mask, NeighborhoodAttention

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
MASK = Mask(Axis(1, 1, border="shift"), Axis(2, 1))


class Gain(nn.Module):
    """A transform with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = (
            nn.RMSNorm(6, dtype=torch.float64),
            nn.RMSNorm(6, dtype=torch.float64),
        )

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(query), self.key(key)

    def extra_key(self, key: Tensor) -> Tensor:
        return self.key(key)


class Model(nn.Module):
    """Two layers, the second checkpointed and reading the input as its context."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"kv_heads": 2, "head_dim": 6}
        self.first = NeighborhoodAttention(12, 4, MASK, **options, qk_transform=Gain()).double()
        self.second = NeighborhoodAttention(12, 4, MASK, **options).double()

    def forward(self, x: Tensor, extra: Tensor, box: Tensor) -> Tensor:
        y = x + self.first(x, extra_tokens=extra)
        named: dict[str, Any] = {"extra_tokens": extra, "key_range": box}
        return checkpoint(self.second, y, x, use_reentrant=False, **named)  # pyright: ignore


def data() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x, extra = (torch.randn(4, *n, 12, generator=draw, dtype=torch.float64) for n in ((4, 5), (3,)))
    boxes = torch.tensor([[[0, 4], [n % 2, 5 - n % 3]] for n in range(4)], dtype=torch.int32)
    return x, extra, boxes


def step(model: nn.Module, *tensors: Tensor) -> Tensor:
    loss = (model(*tensors) ** 2).mean()
    loss.backward()
    return loss


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(model: nn.Module, alone: nn.Module) -> None:
    for found, wanted in zip(model.parameters(), alone.parameters(), strict=True):
        assert wanted.grad is not None
        assert wanted.grad.any()
        torch.testing.assert_close(whole(found.grad), wanted.grad, rtol=1e-10, atol=1e-12)


def sharded(model: Any, *, parts: bool, **options: Any) -> nn.Module:
    """Each layer a unit of its own, or even each of its projections."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.first, model.second):
        if parts:
            fully_shard(layer.qkv, mesh=mesh, **options)
            fully_shard(layer.proj, mesh=mesh, **options)
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def times(policy: MixedPrecisionPolicy) -> int:
    """How often the gradient of 1 is counted: torch 2.8 adds those of gloo's processes up where it
    should take their mean, unless they are float64.
    """
    mesh = init_device_mesh("cpu", (2,))
    plain: Any = fully_shard(nn.Linear(1, 1, bias=False), mesh=mesh, mp_policy=policy)
    plain(torch.ones(1, 1)).float().sum().backward()
    return round(whole(plain.weight.grad).item())


def work(rank: int) -> None:
    torch.manual_seed(0)
    alone, tensors = Model(), data()
    mine = [t[2 * rank : 2 * rank + 2] for t in tensors]
    parallel = DistributedDataParallel(copy.deepcopy(alone))
    shards = [sharded(copy.deepcopy(alone), parts=parts) for parts in (False, True)]
    step(alone, *tensors)
    for model in (parallel, *shards):
        step(model, *mine)
        compare(model, alone)

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    counted = times(policy)
    for parts in (False, True):
        half: Any = sharded(copy.deepcopy(alone).float(), parts=parts, mp_policy=policy)
        out = half(mine[0].float(), mine[1].float(), mine[2])
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
        for found, wanted in zip(half.parameters(), alone.parameters(), strict=True):
            assert wanted.grad is not None
            exact, grad = counted * wanted.grad, whole(found.grad)
            assert grad.dtype == torch.float32
            assert (grad - exact).norm() < 0.05 * exact.norm()
    state = {name: whole(t) for name, t in shards[1].state_dict().items()}
    assert list(state) == list(alone.state_dict())
    assert all(torch.equal(t, alone.state_dict()[name]) for name, t in state.items())
    plan = shards[1].first.plan_for(mine[0].shape, extra_tokens=3)  # pyright: ignore
    assert plan == alone.first.plan_for(mine[0].shape, extra_tokens=3)


def test_two_processes_give_the_gradients_of_one() -> None:
    ranks.run(work)

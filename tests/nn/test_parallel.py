"""Tests of tensor parallelism: two processes give the results and gradients of one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import nbattn
from nbattn import Mask, NeighborhoodAttention
from nbattn.nn.parallel import RowOrder

CASES = (
    {"kv_heads": 2},
    {"qk_norm": True},
    {"context_dim": 6, "kv_heads": 2},
)


def one_rank(rank: int, path: str) -> None:
    """Compares the sharded layer with the whole one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (2,))
    style = {"0": nbattn.nn.HeadParallel(), "0.proj": RowwiseParallel()}
    for named in CASES:
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            layer = NeighborhoodAttention(16, 4, Mask.full(), **named).double()  # pyright: ignore
            models.append(nn.Sequential(layer))
        whole, sharded = models
        parallelize_module(sharded, mesh, style)
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        context = torch.randn(2, 7, named.get("context_dim", 16), dtype=torch.float64)
        for given in ((x,), (x, context)) if "context_dim" not in named else ((x, context),):
            inputs = [[t.clone().requires_grad_() for t in given] for _ in models]
            results = [m[0](*own) for m, own in zip(models, inputs, strict=True)]
            torch.testing.assert_close(*results)
            for model, result in zip(models, results, strict=True):
                model.zero_grad()
                result.square().sum().backward()
                torch.optim.SGD(model.parameters(), 1e-3).step()  # its gradients, in the state
            for grads in zip(*([t.grad for t in own] for own in inputs), strict=True):
                torch.testing.assert_close(*grads)
            state = sharded.state_dict()
            for name, tensor in whole.state_dict().items():
                found = state[name]
                found = found.full_tensor() if hasattr(found, "full_tensor") else found
                torch.testing.assert_close(found, tensor)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, (str(tmp_path / "meeting"),), nprocs=2)


def test_rows_return_to_their_order() -> None:
    rows, weight = RowOrder([4, 2, 2], 2), torch.arange(8)
    assert rows.by_rank(weight).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    assert torch.equal(rows.by_part(rows.by_rank(weight)), weight)


def test_only_the_layer_is_sharded() -> None:
    with pytest.raises(nbattn.InputError, match="HeadParallel is on a Linear"):
        nbattn.nn.HeadParallel()._apply(nn.Linear(2, 2), None)  # pyright: ignore

"""Tests of merging the results of ranks that have the same queries and different keys."""

from __future__ import annotations

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor

from nbattn.distributed.merging import merged
from nbattn.distributed.meshes import Group

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")


def joined(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """By the definition: sums of exponentials; rows without keys are 0 and -inf."""
    weights = lses.exp()
    total = weights.sum(0)
    return (weights[..., None] * outs).sum(0) / total.clamp(min=1e-300)[..., None], total.log()


def work(rank: int) -> None:
    mesh = dist.init_device_mesh("cpu", (3,), mesh_dim_names=("x",))
    group = Group(mesh.get_group().group_name, 3, rank)
    draw = torch.Generator().manual_seed(0)
    outs = torch.randn(3, 2, 5, 4, 8, generator=draw, dtype=torch.float64)
    lses = torch.randn(3, 2, 5, 4, generator=draw, dtype=torch.float64)
    lses[1, :, 2] = lses[:, :, 4] = -torch.inf  # no keys on rank 1, and on any
    outs[lses.isinf()] = 0
    up, up_lse = torch.randn(2, 2, 5, 4, 8, generator=draw, dtype=torch.float64)
    every = outs.clone().requires_grad_(), lses.clone().requires_grad_()
    wanted = joined(*every)
    own = outs[rank].clone().requires_grad_(), lses[rank].clone().requires_grad_()
    found = merged(*own, group)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)

    def total(out: Tensor, lse: Tensor) -> Tensor:
        rows = [0, 1, 2, 3]
        return (out * up)[:, rows].sum() + (lse * up_lse[..., 0])[:, rows].sum()

    whole = torch.autograd.grad(total(*wanted), every)
    for one, two in zip(torch.autograd.grad(total(*found), own), whole, strict=True):
        torch.testing.assert_close(one, two[rank].nan_to_num(), rtol=1e-13, atol=1e-13)
    half = merged(own[0].bfloat16(), own[1].float(), group)
    assert [part.dtype for part in half] == [torch.bfloat16, torch.float32]


def test_results_of_three_ranks_and_their_gradients() -> None:
    ranks.run(work, 3)

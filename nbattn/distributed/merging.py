"""Merges the results of ranks that have the same queries and different keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbattn.distributed.agreement import in_words
from nbattn.distributed.meshes import Group
from nbattn.joining import merge


def merged(out: Tensor, lse: Tensor, group: Group) -> list[Tensor]:
    """The output and logsumexp over the keys of all ranks of a group, on every one of them.

    Gradients stay with the rank: what reaches its own part of the result. The sum of all ranks'
    gradients of the queries is the whole one.

    Args:
        out, lse: this rank's results.
        group: the ranks.
    """
    part = torch.cat([out.to(lse.dtype), lse[..., None]], -1)
    parts: Tensor = _Gathered.apply(part, group)  # pyright: ignore
    outs = [part[..., :-1] for part in parts.unbind(0)]
    found, total = merge(outs, [part[..., -1] for part in parts.unbind(0)])
    return [found.to(out.dtype), total]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.number = group.number
        functions = torch.ops._c10d_functional
        gather, arguments = functions.all_gather_into_tensor, (group.size, group.name)
        parts = in_words(gather, part.contiguous(), *arguments, group=group.name)
        return in_words(functions.wait_tensor, parts, group=group.name).unflatten(
            0, (group.size, -1)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad[ctx.number], None

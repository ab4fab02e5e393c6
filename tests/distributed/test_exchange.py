"""Tests of what travels between ranks: how many messages, which keys, and nothing else."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import oracle
import pytest
import ranks
import torch
import torch.distributed as dist
from sharded_problems import cut
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nbattn.distributed as nd
from nbattn import Axis, Mask

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
HEADS, DIM, VALUE_DIM = 2, 4, 8
Case = tuple[Mask, tuple[int, ...], tuple[int, ...]]  # mask, space, mesh
CASES: dict[str, Case] = {
    "window": (Mask(Axis(5, 2)), (40,), (4,)),
    "causal": (Mask(Axis(7, causal=True)), (41,), (4,)),
    "wider than chunks": (Mask(Axis(12, 9, border="shift")), (30,), (4,)),
    "circle": (Mask(Axis(3, 4, border="wrap")), (32,), (4,)),
    "dilated": (Mask(Axis(2, 2, dilation=3)), (48,), (4,)),
    "prefix": (Mask(Axis(2, 2, prefix=3)), (40,), (4,)),
    "plane": (Mask.neighborhood((5, 3)), (12, 10), (2, 2)),
    "rows": (Mask.neighborhood((5, 3)), (12, 10), (4,)),
    "empty chunks": (Mask(Axis(1, 1)), (5,), (4,)),
}


class Seen(TorchDispatchMode):
    """Collectives with what they send and receive, and the size of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[list[int], list[int]]] = []
        self.others: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(func)
        if "all_to_all" in name:
            self.sent.append((list(args[2]), list(args[1])))
            assert args[0].numel() == sum(args[2])
        elif "c10d" in name and "wait_tensor" not in name:
            self.others.append(name)
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, Tensor) and one.numel():
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.itemsize)
        return found


@cache
def mesh_of(shape: tuple[int, ...]) -> Any:
    return dist.init_device_mesh("cpu", shape, mesh_dim_names=tuple("xy"[: len(shape)]))


def names_of(case: Case) -> list[str | None]:
    return [*"xy"[: len(case[2])], *[None] * (len(case[1]) - len(case[2]))]


def random(space: tuple[int, ...], dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *space, HEADS, dim, generator=generator, dtype=torch.float64)


def parts(case: Case, mesh: Any) -> list[Tensor]:
    dims = (DIM, DIM, VALUE_DIM)
    whole = [random(case[1], dim, seed) for seed, dim in enumerate(dims)]
    return [cut(t, mesh, names_of(case)).clone().requires_grad_() for t in whole]


def needed(case: Case, mesh: Any) -> np.ndarray:
    """bool: which keys the queries of this rank span, by the enumerator; on each axis the hull, in
    which a prefix or the end of a circle can stand apart.
    """
    mask, space, _ = case
    found = np.ones((), dtype=bool)
    for axis, length, name in zip(mask.axes, space, names_of(case), strict=True):
        matrix = torch.from_numpy(oracle.axis_matrix(axis, length, length))
        own = cut(matrix[None], mesh, [name])[0]
        found = np.logical_and.outer(found, own.any(0).numpy())
    return found


def counted(rank: int) -> dict[str, Any]:
    """Of every case: collectives forward and backward, and how many keys this rank lacks."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        mesh, shard = mesh_of(case[2]), names_of(case)
        given = parts(case, mesh)
        own = cut(torch.arange(math.prod(case[1])).view(1, *case[1]), mesh, shard).flatten()
        lacks = needed(case, mesh).flatten().copy()
        lacks[own.numpy()] = False
        named: dict[str, Any] = {"mesh": mesh, "shard": shard, "space": case[1]}
        with Seen() as forward:
            out = nd.attention(*given, case[0], **named, backend="reference")
        with Seen() as backward:
            out.sum().backward()
        assert not forward.others
        assert not backward.others
        found[name] = forward.sent, backward.sent, int(lacks.sum())
    return found


def test_one_message_each_way_with_the_keys_of_the_halo() -> None:
    found = ranks.run(counted, 4)
    each = HEADS * (DIM + VALUE_DIM)
    for name in CASES:
        sides = [of_rank[name] for of_rank in found]
        for rank, (forward, backward, lacks) in enumerate(sides):
            ((sent, received),) = forward
            assert sum(received) == lacks * each, name
            assert sent == [other[0][0][1][rank] for other in sides]
            assert backward == [(received, sent)]  # gradients go home
        assert any(lacks for *_, lacks in sides)


def without_halo(rank: int) -> None:
    mesh = mesh_of((2,))
    for mask, space, shard in (
        (Mask(Axis(0, 0)), (8,), "x"),
        (Mask(Axis(3, 0, causal=True), Axis(0, 0)), (6, 8), (None, "x")),
        (Mask.neighborhood(3), (8,), (None,)),
    ):
        own = random(space, DIM, 0)
        own = cut(own, mesh, list(shard)).clone().requires_grad_()
        with Seen() as seen:
            out = nd.attention(own, own, own, mask, mesh=mesh, shard=shard, space=space)
            out.sum().backward()
        assert not seen.sent
        assert not seen.others


def test_nothing_travels_where_queries_have_their_keys() -> None:
    ranks.run(without_halo, 2)


def unread(rank: int) -> None:
    """All keys that one rank's queries do not span are NaN, rank after rank."""
    for name, case in CASES.items():
        mesh, shard = mesh_of(case[2]), names_of(case)
        given = parts(case, mesh)
        named: dict[str, Any] = {"mesh": mesh, "shard": shard, "space": case[1]}
        for target in range(4):
            spans = [torch.from_numpy(needed(case, mesh))]
            dist.broadcast_object_list(spans, target)
            bad = [cut(torch.where(spans[0], 0.0, math.nan)[None], mesh, shard)[..., None, None]]
            found: list[list[Tensor]] = []
            for added in (0.0, bad[0]):
                query, key, value = given
                out = nd.attention(
                    query, key + added, value + added, case[0], **named, backend="tiled"
                )
                found.append([out, *torch.autograd.grad(out.sum(), query)])
            if rank == target:
                for clean, other in zip(*found, strict=True):
                    assert torch.equal(clean, other), name


def test_keys_that_no_query_of_a_rank_reads_change_nothing() -> None:
    ranks.run(unread, 4)


def memory(rank: int) -> None:
    mesh, mask, length, window = mesh_of((4,)), Mask(Axis(40, 24)), 4096, 64
    shard, halo = length // 4, window
    own = [random((shard,), 8, seed).requires_grad_() for seed in range(3)]
    named: dict[str, Any] = {"mesh": mesh, "shard": "x", "space": length}
    with Seen() as seen:
        out = nd.attention(*own, mask, **named, backend="native")
        out.sum().backward()
    assert seen.sent
    assert shard * HEADS * 8 <= seen.largest <= (shard + halo) * HEADS * 8


def test_no_tensor_is_larger_than_a_shard_and_its_halo() -> None:
    ranks.run(memory, 4)

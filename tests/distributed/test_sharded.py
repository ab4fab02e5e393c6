"""Tests of attention across ranks: random problems on 2 to 8 processes against the definition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import sharded_problems
import torch
import torch.distributed as dist
from torch import Tensor, nn

import nbattn
import nbattn.distributed as nd
from nbattn import Axis, Mask

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
FEATURES = {
    *("sink", "softcap", "scale", "extra_key", "extra_range", "key_range", "alibi_slopes"),
    *("relative_bias", "lse", "cross lengths", "grouped heads", "other value dim"),
    *("replicated queries", "clip", "shift", "wrap", "1 axes", "2 axes", "3 axes"),
}


@pytest.mark.parametrize(("count", "number"), [(2, 25), (3, 20), (4, 40), (8, 12)])
def test_ranks_are_one_process(count: int, number: int, tmp_path: Path) -> None:
    """Output, logsumexp and all gradients, on random masks, meshes and arguments."""
    compare(count, number, count, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(100, 102))
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_ranks_are_one_process_in_many_problems(count: int, seed: int, tmp_path: Path) -> None:
    compare(count, 400, seed, tmp_path)


def compare(count: int, number: int, seed: int, folder: Path) -> None:
    problems, features = sharded_problems.problems(seed, count, number)
    wanted = FEATURES | ({"empty chunks"} if count > 2 else set())
    wanted |= {"batch across ranks", "2 cut"} if count > 3 else set()
    assert wanted <= features.keys(), wanted - features.keys()
    torch.save(problems, folder / "problems")
    ranks.run(sharded_problems.work, count, folder / "problems")


class Block(nn.Module):
    """A block of a video model: causal in time, moved windows and circles in space."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.sink = nn.Parameter(torch.zeros(2))
        self.table = nn.Parameter(torch.zeros(2, 5, 5, 9))
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 8)).unbind(-3)
        out = self.attend(*qkv, VIDEO, sink=self.sink, relative_bias=self.table)
        x = x + self.proj(out.flatten(-2))
        return x + self.mlp(self.norms[1](x))


VIDEO = Mask(Axis(2, causal=True), Axis(1, 1, border="shift"), Axis(2, 2, border="wrap"))
SPACE = (3, 7, 10)  # 7 rows: chunks of 4 and 3


def trained(block: Block, x: Tensor, wanted: Tensor, ranks_of_step: int) -> list[Tensor]:
    """The parameters after two steps with momentum."""
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) - wanted).square().sum().backward()
        for parameter in block.parameters() if ranks_of_step > 1 else ():
            dist.all_reduce(parameter.grad)
        optimizer.step()
    return [parameter.detach() for parameter in block.parameters()]


def train(rank: int) -> None:
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"))
    shard: list[str | None] = [None, "y", "x"]
    torch.manual_seed(0)

    def across(*tensors: Tensor, **options: Any) -> Tensor:
        return nd.attention(*tensors, mesh=mesh, shard=shard, space=SPACE, **options)

    def alone(*tensors: Tensor, **options: Any) -> Tensor:
        return nbattn.attention(*tensors, **options, backend="reference")

    block = Block(alone).double()
    other = copy.deepcopy(block)
    other.attend = across
    x, wanted = torch.randn(2, 2, *SPACE, 16, dtype=torch.float64)
    expected = trained(block, x, wanted, 1)
    mine = (sharded_problems.cut(tensor, mesh, shard) for tensor in (x, wanted))
    for one, two in zip(trained(other, *mine, 4), expected, strict=True):
        sharded_problems.close("a parameter", one, two)


def test_a_trained_step_of_a_video_block_is_that_of_one_process() -> None:
    ranks.run(train, 4)


def rounded(rank: int) -> list[tuple[bool, float]]:
    """Whether outputs have the bits of one process, and the error of key gradients against its."""
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    part = mesh.get_coordinate()
    assert part is not None
    found: list[tuple[bool, float]] = []
    for kernel, dtype in ((5, torch.float32), (9, torch.bfloat16)):
        mask, draw = Mask.neighborhood((kernel, kernel)), torch.Generator().manual_seed(kernel)
        whole = [torch.randn(1, 30, 26, 2, 32, generator=draw).to(dtype) for _ in range(4)]

        def gradients(tensors: list[Tensor], mask: Mask = mask, **options: Any) -> list[Tensor]:
            given = [t.clone().requires_grad_() for t in tensors[:3]]
            attend: Any = nd.attention if options else nbattn.attention
            out = attend(*given, mask, backend="native", **options)
            return [out, *torch.autograd.grad(out, given, tensors[3])]

        def own(t: Tensor) -> Tensor:
            return t.chunk(2, 1)[part[0]].chunk(2, 2)[part[1]]

        exact = gradients([t.double() for t in whole])
        one = gradients(whole)
        options = {"mesh": mesh, "shard": ("rows", "columns"), "space": (30, 26)}
        many = gradients([own(t) for t in whole], **options)
        same = torch.equal(many[0], own(one[0])) and torch.equal(many[1], own(one[1]))
        errors = [((a - own(exact[2])) ** 2).sum() for a in (many[2], own(one[2]))]
        dist.all_reduce(sums := torch.stack(errors).detach())
        found.append((same, float((sums[0] / sums[1]).sqrt())))
    return found


def test_rounding_is_that_of_one_process() -> None:
    """Rows are computed in one piece: same bits. Key gradients have parts: the ratio rule."""
    for found in ranks.run(rounded, 4):
        assert all(same for same, _ in found), found
        assert max(ratio for _, ratio in found) < 1.6, found


def compiled(rank: int, trains: bool) -> float:
    """How far compiled calls, of spaces of two lengths, are from one process: rank 0 needs keys
    of nobody else.
    """
    torch._dynamo.reset()
    mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("x",))
    mask = Mask(Axis(2, causal=True))
    given: Any = {"mesh": mesh, "shard": "x", "backend": "tiled"}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(part: Tensor, length: int) -> Tensor:
        return nd.attention(part, part, part, mask, space=(length,), **given)

    worst = 0.0
    for number, length in enumerate((8, 11)):
        whole = torch.randn(1, length, 1, 4, generator=torch.Generator().manual_seed(number))
        want = nbattn.attention(whole, whole, whole, mask, backend="tiled")
        with torch.set_grad_enabled(trains):
            out = attend(whole.chunk(2, 1)[rank].clone().requires_grad_(trains), length)
        worst = max(worst, (out - want.chunk(2, 1)[rank]).abs().max().item())
    return worst


@pytest.mark.parametrize("trains", [pytest.param(False, marks=pytest.mark.deep), True])
def test_one_compiled_function_takes_spaces_of_any_length(trains: bool) -> None:
    assert max(ranks.run(compiled, 2, trains)) < 1e-6


def two_in_a_graph(rank: int, backend: str) -> float:
    """How far two attentions in one compiled graph are from eager ones, with gradients: rank 0
    receives nothing, rank 1 sends nothing, twice the same.
    """
    torch._dynamo.reset()
    mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("x",))
    mask = Mask(Axis(2, causal=True))
    options: Any = {"mesh": mesh, "shard": "x", "space": 10, "backend": "tiled"}

    def sums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        first = nd.attention(query, key, value, mask, **options)
        return first + nd.attention(key, query, value, mask, **options)

    draw = torch.Generator().manual_seed(rank)
    given = [torch.randn(1, 5, 2, 8, generator=draw, requires_grad=True) for _ in range(3)]
    found: list[list[Tensor]] = []
    for run in (sums, torch.compile(sums, fullgraph=True, backend=backend)):
        out = run(*given)
        found.append([out, *torch.autograd.grad(out.sum(), given)])
    return max((a - b).abs().max().item() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.deep)])
def test_exchanges_that_bring_a_rank_nothing_stay_in_a_graph(backend: str) -> None:
    assert max(ranks.run(two_in_a_graph, 2, backend)) < 1e-5

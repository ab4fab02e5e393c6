"""Random attention across ranks, its results by definition, and the comparison on every rank.

Masks, meshes and arguments are drawn from a seed; `dense_attention` and `oracle`, which share no
code with the package, give results and gradients of the whole space. Every rank cuts its part out
of all tensors by `torch.chunk`, calls `nbattn.distributed.attention`, and compares.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dense_attention
import oracle
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import nbattn
import nbattn.distributed
from nbattn import Axis, Mask, NbattnError

SHAPES = {2: [(2,)], 3: [(3,)], 4: [(4,), (2, 2)], 8: [(8,), (4, 2), (2, 4), (2, 2, 2)]}
LONGEST = {1: 40, 2: 12, 3: 7}
PER_SAMPLE = ("key_range", "extra_key", "extra_value", "extra_range")  # [B, ...]


@dataclass
class Problem:
    """One call: names of mesh dimensions per axis of keys and queries, and of the batch.

    Args:
        shape: of the mesh, whose dimensions are x, y and z.
        tensors: arguments of the whole space; those that are floats get gradients.
        upward: gradients of the output and the logsumexp.
        expected: output, logsumexp, and gradients by name.
    """

    mask: Mask
    space: tuple[int, ...]
    key_space: tuple[int, ...]
    shape: tuple[int, ...]
    shard: list[str | None]
    query_shard: list[str | None] | None
    batch: str | None
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    upward: tuple[Tensor, Tensor]
    expected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def queries_on(self) -> list[str | None]:
        return self.query_shard or self.shard


def draw_axis(draw: random.Random) -> Axis:
    """An axis of any kind, small enough that chunks are smaller and larger than its windows."""
    while True:
        border = draw.choice(["clip", "clip", "shift", "wrap"])
        fields: dict[str, Any] = {
            "border": border,
            "left": draw.choice([None, 0, 1, 2, 3, 5]),
            "right": draw.choice([None, 0, 1, 2, 4]),
            "dilation": draw.choice([1, 1, 1, 2, 3]),
            "stride": draw.choice([1, 1, 1, 2, 3, 4]),
            "causal": draw.random() < 0.3,
        }
        if border == "shift":
            fields |= {"left": fields["left"] or 0, "right": fields["right"] or 0}
        if fields["causal"]:
            fields["right"] = None if border == "clip" else 0
        if border != "wrap":
            fields["align"] = draw.choice([None, None, "top-left", "bottom-right"])
            if fields["align"]:
                fields["offset"] = draw.choice([0, 0, -3, 2])
            if fields["dilation"] == 1:
                fields["prefix"] = draw.choice([0, 0, 1, 3, 6])
        if border != "wrap" or not fields["causal"]:
            return Axis(**fields)


def draw_problem(draw: random.Random, ranks: int) -> Problem | None:
    """A problem that the package takes; None where the draw is none."""
    shape = draw.choice(SHAPES[ranks])
    names: list[str] = list("xyz"[: len(shape)])
    batch = (
        names.pop(draw.randrange(len(names))) if len(names) > 1 and draw.random() < 0.3 else None
    )
    rank = max(len(names), draw.choice([1, 1, 2, 2, 3]))
    mask = Mask(*[draw_axis(draw) for _ in range(rank)])
    space = tuple(draw.randint(1, LONGEST[rank]) for _ in range(rank))
    key_space = tuple(
        n if axis.align is None else draw.randint(1, LONGEST[rank])
        for axis, n in zip(mask.axes, space, strict=True)
    )
    shard: list[str | None] = [*names, *[None] * (rank - len(names))]
    draw.shuffle(shard)
    query_shard = None
    if draw.random() < 0.3:
        alone = [axis.border == "clip" and axis.stride == 1 for axis in mask.axes]
        query_shard = [None if one else name for one, name in zip(alone, shard, strict=True)]
        query_shard = None if query_shard == shard else query_shard
    size = 1 if batch is None else shape["xyz".index(batch)]
    count = draw.randint(1, 2) if batch is None else size + draw.randint(0, 1)
    if count <= -(-count // size) * (size - 1):  # chunks of a batch are not empty
        count = size
    tensors, options = _arguments(draw, mask, space, key_space, count)
    upward = (
        _normal(draw, *tensors["query"].shape[:-1], tensors["value"].shape[-1]),
        _normal(draw, *tensors["query"].shape[:-1]),
    )
    found = Problem(
        mask, space, key_space, shape, shard, query_shard, batch, tensors, options, upward
    )
    try:
        nbattn.attention(mask=mask, **tensors, **{**options, "backend": "reference"})
    except NbattnError:
        return None
    return found


def _arguments(
    draw: random.Random, mask: Mask, space: tuple[int, ...], key_space: tuple[int, ...], batch: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    key_heads, group = draw.randint(1, 2), draw.choice([1, 2])
    dim, value_dim = draw.choice([4, 8]), draw.choice([4, 8])
    heads, rank = key_heads * group, len(space)
    tensors = {
        "query": _normal(draw, batch, *space, heads, dim),
        "key": _normal(draw, batch, *key_space, key_heads, dim),
        "value": _normal(draw, batch, *key_space, key_heads, value_dim),
    }
    options: dict[str, Any] = {
        "backend": draw.choice(["auto", "tiled", "native", "reference"]),
        "return_lse": draw.random() < 0.6,
    }
    if draw.random() < 0.3:
        tensors["sink"] = _normal(draw, heads)
    if draw.random() < 0.3:
        options["softcap"] = 3.0
    if draw.random() < 0.3:
        options["scale"] = 0.7
    if draw.random() < 0.35:
        tensors["extra_key"] = _normal(draw, batch, 2, key_heads, dim)
        tensors["extra_value"] = _normal(draw, batch, 2, key_heads, value_dim)
        if draw.random() < 0.5:
            tensors["extra_range"] = _ranges(draw, batch, [2])[:, 0]
    if draw.random() < 0.4:
        tensors["key_range"] = _ranges(draw, batch, key_space)
    if rank == 1 and draw.random() < 0.5:
        slopes = _normal(draw, *draw.choice([(heads,), (batch, heads)]))
        tensors["alibi_slopes"] = slopes.abs().float()
    elif draw.random() < 0.7 and all(None not in (axis.left, axis.right) for axis in mask.axes):
        sizes = [2 * (axis.left + axis.right) + 1 for axis in mask.axes]  # type: ignore[operator]
        tensors["relative_bias"] = _normal(draw, heads, *sizes)
    return tensors, options


def _normal(draw: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _ranges(draw: random.Random, batch: int, lengths: Any) -> Tensor:
    ends = [
        [sorted((draw.randint(0, n), draw.randint(0, n))) for n in lengths] for _ in range(batch)
    ]
    return torch.tensor(ends, dtype=torch.int32)


def expect(problem: Problem) -> None:
    """Fills in what the definition gives."""
    spaces = problem.mask.axes, problem.space, problem.key_space
    pairs: dict[str, Any] = {"allowed": torch.from_numpy(oracle.matrix(*spaces))}
    if "relative_bias" in problem.tensors:
        last = problem.tensors["relative_bias"][0].numel() - 1  # of pairs that no query attends to
        entries = torch.from_numpy(oracle.bias_entries(*spaces)).clamp(0, last)
        pairs["entries"] = entries
    if "alibi_slopes" in problem.tensors:
        found = oracle.distances(problem.mask.axes[0], problem.space[0], problem.key_space[0])
        pairs["distances"] = torch.from_numpy(found)
    leaves = {name: t.clone().requires_grad_(learns(name)) for name, t in problem.tensors.items()}
    numbers = {n: o for n, o in problem.options.items() if n in ("scale", "softcap")}
    out, lse = dense_attention.attend(**leaves, **pairs, **numbers)
    total = (out * problem.upward[0]).sum()
    if problem.options["return_lse"]:
        total = total + (torch.where(lse.isinf(), 0.0, lse) * problem.upward[1]).sum()
    learned = [name for name in leaves if learns(name)]
    grads = torch.autograd.grad(total, [leaves[n] for n in learned], materialize_grads=True)
    problem.expected = {"out": out.detach(), "lse": lse.detach()}
    problem.expected |= {f"d{name}": g for name, g in zip(learned, grads, strict=True)}


def learns(name: str) -> bool:
    return not name.endswith("_range") and name != "alibi_slopes"


def problems(seed: int, ranks: int, count: int) -> tuple[list[Problem], Counter[str]]:
    """Problems with their results, and how many have which feature."""
    draw, found, features = random.Random(seed), list[Problem](), Counter[str]()
    while len(found) < count:
        problem = draw_problem(draw, ranks)
        if problem is None:
            continue
        expect(problem)
        found.append(problem)
        features.update(features_of(problem))
    return found, features


def features_of(problem: Problem) -> Iterator[str]:
    tensors, options = problem.tensors, problem.options
    yield from (name for name in tensors if name not in ("query", "key", "value"))
    yield from (name for name in ("softcap", "scale") if name in options)
    yield from (axis.border for axis in problem.mask.axes)
    yield f"{len(problem.space)} axes"
    yield f"{sum(name is not None for name in problem.shard)} cut"
    query, key, value = (tensors[name].shape for name in ("query", "key", "value"))
    parts = [1 if name is None else problem.shape["xyz".index(name)] for name in problem.shard]
    choices = {
        "lse": options["return_lse"],
        "cross lengths": problem.space != problem.key_space,
        "grouped heads": query[-2] > key[-2],
        "other value dim": value[-1] != key[-1],
        "replicated queries": problem.query_shard is not None,
        "batch across ranks": problem.batch is not None,
        "empty chunks": any(map(has_an_empty_chunk, problem.key_space, parts)),
    }
    yield from (name for name, holds in choices.items() if holds)


def has_an_empty_chunk(length: int, parts: int) -> bool:
    return len(torch.empty(length).chunk(parts)) < parts


def cut(tensor: Tensor, mesh: DeviceMesh, names: list[str | None], first: int = 1) -> Tensor:
    """This rank's part: axes from `first` on lie along mesh dimensions."""
    for axis, name in enumerate(names, first):
        if name is not None:
            parts, own = mesh[name].size(), mesh.get_local_rank(name)
            chunks = tensor.chunk(parts, axis)
            tensor = chunks[own] if own < len(chunks) else tensor.narrow(axis, 0, 0)
    return tensor


def compare(problem: Problem, mesh: DeviceMesh) -> None:
    """Calls attention with this rank's parts and compares all that it finds."""
    keys, queries, batch = problem.shard, problem.queries_on, [problem.batch]

    def part(name: str, tensor: Tensor) -> Tensor:
        name = name.removeprefix("d")
        if name in ("query", "out", "lse", "key", "value"):
            tensor = cut(tensor, mesh, keys if name in ("key", "value") else queries)
        elif name not in PER_SAMPLE and not (name == "alibi_slopes" and tensor.dim() == 2):
            return tensor
        return cut(tensor, mesh, batch, 0)

    own = {
        name: part(name, tensor).clone().requires_grad_(learns(name))
        for name, tensor in problem.tensors.items()
    }
    found = nbattn.distributed.attention(
        mask=problem.mask,
        **own,
        mesh=mesh,
        shard=keys,
        space=problem.space,
        key_space=problem.key_space,
        query_shard=problem.query_shard,
        **problem.options,
    )
    out, *lses = found if problem.options["return_lse"] else (found,)
    total = (out * part("out", problem.upward[0])).sum()
    close("out", out, part("out", problem.expected["out"]))
    for lse in lses:
        close("lse", lse, part("lse", problem.expected["lse"]))
        total = total + (torch.where(lse.isinf(), 0.0, lse) * part("lse", problem.upward[1])).sum()
    leaves = {name: t for name, t in own.items() if t.requires_grad}
    grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        shared = set(mesh.mesh_dim_names or ()) - ({problem.batch} if name in PER_SAMPLE else set())
        if name in ("key", "value"):
            shared = set()
        if name == "query":
            shared = set(keys) - set(queries)
        grad = grad.clone(memory_format=torch.contiguous_format)
        for dimension in sorted(filter(None, shared)):  # this rank's share of the whole
            dist.all_reduce(grad, group=mesh.get_group(dimension))
        close(f"d{name}", grad, part(f"d{name}", problem.expected[f"d{name}"]))


def close(name: str, found: Tensor, wanted: Tensor) -> None:
    """Within 1e-12 of the largest number, and -inf in the same places."""
    assert found.shape == wanted.shape, f"{name}: {[*found.shape]}, not {[*wanted.shape]}"
    assert torch.equal(found.isinf(), wanted.isinf()), f"{name}: -inf in other places"
    found, wanted = (tensor.detach().masked_fill(tensor.isinf(), 0.0) for tensor in (found, wanted))
    error = dense_attention.largest(found - wanted)
    assert error <= 1e-12 * max(1.0, dense_attention.largest(wanted)), f"{name}: off by {error:.3g}"


def work(rank: int, path: Path) -> None:
    """Compares all problems of a file on one rank."""
    meshes: dict[tuple[int, ...], DeviceMesh] = {}
    for shape in SHAPES[dist.get_world_size()]:
        meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=tuple("xyz"[: len(shape)]))
    for number, problem in enumerate(torch.load(path, weights_only=False)):
        try:
            compare(problem, meshes[problem.shape])
        except Exception as error:
            shown = {n: [*t.shape] for n, t in problem.tensors.items()}
            raise AssertionError(
                f"problem {number}: {problem.mask} {problem.space} {problem.key_space} on "
                f"{problem.shape} {problem.shard} {problem.query_shard} {problem.batch} {shown} "
                f"{problem.options}"
            ) from error

"""Attention of torch's distributed tensors: what their placements mean, and this rank's part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from nbattn import functional
from nbattn.backends.inputs import Inputs
from nbattn.distributed import agreement, known_plans, one_rank
from nbattn.distributed.chunks import Span, chunk_of
from nbattn.distributed.local_axes import keys_stand_alone
from nbattn.distributed.tracing import plain
from nbattn.errors import InputError
from nbattn.mask import Mask

Placements = Sequence[Placement]
# Of optional arguments, the dimension that is the batch, and the one that is the heads.
_DIMENSIONS: dict[str, tuple[int | None, int | None]] = {
    "sink": (None, 0),
    "key_range": (0, None),
    "extra_key": (0, 2),
    "extra_value": (0, 2),
    "extra_range": (0, None),
    "relative_bias": (None, 0),
}
_NAMES = (*_DIMENSIONS, "alibi_slopes")


@dataclass(frozen=True, slots=True)
class Layout:
    """What each dimension of a mesh shards: the batch, the heads, an axis of the space, or nothing.

    Args:
        mesh: the mesh.
        batch, heads: the mesh dimensions that shard them.
        keys, queries: for every axis, the mesh dimension that shards its keys, and its queries.
    """

    mesh: DeviceMesh
    batch: tuple[int, ...]
    heads: tuple[int, ...]
    keys: tuple[int | None, ...]
    queries: tuple[int | None, ...]

    @property
    def sharding(self) -> set[int]:
        """The mesh dimensions along which ranks compute different things."""
        return {*self.batch, *self.heads, *(n for n in self.keys if n is not None)}

    @property
    def shares_space(self) -> bool:
        """Whether ranks share the space."""
        return any(number is not None for number in self.keys)

    def plan(
        self, mask: Mask, space: Sequence[int], key_space: Sequence[int], *, table: bool
    ) -> int:
        """The number of the plan of a call where ranks share the space."""
        sharding = self.keys, self.queries, plain(space), plain(key_space)
        return known_plans.plan_number(self.mesh, mask, sharding, table)

    def tell(self, error: BaseException) -> None:
        """Tells an error of this rank to the others that share the space."""
        shared = [number for number in self.keys if number is not None]
        agreement.ranks_of(self.mesh, shared).tell(error)

    def computed(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask,
        spaces: tuple[Sequence[int], Sequence[int]],
        named: dict[str, Any],
    ) -> Any:
        """Attention of the rank's parts, across ranks if these share the space.

        Args:
            query, key, value: the rank's parts.
            mask: the mask.
            spaces: lengths of the whole axes of queries and keys.
            named: other arguments of `nbattn.attention`.
        """
        table = named.get("relative_bias") is not None
        if not self.shares_space:
            return functional.attention(query, key, value, mask, **named)
        try:
            number = self.plan(mask, *spaces, table=table)
        except Exception as error:
            if not torch.compiler.is_compiling():
                self.tell(error)
            raise
        found = one_rank.attend(query, key, value, number, named)  # tells its own errors
        return found[0] if len(found) == 1 else (found[0], found[1])

    def shares(self, placements: Placements, merged: bool = True) -> list[Placement]:
        """Placements of the gradient of what has these placements: where it is replicated and ranks
        compute different things, each of them has a share of it.

        Args:
            placements: of the tensor.
            merged: whether that is so where ranks have the same queries and different keys.
        """
        sharding = self.sharding
        if not merged:
            sharding -= {k for k, q in zip(self.keys, self.queries, strict=True) if k != q}  # pyright: ignore
        return [
            Partial() if number in sharding and isinstance(placement, Replicate) else placement
            for number, placement in enumerate(placements)
        ]

    def own(
        self, name: str, given: Any, *, batch: int | None = None, heads: int | None = None
    ) -> Any:
        """This rank's part of an argument that is whole on all ranks, or sharded as the call is.

        Args:
            name: of the argument, for messages.
            given: a tensor, distributed or whole; None is returned.
            batch: its dimension that is the batch, if it has one.
            heads: its dimension that is the heads, if it has one.

        Raises:
            InputError: it is on another mesh, or has other placements.
        """
        if not isinstance(given, Tensor):
            return given
        found, uncut = given, [(batch, self.batch), (heads, self.heads)]
        if isinstance(given, DTensor):
            placements = given.placements
            whole = f"{name}={name}.redistribute(placements={[Replicate()] * self.mesh.ndim})"
            if given.device_mesh != self.mesh:
                raise InputError(
                    f"{name} is on {given.device_mesh}, query on {self.mesh}.",
                    f"{name}={name}.full_tensor()",
                )
            expected = list[Placement]([Replicate()] * self.mesh.ndim)
            for dimension, numbers in tuple(uncut):
                side = Shard(dimension) if dimension is not None else Replicate()
                if numbers and all(placements[n] == side for n in numbers):
                    uncut.remove((dimension, numbers))
                    for number in numbers:
                        expected[number] = side
            if list(placements) != expected:
                raise InputError(
                    f"{name} has placements {_shown(placements)}, not {_shown(expected)}.", whole
                )
            found = local(given, self.shares(placements))
        for dimension, numbers in uncut:
            if dimension is not None and numbers:
                span = self.part(numbers, found.shape[dimension])
                found = found.narrow(dimension, span.start, span.length)
        return found

    def part(self, numbers: Sequence[int], length: int) -> Span:
        """The part of a length that is this rank's, after all of some mesh dimensions cut it."""
        start, count = 0, length
        for number in numbers:
            chunk = chunk_of(count, self.mesh.size(number), self.mesh.get_local_rank(number))
            start, count = start + chunk.start, chunk.length
        return Span(start, start + count)


def attend(inputs: Inputs, mask: Mask, options: dict[str, Any]) -> Any:
    """Attention of distributed tensors, whose arguments were checked as those of one process.

    Args:
        inputs: distributed tensors; optional ones may be whole.
        mask: of the whole space.
        options: other arguments of `nbattn.attention`.

    Returns:
        The output with the query's placements; with `return_lse` the logsumexp, too.

    Raises:
        InputError: placements that do not go together, with those that do.
    """
    if inputs.grids is not None:
        raise InputError(
            "packed grids have one axis for the tokens of all, which ranks cannot share.",
            "nbattn.attention(query.full_tensor(), key.full_tensor(), value.full_tensor(), mask, "
            "grids=grids), with the other arguments.",
        )
    given = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if not any(isinstance(tensor, DTensor) for tensor in given.values()):
        name = next(n for n in _NAMES if isinstance(getattr(inputs, n), DTensor))
        raise InputError(
            f"query, key and value are tensors of this rank, {name} is one of a mesh.",
            f"{name}={name}.to_local()",
        )
    layout = read(given, mask, heads=True)
    query: Any = inputs.query
    key: Any = inputs.key
    value: Any = inputs.value
    local_query, local_key, local_value = (
        local(t, layout.shares(t.placements)) for t in (query, key, value)
    )
    named: dict[str, Any] = {
        name: layout.own(name, getattr(inputs, name), batch=batch, heads=heads)
        for name, (batch, heads) in _DIMENSIONS.items()
    }
    slopes = inputs.alibi_slopes
    has_batch = slopes is not None and slopes.dim() == 2
    named["alibi_slopes"] = layout.own(
        "alibi_slopes", slopes, batch=0 if has_batch else None, heads=int(has_batch)
    )
    named |= {"scale": inputs.scale, "softcap": inputs.softcap, **options}
    spaces = query.shape[1:-2], key.shape[1:-2]
    found = layout.computed(local_query, local_key, local_value, mask, spaces, named)
    placements = query.placements
    shapes = (*query.shape[:-1], value.shape[-1]), query.shape[:-1]
    if not isinstance(found, tuple):
        return joined(found, layout.mesh, placements, shapes[0])
    both = zip(found, shapes, strict=True)
    return tuple(joined(part, layout.mesh, placements, shape) for part, shape in both)


def beside(extra_query: Tensor, key: Any) -> Tensor:
    """Queries of extra tokens `[B, E, H, D]`, for attention over keys `[B, *space, H, D]`: with the
    batch and the heads of the keys' ranks, on all ranks that share the space.

    Raises:
        InputError: they are no distributed tensor.
    """
    _same_mesh({"extra_query": extra_query, "key": key})
    of_heads = key.dim() - 2
    placements = [
        Shard(2) if p == Shard(of_heads) else p if p == Shard(0) else Replicate()
        for p in key.placements
    ]
    return extra_query.redistribute(placements=placements)  # pyright: ignore


def local(tensor: Any, gradient: Placements) -> Tensor:
    """This rank's part of a distributed tensor, whose gradient has these placements."""
    return tensor.to_local(grad_placements=gradient)


def joined(part: Tensor, mesh: DeviceMesh, placements: Placements, shape: Sequence[int]) -> Tensor:
    """The distributed tensor of these parts, which can differ in size."""
    stride = [prod(shape[number + 1 :]) for number in range(len(shape))]
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(stride)
    )


def read(given: dict[str, Tensor], mask: Mask, *, heads: bool, axes_at: int = 1) -> Layout:
    """Reads the placements of queries, and of keys.

    Args:
        given: by name, the queries and then what is placed as the keys are, if there is more:
            `[B, *space, H, D]`, or `[B, *space, C]` for tokens.
        mask: the mask.
        heads: whether they have heads.
        axes_at: the dimension that is the first axis; others are the batch, or cannot be sharded.

    Raises:
        InputError: placements that do not go together, with those that do.
    """
    first, *others = given
    query: Any = given[first]
    _same_mesh(given)
    keys: Any = given[others[0]] if others else query
    mesh: DeviceMesh = query.device_mesh
    counts = [t.shape[-2] for t in (query, keys)] if heads else []
    reading = _Reading(given, mask.rank, axes_at, mesh, counts)
    batch: list[int] = []
    of_heads: list[int] = []
    key_axes: list[int | None] = [None] * mask.rank
    query_axes: list[int | None] = [None] * mask.rank
    for number in range(mesh.ndim):
        sides = [t.placements[number] for t in given.values()]  # pyright: ignore
        for name, tensor in given.items():
            placements = tensor.placements  # pyright: ignore
            if problem := reading.problem(number, placements):
                raise reading.refused(f"{name} has placements {_shown(placements)}: {problem}")
        ours, theirs = sides[0], sides[-1]
        if any(side != theirs for side in sides[1:]):
            both = " and ".join(f"{n} {_shown(given[n].placements)}" for n in others)  # pyright: ignore
            raise reading.refused(f"placements differ: {both}")
        if isinstance(theirs, Replicate) and ours == theirs:
            continue
        axis = theirs.dim - axes_at if isinstance(theirs, Shard) else -1
        is_axis = 0 <= axis < mask.rank
        if ours != theirs and not (is_axis and isinstance(ours, Replicate)):
            raise reading.refused(
                f"{first} has placements {_shown(query.placements)}, {others[0]} "
                f"{_shown(keys.placements)}, which do not go together"
            )
        if is_axis:
            if ours != theirs and not keys_stand_alone(mask.axes[axis]):
                raise reading.refused(
                    f"axis {axis}: every rank has all of {first} and a part of {others[0]}, which "
                    f'needs border="clip" and stride=1, not {mask.axes[axis]!r}',
                    like=keys,
                )
            key_axes[axis] = number
            query_axes[axis] = number if ours == theirs else None
        else:
            (of_heads if axis >= 0 else batch).append(number)
    return Layout(mesh, tuple(batch), tuple(of_heads), tuple(key_axes), tuple(query_axes))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What `read` was given, and its errors.

    Args:
        given: the tensors by name.
        rank: the number of axes.
        axes_at: the dimension that is the first one.
        mesh: their mesh.
        heads: the numbers of heads of queries and keys; none of tokens.
    """

    given: dict[str, Tensor]
    rank: int
    axes_at: int
    mesh: DeviceMesh
    heads: Sequence[int]

    def problem(self, number: int, placements: Placements) -> str:
        """What is wrong with a tensor's placement on one mesh dimension; empty if nothing is."""
        placement, axes = placements[number], range(self.axes_at, self.axes_at + self.rank)
        if type(placement) is Replicate:
            return ""
        if type(placement) is not Shard:  # _StridedShard is a subclass
            return f"{type(placement).__name__} is no part of a tensor that can be attended to"
        is_heads = bool(self.heads) and placement.dim == axes.stop
        if not (placement.dim == 0 or placement.dim in axes or is_heads):
            return f"{'head_dim' if self.heads else 'channels'} cannot be sharded"
        same = [n for n, p in enumerate(placements) if p == placement]
        if placement.dim in axes and same[0] < number:
            return f"two mesh dimensions shard axis {placement.dim - self.axes_at}"
        ranks = prod([self.mesh.size(n) for n in same])
        if is_heads and any(count % ranks for count in self.heads):
            queries, keys = self.heads
            return f"{ranks} ranks cannot share {queries} query heads and {keys} key heads evenly"
        return ""

    def refused(self, problem: str, like: Any = None) -> InputError:
        """The error for placements, with others: those of one tensor, replicated where they are
        wrong.

        Args:
            problem: what is wrong.
            like: the tensor whose placements fit; default the first one.
        """
        tensor: Any = next(iter(self.given.values())) if like is None else like
        placements = tensor.placements
        fitting = [
            Replicate() if self.problem(number, placements) else placement
            for number, placement in enumerate(placements)
        ]
        names = ", ".join(self.given)
        each = f"(t.redistribute(placements={fitting}) for t in ({names}))"
        one = f"{names}.redistribute(placements={fitting})"
        return InputError(f"{problem}.", f"{names} = {each if len(self.given) > 1 else one}")


def _same_mesh(given: dict[str, Tensor]) -> None:
    """Checks that all are distributed, on one mesh."""
    first, tensor = next((n, t) for n, t in given.items() if isinstance(t, DTensor))
    for name, other in given.items():
        if not isinstance(other, DTensor):
            raise InputError(
                f"{name} is a tensor of this rank, {first} one of a mesh.",
                f"{name} = DTensor.from_local({name}, {first}.device_mesh)"
                f".redistribute(placements={first}.placements), where every rank has all of it.",
            )
        if other.device_mesh != tensor.device_mesh:
            raise InputError(
                f"{name} is on {other.device_mesh}, {first} on {tensor.device_mesh}.",
                f"{name} = DTensor.from_local({name}.full_tensor(), {first}.device_mesh)"
                f".redistribute(placements={first}.placements)",
            )


def _shown(placements: Placements) -> str:
    """Placements as code."""
    return repr(list(placements))

"""Where a rank is: its part of every axis, and the process groups that share the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed.chunks import Span, chunk_of
from nbattn.errors import InputError

Shard = tuple[str | int | None, ...]  # per axis a mesh dimension by name, or by number


@dataclass(frozen=True, slots=True)
class Group:
    """A process group of all ranks that differ in some mesh dimensions only.

    Args:
        name: torch's name of the group, which operators take.
        size: how many ranks.
        number: of this rank in it.
    """

    name: str
    size: int
    number: int


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place in the space.

    Args:
        space, key_space: lengths of the whole axes.
        shard: the mesh dimension of every axis; None for axes that every rank has whole.
        parts: into how many parts every axis is cut.
        whole: whether every rank has all queries of an axis, whose keys are cut.
        mesh_axes: the axes that are cut, in the order of their mesh dimensions.
        coordinates: the rank's part of every axis.
        group: the ranks that share the space; None where nothing is cut.
        merged: the ranks that have the same queries, whose results are merged; None if none have.
    """

    space: tuple[int, ...]
    key_space: tuple[int, ...]
    shard: Shard
    parts: tuple[int, ...]
    whole: tuple[bool, ...]
    mesh_axes: tuple[int, ...]
    coordinates: tuple[int, ...]
    group: Group | None
    merged: Group | None

    @property
    def is_first_of_merged(self) -> bool:
        """Whether sinks and extra keys, which count once, are this rank's."""
        return not any(c for c, whole in zip(self.coordinates, self.whole, strict=True) if whole)

    def queries(self, axis: int) -> Span:
        """The rank's queries of an axis."""
        if self.whole[axis]:
            return Span(0, self.space[axis])
        return chunk_of(self.space[axis], self.parts[axis], self.coordinates[axis])

    def keys(self, axis: int) -> Span:
        """The rank's keys of an axis."""
        return chunk_of(self.key_space[axis], self.parts[axis], self.coordinates[axis])

    def check_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Checks that tensors have the rank's queries and keys.

        Raises:
            InputError: one has not, with both numbers and the code that cuts it.
        """
        rank = len(self.space)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.dim() != rank + 3:
                space = self.space if name == "query" else self.key_space
                raise InputError(
                    f"{name} {list(tensor.shape)} has {tensor.dim()} dimensions; the local shard "
                    f"of a space {list(space)} is [B, *space, H, D]: {rank + 3}.",
                    where=f"{name} {list(tensor.shape)}",
                )
            for axis in range(rank):
                self.check_length(name, axis, tensor.shape[axis + 1])

    def check_length(self, name: str, axis: int, has: int, *, at: int = 1) -> None:
        """Checks how long an axis of a tensor is.

        Args:
            name: of the tensor: "query" and "x" have queries, others keys.
            axis: number of the axis.
            has: its length.
            at: the dimension of the tensor that is axis 0.

        Raises:
            InputError: it is not as long as the rank's part, with the code that cuts it.
        """
        is_query = name in ("query", "x")
        wanted = (self.queries if is_query else self.keys)(axis)
        if has == wanted.count:
            return
        length = (self.space if is_query else self.key_space)[axis]
        dimension, parts = self.shard[axis], self.parts[axis]
        if parts == 1 or (is_query and self.whole[axis]):
            raise InputError(
                f"{name} has {has} positions on axis {axis}, which every rank has whole: {length}.",
                f"{'space' if is_query else 'key_space'}: {has} at axis {axis}.",
            )
        part, size = self.coordinates[axis], -(-length // parts)
        raise InputError(
            f"{name} has {has} positions on axis {axis}; part {part} of {parts} has "
            f"{wanted.count} of {length}: {wanted.start} to {wanted.stop}.",
            f"{name}=whole_{name}.tensor_split([*range({size}, {length}, {size})], {axis + at})"
            f"[mesh.get_local_rank({dimension!r})]"
            if wanted.count
            else f"{name}=whole_{name}.narrow({axis + at}, {wanted.start}, 0)",
        )


@lru_cache(256)
def place_of(
    mesh: DeviceMesh,
    shard: Shard,
    query_shard: Shard,
    space: tuple[int, ...],
    key_space: tuple[int, ...],
) -> Place:
    """The place of this rank; makes the process groups where they do not exist yet.

    Args:
        mesh: a mesh; without names, its dimensions are given by number.
        shard: the mesh dimension of every axis of the keys, or None.
        query_shard: the same of the queries; None where every rank has all of them.
        space, key_space: lengths of the whole axes.
    """
    names = mesh.mesh_dim_names or ()
    numbers = [names.index(given) if isinstance(given, str) else given for given in shard]
    cut = sorted((number, axis) for axis, number in enumerate(numbers) if number is not None)
    whole = [
        given is not None and ours is None for given, ours in zip(shard, query_shard, strict=True)
    ]
    return Place(
        space,
        key_space,
        shard,
        tuple(1 if number is None else mesh.size(number) for number in numbers),
        tuple(whole),
        tuple(axis for _, axis in cut),
        tuple(0 if number is None else mesh.get_local_rank(number) for number in numbers),
        _group(mesh, [number for number, _ in cut]),
        _group(mesh, [number for number, axis in cut if whole[axis]]),
    )


def _group(mesh: DeviceMesh, dimensions: Sequence[int]) -> Group | None:
    """The process group along some dimensions of a mesh, which are in the mesh's order."""
    if not dimensions:
        return None
    if len(dimensions) == 1:
        group, rank = mesh.get_group(dimensions[0]), mesh.get_local_rank(dimensions[0])
    else:  # `_flatten` is the one way to a group of several dimensions
        mesh = _with_names(mesh)
        names = mesh.mesh_dim_names or ()
        some = tuple(names[number] for number in dimensions)
        along = (mesh if some == names else mesh[some])._flatten()
        group, rank = along.get_group(), along.get_local_rank()
    return Group(group.group_name, prod(map(mesh.size, dimensions)), rank)


@lru_cache(64)
def _with_names(mesh: DeviceMesh) -> DeviceMesh:
    """A mesh, or if it has no names, the same ranks as a mesh with names."""
    if mesh.mesh_dim_names:
        return mesh
    names = tuple(f"dim_{number}" for number in range(mesh.ndim))
    return DeviceMesh(mesh.device_type, mesh.mesh, mesh_dim_names=names)

"""Where a rank is: its part of every axis, and the process groups that share the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed import agreement
from nbattn.distributed.chunks import Span, chunk_of
from nbattn.errors import InputError, counted

Shard = tuple[str | None, ...]


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
            chunk = self.queries if name == "query" else self.keys
            if tensor.dim() != rank + 3:
                raise InputError(
                    f"{name} has {tensor.dim()} dimensions; a rank's part of a space of "
                    f"{counted(rank, 'axis', 'axes')} is [B, *space, H, D]: {rank + 3}.",
                    where=f"{name} {list(tensor.shape)}",
                )
            for axis in range(rank):
                has, wanted = tensor.shape[axis + 1], chunk(axis)
                if has != wanted.length:
                    raise self._wrong_length(name, axis, has, wanted)

    def _wrong_length(self, name: str, axis: int, has: int, wanted: Span) -> InputError:
        of_queries = name == "query"
        space = self.space if of_queries else self.key_space
        if self.parts[axis] == 1 or (of_queries and self.whole[axis]):
            lengths = (*space[:axis], has, *space[axis + 1 :])
            return InputError(
                f"{name} has {has} positions on axis {axis}, which every rank has whole: "
                f"{space[axis]}.",
                f"{'space' if of_queries else 'key_space'}={lengths!r}.",
            )
        return InputError(
            f"{name} has {has} positions on axis {axis}; part {self.coordinates[axis]} of "
            f"{self.parts[axis]} has {wanted.length} of {space[axis]}: {wanted.start} to "
            f"{wanted.stop}.",
            f"{name}=whole_{name}{self._cut(of_queries)}.",
        )

    def _cut(self, of_queries: bool) -> str:
        """The code that cuts this rank's part from a whole tensor."""
        code = ""
        for axis, dimension in enumerate(self.shard):
            if dimension is None or (of_queries and self.whole[axis]):
                continue
            span = self.queries(axis) if of_queries else self.keys(axis)
            code += (
                f".chunk({self.parts[axis]}, {axis + 1})[mesh.get_local_rank({dimension!r})]"
                if span.length  # of empty ones torch.chunk makes none
                else f".narrow({axis + 1}, {span.start}, 0)"
            )
        return code


def place_of(
    mesh: DeviceMesh,
    shard: Shard,
    query_shard: Shard,
    space: tuple[int, ...],
    key_space: tuple[int, ...],
) -> Place:
    """The place of this rank; makes the process groups where they do not exist yet.

    Args:
        mesh: a mesh with names.
        shard: the mesh dimension of every axis of the keys, or None.
        query_shard: the same of the queries; None where every rank has all of them.
        space, key_space: lengths of the whole axes.
    """
    names = mesh.mesh_dim_names or ()
    cut = [axis for axis, name in enumerate(shard) if name is not None]
    cut.sort(key=lambda axis: names.index(str(shard[axis])))
    whole = [
        given is not None and ours is None for given, ours in zip(shard, query_shard, strict=True)
    ]
    cut_names = [str(shard[axis]) for axis in cut]
    whole_names = [str(shard[axis]) for axis in cut if whole[axis]]
    agreement.ranks_of(mesh, cut_names).agree(
        (mesh, shard, query_shard, space, key_space),
        lambda: {
            "mesh": f"{dict(zip(names, mesh.shape, strict=True))}",
            "shard": f"{shard}",
            "query_shard": f"{query_shard}",
            "space": f"{space}",
            "key_space": f"{key_space}",
        },
    )
    return Place(
        space,
        key_space,
        shard,
        tuple(1 if name is None else mesh.size(names.index(name)) for name in shard),
        tuple(whole),
        tuple(cut),
        tuple(0 if name is None else mesh.get_local_rank(name) for name in shard),
        _group(mesh, cut_names),
        _group(mesh, whole_names),
    )


def _group(mesh: DeviceMesh, names: Sequence[str]) -> Group | None:
    """The process group along some dimensions of a mesh, which are in the mesh's order."""
    if not names:
        return None
    along = mesh[tuple(names)] if len(names) < mesh.ndim else mesh
    if len(names) > 1:
        along = along._flatten()  # pyright: ignore[reportPrivateUsage]  # no public way
    group = along.get_group()
    agreement.know_group(group.group_name, agreement.ranks_of(mesh, names))
    size = prod(mesh.size((mesh.mesh_dim_names or ()).index(name)) for name in names)
    return Group(group.group_name, size, along.get_local_rank())

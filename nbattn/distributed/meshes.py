"""Where a rank is: its part of every axis, and the process groups that share the space."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed import agreement
from nbattn.distributed.chunks import Span, chunk_of
from nbattn.errors import InputError, counted

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
        order: of the ranks that share the space, row-major over `mesh_axes`, their order in the
            group; empty if it is the same.
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
    order: tuple[int, ...] = ()

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
                raise InputError(
                    f"{name} has {tensor.dim()} dimensions; a rank's part of a space of "
                    f"{counted(rank, 'axis', 'axes')} is [B, *space, H, D]: {rank + 3}.",
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
        of_queries = name in ("query", "x")
        wanted = self.queries(axis) if of_queries else self.keys(axis)
        if has == wanted.length:
            return
        space = self.space if of_queries else self.key_space
        if self.parts[axis] == 1 or (of_queries and self.whole[axis]):
            lengths = (*space[:axis], has, *space[axis + 1 :])
            raise InputError(
                f"{name} has {has} positions on axis {axis}, which every rank has whole: "
                f"{space[axis]}.",
                f"{'space' if of_queries else 'key_space'}={lengths!r}.",
            )
        fix = f"{name}=whole_{name}{self._cut(of_queries, at)}."
        if has == space[axis]:  # the whole tensor, or the lengths of a part
            whole = tuple(n * parts for n, parts in zip(space, self.parts, strict=True))
            argument = "space" if space == self.space else "key_space"
            fix += f" Or {argument}={whole!r}, if {name} is this rank's part of it."
        raise InputError(
            f"{name} has {has} positions on axis {axis}; part {self.coordinates[axis]} of "
            f"{self.parts[axis]} has {wanted.length} of {space[axis]}: {wanted.start} to "
            f"{wanted.stop}.",
            fix,
        )

    def _cut(self, of_queries: bool, at: int) -> str:
        """The code that cuts this rank's part from a whole tensor."""
        code = ""
        for axis, dimension in enumerate(self.shard):
            if dimension is None or (of_queries and self.whole[axis]):
                continue
            span = self.queries(axis) if of_queries else self.keys(axis)
            code += (
                f".chunk({self.parts[axis]}, {axis + at})[mesh.get_local_rank({dimension!r})]"
                if span.length  # of empty ones torch.chunk makes none
                else f".narrow({axis + at}, {span.start}, 0)"
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
        mesh: a mesh; of one without names, dimensions are given by number.
        shard: the mesh dimension of every axis of the keys, or None.
        query_shard: the same of the queries; None where every rank has all of them.
        space, key_space: lengths of the whole axes.

    Raises:
        InputError: the ranks along a dimension do not ascend, or this one is not in the mesh.
    """
    names = mesh.mesh_dim_names or ()
    numbers = [names.index(given) if isinstance(given, str) else given for given in shard]
    cut = sorted((number, axis) for axis, number in enumerate(numbers) if number is not None)
    whole = [
        given is not None and ours is None for given, ours in zip(shard, query_shard, strict=True)
    ]
    _check_ranks(mesh, [number for number, _ in cut])
    sharing = agreement.ranks_of(mesh, [number for number, _ in cut])
    sharing.agree(
        (mesh, shard, query_shard, space, key_space),
        lambda: {
            "mesh": f"{dict(zip(names, mesh.shape, strict=False))}" if names else f"{mesh.shape}",
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
        tuple(1 if number is None else mesh.size(number) for number in numbers),
        tuple(whole),
        tuple(axis for _, axis in cut),
        tuple(0 if number is None else mesh.get_local_rank(number) for number in numbers),
        _group(mesh, [number for number, _ in cut]),
        _group(mesh, [number for number, axis in cut if whole[axis]]),
        tuple(sorted(range(len(sharing.ranks)), key=sharing.ranks.__getitem__)),
    )


def _check_ranks(mesh: DeviceMesh, dimensions: Sequence[int]) -> None:
    """Checks that this rank is in the mesh, and that ranks ascend along dimensions: torch's groups
    number them so, whatever their order in the mesh.
    """
    if mesh.get_coordinate() is None:
        raise InputError(
            f"rank {distributed.get_rank()} is not in the mesh, which has no part for it.",
            "if mesh.get_coordinate() is not None: out = nbattn.distributed.attention(query, key, "
            "value, mask, mesh=mesh, shard=shard, space=space)",
        )
    for number in dimensions:
        lines = mesh.mesh.movedim(number, -1).flatten(0, -2) if mesh.ndim > 1 else mesh.mesh[None]
        for line in lines[(lines.diff() < 0).any(-1)].tolist():
            name = mesh.mesh_dim_names[number] if mesh.mesh_dim_names else number
            is_whole = mesh.mesh.numel() == distributed.get_world_size()
            ranks = f"mesh.mesh.flatten().sort().values.view({tuple(mesh.shape)})"
            named = f", mesh_dim_names={mesh.mesh_dim_names!r}" * bool(mesh.mesh_dim_names)
            made = f"torch.distributed.device_mesh.DeviceMesh({mesh.device_type!r}, {ranks}{named})"
            raise InputError(
                f"along dimension {name!r} the mesh has ranks {line}, which do not ascend: in "
                "torch's process groups they do, so that a rank would have two places.",
                f"mesh={made}." if is_whole else "",
            )


def _group(mesh: DeviceMesh, dimensions: Sequence[int]) -> Group | None:
    """The process group along some dimensions of a mesh, which are in the mesh's order."""
    if not dimensions:
        return None
    if len(dimensions) == 1:
        group, rank = mesh.get_group(dimensions[0]), mesh.get_local_rank(dimensions[0])
    else:
        mesh = _with_names(mesh, weakref.ref(distributed.group.WORLD))
        names = mesh.mesh_dim_names or ()
        some = tuple(names[number] for number in dimensions)
        along = mesh if some == names else mesh[some]
        along = along._flatten()  # pyright: ignore[reportPrivateUsage]  # no public way
        group, rank = along.get_group(), along.get_local_rank()
    agreement.know_group(group.group_name, agreement.ranks_of(mesh, dimensions))
    return Group(group.group_name, prod(mesh.size(number) for number in dimensions), rank)


@lru_cache(64)
def _with_names(mesh: DeviceMesh, _processes: object) -> DeviceMesh:
    """A mesh, or if it has no names, the same ranks as a mesh with names: torch makes groups of
    several dimensions only of these.
    """
    if mesh.mesh_dim_names:
        return mesh
    names = tuple(f"dim_{number}" for number in range(mesh.ndim))
    groups = mesh.get_all_groups()
    return DeviceMesh.from_group(groups, mesh.device_type, mesh=mesh.mesh, mesh_dim_names=names)

"""Checks how a call says what is sharded: mesh, shard, space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed.local_axes import keys_stand_alone
from nbattn.distributed.meshes import Shard
from nbattn.errors import InputError, counted, kind, similar
from nbattn.mask import Mask, as_space

_MESH = "torch.distributed.init_device_mesh({!r}, {!r}, mesh_dim_names={!r})"


def sharding(
    shape: Sequence[int],
    mask: Mask,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    query_shard: Sequence[str | None] | str | None,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None,
) -> tuple[Shard, Shard, tuple[int, ...], tuple[int, ...]]:
    """The arguments in one form: mesh dimensions of keys and queries, and lengths of both.

    Args:
        shape: of the rank's queries, for a fix; empty if nobody knows.
        mask, mesh, shard, query_shard, space, key_space: as in `attention`.

    Raises:
        InputError: no mesh with names, an unknown or repeated name, or another number of axes.
    """
    names = _names_of_mesh(mesh)
    keys = _names("shard", shard, mask, names)
    queries = keys if query_shard is None else _names("query_shard", query_shard, mask, names)
    for axis, (ours, theirs) in enumerate(zip(queries, keys, strict=True)):
        if ours is not None and ours != theirs:
            raise InputError(
                f"axis {axis}: queries are on mesh dimension {ours!r}, keys on {theirs!r}; both "
                "are cut alike, or every rank has all queries.",
                f"query_shard={keys!r}",
            )
        if ours is None and theirs is not None and not keys_stand_alone(mask.axes[axis]):
            raise InputError(
                f"axis {axis}: every rank has all queries and a part of the keys, which needs "
                f'border="clip" and stride=1, not {mask.axes[axis]!r}.',
                f"query_shard={keys!r}",
            )
    lengths = _space("space", space, shape, mask, mesh, queries)
    if key_space is None:
        return keys, queries, lengths, lengths
    return keys, queries, lengths, _space("key_space", key_space, (), mask, mesh, keys)


def _names_of_mesh(mesh: Any) -> tuple[str, ...]:
    if not isinstance(mesh, DeviceMesh):
        is_group = isinstance(mesh, distributed.ProcessGroup)
        code = mesh_of_group("mesh") if is_group else new_mesh()
        raise InputError(f"mesh is {kind(mesh)}, not a DeviceMesh.", f"mesh={code}.")
    if not mesh.mesh_dim_names:
        shape = tuple(mesh.shape)
        code = _MESH.format(mesh.device_type, shape, _letters(mesh.ndim))
        raise InputError(f"the mesh {shape} has no names for its dimensions.", f"mesh={code}.")
    return mesh.mesh_dim_names


def _space(
    name: str, given: Any, shape: Sequence[int], mask: Mask, mesh: DeviceMesh, shard: Shard
) -> tuple[int, ...]:
    """The lengths of the whole axes, as many as the mask has axes."""
    whole = whole_space(shape, mesh, shard, mask.rank)
    fix = f"{name}={whole!r}, if all ranks have as much." if whole else ""
    if given is None:
        raise InputError(f"{name} is None, not the lengths of the whole axes.", fix)
    lengths = as_space(given, name)
    if len(lengths) == mask.rank:
        return lengths
    problem = (
        f"{name} has {counted(len(lengths), 'length')} and the mask "
        f"{counted(mask.rank, 'axis', 'axes')}: one length of the whole space each."
    )
    if len(lengths) == mask.rank + 3:  # the shape of a tensor
        raise InputError(problem, f"{name}={lengths[1:-2]!r}.")
    raise InputError(problem, fix)


def _names(argument: str, given: Any, mask: Mask, names: tuple[str, ...]) -> Shard:
    """A mesh dimension or None for every axis."""
    one: Any = given
    if one is not None and not isinstance(one, (str, int, tuple, list)):
        raise InputError(
            f"{argument} is {kind(one)}: one name of a mesh dimension, or None, for each axis.",
            f"{argument}={names_of(_in_order(one, names), mask.rank, names)!r}.",
        )
    found: tuple[Any, ...] = tuple(one) if isinstance(one, (tuple, list)) else (one,)
    if len(found) != mask.rank:
        several = f"{argument}={names_of(found, mask.rank, names)!r}."
        raise InputError(
            f"{argument} has {counted(len(found), 'name')} and the mask "
            f"{counted(mask.rank, 'axis', 'axes')}: one name of a mesh dimension, or None, each.",
            several,
        )
    for name in found:
        if name is not None and name not in names:
            raise InputError(
                f"{argument}: the mesh has no dimension {name!r}; it has "
                f"{', '.join(map(repr, names))}.",
                f"{argument}={names_of(found, mask.rank, names)!r}.",
            )
    some = [name for name in found if name is not None]
    if len(set(some)) < len(some):
        raise InputError(
            f"{argument}={found!r} has one mesh dimension for several axes; each is on its own.",
            f"{argument}={example(names, mask.rank)!r}.",
        )
    return found


def names_of(given: Any, rank: int, names: tuple[str, ...]) -> Shard:
    """What was probably meant as the mesh dimension of every axis.

    Args:
        given: names, numbers of mesh dimensions, or DTensor's placements, one of a mesh dimension.
        rank: how many axes.
        names: those of the mesh.
    """
    parts: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
    if any(hasattr(part, "is_shard") for part in parts):
        found: list[str | None] = [None] * rank
        for name, part in zip(names, parts, strict=False):
            if part.is_shard() and 1 <= part.dim <= rank:
                found[part.dim - 1] = name
        return tuple(found)
    if all(isinstance(part, int) and 0 <= part < len(names) for part in parts):
        parts = [names[part] for part in parts]
    free = [name for name in names if name not in parts]
    known = [
        part if part is None or part in names else similar(str(part), free) or (*free, None)[0]
        for part in parts
    ]
    some = [name for name in known if name is not None]
    if len(known) > rank or not some or len(set(some)) < len(some):
        return example(names, rank)
    return (*known, *(None,) * (rank - len(known)))


def _in_order(given: Any, names: tuple[str, ...]) -> list[Any]:
    """Names of axes from a set, a dict of axes and names or of names and axes, or an array."""
    if isinstance(given, Mapping):
        pairs: list[Any] = list(given.items())
        of_axes = {axis: name for name, axis in pairs if name in names} or dict(pairs)
        if all(isinstance(axis, int) and axis >= 0 for axis in of_axes):
            return [of_axes.get(axis) for axis in range(max(of_axes, default=-1) + 1)]
        return list(of_axes.values())
    if isinstance(given, (set, frozenset)):
        return [name for name in names if name in given]
    return list(given) if isinstance(given, Iterable) else []


def example(names: tuple[str, ...], rank: int) -> Shard:
    """Mesh dimensions in the order of the axes."""
    return (*names[:rank], *(None,) * (rank - len(names)))


def new_mesh() -> str:
    """The code of a mesh of all ranks."""
    ranks = distributed.get_world_size() if distributed.is_initialized() else 4
    return _MESH.format(_device(), (ranks,), ("x",))


def mesh_of_group(name: str) -> str:
    """The code of a mesh of a process group's ranks."""
    made = "torch.distributed.device_mesh.DeviceMesh.from_group"
    return f"{made}({name}, {_device()!r}, mesh_dim_names=('x',))"


def whole_space(shape: Sequence[int], mesh: Any, shard: Any, rank: int) -> tuple[int, ...]:
    """The lengths of the whole axes, if all ranks have as much as this one; empty if unknown."""
    names = isinstance(mesh, DeviceMesh) and mesh.mesh_dim_names
    if not names or len(shape) != rank + 3:
        return ()
    of_axes = example(names, rank) if shard is None else names_of(shard, rank, names)
    parts = [1 if name is None else mesh.size(names.index(name)) for name in of_axes]
    return tuple(prod(pair) for pair in zip(shape[1:-2], parts, strict=True))


def _letters(count: int) -> tuple[str, ...]:
    return tuple("xyzuvw"[:count])


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

"""Checks how a call says what is sharded: mesh, shard, space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from nbattn.distributed.local_axes import keys_stand_alone
from nbattn.distributed.meshes import Shard
from nbattn.errors import InputError, counted, kind
from nbattn.mask import Mask, as_space


def sharding(
    mask: Mask,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    query_shard: Sequence[str | None] | str | None,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None,
) -> tuple[Shard, Shard, tuple[int, ...], tuple[int, ...]]:
    """The arguments in one form: mesh dimensions of keys and queries, and lengths of both.

    Raises:
        InputError: no mesh with names, an unknown or repeated name, or another number of axes.
    """
    if not isinstance(mesh, DeviceMesh):
        raise InputError(
            f"mesh is {kind(mesh)}, not a DeviceMesh.",
            'mesh=torch.distributed.init_device_mesh("cuda", (4, 2), mesh_dim_names=("x", "y"))',
        )
    names = mesh.mesh_dim_names
    if not names:
        raise InputError(
            f"the mesh {tuple(mesh.shape)} has no names.",
            f"torch.distributed.init_device_mesh({mesh.device_type!r}, {tuple(mesh.shape)}, "
            f"mesh_dim_names={tuple('xyz'[: mesh.ndim])})",
        )
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
    lengths = as_space(space, "space")
    key_lengths = lengths if key_space is None else as_space(key_space, "key_space")
    return keys, queries, lengths, key_lengths


def _names(argument: str, given: Any, mask: Mask, names: tuple[str, ...]) -> Shard:
    """A mesh dimension or None for every axis."""
    found = (given,) if given is None or isinstance(given, str) else tuple(given)
    example = (*names[: mask.rank], *(None,) * (mask.rank - len(names)))
    if len(found) != mask.rank:
        raise InputError(
            f"{argument} has {counted(len(found), 'name')} and the mask "
            f"{counted(mask.rank, 'axis', 'axes')}: one name of a mesh dimension, or None, each.",
            f"{argument}={(*found, *(None,) * mask.rank)[: mask.rank]!r}",
        )
    for name in found:
        if name is not None and name not in names:
            raise InputError(
                f"{argument}: the mesh has no dimension {name!r}; it has {names!r}.",
                f"{argument}={example!r}",
            )
    some = [name for name in found if name is not None]
    if len(set(some)) < len(some):
        raise InputError(
            f"{argument}={found!r} has one mesh dimension for several axes; each is on its own.",
            f"{argument}={example!r}",
        )
    return found

"""The public function attention() on local shards: queries and keys of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from nbattn import arguments, functional
from nbattn.distributed import agreement, given, one_rank, words
from nbattn.distributed.known_plans import PLANS, plan_number
from nbattn.distributed.tracing import constant, plain
from nbattn.distributed.words import Options
from nbattn.fixes import signatures
from nbattn.mask import Mask


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None = None,
    query_shard: Sequence[str | None] | str | None = None,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None = None,
    query_shard: Sequence[str | None] | str | None = None,
    return_lse: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]: ...


@signatures.answering(words.refusal)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    mesh: DeviceMesh,
    shard: Sequence[str | None] | str,
    space: Sequence[int] | int,
    key_space: Sequence[int] | int | None = None,
    query_shard: Sequence[str | None] | str | None = None,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes attention over a space that is cut into parts, one for each rank of a mesh.

    Every rank calls it with its own part, and receives from others only the keys that its queries
    attend to: one exchange forward, one backward. Parts are those of `torch.chunk`: all as long as
    the first one, but for the last ones, which can be shorter or empty. The mask is that of the
    whole space.

    Args:
        query: `[B, *space, H, D]`, this rank's part of it.
        key: `[B, *key_space, Hk, D]`, this rank's part.
        value: `[B, *key_space, Hk, Dv]`, this rank's part.
        mask: the keys that each query attends to in the whole space.
        mesh: a mesh whose dimensions have names. Those that `shard` does not name are anything
            else: ranks with other samples or other heads, which call it on their own.
        shard: for every axis the name of the mesh dimension over which it is cut, or None for an
            axis that every rank has whole; one name for a mask of one axis.
        space: lengths of the whole axes of the queries.
        key_space: those of the keys; default: `space`.
        query_shard: `shard` of the queries, if others: None for an axis of which every rank has all
            queries and a part of the keys, as in decoding with a cache that is cut. The results of
            these ranks are merged, and every one of them has the whole. Needs `border="clip"` and
            stride 1.
        options: `scale`, `softcap`, `sink`, `key_range`, `extra_key`, `extra_value`, `extra_range`,
            `relative_bias`, `alibi_slopes`, `backend`, `require`, `forbid`, `return_lse`, as in
            `nbattn.attention`. Tensors among them are alike on all ranks: a `key_range` is in
            positions of the whole space.

    Returns:
        `[B, *space, H, Dv]`, this rank's part of it; with `return_lse` also `[B, *space, H]`. Empty
        where the part is. The gradients of query, key and value are this rank's part. Of arguments
        that all ranks have (a sink, extra keys, a table, queries by `query_shard`), a rank's
        gradient is its share: the sum over the ranks of the space is the whole one.

    Raises:
        InputError: no mesh with names, a name that it does not have, a tensor that is not this
            rank's part; with both numbers and the fix.
        MaskError: the mask does not fit the space.
        BackendError: no backend supports the call.
        DistributedError: another rank has raised an error, has ended, is late, or calls with other
            arguments.

    >>> from torch import distributed
    >>> store = distributed.HashStore()  # this process is all ranks: torchrun has more
    >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> mesh = distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("rows", "columns"))
    >>> part = torch.randn(2, 30, 40, 4, 16)
    >>> mask = Mask.neighborhood((7, 7))
    >>> shard, space = ("rows", "columns"), (30, 40)
    >>> attention(part, part, part, mask, mesh=mesh, shard=shard, space=space).shape
    torch.Size([2, 30, 40, 4, 16])
    >>> distributed.destroy_process_group()
    """
    sharding = shard, query_shard, space, key_space
    call: Any = (query, key, value, mask, mesh, sharding, options)
    if torch.compiler.is_compiling():
        checked = _checked(*call)
    else:
        try:
            checked = _checked(*call)
        except Exception as error:
            agreement.tell(mesh, shard, error)
            raise
    found = one_rank.attend(*checked, options)
    return found[0] if len(found) == 1 else (found[0], found[1])


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    mesh: DeviceMesh,
    sharding: tuple[Any, Any, Any, Any],
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The rank's parts, cast for autocast, and the number of their plan."""
    if strange := words.strangers(options):
        shard, query_shard, space, key_space = sharding
        named = {"query": query, "mask": mask, "mesh": mesh, "shard": shard, "space": space}
        optional = {"key_space": key_space, "query_shard": query_shard}
        named |= {name: value for name, value in optional.items() if value is not None}
        raise words.unknown(strange, named | options)
    words.check_local({"query": query, "key": key, "value": value} | options)
    arguments.check_mask(mask, getattr(query, "ndim", 4) - 3)
    table = options.get("relative_bias") is not None
    shape = getattr(query, "shape", ())  # for words
    if torch.compiler.is_compiling():
        shard, query_shard, space, key_space = sharding
        shape, sharding = (), (shard, query_shard, plain(space), plain(key_space))
    number = _plan_number(shape, mesh, mask, *sharding, table)
    query, named = functional.autocast(query, {"key": key, "value": value})
    if not all(isinstance(tensor, Tensor) for tensor in (query, *named.values())):
        arguments.check_tensors(query, named)
    key, value = named["key"], named["value"]
    PLANS[number].place.check_shapes(query, key, value)
    return query, key, value, number


@constant
def _plan_number(
    shape: Sequence[int],
    mesh: DeviceMesh,
    mask: Mask,
    shard: Any,
    query_shard: Any,
    space: Any,
    key_space: Any,
    table: bool,
) -> int:
    """The number of a call's plan in `PLANS`."""
    sharding = given.sharding(shape, mask, mesh, shard, query_shard, space, key_space)
    return plan_number(mesh, mask, sharding, table)


words.show(attention)

"""Packed grids as arguments of calls: sizes that a tracer may not know yet, the tensors that fit
them, and jagged nested tensors, which are grids of one axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn import grids as sizes_of
from nbattn import shapes
from nbattn.errors import InputError
from nbattn.grids import PackedGrids, grids_of
from nbattn.mask import Mask
from nbattn.symbolic import holds

_UNKNOWN = "sizes of grids are known to a graph as a list of tuples only"


class TracedGrids(NamedTuple):
    """Packed grids while torch compiles: sizes may be symbols, so that they are lists.

    Args:
        query, key: the lengths of all grids one after another, as operators take them.
        rank: the number of axes.
        is_self: whether keys have the grids of the queries.
    """

    query: list[int]
    key: list[int]
    rank: int
    is_self: bool

    def flat(self) -> tuple[list[int], list[int]]:
        """Returns the lengths of all grids one after another."""
        return self.query, self.key

    def spaces(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Returns the lengths of the queries' and keys' axes, grid by grid."""
        return [
            (tuple(self.query[at : at + self.rank]), tuple(self.key[at : at + self.rank]))
            for at in range(0, len(self.query), self.rank)
        ]


def packed_of(mask: object, grids: Any, key_grids: Any) -> PackedGrids | TracedGrids:
    """Returns the grids of a call with this mask.

    Raises:
        InputError: they are no grids of as many axes as the mask has, or not as many of keys as of
            queries.
    """
    rank = mask.rank if isinstance(mask, Mask) else None
    if grids is None:
        raise InputError("key_grids is given, but not grids.", "grids=key_grids, key_grids=None.")
    if torch.compiler.is_compiling():
        query = _traced(grids, rank, "grids")
        key = query if key_grids is None else _traced(key_grids, rank, "key_grids")
        counts = [len(flat) // (rank or 1) for flat in (query, key)]
        packed = TracedGrids(query, key, rank or 1, key_grids is None)
    else:
        of_query = grids_of(grids, rank)
        of_key = of_query if key_grids is None else grids_of(key_grids, rank, "key_grids")
        counts = [len(of_query), len(of_key)]
        packed = PackedGrids(of_query, of_key)
    if counts[0] != counts[1]:
        raise InputError(f"grids has {counts[0]} grids, key_grids {counts[1]}.")
    return packed


def _are_lists(sizes: object) -> bool:
    """Whether a compiler can follow sizes: lists of whole numbers, which may be symbols."""
    if not isinstance(sizes, (list, tuple)):
        return sizes is None
    return all(
        isinstance(length, (int, torch.SymInt))
        for size in sizes
        for length in (size if isinstance(size, (list, tuple)) else (size,))
    )


def _looked_at(grids: Any, rank: int | None, name: str) -> list[int]:
    """Returns the lengths of all grids one after another."""
    if isinstance(grids, Tensor) and torch.compiler.is_exporting():
        raise InputError(
            f"{name} is a tensor, whose numbers torch.export does not know.",
            f"{name}={name}.tolist(), before the export.",
        )
    return grids_of(grids, rank, name).array.ravel().tolist()


def _traced(grids: Any, rank: int | None, name: str) -> list[int]:
    """Returns the lengths of all grids one after another, without looking at symbols."""
    if not _are_lists(grids):  # which have no symbols
        if not torch.compiler.is_dynamo_compiling():
            return _looked_at(grids, rank, name)
        torch._dynamo.graph_break(msg=_UNKNOWN)  # pyright: ignore[reportPrivateUsage]
        return torch.compiler.disable(_looked_at)(grids, rank, name)  # pyright: ignore
    flat: list[int] = []
    for size in grids:
        lengths = size if isinstance(size, (tuple, list)) else (size,)
        if len(lengths) != rank:
            raise InputError(f"grids: a grid has {len(lengths)} lengths, and the mask {rank} axes.")
        flat.extend(lengths)
    return flat


def grid_count(packed: PackedGrids | TracedGrids) -> int:
    """Returns the number of grids."""
    return len(packed.query) // packed.rank if isinstance(packed, TracedGrids) else len(packed)


def argument_of(packed: PackedGrids | TracedGrids, side: str) -> str:
    """Returns the argument that gave the grids of queries or keys."""
    return "grids" if side == "query" or packed.is_self else "key_grids"


def common_space(packed: PackedGrids | TracedGrids) -> tuple[int, ...]:
    """Returns the size of every grid of keys; zeros if sizes differ, or are symbols."""
    keys = packed.key.distinct()[0] if isinstance(packed, PackedGrids) else ()
    return tuple(keys[0].tolist()) if len(keys) == 1 else (0,) * packed.rank


def check_shapes(
    mask: Mask,
    packed: PackedGrids | TracedGrids,
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *,
    in_plan: bool = False,
) -> None:
    """Checks that shapes `[T, H, D]`, `[Tk, Hk, D]`, `[Tk, Hk, Dv]` fit one another and the grids.

    Raises:
        InputError: they do not.
        MaskError: the mask does not fit a grid.
    """
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != 3:
            raise InputError(
                f"{name} has shape {list(shape)}; with grids it needs 3 dimensions, "
                f"[T, {'H' if name == 'query' else 'Hk'}, D], the tokens of all grids.",
                _as_tokens(packed, name, shape, in_plan=in_plan),
            )
    for name, shape in (("query", query), ("key", key)):
        tokens = _tokens(packed, name)
        if not holds(shape[0] == tokens):
            argument = argument_of(packed, name)
            more = "; other sizes of keys need key_grids" * (name == "key" and packed.is_self)
            raise InputError(
                f"{argument} have {tokens} tokens, {name} has {shape[0]}{more}.",
                _other_grids(packed, name, shape[0]),
            )
    try:
        line = Mask.full(rank=1)
        shapes.check_shapes(line, (1, *query), (1, *key), (1, *value))
    except InputError as error:  # whose fixes and shapes are those of tensors with a batch
        where = f"query {list(query)} key {list(key)} value {list(value)}"
        raise InputError(error.problem, "", where) from None
    if isinstance(packed, PackedGrids):
        sizes_of.check(mask, packed)


def _as_tokens(
    packed: PackedGrids | TracedGrids, name: str, shape: Sequence[int], *, in_plan: bool
) -> str:
    """The code of a tensor `[T, H, D]`, or of its shape; a batch of whole grids needs no sizes.
    Empty where heads are not known, or tokens would not add up.
    """
    if len(shape) < 3:
        return ""
    fixes: list[str] = []
    if holds(math.prod(shape[:-2]) == _tokens(packed, name)):
        whole = f"{name}_shape={(math.prod(shape[:-2]), *shape[-2:])}"
        fixes.append(whole if in_plan else f"{name}.flatten(0, {len(shape) - 3})")
    if packed.is_self and tuple(shape[1:-2]) == common_space(packed):
        fixes.append("grids=None, for a batch of such grids")
    return f"{'; or '.join(fixes)}." if fixes else ""


def _other_grids(packed: PackedGrids | TracedGrids, name: str, tokens: int) -> str:
    """The code of grids that have so many tokens: what was given are boundaries of sequences
    (cu_seqlens), the document of each token, or grids that come several times.
    """
    if isinstance(packed, TracedGrids) or not len(packed):
        return ""
    argument, given = argument_of(packed, name), packed.query if name == "query" else packed.key
    ends = given.array[:, 0]
    if packed.rank == 1 and (ends[1:] >= ends[:-1]).all():
        if ends[0] == 0 and ends[-1] == tokens:
            return f"{argument}=nbattn.grids_from({argument}), for boundaries."
        if len(given) == tokens:
            counted = f"torch.unique_consecutive(torch.as_tensor({argument}), return_counts=True)"
            return f"{argument}={counted}[1], for the document of each token."
    times = tokens // max(given.tokens, 1)
    if times > 1 and tokens == times * given.tokens and given.array.all():
        again = f"nbattn.Grids({argument}).array.tolist() * {times}"
        return f"{argument}={again}, if they come {times} times."
    return ""


def _tokens(packed: PackedGrids | TracedGrids, name: str) -> Any:
    """The tokens of all grids of queries or keys."""
    if isinstance(packed, PackedGrids):
        return (packed.query if name == "query" else packed.key).tokens
    total = 0
    for both in packed.spaces():
        count = 1
        for length in both[name == "key"]:
            count = count * length
        total = total + count
    return total


def runs_apart(query: Any, grids: object, key_grids: object) -> bool:
    """Whether a call becomes another one: tensors are nested, or torch compiles and does not know
    what is in `Grids` and arrays.
    """
    if isinstance(query, Tensor) and query.is_nested and query.layout == torch.jagged:
        return True
    return torch.compiler.is_dynamo_compiling() and not (
        _are_lists(grids) and _are_lists(key_grids)
    )


def apart(attend: Callable[..., Any], tensors: Sequence[Any], options: dict[str, Any]) -> Any:
    """Makes that other call.

    Args:
        attend: `nbattn.attention`.
        tensors: query, key and value.
        options: its other arguments, by name.
    """
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg=_UNKNOWN)  # pyright: ignore[reportPrivateUsage]
        return torch.compiler.disable(attend)(*tensors, **options)  # pyright: ignore
    return _of_nested(attend, tensors, options)


def _of_nested(attend: Callable[..., Any], tensors: Sequence[Any], options: dict[str, Any]) -> Any:
    """Attention of jagged nested tensors `[B, N, H, D]`, which are grids of one axis."""
    query, key, value = tensors
    if options.get("grids") is not None or options.get("key_grids") is not None:
        raise InputError("query is a nested tensor, which has its own grids.", "grids=None.")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_nested(name, tensor)
    rank = getattr(options["mask"], "rank", 1)
    if rank != 1:
        raise InputError(f"query is a nested tensor, which has one axis, and the mask {rank}.")
    ends = query.offsets().tolist(), key.offsets().tolist()
    if value.offsets().tolist() != ends[1]:
        raise InputError("key and value are nested tensors of different lengths.")
    grids, key_grids = map(sizes_of.grids_from, ends)
    flat = (query.values(), key.values(), value.values())
    results = attend(*flat, **options | {"grids": grids, "key_grids": key_grids})
    offsets = query.offsets()
    if isinstance(results, tuple):
        return tuple(torch.nested.nested_tensor_from_jagged(each, offsets) for each in results)
    return torch.nested.nested_tensor_from_jagged(results, offsets)


def _check_nested(name: str, tensor: Any) -> None:
    """Checks that a tensor is nested, and ragged along its tokens only."""
    if not isinstance(tensor, Tensor) or not (tensor.is_nested and tensor.layout == torch.jagged):
        raise InputError(
            f"query is a jagged nested tensor, {name} is not.",
            f"{name}=torch.nested.as_nested_tensor([*{name}], layout=torch.jagged).",
        )
    ragged: Any = tensor
    if tensor.dim() != 4 or ragged._ragged_idx != 1 or ragged.lengths() is not None:
        raise InputError(
            f"{name} is no nested tensor [B, N, H, D] that is ragged along N, without gaps.",
            f"{name}={name}.transpose(1, 2)."
            if tensor.dim() == 4 and ragged._ragged_idx == 2 and ragged.lengths() is None
            else "",
        )

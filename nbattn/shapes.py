"""Checks that shapes fit one another and the mask; a fix has the shapes at hand."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from nbattn.axis import MAX_RANK, Axis, written
from nbattn.errors import InputError, counted
from nbattn.mask import Mask
from nbattn.symbolic import holds

_MANY_HEADS, _MOST_HEADS = 64, 128  # from 64 on, heads may be tokens; models have up to 128
_WARNED: set[str] = set()  # warnings that this process has given


def check_shapes(
    mask: Mask, query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> None:
    """Checks that the shapes fit one another and the mask."""
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != mask.rank + 3:
            raise InputError(
                f"{name} has {counted(len(shape), 'dimension')} {list(shape)}; "
                f"a mask of {counted(mask.rank, 'axis', 'axes')} needs {mask.rank + 3}, "
                f"{expected(name, mask.rank)}.",
                _other_rank(mask, name, shape),
                repr(mask),
            )
    if not holds(query[0] == key[0]):
        problem = f"batch differs: {query[0]} in query, {key[0]} in key."
        raise InputError(problem, _one_batch(query, key), _where(query, key, value))
    if not holds(query[-1] == key[-1]):
        problem = f"head_dim differs: {query[-1]} in query, {key[-1]} in key."
        raise InputError(problem, _one_head_dim(query, key, value), _where(query, key, value))
    if not all(holds(a == b) for a, b in zip(key[:-1], value[:-1], strict=True)):
        raise InputError(
            f"key and value differ before their last dimension: "
            f"{list(key[:-1])} and {list(value[:-1])}.",
            _one_place(key, value),
            _where(query, key, value),
        )
    for name, size in (
        ("heads", query[-2]),
        ("key heads", key[-2]),
        ("head_dim", query[-1]),
        ("value_dim", value[-1]),
    ):
        if not holds(size >= 1):
            where = _where(query, key, value)
            raise InputError(f"{name} is {size}.", _nothing(query, value), where)
    if not holds(query[-2] % key[-2] == 0):
        raise InputError(
            f"{query[-2]} query heads are no multiple of {key[-2]} key heads; "
            "query head h uses key head h // (H // Hk).",
            _other_heads(query[-2], key[-2]),
            _where(query, key, value),
        )


def _where(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> str:
    """The shapes of a call; made for errors alone, since a trace has tensors as lengths."""
    return f"query {list(query)} key {list(key)} value {list(value)}"


def expected(name: str, rank: int) -> str:
    """The shape of query, key or value in letters: `[B, X, Y, H, D]`."""
    return f"[B, {', '.join('XYZ'[:rank])}, {'H' if name == 'query' else 'Hk'}, D]"


_ALL = "nbattn.attention(query{0}, key{0}, value{0}, mask)"


def _other_rank(mask: Mask, name: str, shape: Sequence[int]) -> str:
    """The code for tensors of another rank than the mask: a view of the tensor as a grid; a
    dimension for one head, or for a batch of one; or a mask of that rank, where its axes are equal.
    """
    rank = len(shape) - 3
    fixes: list[str] = []
    if mask.rank == 2 and rank in (0, 1):
        grid = _most_square(operator.index(shape[1]))
        head = "" if rank else ".unsqueeze(-2)"
        tokens = f"for a grid of {grid[0]} x {grid[1]} tokens{'' if rank else ' and one head'}"
        fixes.append(f"{name}.unflatten(1, {grid}){head}, {tokens}")
    if rank == mask.rank - 1:
        fixes.append(f"{name}.unsqueeze(-2), for one head")
        if rank:
            fixes.append(f"{name}.movedim(1, -1).unsqueeze(-2), for one head of channels first")
        fixes.append(f"{_ALL.format('[None]')}[0], without a batch")
    if rank == mask.rank - 2:
        one = "[None, ..., None, :]"
        fixes.append(f"{_ALL.format(one)}[0, ..., 0, :], without a batch and heads")
    if 0 < rank <= MAX_RANK and len(set(mask.axes)) == 1:
        fixes.append(f"mask={as_code((mask.axes[0],) * rank)}")
    if rank > MAX_RANK:
        fixes.append(f"{name}.flatten(0, {rank - MAX_RANK}), where each image is on its own")
    return f"{'; or '.join(fixes)}." if fixes else ""


def as_code(axes: Sequence[Axis]) -> str:
    """The code of a mask: `Mask.neighborhood` where it is one, else its axes.

    >>> as_code([Axis(3, 3, border="shift")] * 2)
    'Mask.neighborhood((7, 7))'
    """
    axis = axes[0]
    if axis.left is None or axis.right is None or axis.stride > axis.left + axis.right + 1:
        return written(axes)
    sizes = (axis.left + axis.right + 1,) * len(axes)
    given: dict[str, Any] = {
        "dilation": axis.dilation,
        "stride": axis.stride,
        "is_causal": axis.causal,
    }
    given = {name: value for name, value in given.items() if value is True or value > 1}
    if Mask.neighborhood(sizes, **given) != Mask(*axes):
        return written(axes)
    shown = "".join(f", {name}={value!r}" for name, value in given.items())
    return f"Mask.neighborhood({sizes!r}{shown})"


def _most_square(count: int) -> tuple[int, int]:
    """Height and width of a grid of so many tokens, as equal as can be."""
    height = 1
    for n in range(2, count + 1):
        if n * n > count:
            break
        height = n if count % n == 0 else height
    return height, count // height


def _one_batch(query: Sequence[int], key: Sequence[int]) -> str:
    """The code that gives all one batch size, where one is a multiple of the other."""
    few, many = sorted((int(query[0]), int(key[0])))
    if not few or many % few:
        return ""
    names = ("query",) if few == query[0] else ("key", "value")
    how = f".expand({many}, {', '.join(['-1'] * (len(query) - 1))})"
    if few > 1:
        how = f".repeat_interleave({many // few}, dim=0)"
    return f"{', '.join(name + how for name in names)}."


def _one_head_dim(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> str:
    """The code that splits the channels of keys into the query's heads, where they are as many and
    values were split like the keys; else the code that pads.
    """
    dim, heads = int(query[-1]), int(query[-2])
    if dim * heads == key[-1] * key[-2] and key[-2] == value[-2] and value[-1] == key[-1]:
        split = f".flatten(-2).unflatten(-1, ({heads}, -1))"
        return f"key{split}, value{split}, if the channels were split into heads like that."
    name, missing = ("key", dim - key[-1]) if key[-1] < dim else ("query", key[-1] - dim)
    scale = f", scale={dim}**-0.5" if name == "query" else ""
    return f"torch.nn.functional.pad({name}, (0, {missing})){scale}, which adds zeros."


def _one_place(key: Sequence[int], value: Sequence[int]) -> str:
    """The code that gives keys and values the same batch, positions and heads."""
    if list(key[:-1]) == [*value[:1], value[-2], *value[1:-2]][: len(key) - 1]:
        return "value.movedim(1, -2)."
    pairs = zip(key[:-2], value[:-2], strict=True)
    box = ", ".join(":" if a == b else f":{min(a, b)}" for a, b in pairs)
    few, many = sorted((int(key[-2]), int(value[-2])))
    if key[:-2] == value[:-2]:
        if not few or many % few:
            return ""
        name = "key" if few == key[-2] else "value"
        return f"{name}.repeat_interleave({many // few}, dim=-2)."
    return f"key[{box}], value[{box}], which have both."


def _nothing(query: Sequence[int], value: Sequence[int]) -> str:
    """The code of what attention without heads or channels is."""
    if query[-2] and value[-1] and not query[-1]:  # all scores are 0
        return "torch.nn.functional.pad(query, (0, 1)), torch.nn.functional.pad(key, (0, 1))."
    return f"query.new_zeros({[*query[:-1], value[-1]]}), the output without keys or channels."


def _other_heads(heads: int, key_heads: int) -> str:
    """The code that repeats query heads, where their number divides that of the key heads."""
    if heads and key_heads % heads == 0:
        return f"query.repeat_interleave({key_heads // heads}, dim=-2)."
    return ""


def warn_of_heads_first(query: Sequence[int], key: Sequence[int]) -> None:
    """Warns once if queries and keys have many more heads than positions: heads may come before
    positions, which shapes alone cannot prove. Decode steps (one query) and keys with fewer heads
    give no warning.
    """
    if _is_traced() or query[-2] < _MANY_HEADS or "heads" in _WARNED:
        return
    heads = query[-2]
    rank = len(query) - 3
    if rank == 1:
        most = max(query[1], key[1])
        times = 2 if heads > _MOST_HEADS else 8
        suspicious = min(query[1], key[1]) > 1 and heads >= times * most
    else:  # a square grid after few heads
        suspicious = query[-3] == heads and 8 * query[1] <= heads
    if not suspicious or key[-2] != heads:
        return
    _WARNED.add("heads")
    space = ", ".join("NXYZ"[rank > 1 :][:rank])
    warnings.warn(
        f"query {list(query)} is taken as [B, {space}, H, D]: {heads} heads. If it is "
        f"[B, H, {space}, D], as for torch's scaled_dot_product_attention, pass "
        "query.movedim(1, -2), key and value likewise, and use out.movedim(-2, 1).",
        stacklevel=4,
    )


def warn_of_channels_first(shape: Sequence[int], dim: int) -> None:
    """Warns once if channels may come before the space: dimension 1 has `dim` entries as well, and
    the space is no square or cube of that length.
    """
    if _is_traced() or shape[1] != dim or "channels" in _WARNED:
        return
    if all(size == dim for size in shape[2:]):
        return
    _WARNED.add("channels")
    space = ", ".join("XYZ"[: len(shape) - 2])
    warnings.warn(
        f"x {list(shape)} is taken as [B, {space}, dim], with channels last. If it is "
        f"[B, dim, {space}], pass x.movedim(1, -1), and use y.movedim(-1, 1).",
        stacklevel=6,
    )


def _is_traced() -> bool:
    """Whether a tracer runs, so that sizes may be symbolic."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()  # pyright: ignore

"""Checks that shapes fit one another and the mask; a fix has the shapes at hand."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from nbattn.axis import MAX_RANK, Axis, written
from nbattn.errors import InputError, counted
from nbattn.mask import Mask
from nbattn.symbolic import holds

_MANY_HEADS, _MOST_HEADS = 64, 128  # from 64 on, heads may be tokens; models have up to 128
_WARNED: set[str] = set()  # warnings that this process has given


class _Advice(NamedTuple):
    """Code that mends a call.

    Args:
        made: the names of tensors and the code that makes them, as one expression each; or the name
            of another argument and its value; or no name and a whole call.
        words: what it is for.
    """

    made: Mapping[str, str]
    words: str = ""

    def as_text(self) -> str:
        parts = (c if n in ("", *_TENSORS) else f"{n}={c}" for n, c in self.made.items())
        return ", ".join([*parts, *filter(None, [self.words])])


_TENSORS = ("query", "key", "value")


def check_shapes(
    mask: Mask,
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *,
    in_plan: bool = False,
) -> None:
    """Checks that the shapes fit one another and the mask. Fixes change tensors, or with `in_plan`
    the shapes that a plan gets.
    """
    found = _misfit(mask, query, key, value)
    if found is None:
        return
    problem, advice, where = found
    if in_plan:
        shapes = {"query": query, "key": key, "value": value}
        fixes = [text for one in advice if (text := _as_shapes(one, shapes))]
    else:
        fixes = [one.as_text() for one in advice]
    raise InputError(problem, f"{'; or '.join(fixes)}." if fixes else "", where)


def _as_shapes(advice: _Advice, shapes: Mapping[str, Sequence[int]]) -> str:
    """The arguments of a plan for what the advice makes; empty for a whole call."""
    tensors = {name: torch.empty([*shape], device="meta") for name, shape in shapes.items()}
    named: list[str] = []
    for name, code in advice.made.items():
        if name in ("query", "key"):
            shape = eval(code, {"torch": torch, **tensors}).shape  # code of this module
            named.append(f"{name}_shape={tuple(shape)}")
        elif name in ("mask", "grids"):
            named.append(f"{name}={code}")
    return ", ".join([*named, *filter(None, [advice.words])]) if named else ""


def _misfit(
    mask: Mask, query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> tuple[str, list[_Advice], str] | None:
    """The first thing that does not fit, with advice and the shapes; None if all fit."""
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != mask.rank + 3:
            problem = (
                f"{name} has {counted(len(shape), 'dimension')} {list(shape)}; "
                f"a mask of {counted(mask.rank, 'axis', 'axes')} needs {mask.rank + 3}, "
                f"{expected(name, mask.rank)}."
            )
            return problem, _other_rank(mask, name, shape), repr(mask)
    problem, advice = "", []
    if not holds(query[0] == key[0]):
        problem = f"batch differs: {query[0]} in query, {key[0]} in key."
        advice = _one_batch(query, key)
    elif not holds(query[-1] == key[-1]):
        problem = f"head_dim differs: {query[-1]} in query, {key[-1]} in key."
        advice = _one_head_dim(query, key, value)
    elif not all(holds(a == b) for a, b in zip(key[:-1], value[:-1], strict=True)):
        problem = (
            f"key and value differ before their last dimension: "
            f"{list(key[:-1])} and {list(value[:-1])}."
        )
        advice = _one_place(key, value)
    sizes = {"heads": query[-2], "key heads": key[-2], "head_dim": query[-1]}
    sizes["value_dim"] = value[-1]
    empty = [f"{name} is {size}." for name, size in sizes.items() if not holds(size >= 1)]
    if not problem and empty:
        problem, advice = empty[0], _nothing(query, value)
    if not problem and not holds(query[-2] % key[-2] == 0):
        problem = (
            f"{query[-2]} query heads are no multiple of {key[-2]} key heads; "
            "query head h uses key head h // (H // Hk)."
        )
        advice = _other_heads(query[-2], key[-2])
    return (problem, advice, _where(query, key, value)) if problem else None


def _where(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> str:
    """The shapes of a call; made for errors alone, since a trace has tensors as lengths."""
    return f"query {list(query)} key {list(key)} value {list(value)}"


def expected(name: str, rank: int) -> str:
    """The shape of query, key or value in letters: `[B, X, Y, H, D]`."""
    return f"[B, {', '.join('XYZ'[:rank])}, {'H' if name == 'query' else 'Hk'}, D]"


_ALL = "nbattn.attention(query{0}, key{0}, value{0}, mask)"


def _other_rank(mask: Mask, name: str, shape: Sequence[int]) -> list[_Advice]:
    """Advice for tensors of another rank than the mask: a view of the tensor as a grid; a dimension
    for one head, or for a batch of one; or a mask of that rank, where its axes are equal.
    """
    rank = len(shape) - 3
    found: list[_Advice] = []
    if name != "query" and rank == 1 and mask == Mask.full(rank=mask.rank):
        text = _Advice({name: f"{name}[:, :{', None' * (mask.rank - 1)}]"}, "for text")
        one_head = _Advice({name: f"{name}.unsqueeze(-2)"}, "for one head")
        return [text, one_head] if mask.rank == 2 else [text]
    if mask.rank == 2 and rank in (0, 1):
        grid = most_square(operator.index(shape[1]))
        head = "" if rank else ".unsqueeze(-2)"
        words = f"for a grid of {grid[0]} x {grid[1]} tokens{'' if rank else ' and one head'}"
        found.append(_Advice({name: f"{name}.unflatten(1, {grid}){head}"}, words))
    if rank == mask.rank - 1:
        found.append(_Advice({name: f"{name}.unsqueeze(-2)"}, "for one head"))
        if rank:
            code = f"{name}.movedim(1, -1).unsqueeze(-2)"
            found.append(_Advice({name: code}, "for one head of channels first"))
        found.append(_Advice({"": f"{_ALL.format('[None]')}[0]"}, "without a batch"))
    if name == "query" and not rank and mask.rank < 3:
        tokens = operator.index(shape[0])
        size, what = (most_square(tokens), "grids") if mask.rank == 2 else ((tokens,), "sequences")
        found.append(_Advice({"grids": f"[{size}]"}, f"for packed {what}"))
    if rank == mask.rank - 2:
        code = f"{_ALL.format('[None, ..., None, :]')}[0, ..., 0, :]"
        found.append(_Advice({"": code}, "without a batch and heads"))
    if 0 < rank <= MAX_RANK and len(set(mask.axes)) == 1:
        found.append(_Advice({"mask": as_code((mask.axes[0],) * rank)}))
    if rank > MAX_RANK:
        code = f"{name}.flatten(0, {rank - mask.rank})"
        part = ("line", "image", "volume")[mask.rank - 1]
        found.append(_Advice({name: code}, f"where each {part} is on its own"))
    return found


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


def most_square(count: int) -> tuple[int, int]:
    """Height and width of a grid of so many tokens, as equal as can be."""
    low = next((n for n in range(int(count**0.5), 0, -1) if count % n == 0), 1)
    return low, count // low


def _one_batch(query: Sequence[int], key: Sequence[int]) -> list[_Advice]:
    """Advice that gives all one batch size, where one is a multiple of the other."""
    few, many = sorted((int(query[0]), int(key[0])))
    if not few or many % few:
        return []
    names = ("query",) if few == query[0] else ("key", "value")
    how = f".expand({many}, {', '.join(['-1'] * (len(query) - 1))})"
    if few > 1:
        how = f".repeat_interleave({many // few}, dim=0)"
    return [_Advice({name: name + how for name in names})]


def _one_head_dim(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> list[_Advice]:
    """Advice that splits the channels of keys into the query's heads, where they are as many and
    values were split like the keys; else advice that pads.
    """
    dim, heads = int(query[-1]), int(query[-2])
    if dim * heads == key[-1] * key[-2] and key[-2] == value[-2] and value[-1] == key[-1]:
        split = f".flatten(-2).unflatten(-1, ({heads}, -1))"
        made = {name: name + split for name in ("key", "value")}
        return [_Advice(made, "if the channels were split into heads like that")]
    name, missing = ("key", dim - key[-1]) if key[-1] < dim else ("query", key[-1] - dim)
    made = {name: f"torch.nn.functional.pad({name}, (0, {missing}))"}
    if name == "query":
        made["scale"] = f"{dim}**-0.5"
    return [_Advice(made, "which adds zeros")]


def _one_place(key: Sequence[int], value: Sequence[int]) -> list[_Advice]:
    """Advice that gives keys and values the same batch, positions and heads."""
    if list(key[:-1]) == [*value[:1], value[-2], *value[1:-2]][: len(key) - 1]:
        return [_Advice({"value": "value.movedim(1, -2)"})]
    pairs = zip(key[:-2], value[:-2], strict=True)
    box = ", ".join(":" if a == b else f":{min(a, b)}" for a, b in pairs)
    few, many = sorted((int(key[-2]), int(value[-2])))
    if key[:-2] == value[:-2]:
        if not few or many % few:
            return []
        name = "key" if few == key[-2] else "value"
        return [_Advice({name: f"{name}.repeat_interleave({many // few}, dim=-2)"})]
    return [_Advice({"key": f"key[{box}]", "value": f"value[{box}]"}, "which have both")]


def _nothing(query: Sequence[int], value: Sequence[int]) -> list[_Advice]:
    """Advice for what attention without heads or channels is."""
    if query[-2] and value[-1] and not query[-1]:  # all scores are 0
        pad = "torch.nn.functional.pad({}, (0, 1))"
        return [_Advice({name: pad.format(name) for name in ("query", "key")})]
    code = f"query.new_zeros({[*query[:-1], value[-1]]})"
    return [_Advice({"": code}, "the output without keys or channels")]


def _other_heads(heads: int, key_heads: int) -> list[_Advice]:
    """Advice that repeats query heads, where their number divides that of the key heads."""
    if heads and key_heads % heads == 0:
        return [_Advice({"query": f"query.repeat_interleave({key_heads // heads}, dim=-2)"})]
    return []


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

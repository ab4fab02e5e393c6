"""The public function attention_weights(): the weights that a few queries give their keys, which
attention itself never has in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbattn import (
    biases,
    functional,
    geometry,
    key_ranges,
    mistaken_places,
    mistaken_words,
    packing,
)
from nbattn.axis import nearest
from nbattn.backends.dense import reference
from nbattn.backends.inputs import Inputs, accumulate_dtype
from nbattn.errors import InputError, NbattnError, counted, described
from nbattn.fixes import signatures
from nbattn.geometry import BoundAxis
from nbattn.mask import Mask
from nbattn.rows import Ints

Place = tuple[int, ...]  # a query's index on every axis
_SHOWN = 8  # most queries that a fix lists


@signatures.answering(mistaken_places.refusal)
def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Mask,
    *,
    at: Sequence[Any],
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | Sequence[Any] | None = None,
    extra_key: Tensor | None = None,
    extra_range: Tensor | Sequence[Any] | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **unknown: Any,
) -> Tensor:
    """Computes the weights that a few queries give every key, for pictures and for debugging.

    Only the asked-for rows are computed, from the keys that they attend to: a query of a 64 x 64 x
    64 space takes as much memory as its result, never that of all pairs.

    Args:
        query: `[B, *space, H, D]`.
        key: `[B, *key_space, Hk, D]`.
        mask: as in `attention`.
        at: the queries: one index per axis each, `[(8, 16), (0, 0)]`, or ints for one axis.
            Negative ones count from the end, as in Python.
        scale, softcap, sink, key_range, extra_key, extra_range, relative_bias, alibi_slopes: as in
            `attention`. Sinks and extra keys take part in the softmax; their weights are not
            returned.

    Returns:
        `[B, H, len(at), *key_space]`, float32 (float64 for float64), differentiable: zeros where
        nothing is attended to. A query's weights add up to 1; to less beside a sink or extra keys;
        to 0 without keys.

    Raises:
        InputError, MaskError: an argument does not fit, as in `attention`; or there is no such
            query.

    >>> query = torch.randn(1, 28, 28, 2, 32)
    >>> weights = attention_weights(query, query, Mask.neighborhood((7, 7)), at=[(8, 16)])
    >>> weights.shape, weights[0, 0, 0].count_nonzero().item()
    (torch.Size([1, 2, 1, 28, 28]), 49)
    """
    options = {
        **{"scale": scale, "softcap": softcap, "sink": sink, "key_range": key_range},
        **{"extra_key": extra_key, "extra_range": extra_range},
        **{"relative_bias": relative_bias, "alibi_slopes": alibi_slopes},
    }
    if unknown:
        raise _refusal(query, mask, at, options, unknown)
    _check_whole(query, key)
    if isinstance(query, Tensor):
        key_range = key_ranges.standard(key_range, query)
        extra_range = key_ranges.of_extra(extra_range, query)
    added = extra_key, extra_key, extra_range, relative_bias, alibi_slopes
    try:  # keys stand for values, which weights do not depend on
        tensors = query, key, key, sink, key_range, *added
        inputs = functional.checked(tensors, mask, scale, softcap, None)
        axes = geometry.bind(mask, query.shape[1:-2], key.shape[1:-2])
        biases.check(mask, axes, table=relative_bias is not None, slopes=alibi_slopes is not None)
    except NbattnError as error:
        raise _of_weights(error) from None
    places = _places(at, inputs.space)
    device = inputs.query.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):  # it would lower the dtype of the products
            return _rows(inputs, axes, places)
    return _rows(inputs, axes, places)


def _rows(inputs: Inputs, axes: Sequence[BoundAxis], places: Sequence[Place]) -> Tensor:
    """Returns the weights of some queries, `[B, H, len(places), *key_space]`."""
    batch, heads, space = inputs.query.shape[0], inputs.query.shape[-2], inputs.key.shape[1:-2]
    exact = accumulate_dtype(inputs.query.dtype)
    nothing = inputs.query.new_zeros((batch, heads, math.prod(space)), dtype=exact)
    rows = [_row(inputs, axes, place, nothing) for place in places]
    found = torch.stack(rows, dim=2) if rows else nothing.new_empty((batch, heads, 0, *space))
    return found.reshape(batch, heads, len(places), *space)


def _row(inputs: Inputs, axes: Sequence[BoundAxis], place: Place, nothing: Tensor) -> Tensor:
    """Returns the weights of one query, `[B, H, Nk]`: those of the box of keys that it attends to,
    among zeros.
    """
    reads = [_attended(axis, index) for axis, index in zip(axes, place, strict=True)]
    query, key = inputs.query, inputs.key
    for axis, (index, keys) in enumerate(zip(place, reads, strict=True), 1):
        query = query.narrow(axis, index, 1)
        if len(keys) < key.shape[axis]:
            key = key.index_select(axis, torch.from_numpy(keys).to(key.device))
    query, key = query.flatten(1, len(axes))[:, 0], key.flatten(1, len(axes))
    inside = None if inputs.key_range is None else _inside(inputs.key_range, reads)
    scores = _scores(inputs, query, key, inside)
    scores = scores + _added(inputs, axes, place, reads)
    if inputs.extra_key is not None:
        ranges, tokens = inputs.extra_range, np.arange(inputs.extra_key.shape[1])
        inside = None if ranges is None else _inside(ranges[:, None], [tokens])
        scores = torch.cat([scores, _scores(inputs, query, inputs.extra_key, inside)], dim=-1)
    if inputs.sink is not None:
        column = inputs.sink.to(scores.dtype)[None, :, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = reference.softmax(scores)[0][..., : key.shape[1]]
    flat = np.ravel_multi_index(np.ix_(*reads), inputs.key.shape[1:-2]).ravel()
    return nothing.index_copy(-1, torch.from_numpy(flat).to(nothing.device), weights)


def _attended(axis: BoundAxis, query: int) -> Ints:
    """The keys that a query attends to on one axis."""
    step = axis.spec.dilation
    runs = (range(start, start + step * n, step) for start, n in axis.key_intervals(query))
    return np.fromiter(chain.from_iterable(runs), dtype=np.int64)


def _inside(ranges: Tensor, keys: Sequence[Ints]) -> Tensor:
    """Returns whether keys of a box are inside the range of their sample, bool `[B, n]`."""
    inside = ranges.new_ones((ranges.shape[0], 1), dtype=torch.bool)
    for axis, at in enumerate(keys):
        places = torch.from_numpy(at).to(ranges.device)
        start, stop = ranges[:, axis, :1], ranges[:, axis, 1:]
        on_axis = (places >= start) & (places < stop)
        inside = (inside[:, :, None] & on_axis[:, None, :]).flatten(1)
    return inside


def _scores(inputs: Inputs, query: Tensor, key: Tensor, inside: Tensor | None) -> Tensor:
    """Returns the scores `[B, H, n]` of a query `[B, H, D]` and keys `[B, n, Hk, D]`; -inf of keys
    that are not inside, which may hold anything.
    """
    exact = accumulate_dtype(query.dtype)
    if inside is not None:
        key = key.masked_fill(~inside[:, :, None, None], 0)
    of_keys = query.to(exact).unflatten(1, (key.shape[2], -1))  # [B, Hk, H / Hk, D]
    scores = (of_keys @ key.to(exact).permute(0, 2, 3, 1)).flatten(1, 2) * inputs.scale
    if inputs.softcap is not None:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    return scores if inside is None else scores.masked_fill(~inside[:, None], float("-inf"))


def _added(
    inputs: Inputs,
    axes: Sequence[BoundAxis],
    place: Place,
    reads: Sequence[Ints],
) -> Tensor | float:
    """Returns what is added to the scores of a query's keys, `[1 or B, H, n]`."""
    added: Tensor | float = 0.0
    exact, device = accumulate_dtype(inputs.query.dtype), inputs.query.device
    if inputs.relative_bias is not None:
        steps = [
            biases.steps_between(axis, np.array([index]), keys)
            for axis, index, keys in zip(axes, place, reads, strict=True)
        ]
        entries = biases.entries_of([axis.spec for axis in axes], steps).ravel()
        table = inputs.relative_bias.to(exact).flatten(1)
        added = added + table.index_select(1, torch.from_numpy(entries).to(device))
    if inputs.alibi_slopes is not None:
        distance = torch.from_numpy(abs(place[0] + axes[0].offset - reads[0])).to(device, exact)
        slopes = inputs.alibi_slopes.to(exact).reshape(-1, inputs.query.shape[-2], 1)
        added = added - slopes * distance
    return added


# Arguments.


def _check_whole(query: Any, key: Any) -> None:
    """Checks that query and key are no masks, and no tensors of which this one has a part."""
    if any(isinstance(given, Mask) or given is None for given in (query, key)):
        problem = "attention_weights takes query, key and mask, in this order."
        raise InputError(problem, f"{_CALL.format('at')}.")
    if hasattr(query, "device_mesh") or hasattr(key, "device_mesh"):
        whole = _CALL.format("at").replace("query, key", "query.full_tensor(), key.full_tensor()")
        raise InputError("attention_weights takes whole tensors, not DTensors.", f"{whole}.")
    if getattr(query, "is_nested", False):
        each = _CALL.format("at").replace("query, key", "q[None], k[None]")
        fix = f"[{each} for q, k in zip(query.unbind(), key.unbind())]."
        raise InputError("query is a nested tensor; each sequence has weights of its own.", fix)


_ATTENTION = re.compile(r"nbattn\.attention\((query(?:[^,(]|\([^()]*\))*), key, value, ")


def _of_weights(error: NbattnError) -> NbattnError:
    """Returns an error whose fix is a call of attention as one of weights; without what needs
    values, since weights have none.
    """
    fix = _ATTENTION.sub(r"nbattn.attention_weights(\1, key, at=at, mask=", error.fix)
    kept = [part.rstrip(".") for part in fix.split("; or ") if part and "value" not in part]
    return type(error)(error.problem, f"{'; or '.join(kept)}." if kept else "", error.where)


def _places(at: Any, space: Sequence[int]) -> list[Place]:
    """Returns the queries as non-negative indices.

    Raises:
        InputError: not such a list, or no such query.
    """
    if isinstance(at, Tensor) and at.is_meta:
        problem = f"at is a tensor {list(at.shape)} on meta, which has no values."
        raise InputError(problem, _fix([()], space))
    given = _plain(at)
    rank = len(space)
    if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
        raise InputError(
            f"at={described(given)}, not a list of queries.", _fix([(given,) * rank], space)
        )
    listed: list[Any] = [_plain(entry) for entry in given]
    if rank > 1 and len(listed) == rank and all(map(_is_index, listed)):
        one = tuple(map(int, listed))
        raise InputError(f"at={one} is one query, not a list of queries.", _fix([one], space))
    return [_place(number, entry, listed, space) for number, entry in enumerate(listed)]


def _plain(given: Any) -> Any:
    """Arrays and tensors as numbers in lists."""
    return given.tolist() if hasattr(given, "tolist") else given


def _is_index(given: Any) -> bool:
    return hasattr(given, "__index__") and not isinstance(given, bool)


def _place(number: int, entry: Any, listed: Sequence[Any], space: Sequence[int]) -> Place:
    """Returns one query as non-negative indices."""
    indices: tuple[Any, ...] = tuple(entry) if isinstance(entry, (tuple, list)) else (entry,)
    shown = f"at[{number}]={entry!r}"
    others = listed if len(listed) <= _SHOWN else [entry]
    if len(indices) != len(space):
        problem = f"{shown} has {counted(len(indices), 'index', 'indices')}, and the queries "
        problem += f"{counted(len(space), 'axis', 'axes')}."
        raise InputError(problem, _fix(others, space))
    for axis, (index, length) in enumerate(zip(indices, space, strict=True)):
        if not _is_index(index):
            problem = f"{shown}: {described(index)}, not an integer."
            raise InputError(problem, _fix(others, space))
        if not -length <= index < length:
            problem = f"{shown}: {index} is not in [{-length}, {length}): axis {axis} has "
            problem += f"{counted(length, 'query', 'queries')}."
            raise InputError(problem, _fix(others, space))
    return tuple(int(n) % length for n, length in zip(indices, space, strict=True))


def _fix(listed: Sequence[Any], space: Sequence[int]) -> str:
    """The code of queries that there are, in the place of others."""
    places = [_nearest(entry, space) for entry in listed] if math.prod(space) else []
    return f"at={_written(places)}."


def _nearest(entry: Any, space: Sequence[int]) -> Place:
    """The query that was probably meant: a single number is one of all tokens in rows."""
    indices: tuple[Any, ...] = tuple(entry) if isinstance(entry, (tuple, list)) else (entry,)
    if len(indices) == 1 and _is_index(indices[0]) and 0 <= indices[0] < math.prod(space):
        indices = np.unravel_index(int(indices[0]), tuple(space))
    numbers = [nearest(n, None) for n in (*indices, *[0] * len(space))]
    ends = zip(numbers, space, strict=False)
    return tuple(n if -length <= n < 0 else max(0, min(n, length - 1)) for n, length in ends)


def _written(places: Sequence[Any]) -> str:
    """The code of queries; of one axis, as ints."""
    plain = [p[0] if isinstance(p, tuple) and len(p) == 1 else p for p in places]
    return repr(plain)


_CALL = "nbattn.attention_weights(query, key, mask, at={})"
_VALUES = "weights do not depend on values"
_RUNS = "weights are computed in plain torch, whatever runs the attention"
_NEEDLESS = {
    **{"value": _VALUES, "extra_value": _VALUES},
    **{"backend": _RUNS, "require": _RUNS, "forbid": _RUNS},
    "return_lse": "the logsumexp is a result of attention",
}


def _refusal(
    query: Any, mask: Any, at: Any, options: Mapping[str, Any], unknown: Mapping[str, Any]
) -> InputError:
    """Makes the error of an argument that attention has, or that nothing has."""
    if unknown.keys() & {"grids", "key_grids"}:
        return _of_grids(mask, at, unknown.get("grids"), unknown.get("key_grids"))
    needless = [word for word in unknown if word in _NEEDLESS]
    if not needless:
        shape = getattr(query, "shape", None)
        return mistaken_words.refusal("attention_weights", unknown, _ARGUMENTS, mask, shape)
    kept = "".join(f", {name}={name}" for name, given in options.items() if given is not None)
    problem = f"attention_weights() takes no argument {needless[0]!r}: {_NEEDLESS[needless[0]]}."
    return InputError(problem, f"{_CALL.format('at')[:-1]}{kept}).")


def _of_grids(mask: Any, at: Any, grids: Any, key_grids: Any) -> InputError:
    """The error of packed grids, each of which has a result of another size."""
    spaces = packing.packed_of(mask, grids, key_grids).spaces()
    first: Any = at[0] if isinstance(at, (list, tuple)) and at else ()
    named = isinstance(first, tuple) and len(first) == mask.rank + 1
    number = first[0] if named and first[0] in range(len(spaces)) else 0
    parts = [
        f"{name}[{start}:{start + math.prod(size)}].unflatten(0, {size})[None]"
        for name, side in (("query", 0), ("key", 1))
        for size in [spaces[number][side]]
        for start in [sum(math.prod(space[side]) for space in spaces[:number])]
    ]
    code = _CALL.replace("query, key", ", ".join(parts)).format(
        _written([first[1:]]) if named else "at"
    )
    return InputError(
        "attention_weights() takes no argument 'grids': weights of grids have different sizes.",
        f"{code}, of grid {number}.",
    )


_ARGUMENTS = signatures.show(attention_weights)

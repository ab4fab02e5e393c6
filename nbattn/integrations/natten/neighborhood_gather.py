"""Scores and weighted sums by window slot: the products behind NATTEN's unfused functions.

Slot t of a query is the t-th key of its window. A tile of queries meets the hull of its keys in
one dense product, from which slots are gathered, or into which they are scattered. The three
operators are the derivatives of one another, so they can be differentiated as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from nbattn import geometry
from nbattn.backends.tiled import costs
from nbattn.geometry import AxisTile, Ints
from nbattn.mask import from_code

_WORK_BYTES = 2 << 20  # dense scores of one product: what stays in the cache
_Code = Sequence[int]


class Tile(NamedTuple):
    """A tile of queries, the hull of its keys, and where in it the slots are.

    `columns` is int64 `[rows, slots]`; `missing` marks slots without a key, whose column is 0. Both
    are numpy's, since tiles are kept: tensors made under a transform, or in inference mode, are of
    no use outside.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    width: int
    columns: Ints
    missing: NDArray[np.bool_] | None


def axis_slots(code: _Code) -> tuple[int, ...]:
    """Slots of every axis: the keys of a window that no border cuts."""
    return tuple(1 + (a.left or 0) + (a.right or 0) for a in from_code(code).axes)


@lru_cache(64)
def _tiles(code: tuple[int, ...], space: tuple[int, ...], head_dim: int) -> tuple[Tile, ...]:
    """The tiles of a space; equal ones share their columns."""
    axes = geometry.bind(from_code(code), space)
    item = costs.Item(16, 1, head_dim, head_dim, 0)
    sizes = costs.choose_tile(axes, item)
    per_axis = [list(axis.tiles(size)) for axis, size in zip(axes, sizes, strict=True)]
    known: dict[tuple[object, ...], tuple[Ints, NDArray[np.bool_] | None]] = {}
    found: list[Tile] = []
    for parts in product(*per_axis):
        pattern = tuple(part.pattern for part in parts)
        if pattern not in known:
            known[pattern] = _columns(parts, axis_slots(code))
        steps = [axis.spec.dilation for axis in axes]
        queries = tuple(_slice(p.queries, d) for p, d in zip(parts, steps, strict=True))
        keys = tuple(_slice(p.keys[0], d) for p, d in zip(parts, steps, strict=True))
        found.append(Tile(queries, keys, math.prod(p.width for p in parts), *known[pattern]))
    return tuple(found)


def _slice(run: geometry.Run, step: int) -> slice:
    start, count = run
    return slice(start, start + (count - 1) * step + 1, step)


def _columns(
    parts: tuple[AxisTile, ...], slots: tuple[int, ...]
) -> tuple[Ints, NDArray[np.bool_] | None]:
    """The column of every slot `[rows, slots]`, row-major over axes, and which have no key."""
    columns, missing = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.bool_)
    for part, count in zip(parts, slots, strict=True):
        first, stop = np.array(part.lo, dtype=np.int64), np.array(part.hi, dtype=np.int64)
        own = first[:, None] + np.arange(count)
        inside = np.minimum(own, part.width - 1)
        rows, width = columns.shape[0] * len(own), columns.shape[1] * count
        columns = columns[:, None, :, None] * part.width + inside[:, None]
        absent = missing[:, None, :, None] | (own >= stop[:, None])[:, None]
        columns, missing = columns.reshape(rows, width), absent.reshape(rows, width)
    columns[missing] = 0
    return columns, missing if missing.any() else None


def _parts(code: _Code, like: Tensor) -> Iterator[tuple[slice, Tile, Tensor]]:
    """Every tile with every batch of heads of `[N, *space, C]`, and its columns for that batch."""
    for tile in _tiles(tuple(code), tuple(like.shape[1:-1]), like.shape[-1]):
        rows, slots = tile.columns.shape
        batch = max(1, _WORK_BYTES // (like.element_size() * max(rows * tile.width, 1)))
        columns = torch.from_numpy(tile.columns).to(like.device)
        for start in range(0, like.shape[0], batch):
            heads = slice(start, min(start + batch, like.shape[0]))
            yield heads, tile, columns.expand(heads.stop - heads.start, rows, slots)


def _rows(tensor: Tensor, heads: slice, place: tuple[slice, ...]) -> Tensor:
    """Part of `[N, *space, C]` as `[n, rows, C]`."""
    return tensor[(heads, *place)].flatten(1, -2)


def _kept(part: Tensor, tile: Tile) -> Tensor:
    """Slots with a key as they are, 0 in the others."""
    if tile.missing is None:
        return part
    return part.masked_fill(torch.from_numpy(tile.missing).to(part.device), 0)


def _matrix(weights: Tensor, tile: Tile, columns: Tensor) -> Tensor:
    """Weights by slot as a matrix over the hull `[n, rows, width]`."""
    matrix = weights.new_zeros((*weights.shape[:2], tile.width))
    # missing slots share column 0 with one that has a key: 0 is added there
    put = matrix.scatter_ if tile.missing is None else matrix.scatter_add_
    return put(2, columns, _kept(weights, tile))


def _products(query: Tensor, key: Tensor, mask: _Code) -> Tensor:
    """By slot, the product of a query with its key; 0 where there is none."""
    out = query.new_empty((*query.shape[:-1], math.prod(axis_slots(mask))))
    for heads, tile, columns in _parts(mask, query):
        matrix = _rows(query, heads, tile.queries) @ _rows(key, heads, tile.keys).mT
        place = out[(heads, *tile.queries)]
        place.copy_(_kept(matrix.gather(2, columns), tile).view(place.shape))
    return out


def _sums(weights: Tensor, value: Tensor, mask: _Code) -> Tensor:
    """For every query, the sum of its keys' values by the weights of its slots."""
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    for heads, tile, columns in _parts(mask, value):
        matrix = _matrix(_rows(weights, heads, tile.queries), tile, columns)
        place = out[(heads, *tile.queries)]
        place.copy_((matrix @ _rows(value, heads, tile.keys)).view(place.shape))
    return out


def _returns(weights: Tensor, query: Tensor, mask: _Code) -> Tensor:
    """For every key, the sum of its readers' rows by the weights of their slots."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for heads, tile, columns in _parts(mask, query):
        matrix = _matrix(_rows(weights, heads, tile.queries), tile, columns)
        place = out[(heads, *tile.keys)]
        place += (matrix.mT @ _rows(query, heads, tile.queries)).view(place.shape)
    return out


@lru_cache(64)
def _axis_steps(code: tuple[int, ...], space: tuple[int, ...], number: int) -> Tensor:
    axis = geometry.bind(from_code(code), space)[number]
    first = torch.from_numpy(axis.key_runs()[0][:, 1]) - torch.arange(axis.queries)
    first = torch.div(first, axis.spec.dilation, rounding_mode="floor")
    return first[:, None] + torch.arange(axis_slots(code)[number])


def _steps_of(like: Tensor, mask: _Code, space: Sequence[int], axis: int) -> Tensor:
    """How far from its query every slot's key lies on one axis, in steps, `[length, slots]`."""
    return _axis_steps(tuple(mask), tuple(space), axis).to(like.device, copy=True)


def _fake_steps(like: Tensor, mask: _Code, space: Sequence[int], axis: int) -> Tensor:
    return like.new_empty((space[axis], axis_slots(mask)[axis]), dtype=torch.int64)


def _fake_products(query: Tensor, key: Tensor, mask: _Code) -> Tensor:
    return query.new_empty((*query.shape[:-1], math.prod(axis_slots(mask))))


def _fake_rows(weights: Tensor, rows: Tensor, mask: _Code) -> Tensor:
    return rows.new_empty(rows.shape)


def _in_batch(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, ...]:
    """For vmap: two tensors whose mapped axis is part of N."""
    pairs = zip(given[:2], dims[:2], strict=True)
    whole = (
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in pairs
    )
    return tuple(t.flatten(0, 1) for t in whole)


def _derivatives(name: str, a: Tensor, b: Tensor, grad: Tensor, mask: _Code) -> Any:
    """Gradients of the two tensors of an operator."""
    if name == "products":
        return sums(grad, b, mask), returns(grad, a, mask)
    if name == "sums":
        return products(grad, b, mask), returns(a, grad, mask)
    return products(b, grad, mask), sums(a, grad, mask)


def _plain(name: str, a: Tensor, b: Tensor, mask: _Code) -> Tensor:
    """An operator out of torch's own functions, for forward-mode derivatives: an operator of a
    library drops tangents, and a node's `jvp` under a second one drops those of the first.
    """
    space = tuple(b.shape[1:-1])
    places = torch.arange(math.prod(space), device=b.device).view(space)
    parts: list[Tensor] = []
    at: list[Tensor] = []
    for tile in _tiles(tuple(mask), space, b.shape[-1]):
        first, second = (
            t[(slice(None), *place)].flatten(1, -2)
            for t, place in (
                (a, tile.queries),
                (b, tile.queries if name == "returns" else tile.keys),
            )
        )
        columns = torch.from_numpy(tile.columns).to(b.device).expand(b.shape[0], -1, -1)
        if name == "products":
            part = _kept((first @ second.mT).gather(2, columns), tile)
        else:
            none = b.new_zeros((*columns.shape[:2], tile.width))
            matrix = none.scatter_add(2, columns, _kept(first, tile))
            part = (matrix.mT if name == "returns" else matrix) @ second
        parts.append(part)
        at.append(places[tile.keys if name == "returns" else tile.queries].flatten())
    found = torch.cat(parts, dim=1)
    whole = b.new_zeros((b.shape[0], places.numel(), found.shape[-1]))
    return whole.index_add(1, torch.cat(at), found).unflatten(1, space)


class _Transformable(torch.autograd.Function):
    """An operator for `torch.func`, which asks for a node of this kind: of a name, two tensors and
    a mask, since a list of integers would be a tree of arguments.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        name, a, b, mask = arguments
        return OPERATORS[name](a, b, mask.code())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, a, b, ctx.mask = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (a, b) = grads, ctx.saved_tensors
        return (None, *_derivatives(ctx.name, a, b, grad, ctx.mask.code()), None)


_apply: Any = _Transformable.apply

# Operators, so that compilers need not look inside. `[N, *space, C]`, float32 or float64.
OPERATORS: dict[str, Any] = {}
_library = torch.library.Library("nbattn", "FRAGMENT")


def _define(name: str, body: Any, fake: Any) -> Any:
    """An operator of two tensors, its derivatives and its rule for vmap; called by its function."""
    full = f"slot_{name}"
    _library.define(
        f"{full}(Tensor a, Tensor b, int[] mask) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
    )
    _library.impl(full, body, "CompositeExplicitAutograd")

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.mask = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return (*_derivatives(name, a, b, grad, ctx.mask), None)

    def batched(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        found = OPERATORS[name](*_in_batch(info, dims, *given), given[2])
        return found.unflatten(0, (info.batch_size, -1)), 0

    def run(a: Tensor, b: Tensor, mask: _Code) -> Any:
        if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
            return _plain(name, a, b, mask)
        if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
            return _apply(name, a, b, from_code(mask))
        return OPERATORS[name](a, b, mask)

    torch.library.register_fake(f"nbattn::{full}", fake, lib=_library)
    torch.library.register_autograd(
        f"nbattn::{full}", backward, setup_context=remember, lib=_library
    )
    torch.library.register_vmap(f"nbattn::{full}", batched, lib=_library)
    OPERATORS[name] = getattr(torch.ops.nbattn, full).default
    return run


products = _define("products", _products, _fake_products)
sums = _define("sums", _sums, _fake_rows)
returns = _define("returns", _returns, _fake_rows)
_library.define(
    "slot_steps(Tensor like, int[] mask, SymInt[] space, int axis) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("slot_steps", _steps_of, "CompositeExplicitAutograd")
torch.library.register_fake("nbattn::slot_steps", _fake_steps, lib=_library)
steps = torch.ops.nbattn.slot_steps.default


def _steps_for_all(info: Any, dims: tuple[Any, ...], like: Tensor, *rest: Any) -> tuple[Any, None]:
    return steps(like.new_empty(0), *rest), None  # only its device matters


torch.library.register_vmap("nbattn::slot_steps", _steps_for_all, lib=_library)

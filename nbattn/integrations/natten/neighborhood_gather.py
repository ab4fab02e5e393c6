"""Computes scores and weighted sums by window slot, for NATTEN's unfused functions.

Slot t of a query is the t-th key of its window. For a tile of queries, one dense product with the
hull of its keys is computed; slots are gathered from it, or scattered into its matrix. The three
operators are one another's derivatives, so they can be differentiated any number of times.
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

_WORK_BYTES = 2 << 20  # dense scores of one product, which should fit in the cache
_Code = Sequence[int]


class Tile(NamedTuple):
    """A tile of queries, the hull of its keys, and the columns of the slots in the hull.

    `columns` is int64 `[rows, slots]`; `missing` marks slots without a key, whose column is 0. Both
    are numpy arrays, since tiles are cached: tensors made under a transform or in inference mode
    cannot be used outside.
    """

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]
    width: int
    columns: Ints
    missing: NDArray[np.bool_] | None


def axis_slots(code: _Code) -> tuple[int, ...]:
    """The number of slots of every axis: the keys of a window that no border cuts."""
    return tuple(1 + (a.left or 0) + (a.right or 0) for a in from_code(code).axes)


@lru_cache(64)
def _tiles(code: tuple[int, ...], space: tuple[int, ...], head_dim: int) -> tuple[Tile, ...]:
    """Returns the tiles of a space; equal tiles share their columns."""
    axes = geometry.bind(from_code(code), space)
    item = costs.Item(16, 1, head_dim, head_dim, 0)
    sizes = costs.choose_tile(axes, item)
    per_axis = [list(axis.tiles(size)) for axis, size in zip(axes, sizes, strict=True)]
    columns: dict[tuple[object, ...], tuple[Ints, NDArray[np.bool_] | None]] = {}
    tiles: list[Tile] = []
    for parts in product(*per_axis):
        pattern = tuple(part.pattern for part in parts)
        if pattern not in columns:
            columns[pattern] = _columns(parts, axis_slots(code))
        steps = [axis.spec.dilation for axis in axes]
        queries = tuple(_slice(p.queries, d) for p, d in zip(parts, steps, strict=True))
        keys = tuple(_slice(p.keys[0], d) for p, d in zip(parts, steps, strict=True))
        tiles.append(Tile(queries, keys, math.prod(p.width for p in parts), *columns[pattern]))
    return tuple(tiles)


def _slice(run: geometry.Run, step: int) -> slice:
    start, count = run
    return slice(start, start + (count - 1) * step + 1, step)


def _columns(
    parts: tuple[AxisTile, ...], slots: tuple[int, ...]
) -> tuple[Ints, NDArray[np.bool_] | None]:
    """Returns the column of every slot `[rows, slots]`, row-major, and the slots without a key."""
    columns, missing = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.bool_)
    for part, count in zip(parts, slots, strict=True):
        first, stop = np.array(part.lo, dtype=np.int64), np.array(part.hi, dtype=np.int64)
        key = first[:, None] + np.arange(count)
        inside = np.minimum(key, part.width - 1)
        rows, width = columns.shape[0] * len(key), columns.shape[1] * count
        columns = columns[:, None, :, None] * part.width + inside[:, None]
        absent = missing[:, None, :, None] | (key >= stop[:, None])[:, None]
        columns, missing = columns.reshape(rows, width), absent.reshape(rows, width)
    columns[missing] = 0
    return columns, missing if missing.any() else None


def _parts(code: _Code, like: Tensor) -> Iterator[tuple[slice, Tile, Tensor]]:
    """Yields every tile with every batch of heads of `[N, *space, C]`, and its columns for it."""
    for tile in _tiles(tuple(code), tuple(like.shape[1:-1]), like.shape[-1]):
        rows, slots = tile.columns.shape
        batch = max(1, _WORK_BYTES // (like.element_size() * max(rows * tile.width, 1)))
        columns = torch.from_numpy(tile.columns).to(like.device)
        for start in range(0, like.shape[0], batch):
            heads = slice(start, min(start + batch, like.shape[0]))
            yield heads, tile, columns.expand(heads.stop - heads.start, rows, slots)


def _rows(tensor: Tensor, heads: slice, place: tuple[slice, ...]) -> Tensor:
    """Returns a part of `[N, *space, C]` as `[n, rows, C]`."""
    return tensor[(heads, *place)].flatten(1, -2)


def _with_keys(part: Tensor, tile: Tile) -> Tensor:
    """Returns the slots, with 0 in those without a key."""
    if tile.missing is None:
        return part
    return part.masked_fill(torch.from_numpy(tile.missing).to(part.device), 0)


def _matrix(weights: Tensor, tile: Tile, columns: Tensor) -> Tensor:
    """Scatters weights by slot into a matrix over the hull `[n, rows, width]`."""
    matrix = weights.new_zeros((*weights.shape[:2], tile.width))
    # missing slots share column 0 with a slot that has a key, so their 0 is added
    put = matrix.scatter_ if tile.missing is None else matrix.scatter_add_
    return put(2, columns, _with_keys(weights, tile))


def _products(query: Tensor, key: Tensor, mask: _Code) -> Tensor:
    """Computes by slot the product of query and key; 0 in slots without a key."""
    out = query.new_empty((*query.shape[:-1], math.prod(axis_slots(mask))))
    for heads, tile, columns in _parts(mask, query):
        matrix = _rows(query, heads, tile.queries) @ _rows(key, heads, tile.keys).mT
        place = out[(heads, *tile.queries)]
        place.copy_(_with_keys(matrix.gather(2, columns), tile).view(place.shape))
    return out


def _sums(weights: Tensor, value: Tensor, mask: _Code) -> Tensor:
    """Computes for every query the sum of its keys' values, weighted by slot."""
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    for heads, tile, columns in _parts(mask, value):
        matrix = _matrix(_rows(weights, heads, tile.queries), tile, columns)
        place = out[(heads, *tile.queries)]
        place.copy_((matrix @ _rows(value, heads, tile.keys)).view(place.shape))
    return out


def _returns(weights: Tensor, query: Tensor, mask: _Code) -> Tensor:
    """Computes for every key the sum of the rows of the queries that attend to it, weighted by
    slot.
    """
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
    """The distance of every slot's key from its query on one axis, in steps, `[length, slots]`."""
    return _axis_steps(tuple(mask), tuple(space), axis).to(like.device, copy=True)


def _fake_steps(like: Tensor, mask: _Code, space: Sequence[int], axis: int) -> Tensor:
    return like.new_empty((space[axis], axis_slots(mask)[axis]), dtype=torch.int64)


def _fake_products(query: Tensor, key: Tensor, mask: _Code) -> Tensor:
    return query.new_empty((*query.shape[:-1], math.prod(axis_slots(mask))))


def _fake_rows(weights: Tensor, rows: Tensor, mask: _Code) -> Tensor:
    return rows.new_empty(rows.shape)


def _in_batch(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, ...]:
    """For vmap: moves the mapped axis of the two tensors into N."""
    pairs = zip(arguments[:2], dims[:2], strict=True)
    whole = (
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in pairs
    )
    return tuple(t.flatten(0, 1) for t in whole)


def _derivatives(name: str, a: Tensor, b: Tensor, grad: Tensor, mask: _Code) -> Any:
    """Returns the gradients of the two tensors of an operator."""
    if name == "products":
        return sums(grad, b, mask), returns(grad, a, mask)
    if name == "sums":
        return products(grad, b, mask), returns(a, grad, mask)
    return products(b, grad, mask), sums(a, grad, mask)


def _plain(name: str, a: Tensor, b: Tensor, mask: _Code) -> Tensor:
    """Computes an operator by torch's own functions, for forward-mode derivatives: a library
    operator drops tangents, and a node's `jvp` under a second one drops those of the first.
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
            part = _with_keys((first @ second.mT).gather(2, columns), tile)
        else:
            zeros = b.new_zeros((*columns.shape[:2], tile.width))
            matrix = zeros.scatter_add(2, columns, _with_keys(first, tile))
            part = (matrix.mT if name == "returns" else matrix) @ second
        parts.append(part)
        at.append(places[tile.keys if name == "returns" else tile.queries].flatten())
    rows = torch.cat(parts, dim=1)
    whole = b.new_zeros((b.shape[0], places.numel(), rows.shape[-1]))
    return whole.index_add(1, torch.cat(at), rows).unflatten(1, space)


class _Transformable(torch.autograd.Function):
    """An operator for `torch.func`, which needs a node of this kind. Its arguments are a name, two
    tensors and a mask: a list of integers would be a tree of arguments.
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

# Operators, which compilers do not trace into. `[N, *space, C]`, float32 or float64.
OPERATORS: dict[str, Any] = {}
_library = torch.library.Library("nbattn", "FRAGMENT")


def _define(name: str, body: Any, fake: Any) -> Any:
    """Defines an operator of two tensors, its derivatives and vmap rule; returns its function."""
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

    def batched(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        out = OPERATORS[name](*_in_batch(info, dims, *arguments), arguments[2])
        return out.unflatten(0, (info.batch_size, -1)), 0

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

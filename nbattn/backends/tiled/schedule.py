"""The tiles of a mask as slices of tensors: batches of equal tiles, and the masks they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbattn import biases
from nbattn.backends.tiled.meaning import TiledArguments, key_positions
from nbattn.geometry import AxisTile, BoundAxis, Ints
from nbattn.program.program import ByIdentity

_BIAS_BYTES = 16 << 20  # limit of one schedule's additive masks
_PLACE_BYTES = 16 << 20  # of its entries and distances
_KEPT_TILES = 64
_NO_KEYS = float("-inf")


class AxisPart(NamedTuple):
    """`repeat` equal neighbouring tiles of one axis: the queries of all, the keys of the first, the
    rows and width of one.

    The keys of every tile start `shift` positions of the residue class after those of the tile
    before. Tiles with the same `pattern` have the same mask, and the same steps from queries to
    keys where these count.
    """

    queries: slice
    keys: tuple[slice, ...]
    rows: int
    width: int
    pattern: int
    repeat: int = 1
    shift: int = 0


class Tile(NamedTuple):
    """Equal tiles along the last axis: the slices of q of all tiles, the boxes of k of the first.

    A tile has several boxes if windows wrap or leave a gap after a prefix; then `repeat` is 1. With
    `has_all_queries` or `has_all_keys`, its slices are those of the whole tensor.
    """

    queries: tuple[slice, ...]
    keys: tuple[tuple[slice, ...], ...]
    rows: int
    width: int
    patterns: tuple[int, ...]
    bias: Tensor | None
    has_empty_rows: bool
    repeat: int
    shift: int
    has_all_queries: bool
    has_all_keys: bool

    def boxes(self) -> Iterator[tuple[slice, ...]]:
        """Yields the key boxes of every tile, one after another."""
        if self.repeat == 1:
            yield from self.keys
            return
        ((*rest, last),) = self.keys
        move = self.shift * last.step
        for number in range(self.repeat):
            yield (*rest, slice(last.start + number * move, last.stop + number * move, last.step))

    def span(self) -> tuple[slice, ...]:
        """Returns the box of the keys of all repeated tiles."""
        ((*rest, last),) = self.keys
        return (
            *rest,
            slice(last.start, last.stop + (self.repeat - 1) * self.shift * last.step, last.step),
        )

    def last_width(self) -> int:
        """Returns the number of keys of one tile on the last axis."""
        last = self.keys[0][-1]
        return (last.stop - last.start - 1) // last.step + 1


class Schedule:
    """The tiles of a mask at its lengths, with the additive masks that they share."""

    def __init__(self, call: TiledArguments) -> None:
        """Cuts every axis into tiles; `tiles` combines those of all axes."""
        self._call = call
        self._spaces = [(range(axis.queries), range(axis.keys)) for axis in call.axes]
        self._patterns: list[dict[tuple[object, ...], int]] = [{} for _ in call.axes]
        self._samples: list[list[AxisTile]] = [[] for _ in call.axes]
        self._axes = [
            [self._part(number, tile, axis) for tile in axis.tiles(size)]
            for number, (axis, size) in enumerate(zip(call.axes, call.tile, strict=True))
        ]
        self._bias: dict[tuple[object, ...], tuple[Tensor | None, bool]] = {}
        self._bias_bytes = 0
        self._places: dict[tuple[object, ...], Tensor] = {}
        self._place_bytes = 0
        self._tiles: dict[tuple[object, ...], tuple[Tile, ...]] = {}
        self._joined: dict[int, list[AxisPart]] = {}
        self.max_rows = math.prod(
            max((part.rows for part in parts), default=0) for parts in self._axes
        )
        self.max_width = math.prod(
            max((part.width for part in parts), default=0) for parts in self._axes
        )

    def _part(self, number: int, tile: AxisTile, on: BoundAxis) -> AxisPart:
        numbers, samples, step = self._patterns[number], self._samples[number], on.spec.dilation
        pattern = tile.pattern
        if self._call.adds_by_step:
            pattern = (*pattern, *_place(on, tile))
        known = numbers.setdefault(pattern, len(numbers))
        if known == len(samples):
            samples.append(tile)
        keys = tuple(_slice(start, count, step) for start, count in tile.keys)
        return AxisPart(_slice(*tile.queries, step), keys, tile.queries[1], tile.width, known)

    def tiles(
        self, dtype: torch.dtype, device: torch.device, group: int, most: int
    ) -> Iterable[Tile]:
        """Returns all tiles, up to `most` equal ones at once, with additive masks of this dtype on
        this device, repeated for `group` query heads. A few tiles are kept.
        """
        key = (dtype, device, group, most)
        if key in self._tiles:
            return self._tiles[key]
        tiles = self._make_tiles(*key)
        if math.prod(len(parts) for parts in self._axes) > _KEPT_TILES:
            return tiles
        few = tuple(tiles)
        if self._bias_bytes < _BIAS_BYTES // 2:  # then their masks are kept anyway
            self._tiles[key] = few
        return few

    def _make_tiles(
        self, dtype: torch.dtype, device: torch.device, group: int, most: int
    ) -> Iterator[Tile]:
        """Yields the tiles, one after another."""
        for parts in product(*self._axes[:-1], self._batches(most)):
            patterns = tuple(part.pattern for part in parts)
            bias, has_empty_rows = self._mask(patterns, dtype, device, group)
            queries = tuple(part.queries for part in parts)
            boxes = tuple(product(*(part.keys for part in parts)))
            yield Tile(
                queries,
                boxes,
                math.prod(part.rows for part in parts),
                math.prod(part.width for part in parts),
                patterns,
                bias,
                has_empty_rows,
                parts[-1].repeat,
                parts[-1].shift,
                self._is_whole(queries, 0),
                len(boxes) == 1 and self._is_whole(boxes[0], 1),
            )

    def _is_whole(self, box: tuple[slice, ...], side: int) -> bool:
        """Whether a box has all queries (side 0) or all keys (side 1), in order."""
        spaces = (both[side] for both in self._spaces)
        return all(space[part] == space for part, space in zip(box, spaces, strict=True))

    def _batches(self, most: int) -> list[AxisPart]:
        """Returns the tiles of the last axis; equal neighbours are joined if the tiles of every
        other axis have one box.
        """
        if most == 1 or any(len(part.keys) != 1 for axis in self._axes[:-1] for part in axis):
            return self._axes[-1]
        if most not in self._joined:
            self._joined[most] = _join(self._axes[-1], most)
        return self._joined[most]

    def entries(self, patterns: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns the flat entry of the table for every pair of a tile, `[rows x width]`."""
        return self._kept("entries", patterns, device, self._entries)

    def distances(self, patterns: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns |p - j| for every pair of a tile of a mask with one axis, `[rows, width]`."""
        return self._kept("distances", patterns, device, self._distances)

    def pairs_by_entry(self, patterns: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns the pairs of every entry that a tile reads, filled with one pair more than there
        are, after the entry itself: `[entries, 1 + most pairs]`.
        """
        return self._kept("pairs by entry", patterns, device, self._pairs_by_entry)

    def _kept(
        self,
        name: str,
        patterns: tuple[int, ...],
        device: torch.device,
        make: Callable[[list[AxisTile]], Ints],
    ) -> Tensor:
        key = (name, patterns, device)
        if key in self._places:
            return self._places[key]
        made = torch.from_numpy(make(self._tiles_of(patterns))).to(device)
        if self._place_bytes + made.nbytes <= _PLACE_BYTES:
            self._places[key] = made
            self._place_bytes += made.nbytes
        return made

    def _tiles_of(self, patterns: tuple[int, ...]) -> list[AxisTile]:
        return [self._samples[axis][number] for axis, number in enumerate(patterns)]

    def _entries(self, tiles: list[AxisTile]) -> Ints:
        axes = self._call.axes
        steps = [_steps(axis, tile) for axis, tile in zip(axes, tiles, strict=True)]
        flat = biases.entries_of([axis.spec for axis in axes], steps)
        return np.ascontiguousarray(flat[:, _in_boxes(tiles)]).reshape(-1)

    def _distances(self, tiles: list[AxisTile]) -> Ints:
        (axis,), (tile,) = self._call.axes, tiles
        return np.abs(_steps(axis, tile)) * axis.spec.dilation

    def _pairs_by_entry(self, tiles: list[AxisTile]) -> Ints:
        entries, allowed = self._entries(tiles), _allowed(tiles).reshape(-1)
        (pairs,) = np.nonzero(allowed)
        pairs = pairs[np.argsort(entries[pairs], kind="stable")]
        read, first, counts = np.unique(entries[pairs], return_index=True, return_counts=True)
        table = np.full((len(read), 1 + counts.max(initial=0)), len(allowed), dtype=np.int64)
        table[:, 0] = read
        number = np.repeat(np.arange(len(read)), counts)
        table[number, 1 + np.arange(len(pairs)) - first[number]] = pairs
        return table

    def _mask(
        self, patterns: tuple[int, ...], dtype: torch.dtype, device: torch.device, group: int
    ) -> tuple[Tensor | None, bool]:
        key = (patterns, dtype, device, group)
        if key in self._bias:
            return self._bias[key]
        samples = self._tiles_of(patterns)
        no_keys = math.prod(tile.width for tile in samples) == 0
        mask: tuple[Tensor | None, bool] = (None, no_keys)
        if not no_keys and not all(tile.is_full for tile in samples):
            # not by torch's functions, which have a default device
            allowed = torch.from_numpy(_allowed(samples)).repeat(group, 1).to(device)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=device)
            bias.masked_fill_(~allowed, _NO_KEYS)
            mask = (bias, not bool(allowed.any(dim=1).all()))
        size = 0 if mask[0] is None else mask[0].nbytes
        if self._bias_bytes + size <= _BIAS_BYTES:
            self._bias[key] = mask
            self._bias_bytes += size
        return mask


def _join(parts: list[AxisPart], most: int) -> list[AxisPart]:
    """Joins up to `most` neighbouring tiles that differ only by a constant shift into one part."""
    joined: list[AxisPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.repeat < most
            and last.pattern == part.pattern
            and len(part.keys) == 1
        ):
            step = part.queries.step
            moved = part.keys[0].start - last.keys[0].start
            shift = last.shift if last.repeat > 1 else moved // step
            follows = part.queries.start == last.queries.stop - 1 + step
            if follows and shift > 0 and moved == last.repeat * shift * step:
                queries = slice(last.queries.start, part.queries.stop, step)
                joined[-1] = last._replace(queries=queries, repeat=last.repeat + 1, shift=shift)
                continue
        joined.append(part)
    return joined


def _slice(start: int, count: int, step: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)


def _place(axis: BoundAxis, tile: AxisTile) -> tuple[object, ...]:
    """What two tiles of equal windows share if every step from a query to a key is the same."""
    first, count = tile.queries[:1], tuple(count for _, count in tile.keys)
    starts = np.array([start for start, _ in tile.keys], dtype=np.int64)
    steps = biases.steps_between(axis, np.array(first), starts)
    in_group = (first[0] + axis.offset) // axis.spec.dilation % axis.spec.stride
    return (count, tuple(steps[0].tolist()), in_group)


def _steps(axis: BoundAxis, tile: AxisTile) -> Ints:
    """Returns the steps from a tile's queries to its keys, `[rows, width]`."""
    (first, count), d = tile.queries, axis.spec.dilation
    queries = first + d * np.arange(count, dtype=np.int64)
    return biases.steps_between(axis, queries, key_positions(tile, d)[:-1])


def _allowed(tiles: list[AxisTile]) -> NDArray[np.bool_]:
    """Returns the mask inside a tile, `[rows, width]`, with columns in the order of key boxes."""
    matrix = np.ones((1, 1), dtype=np.bool_)
    for tile in tiles:
        matrix = np.kron(matrix, tile.allowed())
    return matrix[:, _in_boxes(tiles)]


def _in_boxes(tiles: list[AxisTile]) -> Ints | slice:
    """Returns the columns of the tile of several axes in the order of key boxes."""
    if all(len(tile.keys) == 1 for tile in tiles):
        return slice(None)
    boxes: list[Ints] = []
    for runs in product(*(_column_runs(tile) for tile in tiles)):
        order = np.zeros(1, dtype=np.int64)
        for tile, run in zip(tiles, runs, strict=True):
            order = (order[:, None] * tile.width + np.arange(run[0], run[1])).ravel()
        boxes.append(order)
    return np.concatenate([np.zeros(0, dtype=np.int64), *boxes])


def _column_runs(tile: AxisTile) -> list[tuple[int, int]]:
    """Returns the columns of every key run."""
    ends = [sum(count for _, count in tile.keys[: n + 1]) for n in range(len(tile.keys))]
    return [(end - count, end) for end, (_, count) in zip(ends, tile.keys, strict=True)]


def schedule(call: TiledArguments) -> Schedule:
    """Returns the schedule of a call, cached for the next run."""
    return _schedule(ByIdentity(call))


@lru_cache(64)
def _schedule(call: ByIdentity[TiledArguments]) -> Schedule:
    return Schedule(call.value)

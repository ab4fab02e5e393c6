"""Chooses how the native kernels cut a problem: their tiles of 16 rows, and the groups of
neighbouring tiles for which columns are copied once.

Both choices minimise the cost model of `costs.py` over the tiles of the actual shape, in closed
form per axis. A group's columns depend on its extents only, so tile and group are chosen one after
the other. The number of threads plays no part, so results never depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

from nbattn.backends.native import costs
from nbattn.backends.native.costs import LANES, Work
from nbattn.geometry import Axes, BoundAxis
from nbattn.program.parts import longest, parts_of
from nbattn.program.request import Request
from nbattn.program.tile_traversal import Traversal

Extents = tuple[int, int, int, int]
Groups = tuple[int, int, int]
QUARTERS = 4  # of a tile's lanes: sums leave out those that do not attend to a line of columns
RANK = 3  # axes of the kernels; a space of fewer has leading axes of 1
MOST = 64  # tiles of a group on one axis
STATE = 384 << 10  # bytes of all tiles of a group: queries, sums and gradients stay in the cache
ADDED = ("float32", "float64")  # types whose gradients serve as sums
SLABS = 256  # of a class: enough for any number of threads
WORTH = 20e-6  # seconds of an item's work: with less, items take longer to hand out than to do
# Work is cut as if eight threads shared it: at the end, each waits for half of an item on average.
# A fixed number, since results must not depend on the threads that are there.
_WAITING = 8 / 2


class Tiles(NamedTuple):
    """How one kernel cuts a problem, as heads of one key head and the extents of three axes.

    Args:
        tile: rows of a tile; their product is the number of lanes.
        group: tiles of a group.
        slab: groups of a work item on the three axes, of the kernel that adds to its columns: there
            it takes all heads, and of slabs on one axis, every other one runs at a time.
    """

    tile: Extents
    group: Extents
    slab: Groups = (1, 1, 1)

    @property
    def rows(self) -> Extents:
        """Rows of a group."""
        heads, *axes = (t * g for t, g in zip(self.tile, self.group, strict=True))
        return (heads, axes[0], axes[1], axes[2])


class Pass(NamedTuple):
    """The tiles of one kernel, its work per sample and key head, and the seconds of all of it."""

    tiles: Tiles
    work: Work
    seconds: float


def choose(kernel: str, request: Request, axes: Axes) -> Pass:
    """Returns the tiles with the lowest cost: the tile for its columns, then the group for what is
    copied, with items enough to share.
    """
    rows = _Rows(kernel, request, axes)
    tile = min(rows.tiles(), key=rows.tile_seconds)
    return rows.best_group(tile)


def choose_backward(request: Request, axes: Axes) -> dict[str, Pass]:
    """Returns the kernels of the backward: all gradients at once where sums of columns are kept in
    the tensors' type and slabs are enough to share, else one for the queries and one for the keys.
    """
    parts = {kernel: choose(kernel, request, axes) for kernel in ("grad_query", "grad_key")}
    if request.dtype not in ADDED or request.extra_keys:
        return parts
    whole = choose("grad_all", request, axes)
    split = sum(one.seconds for one in parts.values())
    return {"grad_all": whole} if whole.seconds < split else parts


def given(kernel: str, request: Request, axes: Axes, tiles: Tiles) -> Pass:
    """Returns the pass with given tiles and groups, in the slabs that suit them."""
    rows = _Rows(kernel, request, axes)
    first = RANK - len(axes)
    extents = (tiles.tile[0], *tiles.tile[first + 1 :])
    groups = tiles.group[0], *tiles.group[first + 1 :]
    return rows.cut(extents, tuple(e * g for e, g in zip(extents, groups, strict=True)))


def state(kernel: str, request: Request) -> int:
    """Returns the bytes that one tile keeps while columns pass."""
    channels = sum(-(-size // LANES) * LANES for size in (request.head_dim, request.value_dim))
    both = {"forward": 1, "grad_all": 3}.get(kernel, 2)  # rows of inputs, and of gradients
    return LANES * channels * both * (8 if request.dtype == "float64" else 4)


def fair(seconds: float, items: float) -> float:
    """Returns the seconds of one thread, with what is lost when its items are shared."""
    return seconds * (1 + _WAITING / min(items, max(seconds / WORTH, 1.0)))


class _Rows:
    """The rows of one kernel: heads of a key head, then the axes of the mask."""

    def __init__(self, kernel: str, request: Request, axes: Axes) -> None:
        self.kernel, self.request = kernel, request
        self.inverse = kernel == "grad_key"
        self.heads = 1 if self.inverse else request.heads_per_key_head
        parts = parts_of(request, axes)
        self.longest = [_longest(axis, inverse=self.inverse) for axis in longest(request, axes)]
        self.useful = (_power(self.heads), *(_power(rows) for rows in self.longest))
        self.classes = sum(
            times * math.prod(sum(group.size for group in axis.classes()) for axis in axes)
            for axes, times, _ in parts
        )
        alike = all(
            part.sizes == 1 for part in parts
        )  # else one of them says nothing of the others
        on_axes = zip(*(part.axes for part in parts), strict=True) if alike else ()
        self.separate = [_separate(bound) for bound in on_axes]
        self.sums = [
            (times, [_sums(axis, self.inverse) for axis in axes]) for axes, times, _ in parts
        ]
        self.copies = request.batch * request.kv_heads
        self.grids = 1 if request.grids is None else len(request.grids)

    def tiles(self) -> Iterator[tuple[int, ...]]:
        """Yields tiles of all lanes, with extents that are no larger than useful where the problem
        has as many rows.
        """
        largest = [min(extent, LANES) for extent in self.useful]
        if math.prod(largest) <= LANES:
            *others, last = largest
            yield (*others, last * (LANES // math.prod(largest)))
            return
        extents = ([1 << n for n in range(most.bit_length())] for most in largest)
        yield from (tile for tile in product(*extents) if math.prod(tile) == LANES)

    def tile_seconds(self, tile: tuple[int, ...]) -> float:
        """Returns the cost of a tile with each tile in a group of its own."""
        return costs.seconds(self.kernel, self.request, self.work(tile, tile))

    def best_group(self, tile: tuple[int, ...]) -> Pass:
        """Returns the group that costs least, counting what is lost when items are shared."""
        extents = [
            [e << n for n in range(MOST.bit_length()) if n == 0 or e << n <= max(e, useful)]
            for e, useful in zip(tile, self.useful, strict=True)
        ]
        most = LANES * max(STATE // state(self.kernel, self.request), 1)
        groups = (rows for rows in product(*extents) if math.prod(rows) <= most)
        return min((self.cut(tile, rows) for rows in groups), key=lambda each: each.seconds)

    def cut(self, tile: tuple[int, ...], rows: tuple[int, ...]) -> Pass:
        """Returns the pass in tiles and in groups of `rows` rows."""
        work = self.work(tile, rows)
        group = [row // extent for row, extent in zip(rows, tile, strict=True)]
        tiles, items = Tiles(_on_three_axes(tile), _on_three_axes(group)), float(work.items)
        if self.kernel == "grad_all":
            slab, items = self.slabs(rows)
            tiles = tiles._replace(slab=_on_three_axes((1, *slab))[1:])
        seconds = costs.seconds(self.kernel, self.request, work)
        return Pass(tiles, work, fair(seconds, max(items * self.copies, 1)))

    def slabs(self, rows: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        """Returns the groups of a slab on each axis, and how many slabs run at a time: several of
        a class on the axis with the most of them.
        """
        extents = rows[1:]
        every = [
            -(-longest // extent) for longest, extent in zip(self.longest, extents, strict=True)
        ]
        counts = [self._slab(number, extent) for number, extent in enumerate(extents)]
        shares = [-(-groups // count) for groups, count in zip(every, counts, strict=True)]
        most = shares.index(max(shares))
        chosen = tuple(counts[at] if at == most else groups for at, groups in enumerate(every))
        at_a_time = shares[most] if shares[most] == 1 else shares[most] / 2
        return chosen, self.classes * at_a_time

    def _slab(self, number: int, extent: int) -> int:
        """Returns the fewest groups of `extent` rows on one axis so that every other slab shares no
        column.
        """
        longest = self.longest[number]
        groups = 1 << max(-(-longest // (extent * SLABS)) - 1, 0).bit_length()
        while self.separate and groups * extent < longest:
            if self.separate[number](groups * extent):
                return groups
            groups *= 2
        return -(-longest // extent)

    def work(self, tile: tuple[int, ...], rows: tuple[int, ...]) -> Work:
        """Returns the work of tiles and of groups of `rows` rows, per sample and key head."""
        (tiles, columns), (groups, packed) = self._totals(tile), self._totals(rows)
        summed = self._summed(tile)
        extra, queries = self.request.extra_keys, self.request.query_count
        if self.inverse:  # every query head of the key head, and extra keys as rows
            times, extra_tiles = self.request.heads_per_key_head, -(-extra // LANES)
            others = extra_tiles * queries * times
            copied = (packed + bool(extra) * queries) * times
            tiles, groups = tiles + extra_tiles * self.grids, groups + bool(extra) * self.grids
            return Work(columns * times, summed * times, others, tiles, copied, groups)
        return Work(columns, summed, tiles * extra, tiles, packed + groups * extra, groups)

    def _totals(self, rows: tuple[int, ...]) -> tuple[float, float]:
        """Returns how many tiles of `rows` rows there are, and the columns of all of them."""
        tiles: float = 0
        columns: float = 0
        for times, on_axes in self.sums:
            sums = [of(size) for of, size in zip(on_axes, rows[1:], strict=True)]
            tiles += times * math.prod(n for n, _ in sums)
            columns += times * math.prod(n for _, n in sums)
        of_heads = -(-self.heads // rows[0])
        return of_heads * tiles, of_heads * columns

    def _summed(self, tile: tuple[int, ...]) -> float:
        """Returns the columns of all tiles, each counted by the share of its quarters that attend
        to its line: the leading axes' columns are a quarter's own, those of the last a tile's.
        """
        quarter = _quarter(tile)
        own = (*quarter[1:-1], tile[-1])
        columns = sum(
            times * math.prod(of(size)[1] for of, size in zip(on_axes, own, strict=True))
            for times, on_axes in self.sums
        )
        alike = tile[0] // quarter[0] * (tile[-1] // quarter[-1])  # quarters of the same lines
        return -(-self.heads // tile[0]) * columns * alike / QUARTERS


def _quarter(tile: Sequence[int]) -> list[int]:
    """Returns the extents of four neighbouring lanes of a tile, the last axis fastest."""
    left, extents = LANES // QUARTERS, []
    for extent in reversed(tile):
        extents.append(min(extent, left))
        left //= extents[-1]
    return extents[::-1]


def _separate(axes: Sequence[BoundAxis]) -> Callable[[int], bool]:
    """Returns a function of a number of rows: whether no tile of so many shares a column with the
    next tile but one, on every one of the axes.
    """
    return cache(lambda rows: all(Traversal(axis).separate(rows) for axis in axes))


@lru_cache(64)  # several kernels ask
def _sums(axis: BoundAxis, inverse: bool) -> Callable[[int], tuple[int, int]]:
    """Returns a function of a number of rows: how many tiles of so many one axis has, and the
    columns of all of them.
    """

    @cache
    def of(rows: int) -> tuple[int, int]:
        if not inverse:
            totals = axis.tile_totals(rows)
            return totals.tiles, totals.keys
        tiles = sum(group.size * -(-group.keys // rows) for group in axis.classes())
        return tiles, Traversal(axis, inverse=True).tile_pairs(rows, 1)

    return of


def _longest(axis: BoundAxis, *, inverse: bool) -> int:
    """Returns the rows of the longest class."""
    counts = (group.keys if inverse else group.queries for group in axis.classes())
    return max(counts, default=1)


def _power(number: int) -> int:
    """Returns the smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def _on_three_axes(extents: Sequence[int]) -> Extents:
    heads, *axes = extents
    first, second, third = (*(1,) * (RANK - len(axes)), *axes)
    return heads, first, second, third

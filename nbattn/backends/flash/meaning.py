"""What Flash kernels compute for the window they are told: every host override, in order; and which
key blocks they visit.

All Flash windows are bottom-right: the last query stands on the last key. The meanings here return
the band from the top-left corner, `nbattn.program.bands.Band`, after what the host code does to
the arguments. No provider is imported; `docs/seed.md` shows what the overrides do to a causal mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.backends.flash.providers import tile
from nbattn.geometry import Ints
from nbattn.program.bands import Band
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.program import Call, View
from nbattn.program.request import Request


@dataclass(frozen=True, slots=True)
class WindowArguments:
    """What a call passes: `window_size=(left, right)`, the causal flag, and lengths by metadata.

    Args:
        left, right: as on the wire: -1 is unlimited for Flash 2 and 3, None for Flash 4.
        causal: the causal flag.
        max_queries, max_keys: `max_seqlen_q`, `max_seqlen_k` of a varlen call; `max_keys` of a
            kv-cache call is the capacity of the cache. None is the true length.
        used: `cache_seqlens` of a kv-cache call, how many of the keys it is given it reads.
    """

    left: int | None = -1
    right: int | None = -1
    causal: bool = False
    max_queries: int | None = None
    max_keys: int | None = None
    used: int | None = None


Meaning = Callable[[WindowArguments, int, int], Band]


def flash2_dense(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2 and torch's built-in, dense entry: windows of `keys` or more become unlimited.

    >>> flash2_dense(WindowArguments(-1, 5640), 7688, 2048)  # top-left causal was asked
    Band(left=None, right=None)
    """
    left, right = _unlimited_from(window, keys)
    return _flash2(left, right, window.causal and queries > 1, queries, keys, keys)


def flash2_varlen(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2 and torch's built-in, varlen entry: causal first, and `max_seqlen_k` decides.

    >>> flash2_varlen(WindowArguments(-1, 5640, max_keys=5641), 7688, 2048)
    Band(left=11281, right=0)
    """
    longest = keys if window.max_keys is None else window.max_keys
    rows = queries if window.max_queries is None else window.max_queries
    right = 0 if window.causal and rows > 1 else window.right
    left, right = _unlimited_from(WindowArguments(window.left, right), longest)
    return _flash2(left, right, False, queries, keys, longest)


def flash2_kvcache(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2, kv-cache entry: overrides compare with the capacity of the cache, not its filling.

    >>> flash2_kvcache(WindowArguments(4, 0, max_keys=64), 2, 5)
    Band(left=1, right=3)
    """
    capacity = keys if window.max_keys is None else window.max_keys
    left, right = _unlimited_from(window, capacity)
    return _flash2(left, right, window.causal and queries > 1, queries, keys, capacity)


def flash3(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 3: sides are compared with what they can reach, so no override changes a mask. Its
    kv-cache entry compares with the capacity of the cache, which none reaches sooner.

    >>> flash3(WindowArguments(-1, 5640), 7688, 2048)
    Band(left=7687, right=0)
    """
    longest = keys if window.max_keys is None else window.max_keys
    left, right = _side(window.left), _side(window.right)
    left = -1 if left >= longest - 1 else left
    right = -1 if right >= queries - 1 else right
    if window.causal and not (queries == 1 and left < 0 and right < 0):
        right = 0
    if left < 0 and right < 0:
        return Band()
    if left < 0 and right == 0:
        return _corner(None, 0, queries, keys)
    return _corner(
        longest - 1 if left < 0 else left, queries - 1 if right < 0 else right, queries, keys
    )


def flash4(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 4: None is unlimited, negative sides are genuine, a window of no length is none.

    >>> flash4(WindowArguments(None, 5640), 7688, 2048)
    Band(left=None, right=0)
    >>> flash4(WindowArguments(-1, -1), 4, 4)
    Band(left=None, right=None)
    """
    left, right = window.left, 0 if window.causal else window.right
    if left is not None and right is not None and left + right < 0:
        return _corner(None, 0, queries, keys) if window.causal else Band()
    return _corner(left, right, queries, keys)


def _side(side: int | None) -> int:
    return -1 if side is None else side


def _unlimited_from(window: WindowArguments, length: int) -> tuple[int, int]:
    """Both sides, -1 where they are as long as the key axis."""
    left, right = _side(window.left), _side(window.right)
    return -1 if left >= length else left, -1 if right >= length else right


def _flash2(left: int, right: int, causal: bool, queries: int, keys: int, longest: int) -> Band:
    """What reaches the kernel of Flash 2: full, causal, or local with both sides."""
    right = 0 if causal else right
    if left < 0 and right < 0:
        return Band()
    if left < 0 and right == 0:
        return _corner(None, 0, queries, keys)
    return _corner(longest if left < 0 else left, longest if right < 0 else right, queries, keys)


def _corner(left: int | None, right: int | None, queries: int, keys: int) -> Band:
    """A bottom-right window from the top-left corner."""
    return Band(left, right).moved(0, queries - keys)


class Dialect(NamedTuple):
    """One reading of window arguments.

    Args:
        name: as messages call it.
        entries: "dense", "varlen", "kvcache" → the meaning of its calls.
        unlimited: what stands for an unlimited side.
        genuine: whether negative sides mean what they say.
        every_tile: whether a tile of queries computes at least one block.
    """

    name: str
    entries: Mapping[str, Meaning]
    unlimited: int | None
    genuine: bool
    every_tile: bool


FLASH2 = Dialect(
    "Flash 2",
    {"dense": flash2_dense, "varlen": flash2_varlen, "kvcache": flash2_kvcache},
    -1, False, False,
)  # fmt: skip
FLASH3 = Dialect("Flash 3", {"dense": flash3, "kvcache": flash3}, -1, False, False)
FLASH4 = Dialect("Flash 4", {"dense": flash4}, None, True, True)
DIALECTS: Mapping[str, Dialect] = {"aten": FLASH2, "fa2": FLASH2, "fa3": FLASH3, "fa4": FLASH4}


class Sequences(NamedTuple):
    """Sequences of a varlen call, one behind the other: so many queries and keys each. One without
    keys gives its queries 0, one without queries leaves its keys out.
    """

    queries: int
    keys: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class FlashArguments:
    """One call of a provider: its entry and what it is window. Only `axis` may carry a window.

    Args:
        provider: a name of `DIALECTS`.
        entry: "dense", "varlen" or "kvcache".
        window: its window arguments.
        axis: the axis that is longer than one position where there is a window.
        pad: keys appended to those of the view, which one more column of the heads masks.
        runs: the sequences of a varlen call, each with a window of its own; none: one of all.
    """

    provider: str
    entry: str
    window: WindowArguments
    axis: int = 0
    pad: int = 0
    runs: tuple[Sequences, ...] = ()

    @property
    def dialect(self) -> Dialect:
        """How the provider reads its arguments."""
        return DIALECTS[self.provider]

    def read(self, keys: int) -> int:
        """How many of the keys that it is given the kernel reads, the first ones."""
        return keys if self.window.used is None else self.window.used

    def sequences(self, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
        """The queries and keys of every sequence that has both, one behind the other."""
        row = key = 0
        for run in self.runs or (Sequences(queries, self.read(keys)),):
            for _ in range(run.times):
                stop, key_stop = row + run.queries, key + run.keys
                if stop > row and key_stop > key:
                    yield slice(row, stop), slice(key, key_stop)
                row, key = stop, key_stop

    def band(self, queries: int, keys: int) -> Band:
        """What the kernel computes on the keys of one sequence that it reads, from the top-left
        corner.
        """
        return self.dialect.entries[self.entry](self.window, queries, self.read(keys) + self.pad)

    @property
    def has_window(self) -> bool:
        """Whether it is told anything that excludes keys."""
        unlimited = self.dialect.unlimited
        return (self.window.left, self.window.right, self.window.causal) != (
            unlimited,
            unlimited,
            False,
        )

    def key_blocks(self, tile: tuple[int, int], queries: int, keys: int) -> tuple[Ints, Ints]:
        """Which key blocks the forward kernel visits: first and end, per block of queries.

        Args:
            tile: queries and keys of a block.
            queries, keys: the lengths.

        >>> first, end = flash_arguments("fa3", Band(None, 0), 8, 4).key_blocks((2, 2), 8, 4)
        >>> (end - first).tolist()
        [1, 2, 2, 2]
        """
        band, keys = self.band(queries, keys), self.read(keys)
        row = np.arange(0, queries, tile[0], dtype=np.int64)
        first = np.zeros_like(row)
        end = np.full_like(row, -(-(keys + self.pad) // tile[1]))
        if band.left is not None:
            first = np.maximum(first, (row - band.left) // tile[1])
        if band.right is not None:
            end = np.minimum(end, -((-row - tile[0] - band.right) // tile[1]))
        return first, np.maximum(end, first + self.dialect.every_tile)

    def query_blocks(self, tile: tuple[int, int], queries: int, keys: int) -> tuple[Ints, Ints]:
        """Which query blocks the backward kernel visits: first and end, per block of keys.

        Args:
            tile: queries and keys of a block.
            queries, keys: the lengths.

        >>> first, end = flash_arguments("fa3", Band(None, 0), 8, 4).query_blocks((2, 2), 8, 4)
        >>> first.tolist(), end.tolist()
        ([0, 1], [4, 4])
        """
        band = self.band(queries, keys)
        column = np.arange(0, keys + self.pad, tile[1], dtype=np.int64)
        first = np.zeros_like(column)
        end = np.full_like(column, -(-queries // tile[0]))
        if band.right is not None:
            first = np.maximum(first, (column - band.right) // tile[0])
        if band.left is not None:
            end = np.minimum(end, -((-column - tile[1] - band.left) // tile[0]))
        return first, np.maximum(end, first)

    def rows(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The bands on their axis, every key on the others."""
        starts, counts = np.zeros((2, queries, 2), dtype=np.int64)
        if number != self.axis:
            counts[:, 1] = keys
            return starts, counts, 1
        for at, to in self.sequences(queries, keys):
            lo, hi = self._rows(at, to)
            starts[at, 1], counts[at, 1] = np.where(hi > lo, lo + to.start, 0), hi - lo
        return starts, counts, 1

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The call's meaning on the positions of all axes in a row, as the kernel sees them."""
        rows, columns = math.prod(queries), math.prod(keys)
        found = np.zeros((rows, columns), dtype=np.bool_)
        for at, to in self.sequences(rows, columns):
            lo, hi = (side[:, None] for side in self._rows(at, to))
            column = np.arange(to.stop - to.start)
            found[at, to] = (column >= lo) & (column < hi)
        return found

    def _rows(self, at: slice, to: slice) -> tuple[Ints, Ints]:
        """The keys `[lo, hi)` of every query of a sequence, counted from its first key."""
        rows, columns = at.stop - at.start, to.stop - to.start
        return self.band(rows, columns).rows(np.arange(rows), columns)

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The blocks of every sequence of the call."""
        lengths = (view.axes[self.axis].length for view in (call.query, call.key))
        for at, to in self.sequences(*lengths):
            views = call.query.with_part(self.axis, at), call.key.with_part(self.axis, to)
            if self.has_window:
                yield from self._window_blocks(request, *views, backward=backward)
            else:
                yield from blocks_of_groups(*views, full=True)

    def _window_blocks(
        self, request: Request, query: View, key: View, *, backward: bool
    ) -> Iterator[Block]:
        """The blocks of one sequence, for all groups, in the order of the kernel's loops: the keys
        of every block of queries, or in the backward the queries of every block of keys.
        """
        rows, keys = query.count, key.count
        size = max(request.head_dim, request.value_dim)
        height, width = tile(self.provider, request.device, size, backward=backward)
        lo, hi = self.band(rows, keys).rows(np.arange(rows), keys)
        inner = self.query_blocks if backward else self.key_blocks
        ends = zip(*inner((height, width), rows, keys), strict=True)
        pairs = ((outer, n) for outer, (a, b) in enumerate(ends) for n in range(int(a), int(b)))
        for row, column in ((n, outer) if backward else (outer, n) for outer, n in pairs):
            queries = slice(row * height, min((row + 1) * height, rows))
            columns = slice(column * width, min((column + 1) * width, keys))
            if columns.start >= keys:
                continue  # padded keys
            full = (lo[queries] <= columns.start).all() and (hi[queries] >= columns.stop).all()
            parts = query.with_part(self.axis, queries), key.with_part(self.axis, columns)
            yield from blocks_of_groups(*parts, full=bool(full))

    def describe(self) -> str:
        """The arguments in a few words."""
        window = self.window
        name = " max_seqlen_k=" if window.used is None else f" cache_seqlens={window.used} of "
        inflated = "" if window.max_keys is None else f"{name}{window.max_keys}"
        inflated += f" {self.pad} padded keys" if self.pad else ""
        inflated += f" in {sum(run.times for run in self.runs)} sequences" if self.runs else ""
        if not self.has_window:
            return "no mask" + inflated
        flag = "causal" if window.causal else f"window_size=({window.left}, {window.right})"
        return f"{self.entry} {flag}{inflated}"


def flash_arguments(
    provider: str,
    band: Band,
    queries: int,
    keys: int,
    *,
    varlen: bool = False,
    pad: int = 0,
    capacity: int | None = None,
) -> FlashArguments:
    """The call that says a band, if the provider has one; `band()` of it shows whether it does.

    The varlen call is told a `max_seqlen_k` above every length and side, so that no override fires:
    padding that exists in metadata only. It is told two queries or more: with one, hosts make rows
    of grouped heads, and then neither write the output they are given nor take other lengths. With
    `pad` the keys are padded in fact; with `capacity` they are the first of a cache.

    >>> flash_arguments("aten", Band(None, 0), 4, 4).describe()
    'dense window_size=(-1, 0)'
    >>> flash_arguments("fa2", Band(None, 0), 6, 2, varlen=True).describe()
    'varlen window_size=(-1, 4) max_seqlen_k=6'
    """
    unlimited, shift = DIALECTS[provider].unlimited, keys + pad - queries
    left = unlimited if band.left is None else band.left + shift
    right = unlimited if band.right is None else band.right - shift
    if capacity is not None:
        return FlashArguments(
            provider, "kvcache", WindowArguments(left, right, max_keys=capacity, used=keys)
        )
    if not varlen:
        return FlashArguments(provider, "dense", WindowArguments(left, right), pad=pad)
    longest = max(queries, keys, *(1 + side for side in (left, right) if side is not None))
    rows = max(queries, 2)
    return FlashArguments(
        provider, "varlen", WindowArguments(left, right, max_queries=rows, max_keys=longest)
    )

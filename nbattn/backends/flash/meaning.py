"""What Flash kernels compute for given window arguments, and which key blocks they visit.

The host code of a provider changes the window arguments before the kernel gets them; the functions
here repeat all these overrides in order. All Flash windows are bottom-right: the last query is at
the last key's position. The functions return the band counted from the top-left corner
(`nbattn.program.bands.Band`). No provider is imported. `docs/design/flash-causal.md` shows what the
overrides do to a causal mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbattn.backends.flash.providers import tile
from nbattn.errors import counted
from nbattn.geometry import Ints
from nbattn.grids import PackedGrids
from nbattn.program.bands import Band
from nbattn.program.blocks import Block, blocks_of_groups
from nbattn.program.program import Call, Program, View, whole
from nbattn.program.request import Request


@dataclass(frozen=True, slots=True)
class WindowArguments:
    """The window arguments of a call: `window_size=(left, right)`, the causal flag, and lengths.

    Args:
        left, right: in the provider's form: -1 is unlimited for Flash 2 and 3, None for Flash 4.
        causal: the causal flag.
        max_queries, max_keys: `max_seqlen_q`, `max_seqlen_k` of a varlen call; `max_keys` of a
            kv-cache call is the capacity of the cache. None: the true length.
        used: `cache_seqlens` of a kv-cache call: the number of keys in use, from the first on.
        slopes: whether the call has `alibi_slopes`: then the flag of a single query is kept.
    """

    left: int | None = -1
    right: int | None = -1
    causal: bool = False
    max_queries: int | None = None
    max_keys: int | None = None
    used: int | None = None
    slopes: bool = False

    def keeps_causal(self, queries: int) -> bool:
        """Whether Flash 2 applies the causal flag, which it drops for one query without slopes."""
        return self.causal and (queries > 1 or self.slopes)


Meaning = Callable[[WindowArguments, int, int], Band]


def flash2_dense(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2 and torch's built-in, dense entry: a side of `keys` or more becomes unlimited.

    >>> flash2_dense(WindowArguments(-1, 5640), 7688, 2048)  # meant as top-left causal
    Band(left=None, right=None)
    """
    left, right = _unlimited_from(window, keys)
    return _flash2(left, right, window.keeps_causal(queries), queries, keys, keys)


def flash2_varlen(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2 and torch's built-in, varlen entry: the causal flag is applied first; then sides of
    `max_seqlen_k` or more become unlimited.

    >>> flash2_varlen(WindowArguments(-1, 5640, max_keys=5641), 7688, 2048)
    Band(left=11281, right=0)
    """
    longest = keys if window.max_keys is None else window.max_keys
    rows = queries if window.max_queries is None else window.max_queries
    right = 0 if window.keeps_causal(rows) else window.right
    left, right = _unlimited_from(WindowArguments(window.left, right), longest)
    return _flash2(left, right, False, queries, keys, longest)


def flash2_kvcache(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 2, kv-cache entry: sides of the cache's capacity or more become unlimited; the number
    of keys in use does not matter.

    >>> flash2_kvcache(WindowArguments(4, 0, max_keys=64), 2, 5)
    Band(left=1, right=3)
    """
    capacity = keys if window.max_keys is None else window.max_keys
    left, right = _unlimited_from(window, capacity)
    return _flash2(left, right, window.keeps_causal(queries), queries, keys, capacity)


def flash3(window: WindowArguments, queries: int, keys: int) -> Band:
    """Flash 3: only a side that reaches every position becomes unlimited, so no override changes a
    mask. Its kv-cache entry compares with the cache's capacity, which no smaller side reaches.

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
    """Flash 4: None is unlimited, a negative side is a number, an empty window means no window.

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
    """Both sides; -1 for a side of this length or more."""
    left, right = _side(window.left), _side(window.right)
    return -1 if left >= length else left, -1 if right >= length else right


def _flash2(left: int, right: int, causal: bool, queries: int, keys: int, longest: int) -> Band:
    """The band that Flash 2's kernel computes: full, causal, or local with both sides."""
    right = 0 if causal else right
    if left < 0 and right < 0:
        return Band()
    if left < 0 and right == 0:
        return _corner(None, 0, queries, keys)
    return _corner(longest if left < 0 else left, longest if right < 0 else right, queries, keys)


def _corner(left: int | None, right: int | None, queries: int, keys: int) -> Band:
    """The band from the top-left corner of a window that counts from the bottom-right one."""
    return Band(left, right).moved(0, queries - keys)


class Dialect(NamedTuple):
    """How one generation of Flash interprets window arguments.

    Args:
        name: its name in messages.
        entries: entry ("dense", "varlen", "kvcache") → the function that returns a call's band.
        unlimited: the value for an unlimited side.
        genuine: whether a negative side is a number like any other, rather than "unlimited".
        every_tile: whether every tile of queries computes at least one block.
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
    """`times` adjacent sequences of a varlen call, each with this number of queries and keys.
    Queries of a sequence without keys get output 0; keys of one without queries are skipped.
    """

    queries: int
    keys: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class FlashArguments:
    """One call of a provider: its entry and its window arguments. Only `axis` may have a window.

    Args:
        provider: a key of `DIALECTS`.
        entry: "dense", "varlen" or "kvcache".
        window: the window arguments.
        axis: the axis of the window; with a window, all other axes have length 1.
        pad: keys appended to those of the view; one more channel per head masks them.
        runs: the sequences of a varlen call, each with its own window; empty: one sequence.
        ranged: whether the sequence of a sample has only its keys in `key_range`, whose numbers a
            plan does not know: the mask here is that without it.
        grids: packed grids, each a sequence of a varlen call; then there are no runs.
    """

    provider: str
    entry: str
    window: WindowArguments
    axis: int = 0
    pad: int = 0
    runs: tuple[Sequences, ...] = ()
    ranged: bool = False
    grids: PackedGrids | None = None

    def of_size(self, number: int) -> Program:
        """The program of a packed grid of one size, as a sequence of its own."""
        assert self.grids is not None
        sizes = self.grids.sizes
        query, key = (whole(tuple(side[number].tolist())) for side in (sizes.query, sizes.key))
        return Program((Call(query, key, replace(self, grids=None)),))

    @property
    def dialect(self) -> Dialect:
        """How the provider interprets its window arguments."""
        return DIALECTS[self.provider]

    def read(self, keys: int) -> int:
        """How many of these keys the kernel attends to, from the first on."""
        return keys if self.window.used is None else self.window.used

    def sequences(self, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
        """The queries and keys of every sequence that has both, in order."""
        if self.grids is not None:
            starts = (self.grids.query.starts.tolist(), self.grids.key.starts.tolist())
            rows, columns = ([*map(slice, ends, ends[1:])] for ends in starts)
            for both in zip(rows, columns, strict=True):
                if all(part.stop > part.start for part in both):
                    yield both
            return
        row = key = 0
        for run in self.runs or (Sequences(queries, self.read(keys)),):
            for _ in range(run.times):
                stop, key_stop = row + run.queries, key + run.keys
                if stop > row and key_stop > key:
                    yield slice(row, stop), slice(key, key_stop)
                row, key = stop, key_stop

    def band(self, queries: int, keys: int) -> Band:
        """The band that the kernel computes on one sequence, from the top-left corner."""
        return self.dialect.entries[self.entry](self.window, queries, self.read(keys) + self.pad)

    @property
    def has_window(self) -> bool:
        """Whether the window arguments exclude any keys."""
        unlimited = self.dialect.unlimited
        return (self.window.left, self.window.right, self.window.causal) != (
            unlimited,
            unlimited,
            False,
        )

    def key_blocks(self, tile: tuple[int, int], queries: int, keys: int) -> tuple[Ints, Ints]:
        """The key blocks that the forward kernel visits: `[first, end)` per block of queries.

        Args:
            tile: queries and keys of a block.
            queries, keys: the lengths of the sequence.

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
        """The query blocks that the backward kernel visits: `[first, end)` per block of keys.

        Args:
            tile: queries and keys of a block.
            queries, keys: the lengths of the sequence.

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

    def key_runs(self, number: int, queries: int, keys: int) -> tuple[Ints, Ints, int]:
        """The keys of each query on one axis: those of the band on `axis`, all on the others."""
        starts, counts = np.zeros((2, queries, 2), dtype=np.int64)
        if number != self.axis:
            counts[:, 1] = keys
            return starts, counts, 1
        for rows, columns in self.sequences(queries, keys):
            lo, hi = self._rows(rows, columns)
            starts[rows, 1], counts[rows, 1] = np.where(hi > lo, lo + columns.start, 0), hi - lo
        return starts, counts, 1

    def allowed(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask that the kernel computes, `[queries, keys]`, with all axes flattened."""
        query_count, key_count = math.prod(queries), math.prod(keys)
        matrix = np.zeros((query_count, key_count), dtype=np.bool_)
        for rows, columns in self.sequences(query_count, key_count):
            lo, hi = (side[:, None] for side in self._rows(rows, columns))
            column = np.arange(columns.stop - columns.start)
            matrix[rows, columns] = (column >= lo) & (column < hi)
        return matrix

    def distances(self, queries: int, keys: int) -> Ints:
        """What the kernel multiplies with a slope and subtracts from each score, `[queries, keys]`:
        distances with the last query at the last key, or -j in the causal kernel of Flash 2.
        """
        matrix = np.zeros((queries, keys), dtype=np.int64)
        for rows, columns in self.sequences(queries, keys):
            count, width = rows.stop - rows.start, columns.stop - columns.start
            row, column = np.arange(count)[:, None], np.arange(width)
            band = self.band(count, width)
            is_causal_kernel = band.left is None and band.right is not None
            distance = np.abs(row + width + self.pad - count - column)
            matrix[rows, columns] = -column if is_causal_kernel else distance
        return matrix

    def _rows(self, rows: slice, columns: slice) -> tuple[Ints, Ints]:
        """The keys `[lo, hi)` of every query of a sequence, counted from its first key."""
        queries, keys = rows.stop - rows.start, columns.stop - columns.start
        return self.band(queries, keys).rows(np.arange(queries), keys)

    def blocks(self, request: Request, call: Call, *, backward: bool) -> Iterator[Block]:
        """The blocks that the kernel visits in every sequence of the call."""
        lengths = (view.axes[self.axis].length for view in (call.query, call.key))
        for rows, columns in self.sequences(*lengths):
            views = call.query.with_part(self.axis, rows), call.key.with_part(self.axis, columns)
            if self.has_window:
                yield from self._window_blocks(request, *views, backward=backward)
            else:
                yield from blocks_of_groups(*views, full=True)

    def _window_blocks(
        self, request: Request, query: View, key: View, *, backward: bool
    ) -> Iterator[Block]:
        """The blocks of one sequence, for all groups, in the order of the kernel's loops: for each
        block of queries its key blocks, or in the backward for each block of keys its query blocks.
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
        """The arguments as one short line of text."""
        window = self.window
        parts = ["no mask"]
        if self.has_window:
            flag = "causal" if window.causal else f"window_size=({window.left}, {window.right})"
            parts = [f"{self.entry} {flag}"]
        if window.max_keys is not None:
            name = "max_seqlen_k=" if window.used is None else f"cache_seqlens={window.used} of "
            parts.append(f"{name}{window.max_keys}")
        parts += [counted(self.pad, "padded key")] * bool(self.pad)
        parts += [counted(sum(run.times for run in self.runs), "sequence")] * bool(self.runs)
        parts += ["the keys of each sample by key_range"] * self.ranged
        parts += ["slopes"] * self.window.slopes
        parts += [] if self.grids is None else [counted(len(self.grids), "sequence")]
        return ", ".join(parts)


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
    """The call for a band. Not every provider can compute every band: compare the call's `band()`.

    A varlen call gets a `max_seqlen_k` above every length and side, so that no override applies:
    padding in the metadata only. Its `max_seqlen_q` is at least 2: for 1, the host code turns
    grouped heads into rows, and then neither writes into the output tensor of the caller nor takes
    other lengths. `pad` is the number of keys that are really appended; with `capacity`, the keys
    are the first ones of a cache with room for so many.

    >>> flash_arguments("aten", Band(None, 0), 4, 4).describe()
    'dense window_size=(-1, 0)'
    >>> flash_arguments("fa2", Band(None, 0), 6, 2, varlen=True).describe()
    'varlen window_size=(-1, 4), max_seqlen_k=6'
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

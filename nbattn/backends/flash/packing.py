"""Packs the pieces of one axis as sequences of one varlen call: a batch given by boundaries.

Each sample is cut into sequences, by boundaries for its queries and boundaries for its keys. Rows
without keys become a sequence without keys, and keys without queries a sequence without queries:
the kernel does no work for them, the rows get output 0, and nothing is copied to pack the rest.
With `key_range`, the boundaries of the keys are computed on the device (`ranges.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nbattn.backends.flash import slopes
from nbattn.backends.flash.meaning import (
    DIALECTS,
    FlashArguments,
    Sequences,
    WindowArguments,
    flash_arguments,
)
from nbattn.program.bands import FULL
from nbattn.program.dense_pieces import Piece
from nbattn.program.limits import GRID, Reason, over_grid
from nbattn.program.program import AxisView, Call, View, whole
from nbattn.program.request import Request


def call(request: Request, provider: str, per_axis: list[list[Piece]]) -> Call | Reason:
    """The varlen call whose sequences are the pieces of the long axis, or why there is none."""
    long = [n for n, pieces in enumerate(per_axis) if any(map(is_long, pieces))]
    if len(long) != 1 or any(len(p) != 1 for n, p in enumerate(per_axis) if n != long[0]):
        return Reason("pack", "needs exactly one axis that is longer than 1 and cut into pieces")
    axis = long[0]
    queries, keys = request.query_space[axis], request.key_space[axis]
    sequences = runs(per_axis[axis], queries, keys)
    if isinstance(sequences, Reason):
        return sequences
    window = _window(provider, per_axis[axis], sequences)
    if isinstance(window, Reason):
        return window
    whole = Piece(AxisView(0, queries), AxisView(0, keys))
    pieces = [whole if n == axis else parts[0] for n, parts in enumerate(per_axis)]
    views = View(tuple(p.query for p in pieces)), View(tuple(p.key for p in pieces))
    arguments = FlashArguments(provider, "varlen", window, axis, runs=sequences)
    if request.alibi_slopes:
        arguments = slopes.added_to(arguments, views[1].count)
    count = request.batch * views[0].groups * sum(run.times for run in sequences)
    if count > GRID:
        return Reason("grid", f"{count} sequences are over the grid of {GRID}")
    return Call(*views, arguments)


def call_by_range(request: Request, provider: str, per_axis: list[list[Piece]]) -> Call | Reason:
    """The varlen call whose sequences have the keys in `key_range`, or why there is none.

    Flash counts a window from a sequence's last key, so it would follow the end of the range. The
    numbers of the range are on the device: where it starts and ends does not matter to the plan.
    """
    for number, pieces in enumerate(per_axis):
        count = request.key_space[number]
        wanted = [(0, request.query_space[number], 1), (0, count, 1)]
        if any(piece.band != FULL for piece in pieces):
            text = f"axis {number} has a window, which Flash counts from a sample's last key"
            return Reason("key_range", f"{text}: it would move with the end of key_range")
        if [(v.start, v.length, v.groups) for p in pieces for v in (p.query, p.key)] != wanted:
            text = f"axis {number} is not one piece with all its queries and keys"
            return Reason("key_range", f"{text}: key_range counts keys of the whole axis")
    long = [number for number, count in enumerate(request.key_space) if count > 1]
    if len(long) > 1:
        text = f"axes {long[0]} and {long[1]} are longer than 1: keys in a box are no sequence"
        return Reason("key_range", text)
    if request.alibi_slopes:
        text = "Flash counts distances from a sample's last key, so the end of key_range moves them"
        return Reason("alibi_slopes", text)
    count = 3 * request.batch
    if count > GRID:
        return Reason("grid", f"{count} sequences are over the grid of {GRID}")
    if too_many_heads := over_grid(1, request.heads):
        return too_many_heads
    views = whole(request.query_space), whole(request.key_space)
    side, longest = DIALECTS[provider].unlimited, max(views[1].count, 1)
    rows = max(views[0].count, 2)  # as in `flash_arguments`
    window = WindowArguments(side, side, max_queries=rows, max_keys=longest)
    axis = long[0] if long else 0
    return Call(*views, FlashArguments(provider, "varlen", window, axis, ranged=True))


def is_long(piece: Piece) -> bool:
    """Whether a piece has more than one query or key."""
    return max(piece.query.length, piece.key.length) > 1


def _window(
    provider: str, pieces: list[Piece], sequences: tuple[Sequences, ...]
) -> WindowArguments | Reason:
    """The window arguments that all pieces share, or why they differ. The lengths are those of the
    longest sequences, also of those without keys: the kernel writes zeros to their rows.
    """
    calls = [
        flash_arguments(provider, p.band, p.query.length, p.key.length, varlen=True) for p in pieces
    ]
    windows = sorted({(call.window.left, call.window.right) for call in calls}, key=str)
    if len(windows) > 1:
        return Reason(
            "pack", f"its pieces need windows {windows[0]} and {windows[1]}, but a call has one"
        )
    lengths = [(call.window.max_queries or 0, call.window.max_keys or 0) for call in calls]
    lengths += [(run.queries, run.keys) for run in sequences]
    max_queries, max_keys = (max(sizes) for sizes in zip(*lengths, strict=True))
    return replace(calls[0].window, max_queries=max_queries, max_keys=max_keys)


def runs(pieces: list[Piece], queries: int, keys: int) -> tuple[Sequences, ...] | Reason:
    """The sequences of an axis with these lengths, or why its pieces cannot be sequences.

    >>> runs([Piece(AxisView(1, 3), AxisView(0, 2))], 4, 2)
    (Sequences(queries=1, keys=0, times=1), Sequences(queries=3, keys=2, times=1))
    """
    sequences: list[Sequences] = []
    row = key = 0
    for piece in sorted(pieces, key=lambda piece: piece.query.start):
        if piece.joins:
            return Reason("pack", "its pieces share queries: sequences do not")
        if not (_in_a_row(piece.query) and _in_a_row(piece.key)):
            return Reason("pack", "its pieces are not contiguous ranges of positions")
        if piece.query.start < row or piece.key.start < key:
            return Reason("pack", "its pieces share keys: sequences do not")
        sequences += _gap(piece.query.start - row, piece.key.start - key)
        sequences.append(Sequences(piece.query.length, piece.key.length, piece.query.groups))
        row, key = _end(piece.query), _end(piece.key)
    sequences += _gap(queries - row, keys - key)
    if sum(run.times for run in sequences) < 2:
        return Reason("pack", "one sequence: nothing to pack")
    return tuple(sequences)


def _gap(queries: int, keys: int) -> Iterator[Sequences]:
    """One sequence for queries without keys and one for keys without queries, if there are any."""
    if queries:
        yield Sequences(queries, 0)
    if keys:
        yield Sequences(0, keys)


def _in_a_row(view: AxisView) -> bool:
    """Whether the positions of all groups form one contiguous range."""
    step = view.step == 1 or view.length == 1
    blocks = view.into == "batch" and view.group_step == view.length
    return step and (view.groups == 1 or blocks)


def _end(view: AxisView) -> int:
    return view.start + view.groups * view.length

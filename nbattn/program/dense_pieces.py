"""Rewrites that turn one axis of a mask into pieces that a dense kernel supports, without changing
a pair.

A piece is a view of the axis's queries and one of its keys. Inside a group, query i attends to all
keys (dense) or to the first i + 1 (causal). Pieces share no query; queries without keys are in no
piece. A mask whose every axis has pieces is the product of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from nbattn.geometry import BoundAxis, Classes, Ints, Rows
from nbattn.program.bands import CAUSAL, FULL, Band
from nbattn.program.program import AxisView

_PIECE_LIMIT = 4
PART_OF_AN_AXIS = "the tensors hold a part of the axis"
_APART = "its windows wrap, or there is a gap between prefix and window"
_DIFFER = "its windows differ from query to query"


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries of one axis that one call can compute: inside every group they attend to the keys of
    a band. With `joins`, other pieces have the same queries and other keys.
    """

    query: AxisView
    key: AxisView
    band: Band = FULL
    joins: bool = False


def dense_pieces(axis: BoundAxis) -> list[Piece] | str:
    """The axis as dense and causal pieces, or the reason why it has no such pieces."""
    if axis.held is not None:
        return PART_OF_AN_AXIS
    pieces: list[Piece] = []
    for group in axis.classes():
        of_group = _class_pieces(axis, group)
        if isinstance(of_group, str):
            return of_group
        pieces += of_group
        if len(pieces) > _PIECE_LIMIT:
            return f"needs more than {_PIECE_LIMIT} dense pieces"
    return pieces


def fold_into_heads(piece: Piece) -> Piece:
    """The piece with its groups in the heads: of the last axis of a contiguous tensor that is a
    view.
    """
    if piece.query.groups == piece.key.groups == 1:
        return piece
    return replace(
        piece, query=replace(piece.query, into="heads"), key=replace(piece.key, into="heads")
    )


def _class_pieces(axis: BoundAxis, group: Classes) -> list[Piece] | str:
    """Pieces of alike residue classes: one window for all, or a causal triangle, or disjoint
    blocks.
    """
    if not group.keys:
        return []
    first = axis.rows(group.start, group)
    last = group.start + group.queries - 1
    alike = last == group.start or first == axis.rows(last, group)
    (low, lo, hi), count = first, first.counts()
    # windows move one way, so equal ends mean equal rows, unless both are empty or only a prefix
    if alike and count and (not axis.spec.prefix or count == group.keys):
        return (
            _APART
            if low and lo < hi
            else _uniform(axis, group, group.start, group.queries, lo, count)
        )
    return _triangle(axis, group) if axis.spec.causal else _blocks(axis, group)


def _uniform(
    axis: BoundAxis, group: Classes, start: int, rows: int, lo: int, count: int
) -> list[Piece]:
    """The piece of `rows` queries from coordinate `start` that attend to the keys
    [lo, lo + count) of their class.
    """
    if rows <= 0 or count <= 0:
        return []
    d = axis.spec.dilation
    query = AxisView(group.origin + d * (start - group.start), rows, d, group.size, 1)
    key = AxisView(group.first + d * lo, count, d, group.size, 1)
    return [Piece(query, key)]


def _triangle(axis: BoundAxis, group: Classes) -> list[Piece] | str:
    """Causal with nothing cut on the left: rows before key 0 are empty, the others start with one
    key.
    """
    spec = axis.spec
    start = max(group.start, 0)
    rows = group.start + group.queries - start
    if rows <= 0 or not group.keys:
        return []
    last = axis.rows(start + rows - 1, group).counts()
    if last < min(group.keys, start + rows) or spec.stride > 1:
        return f"a window of {spec.left} to the left is neither dense nor a whole causal triangle"
    if start > 0:
        return f"its first query is at key {start}: a bottom-right triangle, not a top-left one"
    (piece,) = _uniform(axis, group, start, rows, 0, min(group.keys, rows))
    return [replace(piece, band=CAUSAL)]


def _blocks(axis: BoundAxis, group: Classes) -> list[Piece] | str:
    """Stride groups whose windows do not overlap, as batches of dense blocks:

    0 ■ ■ ⬚ ⬚ ⬚ ⬚
    1 ■ ■ ⬚ ⬚ ⬚ ⬚
    2 ⬚ ⬚ ■ ■ ⬚ ⬚      equal blocks, each moved by as many keys as queries: one piece
    3 ⬚ ⬚ ■ ■ ⬚ ⬚
    4 ⬚ ⬚ ⬚ ⬚ ■ ■      blocks of other sizes, at the ends: a piece each
    """
    if not _may_be_blocks(axis, group):
        return _DIFFER
    rows = axis.rows(np.arange(group.start, group.start + group.queries), group)
    first = np.concatenate([[0], _changes(rows)])  # query of each block
    queries = np.diff(first, append=group.queries)
    low, lo, hi = (side[first] for side in rows)
    if (low * (hi - lo)).any():
        return _APART
    batches = _alike(first, queries, lo, hi - lo)
    if len(batches) > _PIECE_LIMIT:
        return _DIFFER
    pieces: list[Piece] = []
    for block, blocks in batches:
        count, key, key_stop = (int(side[block]) for side in (queries, lo, hi))
        start = group.start + int(first[block])
        alone = _uniform(axis, group, start, count, key, key_stop - key)
        pieces += [_repeated(piece, blocks, axis.spec.dilation * count) for piece in alone]
    return pieces


def _may_be_blocks(axis: BoundAxis, group: Classes) -> bool:
    """Whether a few rows of the class look like blocks, so that looking at all of them is worth
    it: windows of sliding masks overlap, and change from row to row.
    """
    last = group.start + group.queries - 1
    probes = axis.rows(np.linspace(group.start, last, 4 * _PIECE_LIMIT).astype(np.int64), group)
    overlap = int(probes.counts().max()) > axis.spec.stride
    return group.size == 1 and not (overlap and _changes(probes).size > _PIECE_LIMIT)


def _repeated(piece: Piece, groups: int, step: int) -> Piece:
    if groups == 1:
        return piece
    query, key = (
        replace(view, groups=groups, group_step=step) for view in (piece.query, piece.key)
    )
    return Piece(query, key)


def _changes(rows: Rows) -> Ints:
    """The rows whose keys are not those of the row before."""
    return np.flatnonzero(np.any([np.diff(side) != 0 for side in rows], axis=0)) + 1


def _alike(at: Ints, length: Ints, lo: Ints, count: Ints) -> list[tuple[int, int]]:
    """Neighbouring blocks that are one block moved on by as many keys as queries: first and number
    of each run.
    """
    moved = (
        (length[1:] == length[:-1]) & (count[1:] == count[:-1]) & (lo[1:] - lo[:-1] == length[:-1])
    )
    breaks = np.flatnonzero(~(moved & (count[1:] <= length[1:]))) + 1
    starts = [0, *breaks.tolist()]
    return [(start, stop - start) for start, stop in pairwise([*starts, len(at)])]

"""One axis of a mask as bands, the masks that windowed kernels support: every border, stride and
prefix.

A strip is a run of queries of a residue class, a run of its keys, and the band between them. Strips
of one class share no pair. Where a window wraps, or there is a gap between the prefix and the
window, two strips have the same queries, and the later one joins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from nbattn.axis import Axis
from nbattn.geometry import BoundAxis, Classes, Ints
from nbattn.program.bands import CAUSAL, FULL, Band, trim
from nbattn.program.dense_pieces import PART_OF_AN_AXIS, Piece
from nbattn.program.program import AxisView

_PIECE_LIMIT = 12


@dataclass(frozen=True, slots=True)
class Strip:
    """Queries `[u, u_stop)` attend to those of the keys `[t, t_stop)` that lie in the band; all in
    class coordinates.

    `groups` copies of it follow one another, each `step` queries and keys further on.
    """

    u: int
    u_stop: int
    t: int
    t_stop: int
    band: Band
    joins: bool = False
    groups: int = 1
    step: int = 0


def band_pieces(axis: BoundAxis) -> list[Piece] | str:
    """The axis as bands, or the reason why it needs too many."""
    if axis.held is not None:
        return PART_OF_AN_AXIS
    pieces: list[Piece] = []
    for group in axis.classes():
        if not group.keys:
            continue
        strips = _strips(axis.spec, group) if axis.spec.stride == 1 else _strided(axis, group)
        if isinstance(strips, str):
            return strips
        for strip in strips:
            pieces += _pieces(axis, group, strip)
        if len(pieces) > _PIECE_LIMIT:
            return f"needs more than {_PIECE_LIMIT} calls"
    return pieces


def _pieces(axis: BoundAxis, group: Classes, strip: Strip) -> Iterator[Piece]:
    """Views of a strip: residues or stride groups as the groups of one piece, or a piece for each
    residue.
    """
    d = axis.spec.dilation
    band = strip.band.moved(strip.u, strip.t)
    rows, keys = strip.u_stop - strip.u, strip.t_stop - strip.t
    if rows <= 0 or keys <= 0 or trim(band, rows, keys) is None:
        return
    query = AxisView(group.origin + d * (strip.u - group.start), rows, d, group.size, 1)
    key = AxisView(group.first + d * strip.t, keys, d, group.size, 1)
    if strip.groups == 1:
        yield Piece(query, key, band, strip.joins)
        return
    groups = {"groups": strip.groups, "group_step": d * strip.step}
    for residue in range(group.size):
        at = replace(query, start=query.start + residue, **groups)
        to = replace(key, start=key.start + residue, **groups)
        yield Piece(at, to, band, strip.joins)


def _strips(axis: Axis, group: Classes) -> list[Strip]:
    """Stride 1: the window's own band, with its borders, and the prefix."""
    start, stop, keys = group.start, group.start + group.queries, group.keys
    strips = [
        replace(strip, u=max(strip.u, start), u_stop=min(strip.u_stop, stop))
        for strip in _bordered(axis, start, stop, keys)
    ]
    prefix = min(axis.prefix, keys)
    if not prefix or (axis.causal and axis.left is None):
        return strips
    rest = [_from_key(strip, prefix) for strip in strips]
    return [*rest, Strip(start, stop, 0, prefix, CAUSAL if axis.causal else FULL, joins=True)]


def _from_key(strip: Strip, first: int) -> Strip:
    """The strip without the keys before `first`."""
    return replace(strip, t=max(strip.t, first))


def _bordered(axis: Axis, start: int, stop: int, keys: int) -> list[Strip]:
    """The window of every query from `start` to `stop`, by its border, without a prefix."""
    band = Band(axis.left, axis.right)
    if axis.border == "clip":
        return [Strip(start, stop, 0, keys, band)]
    left, right = axis.left, axis.right
    window = keys if left is None or right is None else left + right + 1
    if left is None or right is None or window >= keys:
        return [Strip(start, stop, 0, keys, CAUSAL if axis.causal else FULL)]
    if axis.border == "wrap":
        return [
            Strip(start, stop, 0, keys, band),
            Strip(0, left, keys - left, keys, Band(left - keys, None), joins=True),
            Strip(keys - right, keys, 0, right, Band(None, right - keys), joins=True),
        ]
    first = start if axis.causal else left
    last = keys if axis.causal else keys - right
    return [
        Strip(start, first, 0, window, FULL),
        Strip(first, last, 0, keys, band),
        Strip(last, stop, keys - window, keys, FULL),
    ]


def _strided(axis: BoundAxis, group: Classes) -> list[Strip] | str:
    """Stride above 1: the queries of a stride group share a window, causal ones up to themselves.

    Groups whose windows move on as they do are one strip with groups of its own; neighbouring
    groups with the same window are one longer strip. With stride 2:

        0 ■ ■ ■ ⬚ ⬚ ⬚ ⬚      the window of the first groups is cut: a strip of its own
        1 ■ ■ ■ ⬚ ⬚ ⬚ ⬚
        2 ⬚ ■ ■ ■ ■ ⬚ ⬚      from here on each window is the one before, moved by the stride:
        3 ⬚ ■ ■ ■ ■ ⬚ ⬚      one strip of several groups
        4 ⬚ ⬚ ⬚ ■ ■ ■ ■
        5 ⬚ ⬚ ⬚ ■ ■ ■ ■
    """
    stride, start, stop = axis.spec.stride, group.start, group.start + group.queries
    base = np.arange(start // stride * stride, stop, stride, dtype=np.int64)
    low, lo, hi = axis.rows(base + stride - 1, group)
    queries = np.maximum(base, start), np.minimum(base + stride, stop)
    band = CAUSAL if axis.spec.causal else FULL
    window = _strips_of_groups(np.stack([*queries, lo, hi]), stride, band, joins=False)
    before = np.zeros_like(low)  # keys [0, low): a prefix, or the far end of a wrapped window
    second = _strips_of_groups(np.stack([*queries, before, low]), stride, band, joins=True)
    strips = list(islice(chain(window, second), _PIECE_LIMIT + 1))
    if len(strips) > _PIECE_LIMIT:
        return f"needs more than {_PIECE_LIMIT} calls: stride groups with clipped windows"
    return strips


def _strips_of_groups(groups: Ints, stride: int, band: Band, *, joins: bool) -> Iterator[Strip]:
    """Strips of stride groups, columns of `groups`: u, u_stop, t, t_stop; groups without keys have
    none.
    """
    groups = groups[:, groups[3] > groups[2]]
    for first, last, step in _runs(groups, stride):
        u, u_stop, t, t_stop = (int(side) for side in groups[:, first])
        if step:
            yield Strip(u, u_stop, t, t_stop, band, joins, last - first + 1, step)
        else:
            yield Strip(u, int(groups[1, last]), t, t_stop, band, joins)


def _runs(rows: Ints, stride: int) -> Iterator[tuple[int, int, int]]:
    """Neighbouring groups, columns u, u_stop, t, t_stop, that are one group moved on by its stride
    or that have the same keys: the first, the last, and how far each is moved.
    """
    u, u_stop, t, t_stop = rows
    alike = np.diff(t_stop - t) == 0
    whole = (np.diff(u_stop - u) == 0) & (np.diff(u) == stride)
    moved = alike & whole & (np.diff(t) == stride)
    still = alike & (u[1:] == u_stop[:-1]) & (np.diff(t) == 0)
    kind = np.where(moved, 1, np.where(still, 2, 0))
    at = 0
    while at < len(u):
        rest = kind[at:]
        run = int(np.append(rest != rest[0], True).argmax()) if rest.size and rest[0] else 0
        yield at, at + run, stride if run and rest[0] == 1 else 0
        at += run + 1

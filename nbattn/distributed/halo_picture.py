"""Draws a halo with matplotlib: one rank's queries, its own keys, and the keys of others in a
colour for each; and how many keys every rank receives.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from nbattn.distributed import halo_text
from nbattn.distributed.chunks import Span, chunk_of, size_of
from nbattn.pictures.style import part_of_matplotlib

if TYPE_CHECKING:
    from nbattn.distributed.halos import Halo, RankHalo, Source

# Okabe and Ito's colours and two more; those who send the least have one for all.
_OWN = "#0072B2"
_OTHERS = (
    *("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"),
    "#8C6BB1",
    "#8A6D4B",
)
_NOT, _INK, _LINE, _MORE = "#EDEDED", "#222222", "#BBBBBB", "#8A8A8A"
_WHOLE = 8  # axes in more parts are drawn only around the rank
_ROWS = 32  # ranks of one axis that are drawn below one another
_NAMED = len(_OTHERS)  # sources in the legend
Box = tuple[Span, Span]  # columns, rows


def figure(halo: Halo, rank: RankHalo) -> Any:
    """The picture of one rank, as a matplotlib `Figure`."""
    axes = len(halo.parts)
    views = list(combinations(range(axes), 2)) if axes > 1 else [(0, 0)]
    size = (5.2 * (len(views) + 1), 5.4)
    drawn = part_of_matplotlib("figure").Figure(figsize=size, dpi=110, layout="constrained")
    panels = drawn.subplots(1, len(views) + 1, squeeze=False).ravel().tolist()
    for panel, view in zip(panels, views, strict=False):
        if axes == 1:
            _line(panel, halo, rank)
        else:
            _plane(panel, halo, rank, view)
    _received(panels[-1], halo, rank)
    mask = textwrap.fill(repr(halo.mask), 60 * len(panels))
    lengths = halo_text.by(halo.space)
    drawn.suptitle(f"{mask}\n{lengths} in {halo_text.by(halo.parts)} parts", fontsize=11)
    look = {"loc": "outside lower center", "ncols": 3, "fontsize": 9, "frameon": False}
    drawn.legend(handles=list(_legend(halo, rank)), **look)
    return drawn


def boxes(halo: Halo, rank: RankHalo, view: tuple[int, int]) -> list[tuple[Box, int]]:
    """The keys that a rank has or needs on two axes, as boxes with their owner's number: on a third
    axis those at the place of its own.
    """
    down, across = view
    own = rank.own[across], rank.own[down]
    found: list[tuple[Box, int]] = [(own, rank.number)]
    for source in rank.sources:
        for block in source.blocks:
            third = (axis for axis in range(len(block)) if axis not in view)
            if all(source.place[axis] == rank.place[axis] for axis in third):
                found.append(((block[across], block[down]), source.rank))
    return found


def _colours(rank: RankHalo) -> dict[int, str]:
    """A colour for the rank, and for every rank that it receives from."""
    sources = enumerate(_by_size(rank))
    others = {s.rank: _OTHERS[n] if n < len(_OTHERS) else _MORE for n, s in sources}
    return {rank.number: _OWN} | others


def _by_size(rank: RankHalo) -> list[Source]:
    """The ranks that it receives from, those that send most first."""
    return sorted(rank.sources, key=lambda source: -source.keys)


def _plane(panel: Any, halo: Halo, rank: RankHalo, view: tuple[int, int]) -> None:
    """Draws the keys on two axes."""
    colours = _colours(rank)
    for (columns, rows), owner in boxes(halo, rank, view):
        _box(panel, columns, rows, facecolor=colours[owner])
    down, across = view
    where = [_span_on_keys(halo, axis, rank.queries[axis]) for axis in (across, down)]
    if all(where):
        _box(panel, *where, fill=False, edgecolor=_INK, linewidth=1.4, linestyle="--")
    for axis, lines, limits in ((across, "axvline", "set_xlim"), (down, "axhline", "set_ylim")):
        start, stop = _shown(halo, rank, axis)
        for border in _borders(halo, axis, start, stop):
            getattr(panel, lines)(border, color=_LINE, linewidth=0.8)
        getattr(panel, limits)(*((start, stop) if axis == across else (stop, start)))
    panel.set_facecolor(_NOT)
    panel.set_xlabel(f"key, axis {across}")
    panel.set_ylabel(f"key, axis {down}")
    third = [f", axis {axis} at its part" for axis in range(len(halo.parts)) if axis not in view]
    panel.set_title(f"keys of rank {rank.number}, part {rank.place}{''.join(third)}", fontsize=10)
    sides = [stop - start for start, stop in (_shown(halo, rank, axis) for axis in view)]
    panel.set_aspect("equal" if max(sides) <= 3 * max(1, min(sides)) else "auto")


def _line(panel: Any, halo: Halo, rank: RankHalo) -> None:
    """Draws the keys of neighbouring ranks of one axis below one another."""
    first = max(0, min(rank.number - _ROWS // 2, halo.ranks - _ROWS))
    last = min(halo.ranks, first + _ROWS)
    colours = _colours(rank)
    for number in range(first, last):
        row = Span(number, number + 1)
        one = halo.rank(number)
        is_shown = number == rank.number
        _box(panel, one.own[0], row, facecolor=_OWN, alpha=1 if is_shown else 0.45)
        for source in one.sources:
            for (span,) in source.blocks:
                colour = colours[source.rank] if is_shown else _OTHERS[0]
                _box(panel, span, row, facecolor=colour, alpha=1 if is_shown else 0.45)
    panel.set_xlim(0, max(1, halo.keys))
    panel.set_ylim(last, first)
    panel.set_facecolor(_NOT)
    panel.set_xlabel("key")
    panel.set_ylabel("rank")
    panel.set_title(f"keys of every rank; rank {rank.number} in full colours", fontsize=10)


def _received(panel: Any, halo: Halo, rank: RankHalo) -> None:
    """Draws how many keys every rank receives."""
    received = halo.received
    panel.set_title("keys that every rank receives", fontsize=10)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.yaxis.get_major_locator().set_params(integer=True)
    if received.ndim == 1:
        panel.bar(range(halo.ranks), received, width=1.0, color=_OTHERS[0])
        panel.set_xlabel("rank")
        return
    rows = received.reshape(received.shape[0], -1)
    drawn = panel.imshow(rows, cmap="cividis", aspect="auto", vmin=0, interpolation="nearest")
    column = rank.number % rows.shape[1]
    panel.plot([column], [rank.place[0]], "s", markersize=8, fillstyle="none", color=_INK)
    panel.set_ylabel("part of axis 0")
    panel.set_xlabel("part of axis 1" + ", then of axis 2" * (received.ndim == 3))
    panel.figure.colorbar(drawn, ax=panel, shrink=0.7)


def _legend(halo: Halo, rank: RankHalo) -> Iterator[Any]:
    """Yields the legend: the rank, its queries, and whom it receives from."""
    patch, colours = part_of_matplotlib("patches").Patch, _colours(rank)
    yield patch(facecolor=_OWN, label=f"its own: {rank.keys:,} keys")
    if len(halo.parts) > 1:
        yield patch(facecolor="none", edgecolor=_INK, linestyle="--", label="its queries")
    sources = _by_size(rank)
    for source in sources[:_NAMED]:
        place = f" {source.place}" * (len(source.place) > 1)
        label = f"from rank {source.rank}{place}: {source.keys:,}"
        yield patch(facecolor=colours[source.rank], label=label)
    more = sources[_NAMED:]
    if more:
        keys = sum(source.keys for source in more)
        yield patch(facecolor=_MORE, label=f"and {len(more)} more ranks: {keys:,}")


def _box(panel: Any, columns: Span, rows: Span, **look: Any) -> None:
    if columns.length and rows.length:
        corner, sides = (columns.start, rows.start), (columns.length, rows.length)
        panel.add_patch(part_of_matplotlib("patches").Rectangle(corner, *sides, **look))


def _span_on_keys(halo: Halo, axis: int, queries: Span) -> Span:
    """Where queries are on the key axis; empty if they have no place there."""
    bound = halo.axes[axis].bound
    if not bound.is_placed:
        return Span(0, 0)
    return Span(queries.start + bound.offset, queries.stop + bound.offset)


def _shown(halo: Halo, rank: RankHalo, axis: int) -> tuple[int, int]:
    """Which keys of an axis are drawn."""
    keys, parts = halo.key_space[axis], halo.parts[axis]
    if parts <= _WHOLE:
        return 0, max(1, keys)
    spans = (rank.own[axis], *rank.needed[axis])
    margin = max(1, size_of(keys, parts))
    start, stop = min(s.start for s in spans), max(s.stop for s in spans)
    return max(0, start - margin), min(keys, stop + margin)


def _borders(halo: Halo, axis: int, start: int, stop: int) -> Sequence[int]:
    """Where chunks begin among the keys that are drawn; none if these would be all there is."""
    keys, parts = halo.key_space[axis], halo.parts[axis]
    found = {chunk_of(keys, parts, part).start for part in range(parts)}
    inside = sorted(border for border in found if start < border < stop)
    return inside if len(inside) <= 4 * _WHOLE else ()

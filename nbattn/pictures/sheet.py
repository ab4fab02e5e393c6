"""Draws a plan's mask with matplotlib: a matrix per axis, the blocks that a kernel visits, and the
keys of a few queries. Imports matplotlib when a figure is made.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn import geometry
from nbattn.axis import describe
from nbattn.errors import InputError
from nbattn.geometry import Axes, BoundAxis
from nbattn.pictures import signs
from nbattn.pictures.style import part_of_matplotlib
from nbattn.planner.plan import Plan
from nbattn.program.blocks import Block

CELLS = 160  # longer axes are drawn by tiles
LINED = 48  # up to this many cells per side have lines between them
PAIRS = 1 << 21  # most cells of a picture of blocks
BLOCKS = 20_000
_BEYOND, _OFF = "beyond", "off"
# Okabe and Ito's colours, which are distinct for every kind of colour vision.
COLOURS = {
    signs.READ: ("#0072B2", "attended"),
    signs.MOVED: ("#E69F00", "attended, moved or wrapped"),
    signs.PREFIX: ("#009E73", "attended, prefix"),
    _BEYOND: ("#F3C4D6", "window beyond the axis"),
    signs.NONE: ("#E6E6E6", "not attended"),
    signs.OTHER: ("#F7F7F7", "not on this query's dilation grid"),
    _OFF: ("#FFFFFF", ""),
}
_KINDS = list(COLOURS)
_INK = "#222222"


def figure(plan: Plan) -> Any:
    """Draws the mask of a plan, and the blocks that the plan visits, as a matplotlib `Figure`.

    Raises:
        InputError: matplotlib is missing.
        MaskError: an axis is longer than 2^21.
    """
    request = plan.request
    axes = request.axes()
    signs.check_lengths(axes)
    columns = len(axes) + 1 if len(axes) != 2 else 3
    panels = len(axes) + 1 + (0 if len(axes) == 1 else 3 if len(axes) == 2 else 8)
    size = (4.5 * columns, 4.6 * -(-panels // columns) + 0.9)
    drawing = part_of_matplotlib("figure").Figure(figsize=size, dpi=130, layout="constrained")
    flat = drawing.subplots(-(-panels // columns), columns, squeeze=False).ravel().tolist()
    for number, axis in enumerate(axes):
        _axis_panel(flat[number], number, axis)
    _blocks_panel(drawing, flat[len(axes)], plan, axes)
    _neighborhoods(flat[len(axes) + 1 :], axes)
    _finish(drawing, flat, plan, axes)
    return drawing


def save(made: Any, path: str | Path) -> None:
    """Writes a figure as a PNG; the same figure gives the same bytes.

    Raises:
        InputError: the path cannot be written.
    """
    backend = part_of_matplotlib("backends.backend_agg")
    try:
        backend.FigureCanvasAgg(made).print_png(str(path), metadata={"Software": None})
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            _other_place(Path(path)),
        ) from None


def _other_place(path: Path) -> str:
    """What to do about a path that cannot be written."""
    if path.is_dir():
        return repr(str(path / "mask.png"))
    if not path.parent.exists():
        return f"mkdir -p {shlex.quote(str(path.parent))}"
    return f"{path.name!r}, in a folder of yours"


def block_shares(plan: Plan) -> NDArray[np.float32] | str:
    """The share of allowed pairs in the block that computes each pair `[Nq, Nk]`; for several axes,
    in the block of each query `[*space]`. NaN where no block is. Or the reason for no picture.
    """
    grid = _block_grid(plan)
    return grid if isinstance(grid, str) else grid[0]


def _block_grid(plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.int64]] | str:
    """The share of allowed pairs, and the number, of the block of every cell."""
    request = plan.request
    axes = request.axes()
    shape = tuple(axis.queries for axis in axes)
    if len(axes) == 1:
        shape = (*shape, axes[0].keys)
    if (
        math.prod(shape) > PAIRS
        or max(max(axis.queries, axis.keys) for axis in axes) > PAIRS // 512
    ):
        return f"{' x '.join(map(str, shape))} cells are too many to draw block by block"
    shares, numbers = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64)
    visits = list(islice(plan.schedule(), BLOCKS + 1))
    if len(visits) > BLOCKS:
        return f"more than {BLOCKS} blocks, too many to draw one by one"
    matrices = [axis.dense() for axis in axes]
    for number, visit in enumerate(visits):
        share = _share(visit, matrices)
        for keys in visit.keys if len(axes) == 1 else visit.keys[:1]:
            ranges = (*visit.queries, *keys) if len(axes) == 1 else visit.queries
            cells = tuple(slice(r.start, r.stop, r.step) for r in ranges)
            shares[cells], numbers[cells] = share, number
    return shares, numbers


def _share(visit: Block, matrices: Sequence[NDArray[np.bool_]]) -> float:
    """The share of a block's pairs that the mask allows."""
    allowed = visited = 0
    for keys in visit.keys:
        parts = [m[np.ix_(q, k)] for m, q, k in zip(matrices, visit.queries, keys, strict=True)]
        allowed += math.prod(int(part.sum()) for part in parts)
        visited += math.prod(part.size for part in parts)
    return allowed / visited if visited else float("nan")


def axis_kinds(axis: BoundAxis) -> tuple[NDArray[np.int64], int]:
    """Index into `COLOURS` per query and key of a short axis, with columns before and after the
    axis that show the part of a window there. Also returns the number of columns before.
    """
    lo, hi, keys = axis.windows()
    far = 1 << 40  # unlimited sides end with the axis
    d, most = axis.spec.dilation, min(8, max(2, axis.keys // 4))
    before = d * -int(min(0, np.min(np.where(lo < -far, 0, lo), initial=0)))
    after = d * int(max(0, np.max(np.where(hi > far, 0, hi - keys), initial=0)))
    before, after = min(before, most), min(after, most)
    columns = np.arange(-before, axis.keys + after)
    t, residue = np.divmod(columns, d)
    own = (np.arange(axis.queries) + axis.offset)[:, None] % d
    low, high = np.where(lo < -far, 0, lo)[:, None], np.where(hi > far, keys, hi)[:, None]
    reach = (residue == own) & (t >= low) & (t < high)
    kinds = np.where(reach, _KINDS.index(_BEYOND), _KINDS.index(_OFF))
    kinds[:, before : before + axis.keys] = _indices(signs.signs(axis))
    return kinds, before


def _indices(cells: NDArray[np.str_]) -> NDArray[np.int64]:
    """Signs as indices into `COLOURS`; an own position becomes attended or not attended."""
    plain = np.where(cells == signs.OWN, signs.READ, cells)
    plain = np.where(plain == signs.OWN_UNREAD, signs.NONE, plain)
    return np.select([plain == kind for kind in _KINDS], range(len(_KINDS)))


def _axis_panel(axes: Any, number: int, axis: BoundAxis) -> None:
    """Draws one axis: queries down, keys across."""
    title = textwrap.fill(f"axis {number}: {describe(axis.spec)}", 44)
    axes.set_title(f"{title}\n{signs.keys_read([axis])}", fontsize=10)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    if not axis.queries * axis.keys:
        return _words(axes, "no pairs")
    if max(axis.queries, axis.keys) > CELLS:
        rows, columns = _tile((axis.queries, axis.keys))
        areas = geometry.BoundAxis(type(axis.spec)(), axis.queries, axis.keys)
        shares = axis.coverage(rows, columns) / areas.coverage(rows, columns)
        return _shares(axes, shares, (axis.queries, axis.keys), (rows, columns))
    kinds, before = axis_kinds(axis)
    width = kinds.shape[1]
    _kinds(axes, kinds, (-before - 0.5, width - before - 0.5, axis.queries - 0.5, -0.5))
    for edge in (-0.5, axis.keys - 0.5):
        axes.axvline(edge, color=_INK, linewidth=1)
    own = np.arange(axis.queries) + axis.offset
    inside = (own >= -before) & (own < width - before) & axis.is_placed
    rows = np.flatnonzero(inside)
    attends_own = (signs.signs(axis) == signs.OWN).any(axis=1)
    attended = attends_own[rows].tolist()
    _dots(axes, own[rows], rows, attended, max(axis.queries, width))
    return None


def _dots(axes: Any, x: Any, y: Any, attended: Sequence[bool], cells: int) -> None:
    """Draws own positions: filled where they are attended to, else hollow."""
    face = [_INK if is_attended else "none" for is_attended in attended]
    axes.scatter(x, y, s=min(24, 2500 / cells**1.5), c=face, edgecolors=_INK, linewidths=0.7)


def _kinds(axes: Any, kinds: NDArray[np.int64], extent: tuple[float, ...] | None = None) -> None:
    """Draws cells in the colours of their kinds, with thin lines between them."""
    colours = part_of_matplotlib("colors").ListedColormap(
        [colour for colour, _ in COLOURS.values()], name="kinds"
    )
    look: dict[str, Any] = {"cmap": colours, "vmin": -0.5, "vmax": len(COLOURS) - 0.5}
    axes.imshow(kinds, interpolation="nearest", extent=extent, aspect=_aspect(kinds.shape), **look)
    left, right, bottom, top = extent or (-0.5, kinds.shape[1] - 0.5, kinds.shape[0] - 0.5, -0.5)
    if max(kinds.shape) > LINED:
        return _integers(axes)
    axes.vlines(np.arange(left, right + 1), top, bottom, color="white", linewidth=0.5)
    axes.hlines(np.arange(top, bottom + 1), left, right, color="white", linewidth=0.5)
    return _integers(axes)


def _shares(axes: Any, shares: Any, shape: tuple[int, ...], tile: tuple[int, ...] = (1, 1)) -> None:
    """Draws shares from 0 to 1 as cells of `tile` rows and columns; the last cells may be cut."""
    down, across = (n * size - 0.5 for n, size in zip(shares.shape, tile, strict=True))
    look: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    look |= {"extent": (-0.5, across, down, -0.5), "aspect": _aspect(shape)}
    drawn = axes.imshow(np.ma.masked_where(~(shares > 0), shares), **look)
    axes.set_facecolor(COLOURS[signs.NONE][0])
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)
    _integers(axes)
    label = "share of pairs that are attended; grey: none"
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label=label)


def _tile(shape: Sequence[int]) -> tuple[int, ...]:
    """The rows and columns per cell with which at most `CELLS` cells per side are drawn."""
    return tuple(-(-size // CELLS) for size in shape)


def _aspect(shape: tuple[int, ...]) -> str:
    return "equal" if max(shape) <= 3 * min(shape) else "auto"


def _integers(axes: Any) -> None:
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(part_of_matplotlib("ticker").MaxNLocator(8, integer=True))
    axes.tick_params(labelsize=8)


def _words(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 36), ha="center", va="center", transform=axes.transAxes)


def _blocks_panel(drawing: Any, panel: Any, plan: Plan, axes: Sequence[BoundAxis]) -> None:
    """Draws the blocks that the chosen program computes, in the colour of their attended share."""
    cost, name = plan.chosen.cost, f"{plan.chosen.name} on {plan.request.device.name}"
    useful = 100 * cost.useful_pairs / max(cost.computed_pairs, 1) if cost else 0
    panel.set_title(f"blocks of {name}\n{useful:.3g}% of visited pairs are attended", fontsize=10)
    grid = _block_grid(plan)
    if isinstance(grid, str) or not grid[0].size:
        return _words(panel, grid if isinstance(grid, str) else "no pairs")
    shares, numbers = grid
    names = ("query", "key") if len(axes) == 1 else ("query, axis 0", "query, axis 1")
    if len(axes) == 3:
        shares, numbers = shares[len(shares) // 2], numbers[len(numbers) // 2]
        names = ("query, axis 1", f"query, axis 2; axis 0 at {plan.request.query_space[0] // 2}")
    panel.set_ylabel(names[0])
    panel.set_xlabel(names[1])
    _shares(panel, shares, shares.shape)
    _outline(panel, numbers)
    return None


def _outline(axes: Any, numbers: NDArray[np.int64]) -> None:
    """Draws lines between different blocks, unless blocks interleave or the picture is large."""
    if max(numbers.shape) > 512:
        return
    down = np.argwhere(numbers[:, 1:] != numbers[:, :-1])
    across = np.argwhere(numbers[1:] != numbers[:-1])
    edges = [((x + 0.5, y - 0.5), (x + 0.5, y + 0.5)) for y, x in down.tolist()]
    edges += [((x - 0.5, y + 0.5), (x + 0.5, y + 0.5)) for y, x in across.tolist()]
    if len(edges) > numbers.size // 4 and max(numbers.shape) > LINED:
        return
    collection = part_of_matplotlib("collections").LineCollection
    axes.add_collection(collection(edges, colors="white", linewidths=0.8), autolim=False)


def _neighborhoods(panels: Sequence[Any], axes: Sequence[BoundAxis]) -> None:
    """Draws the keys of a corner, an edge and a centre query on the key grid; for three axes, four
    slices each of a corner and a centre query.
    """
    centre = tuple(axis.queries // 2 for axis in axes)
    if not panels or not math.prod(axis.queries * axis.keys for axis in axes):
        return
    corner = (0,) * len(axes)
    if len(axes) == 2:
        names = {"corner": corner, "edge": (0, centre[1]), "centre": centre}
        for panel, (name, query) in zip(panels, names.items(), strict=True):
            _grid(panel, f"{name} query {query}", axes, query)
        return
    for row, (name, query) in enumerate({"corner": corner, "centre": centre}.items()):
        slices = _slices(axes[0], query[0])
        for panel, at in zip(panels[4 * row : 4 * row + 4], slices, strict=False):
            _grid(panel, f"{name} query {query}, keys at {at} on axis 0", axes, query, at)


def _slices(axis: BoundAxis, query: int) -> list[int]:
    """Four keys of an axis: first keys that the query attends to, then their neighbours."""
    d = axis.spec.dilation
    runs = axis.key_intervals(query)
    attended = [key for start, count in runs for key in range(start, start + d * count, d)]
    spread = np.linspace(0, len(attended) - 1, min(4, len(attended))).round().astype(int).tolist()
    chosen = [attended[index] for index in sorted(set(spread))]
    middle = chosen[0] if chosen else axis.offset + query
    nearest = sorted(set(range(axis.keys)) - set(attended), key=lambda key: abs(key - middle))
    return sorted([*chosen, *nearest[: 4 - len(chosen)]])


def _grid(
    panel: Any, title: str, axes: Sequence[BoundAxis], query: tuple[int, ...], at: int | None = None
) -> None:
    """Draws the keys of one query on a grid of the last two axes; with `at`, those at key `at` of
    axis 0.
    """
    shape = tuple(axis.keys for axis in axes[-2:])
    if max(axis.keys for axis in axes) > CELLS:
        factor = _attended_shares(axes[0], query[0], 1)[at] if at is not None else 1
        sizes = _tile(shape)
        rows = [_attended_shares(*axis) for axis in zip(axes[-2:], query[-2:], sizes, strict=True)]
        _shares(panel, factor * np.multiply.outer(*rows), shape, sizes)
    else:
        kinds = grid_kinds(axes, query, at)
        _kinds(panel, kinds)
        title += f": {int((kinds < _KINDS.index(_BEYOND)).sum())} keys"
    spots = [place + axis.offset for place, axis in zip(query, axes, strict=True)]
    inside = all(0 <= s < n for s, n in zip(spots[-2:], shape, strict=True))
    if inside and at in (None, spots[0]) and all(axis.is_placed for axis in axes):
        pairs = zip(axes, query, spots, strict=True)
        attended = all(_attends(axis, place, spot) for axis, place, spot in pairs)
        _dots(panel, [spots[-1]], [spots[-2]], [attended], max(shape))
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(f"key, axis {len(axes) - 2}")
    panel.set_xlabel(f"key, axis {len(axes) - 1}")


def grid_kinds(
    axes: Sequence[BoundAxis], query: tuple[int, ...], at: int | None = None
) -> NDArray[np.int64]:
    """Index into `COLOURS` per key of a grid of the last two axes, short ones, for one query."""
    rows = [_indices(signs.signs(axis)[place]) for axis, place in zip(axes, query, strict=True)]
    # of the kinds on its axes a key gets the last in COLOURS: not attended, if one axis is
    grid = np.maximum.outer(*rows[-2:])
    return grid if at is None else np.maximum(grid, rows[0][at])


def _attends(axis: BoundAxis, query: int, key: int) -> bool:
    d = axis.spec.dilation
    return any(key in range(a, a + d * n, d) for a, n in axis.key_intervals(query))


def _attended_shares(axis: BoundAxis, query: int, tile: int) -> NDArray[np.float64]:
    """The share of every tile of keys that a query attends to."""
    row = np.zeros(axis.keys)
    for start, count in axis.key_intervals(query):
        row[start : start + axis.spec.dilation * count : axis.spec.dilation] = 1
    return np.array([row[at : at + tile].mean() for at in range(0, axis.keys, tile)])


def _finish(drawing: Any, panels: Sequence[Any], plan: Plan, axes: Axes) -> None:
    """Adds title and legend, and removes empty frames."""
    for panel in panels:
        if not panel.has_data() and not panel.texts:
            panel.set_axis_off()
    total = math.prod(axis.queries * axis.keys for axis in axes)
    pairs = f"{geometry.pairs(axes)} of {total} pairs; {signs.keys_read(axes)}"
    title = textwrap.fill(repr(plan.request.mask), 48 * max(2, len(axes)))
    drawing.suptitle(f"{title}\n{pairs}", fontsize=11)
    patch, axis = part_of_matplotlib("patches").Patch, part_of_matplotlib("lines").Line2D
    images = [image for panel in panels for image in panel.images if _is_kinds(image)]
    seen = {int(kind) for image in images for kind in np.unique(image.get_array())}
    handles = [
        patch(facecolor=colour, edgecolor="#888888", label=words)
        for index, (colour, words) in enumerate(COLOURS.values())
        if index in seen and words
    ]
    if handles:
        look: dict[str, Any] = {"color": _INK, "marker": "o", "linestyle": "", "markersize": 5}
        handles.append(axis([], [], **look, label="own position"))
        handles.append(
            axis([], [], **look, markerfacecolor="none", label="own position, not attended")
        )
        drawing.legend(
            handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False
        )


def _is_kinds(image: Any) -> bool:
    return image.get_cmap().name == "kinds"

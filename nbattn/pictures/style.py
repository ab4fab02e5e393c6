"""How pictures look: sizes in points, colours, the panel that a picture is drawn into, its legend.

Colours are Okabe and Ito's, distinct for every kind of colour vision, and differ in lightness;
kinds whose lightness is near have hatches.
"""

from __future__ import annotations

import importlib
import math
import textwrap
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nbattn.errors import InputError
from nbattn.packages import install_line
from nbattn.pictures import signs
from nbattn.pictures.zoom import Scale

POINTS = 72.0
WIDTH = 3.35 * POINTS  # a column of a paper
TALLEST = 1.25 * WIDTH  # the height of all cells
SMALL, LABEL, LINE = 7.0, 8.0, 0.5
INK, PALE, PAPER = "#1a1a1a", "#8a8a8a", "#ffffff"
LARGEST = 15.0  # a cell is no larger, so that small masks make small pictures
BAR = 4.0  # the height of a bar of colours
_TICK, _PAD, _BAR_FOOT = 2.0, 3.0, 2.5  # words are higher than the bar
_SETTING = threading.RLock()
Maker = Callable[[float, float], Any]  # a figure of a width and a height in points


class Look(NamedTuple):
    """How a kind of cell is drawn, and its words in the legend."""

    face: str
    words: str
    hatch: str = ""
    ink: str = PAPER


LOOKS = {
    signs.READ: Look("#0072B2", "attended"),
    signs.MOVED: Look("#E69F00", "moved or wrapped"),
    signs.PREFIX: Look("#009E73", "prefix", "//////"),
    signs.NONE: Look("#E4E4E4", "not attended"),
    signs.OTHER: Look("#FFFFFF", "not on the dilation grid"),
    signs.BEYOND: Look("#FFFFFF", "window beyond the axis", "\\\\\\\\\\\\", "#C0699A"),
}
MAP = "cividis"  # for shares and weights: even in lightness


@dataclass
class Panel:
    """Matplotlib's Axes, and what is needed to draw at the right size.

    Args:
        axes: where the picture is drawn.
        cell, high: the width and the height of a cell in points.
        size: the width and the height of all cells in points.
        is_own: whether the figure was made for this picture.
        handles: the entries of the legend so far, by their words.
    """

    axes: Any
    cell: float
    high: float
    size: tuple[float, float]
    is_own: bool
    handles: dict[str, Any] = field(default_factory=dict[str, Any])


class Margins(NamedTuple):
    """The space around a picture in points, without its legend."""

    left: float
    bottom: float
    right: float = 5.0
    top: float = 5.0


def part_of_matplotlib(part: str = "") -> Any:
    """Imports a module of matplotlib, or itself, or raises an InputError with what to install."""
    try:
        return importlib.import_module(f"matplotlib.{part}".rstrip("."))
    except ImportError as error:
        raise InputError(
            f"figures need matplotlib, which does not load here: {error}.",
            install_line("viz"),
        ) from None


def pyplot_figure(width: float, height: float) -> Any:
    """A figure of pyplot, which notebooks show and `plt.savefig` writes."""
    size = (width / POINTS, height / POINTS)
    return part_of_matplotlib("pyplot").figure(figsize=size, layout="none")


def plain_figure(width: float, height: float) -> Any:
    """A figure that pyplot does not know."""
    size = (width / POINTS, height / POINTS)
    return part_of_matplotlib("figure").Figure(figsize=size, layout="none")


def panel(
    axes: Any,
    cells: tuple[float, float],
    margins: Margins,
    legend: Sequence[str] = (),
    *,
    stretch: float = 1.0,
    largest: float = LARGEST,
    side: str = "",
    figure: Maker = pyplot_figure,
) -> Panel:
    """Opens a panel for so many columns and rows of cells, `stretch` times as high as wide.

    Without axes it makes a figure of a column's width, whose height follows; the sides of cells are
    multiples of 1/8 point where that fits, which keeps vector files short. A low picture has the
    room above that the name of its side needs.
    """
    columns, rows = max(cells[0], 1.0), max(cells[1], 1.0)
    if axes is not None:
        return _given(axes, columns, rows, stretch)
    room = WIDTH - margins.left - margins.right
    cell = min(room / columns, largest, TALLEST / (rows * stretch))
    cell = cell if cell < 0.5 else int(8 * cell) / 8
    width, height = cell * columns, cell * rows * stretch
    lines = legend_rows(legend, WIDTH - 8)
    below = margins.bottom + (lines * 10.0 + 4.0 if lines else 0.0)
    total = below + height + max(margins.top, (text_width(side, LABEL) + 2.0 - height) / 2)
    drawn = _on_paper(figure(WIDTH, total))
    left = margins.left + round((room - width) / 2)
    box = (left / WIDTH, below / total, width / WIDTH, height / total)
    return Panel(drawn.add_axes(box), cell, cell * stretch, (width, height), True)


def _on_paper(figure: Any) -> Any:
    """Gives a figure its white paper, whatever the style sheet says of figures and of files."""
    figure.set_facecolor(PAPER)
    if part_of_matplotlib().rcParams["savefig.facecolor"] != "auto":
        box = part_of_matplotlib("patches").Rectangle
        paper = box((0, 0), 1, 1, transform=figure.transFigure, facecolor=PAPER, zorder=-1)
        figure.add_artist(paper)
    return figure


def ink(axes: Any) -> str:
    """The colour of words and ticks: dark, or white on the caller's dark figure."""
    colour = part_of_matplotlib("colors").to_rgba(_root(axes).get_facecolor())
    return PAPER if colour[3] > 0.5 and sum(colour[:3]) < 1.2 else INK


def _root(axes: Any) -> Any:
    """The figure of some axes, which may be in a part of it."""
    return getattr(axes.figure, "figure", None) or axes.figure


def _given(axes: Any, columns: float, rows: float, stretch: float) -> Panel:
    """A panel in the caller's Axes, whatever its size."""
    if not hasattr(axes, "add_patch") or axes.name in ("3d", "polar"):
        raise InputError(
            f"ax is of type {type(axes).__name__}, not plain Axes of matplotlib.",
            "ax=ax.flat[0]"
            if hasattr(axes, "flat")
            else "ax=matplotlib.pyplot.figure().subplots()",
        )
    axes.set_box_aspect(rows * stretch / columns)
    box = axes.get_position(original=True)
    across, along = _points(axes)
    width, height = box.width * across, box.height * along
    cell = min(width / columns, height / (rows * stretch))
    high = cell * stretch
    return Panel(axes, cell, high, (cell * columns, high * rows), False)


def _points(axes: Any) -> tuple[float, float]:
    """The size of the figure of some axes, or of its part that holds them, in points."""
    width, height = (axes.figure.bbox.size / axes.figure.dpi * POINTS).tolist()
    return width, height


def text_width(text: str, size: float = SMALL) -> float:
    """The width of a text in points, in the font that figures have."""
    properties = part_of_matplotlib("font_manager").FontProperties(size=size)
    measure = part_of_matplotlib("textpath").text_to_path.get_text_width_height_descent
    return float(measure(text, properties, False)[0]) * 1.03


def widest(texts: Sequence[object]) -> float:
    """The width of the widest of some tick labels in points."""
    return max((text_width(str(text)) for text in texts), default=0.0)


@contextmanager
def settings(given: dict[str, Any]) -> Generator[None]:
    """Settings of matplotlib inside of the block. They are the process's: one thread at a time has
    its own, so that each finds and leaves the caller's.
    """
    with _SETTING, part_of_matplotlib().rc_context(given):
        yield


def hatches() -> AbstractContextManager[None]:
    """Thin hatches for patches that are made inside."""
    return settings({"hatch.linewidth": 0.5})


def patch_look(kind: str) -> dict[str, Any]:
    """The arguments of a patch of a kind of cell."""
    look = LOOKS[kind]
    if not look.hatch:
        return {"facecolor": look.face, "edgecolor": "none", "linewidth": 0}
    return {"facecolor": look.face, "edgecolor": look.ink, "linewidth": 0, "hatch": look.hatch}


def add_entry(into: Panel, kind: str) -> None:
    """Adds a kind of cell to the legend."""
    patch = part_of_matplotlib("patches").Patch
    look = patch_look(kind)
    if kind in (signs.OTHER, signs.BEYOND):
        look |= {"linewidth": 0.5, "edgecolor": LOOKS[kind].ink if look.get("hatch") else PALE}
    with hatches():
        into.handles[LOOKS[kind].words] = patch(label=LOOKS[kind].words, **look)


def add_dot_entry(into: Panel, words: str, *, filled: bool) -> None:
    """Adds an own position to the legend."""
    line = part_of_matplotlib("lines").Line2D
    face = INK if filled else "none"
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3.6}
    look |= {"markerfacecolor": face, "markeredgecolor": INK, "markeredgewidth": 0.7}
    into.handles[words] = line([], [], label=words, **look)


def _columns(words: Sequence[str], room: float) -> int:
    """How many columns of a legend fit; it is filled column by column."""
    sizes = [text_width(text) + 15.0 for text in words]
    for columns in range(len(words), 1, -1):
        rows = -(-len(words) // columns)
        parts = [sizes[at : at + rows] for at in range(0, len(sizes), rows)]
        if len(parts) == columns and sum(map(max, parts)) + 8.0 * (columns - 1) <= room:
            return columns
    return 1


def legend_rows(words: Sequence[str], room: float) -> int:
    """The number of lines of a legend."""
    return -(-len(words) // _columns(words, room)) if words else 0


def with_bar(margins: Margins) -> Margins:
    """Margins with room for a bar of colours below."""
    return margins._replace(bottom=margins.bottom + BAR + 6.0 + _BAR_FOOT)


def add_legend(into: Panel, below: float) -> None:
    """Draws the legend `below` points under the picture; a figure of its own has it at its foot."""
    if not into.handles:
        return
    axes, order = into.axes, [look.words for look in LOOKS.values()]
    into.handles = dict(sorted(into.handles.items(), key=lambda entry: _rank(order, entry[0])))
    look: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handlelength": 1.1}
    look |= {"handleheight": 0.9, "handletextpad": 0.5, "columnspacing": 1.1, "labelspacing": 0.35}
    look |= {"borderpad": 0.0, "borderaxespad": 0.0, "handles": list(into.handles.values())}
    look |= {"labelcolor": ink(axes), "numpoints": 1, "markerscale": 1.0}
    words = list(into.handles)
    if into.is_own:
        room, at, where = (
            WIDTH - 8,
            (0.5, 3 / _points(axes)[1]),
            "lower center",
        )
        shift = axes.figure.transFigure
    else:
        transforms = part_of_matplotlib("transforms")
        width = axes.get_position(original=True).width * _points(axes)[0]
        room, at, where = max(width, 120.0), (0.5, 0.0), "upper center"
        offset = transforms.ScaledTranslation(0, -below / POINTS, axes.figure.dpi_scale_trans)
        shift = axes.transAxes + offset
    columns = _columns(words, room)
    axes.legend(loc=where, bbox_to_anchor=at, bbox_transform=shift, ncols=columns, **look)


def _rank(order: list[str], words: str) -> int:
    return order.index(words) if words in order else len(order)


def scale_bar(
    into: Panel, colours: Sequence[Any], margins: Margins, words: tuple[str, str, str]
) -> None:
    """Draws a bar of colours at the foot of the margins `with_bar`, with the words at its start and
    its end, and what it shows.
    """
    below = margins.bottom - BAR - _BAR_FOOT
    transforms, axes = part_of_matplotlib("transforms"), into.axes
    before, behind = (text_width(text) for text in (f"{words[0]} ", f" {words[1]}  {words[2]}"))
    length = min(70.0, WIDTH - 8.0 - before - behind)
    start = (before - length - behind) / 2
    if into.is_own:  # in the middle of the figure
        start += WIDTH / 2 - into.axes.get_position().x0 * WIDTH - into.size[0] / 2
    points = transforms.Affine2D().scale(1 / POINTS) + axes.figure.dpi_scale_trans
    points += transforms.ScaledTranslation(0.5, 0.0, axes.transAxes)
    rectangle = part_of_matplotlib("patches").Rectangle
    step = length / len(colours)
    for number, colour in enumerate(colours):
        wide = step * (2 if number < len(colours) - 1 else 1)  # no seams
        look: dict[str, Any] = {"facecolor": colour, "linewidth": 0, "label": "_bar"}
        corner = start + step * number, -below - BAR
        bar = rectangle(corner, wide, BAR, transform=points, clip_on=False, **look)
        axes.add_artist(bar)
    look = {"fontsize": SMALL, "color": ink(axes), "va": "center", "transform": points}
    middle = -below - BAR / 2
    axes.text(start, middle, f"{words[0]} ", ha="right", **look)
    axes.text(start + length, middle, f" {words[1]}  {words[2]}", ha="left", **look)


def say(axes: Any, words: str, figure: Maker = pyplot_figure) -> Any:
    """Draws words in the place of a picture that has no cells."""
    into = panel(axes, (14.0, 4.0), Margins(8.0, 8.0, 8.0, 8.0), figure=figure)
    quiet(into.axes)
    into.axes.set_axis_off()
    look: dict[str, Any] = {"fontsize": LABEL, "color": ink(into.axes), "ha": "center"}
    into.axes.text(
        0.5, 0.5, textwrap.fill(words, 44), transform=into.axes.transAxes, va="center", **look
    )
    return into.axes


def quiet(axes: Any) -> None:
    """Thin ticks on two sides, no grid and no frame: pictures draw the edges of their parts."""
    colour = ink(axes)
    look: dict[str, Any] = {"labelsize": SMALL, "length": _TICK, "width": LINE, "pad": 1.5}
    look |= dict.fromkeys(("top", "right", "labeltop", "labelright"), False)
    look |= dict.fromkeys(("bottom", "left", "labelbottom", "labelleft"), True)
    axes.tick_params(color=colour, labelcolor=colour, **look)
    axes.minorticks_off()
    axes.grid(visible=False, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("none")


def limits(axes: Any, across: tuple[float, float], down: tuple[float, float]) -> None:
    """Shows exactly a box, rows downward."""
    axes.set_xlim(*across)
    axes.set_ylim(*down[::-1])


def tick_sides(
    into: Panel, down: Scale, across: Scale, down_step: int = 1, across_step: int = 1
) -> None:
    """Labels indices on both sides, multiples of a step."""
    room = (SMALL + 2.0) / into.high
    wide = (widest(across.indices[-1:].tolist()) + 4.0) / into.cell
    sides = (into.axes.yaxis, down, down_step, room), (into.axes.xaxis, across, across_step, wide)
    for axis, scale, step, space in sides:
        found = scale.ticks(space, max(1, step))
        axis.set_ticks([scale.place(index) for index in found], [str(index) for index in found])


def name_sides(axes: Any, across: str, down: str) -> None:
    """The names of both sides."""
    look: dict[str, Any] = {"fontsize": LABEL, "color": ink(axes), "loc": "center"}
    axes.set_xlabel(across, labelpad=2.0, **look)
    axes.set_ylabel(down, labelpad=3.0, **look)


def margins_for(down_labels: Sequence[object], has_side: bool = True) -> Margins:
    """The margins that tick labels and names need."""
    name = LABEL + 4.0
    left = widest(down_labels) + _TICK + 2.0 * _PAD + name if has_side else 8.0
    left = math.ceil(8 * left) / 8
    return Margins(left, SMALL + _TICK + _PAD + name)

"""Draws large matrices of several axes: the matrix of the last axis is one shape, repeated in every
block, so that vector files hold it once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbattn.geometry import Axes
from nbattn.pictures import cells, signs, style, zoom


def draw(into: style.Panel, axes: Axes) -> None:
    """Draws all pairs of a mask on two or three axes, in flat coordinates.

    Every kind of block and cell is one collection of matplotlib, whose label is "_" and the sign.
    """
    *outer, inner = (_kinds(axis) for axis in axes)
    blocks = outer[0]
    for after in outer[1:]:
        blocks = _product(blocks, after)
    rows, columns = inner.shape
    scales = zoom.whole(rows), zoom.whole(columns)
    for kind in np.unique(blocks).tolist():
        places = np.argwhere(blocks == kind)[:, ::-1] * (columns, rows)
        pattern = signs.all_of([np.array([[kind]], dtype=np.int8), inner])
        if pattern.min() == pattern.max():
            _fill(into, blocks == kind, signs.KINDS[int(pattern[0, 0])], (columns, rows))
            continue
        for index in np.unique(pattern).tolist():
            sign = signs.KINDS[index]
            path = cells.outline(pattern == index, *scales)
            _stamp(into, path, places, sign)
            style.add_entry(into, sign)


def _fill(into: style.Panel, blocks: NDArray[np.bool_], sign: str, size: tuple[int, int]) -> None:
    """Draws blocks all of whose cells are of one kind."""
    down, across = zoom.whole(len(blocks)), zoom.whole(blocks.shape[1])
    columns, rows = size
    spot = cells.Spot((columns - 1) / 2, (rows - 1) / 2, columns, rows)
    cells.fill(into, blocks, down, across, spot, style.patch_look(sign), sign)
    style.add_entry(into, sign)


def _kinds(axis: Any) -> NDArray[np.int8]:
    return signs.kinds(axis, np.arange(axis.queries), np.arange(axis.keys))


def _product(first: NDArray[np.int8], second: NDArray[np.int8]) -> NDArray[np.int8]:
    """The kinds of pairs on two axes, flat and row-major."""
    both = signs.all_of([first[:, None, :, None], second[None, :, None, :]])
    return both.reshape(len(first) * len(second), -1)


def _stamp(into: style.Panel, path: Any, places: NDArray[np.int64], sign: str) -> None:
    """Draws one shape at many places."""
    transforms = style.part_of_matplotlib("transforms")
    collection = style.part_of_matplotlib("collections").PathCollection
    data = into.axes.transData
    look = {
        f"{name}s" if name != "hatch" else name: value
        for name, value in style.patch_look(sign).items()
    }
    with style.hatches():
        made = collection([path], offsets=places, offset_transform=data, zorder=1, **look)
    made.set_transform(transforms.AffineDeltaTransform(data))
    made.set_label(f"_{sign}")
    made.set_clip_on(False)
    into.axes.add_artist(made)

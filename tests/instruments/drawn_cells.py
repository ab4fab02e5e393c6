"""Reads pictures of masks back from matplotlib's artists: which cell has which sign.

Shares no code with what draws: a cell is in a patch if the winding number of the patch's outline
around the cell's centre is not 0, as programs that show vector files fill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

ATTENDED = "■▣▤"


def winding(path: Any, points: np.ndarray) -> np.ndarray:
    """How often a path's outlines go around each of the points [n, 2]."""
    found = np.zeros(len(points), dtype=int)
    x, y = points.T
    for loop in path.to_polygons(closed_only=False):
        for (ax, ay), (bx, by) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            crossed = (np.minimum(ay, by) < y) & (y < np.maximum(ay, by)) & (ax < x)
            found += crossed * (1 if by < ay else -1)
            assert ax == bx or ay == by  # nothing is slanted
    return found


def patches(axes: Any) -> dict[str, list[Any]]:
    """The patches of a picture by what they show."""
    found: dict[str, list[Any]] = {}
    for patch in axes.patches:
        found.setdefault(str(patch.get_label()).removeprefix("_"), []).append(patch)
    return found


def signs_at(axes: Any, points: Sequence[tuple[float, float]]) -> list[str]:
    """The sign at every point (x, y); empty where no cell is. No point has two."""
    found = [""] * len(points)
    for sign, drawn in patches(axes).items():
        if len(sign) > 1 and sign != "window beyond the axis":
            continue
        for patch in drawn:
            _mark(found, sign, patch.get_path(), np.array(points, dtype=float))
    for stamp in axes.collections:  # one shape at many places
        (path,) = stamp.get_paths()
        for place in stamp.get_offsets():
            _mark(found, stamp.get_label().removeprefix("_"), path, np.array(points) - place)
    return found


def _mark(found: list[str], sign: str, path: Any, points: np.ndarray) -> None:
    for number in np.flatnonzero(winding(path, points)):
        assert not found[number], f"{found[number]} and {sign} at {points[number]}"
        found[number] = sign


def grid(axes: Any, rows: Iterable[int], columns: Iterable[int]) -> np.ndarray:
    """The signs of a picture of whole axes, whose indices are its coordinates."""
    down, across = list(rows), list(columns)
    signs = signs_at(axes, [(x, y) for y in down for x in across])
    return np.array(signs, dtype=object).reshape(len(down), len(across))


def attended(signs: np.ndarray) -> np.ndarray:
    """Whether each sign is one of attended keys."""
    return np.array([sign != "" and sign in ATTENDED for sign in signs.ravel()]).reshape(
        signs.shape
    )


def ticks(axis: Any) -> list[tuple[int, float]]:
    """The labels of an axis of the picture, and where they are."""
    places = axis.get_ticklocs().tolist()
    return [
        (int(label.get_text()), at) for label, at in zip(axis.get_ticklabels(), places, strict=True)
    ]


def dots(axes: Any) -> dict[tuple[float, float], bool]:
    """The own positions of a picture (x, y), and whether each is filled."""
    return {
        (x, y): line.get_markerfacecolor() != "none"
        for line in axes.lines
        for x, y in zip(*line.get_data(), strict=True)
    }


def legend(axes: Any) -> list[str]:
    """The words of the legend."""
    drawn = axes.get_legend()
    return [] if drawn is None else [text.get_text() for text in drawn.get_texts()]

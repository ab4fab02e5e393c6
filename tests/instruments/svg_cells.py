"""Reads the cells of a mask's picture back out of its SVG: which are attended, which are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

_SVG = "{http://www.w3.org/2000/svg}"
# Groups of cells have the signs of text pictures as classes.
ATTENDED = {"■", "▣", "▤"}
NOT_ATTENDED = {"⬚", "·"}

Loop = NDArray[np.float64]  # corners [n, 2]
Span = tuple[float, float]


def panels(svg: str, shape: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """The panels of a picture in reading order, each with so many rows and columns of cells.

    A cell is what is drawn at its middle. Cells that no region has, or two, are refused.
    """
    attended, seen = _regions(svg, ATTENDED)
    rest, unseen = _regions(svg, NOT_ATTENDED)
    assert not seen & unseen, f"attended and not attended look alike: {seen}, {unseen}"
    every = [loop for path in attended + rest for loop in path]
    found: list[NDArray[np.bool_]] = []
    for top, bottom in _together([(loop[:, 1].min(), loop[:, 1].max()) for loop in every]):
        line = [loop for loop in every if top <= loop[0, 1] <= bottom]
        for left, right in _together([(loop[:, 0].min(), loop[:, 0].max()) for loop in line]):
            y = top + (np.arange(shape[0])[:, None] + 0.5) * (bottom - top) / shape[0]
            x = left + (np.arange(shape[1])[None] + 0.5) * (right - left) / shape[1]
            inside, outside = _covered(attended, x, y), _covered(rest, x, y)
            assert (inside ^ outside).all(), "a cell is drawn twice or not at all"
            found.append(inside)
    return found


def names(svg: str) -> list[str]:
    """The texts of a picture, which matplotlib leaves as comments beside their glyphs."""
    return re.findall(r"<!-- (.*?) -->", svg)


def _regions(svg: str, signs: set[str]) -> tuple[list[list[Loop]], set[str]]:
    """The paths of cells with some signs, and how they are filled."""
    paths: list[list[Loop]] = []
    looks: set[str] = set()
    for group in ElementTree.fromstring(svg).iter(f"{_SVG}g"):
        if group.get("class") in signs:
            (path,) = group.findall(f"{_SVG}path")
            paths.append(_loops(str(path.get("d"))))
            looks.add(str(path.get("style")))
    return paths, looks


def _loops(path: str) -> list[Loop]:
    """The closed loops of a path of straight lines."""
    loops: list[list[Span]] = []
    for command, numbers in re.findall(r"([MLHVz])([^MLHVz]*)", path):
        values = [float(number) for number in numbers.split()]
        if command == "M":
            loops.append([])
        if command in "ML":
            loops[-1].append((values[0], values[1]))
        elif command == "H":
            loops[-1].append((values[0], loops[-1][-1][1]))
        elif command == "V":
            loops[-1].append((loops[-1][-1][0], values[0]))
    return [np.array(loop) for loop in loops]


def _together(spans: Sequence[Span]) -> list[Span]:
    """The unions of spans that touch, in order."""
    found: list[Span] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1] + 0.05:  # coordinates have two digits
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def _covered(paths: Sequence[Sequence[Loop]], x: Loop, y: Loop) -> NDArray[np.bool_]:
    """Whether points are inside of a path: its loops go around them, as SVG fills by default."""
    found = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for path in paths:
        around = np.zeros(found.shape, dtype=np.int64)
        for loop in path:
            for (x0, y0), (_, y1) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
                beside = (y > min(y0, y1)) & (y < max(y0, y1)) & (x > x0)
                around += np.where(beside, np.sign(y1 - y0).astype(np.int64), 0)
        found |= around != 0
    return found

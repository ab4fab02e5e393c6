"""Finds texts of a figure that its edge cuts or that lie on each other, by matplotlib."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.text import Text

_CUT, _SIDE, _ABOVE = 0.5, 0.7, 1.2  # points; boxes of texts have some room above small letters


def faults(figure: Any) -> list[str]:
    """What is wrong with the texts of a figure."""
    figure.draw_without_rendering()
    point = figure.dpi / 72
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent().extents / point) for text in texts]
    width, height = figure.bbox.size / point
    found = [
        f"cut: {text}"
        for text, (left, foot, right, top) in boxes
        if min(left, foot, width - right, height - top) < -_CUT
    ]
    for (text, one), (other, two) in combinations(boxes, 2):
        across, along = (min(one[n + 2], two[n + 2]) - max(one[n], two[n]) for n in (0, 1))
        if across > _SIDE and along > _ABOVE:
            found.append(f"{text} on {other}")
    return found

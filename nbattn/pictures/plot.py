"""Draws masks with matplotlib: one panel each, of the size of a column of a paper."""

from __future__ import annotations

import math
from typing import Any

from nbattn import geometry
from nbattn.errors import InputError, counted, similar
from nbattn.mask import Mask, Space
from nbattn.pictures import lanes, matrix, neighborhood, queries, style, weighing

KINDS = ("matrix", "neighborhood", "axes")


def picture(
    mask: Mask,
    query_space: Space,
    key_space: Space | None = None,
    *,
    query: Any = None,
    kind: str = "matrix",
    weights: Any = None,
    ax: Any = None,
    figure: style.Maker = style.pyplot_figure,
) -> Any:
    """Draws a mask as `Mask.plot` says.

    Args:
        figure: makes a figure of a width and a height in points.
    """
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise InputError(
            f"kind={kind!r} is not one of {known}.",
            f"kind={similar(str(kind), KINDS) or KINDS[0]!r}",
        )
    axes = geometry.bind(mask, query_space, key_space)
    place = queries.given(query, axes)
    given = weighing.checked(weights, axes, place if query is not None else None, kind)
    lengths = [math.prod(getattr(axis, side) for axis in axes) for side in ("queries", "keys")]
    if place is None or not all(lengths):
        words = counted(lengths[0], "query", "queries"), counted(lengths[1], "key")
        return style.say(ax, f"no pairs: {words[0]}, {words[1]}", figure)
    if kind == "neighborhood":
        return neighborhood.draw(axes, place, into=ax, weights=given, figure=figure)
    if kind == "axes":
        shown = place if query is not None else lanes.telling(axes)
        return lanes.draw(axes, shown, into=ax, figure=figure)
    return matrix.draw(
        axes, place, is_marked=query is not None, into=ax, weights=given, figure=figure
    )

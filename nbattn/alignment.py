"""Finds masks without an alignment for different numbers of queries and keys, and makes their
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nbattn.axis import ALIGNMENTS, Align, Axis, written
from nbattn.errors import MaskError, counted
from nbattn.mask import Mask

_MEANING: dict[Align, str] = {
    "top-left": "query 0 on key 0, as SDPA's is_causal does",
    "bottom-right": "the last query on the last key, as Flash and KV caches do "
    '(one query against a cache: align="bottom-right")',
}


def is_missing(axis: Axis, queries: int, keys: int) -> bool:
    """Whether the keys of these queries depend on an alignment that the axis does not have."""
    return queries != keys and axis.align is None and not axis.is_full


def missing(mask: Mask, number: int, queries: Sequence[int], keys: Sequence[int]) -> MaskError:
    """Makes the error of axis `number`: its lengths, and the mask with either alignment."""
    few, many = sorted((queries[number], keys[number]))
    sizes = f"{counted(queries[number], 'query', 'queries')}, {counted(keys[number], 'key')}"
    problem = (
        f"axis {number} ({sizes}): the lengths differ, and align=None does not "
        "align queries with keys."
    )
    if few > 1 and many % few == 0:
        problem += " Grids of different resolution are not supported."
    # fewer queries than keys mostly means a cache: bottom-right comes first
    order = ALIGNMENTS if few == keys[number] else reversed(ALIGNMENTS)
    choices = [
        f"{written(_aligned(mask, align, queries, keys))} puts {_MEANING[align]}" for align in order
    ]
    return MaskError(problem, f"{'; or '.join(choices)}.", repr(mask))


def _circular(axis: Axis) -> bool:
    """Whether an axis is circular: it has no alignment, and different lengths are an error."""
    return axis.border == "wrap"


def _aligned(
    mask: Mask, align: Align, queries: Sequence[int], keys: Sequence[int]
) -> tuple[Axis, ...]:
    """Returns the axes, with this alignment where it is missing."""
    return tuple(
        replace(axis, align=align) if is_missing(axis, *lengths) and not _circular(axis) else axis
        for axis, *lengths in zip(mask.axes, queries, keys, strict=True)
    )

"""What a mask needs to say where queries and keys differ in number, and the error where it does
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nbattn.axis import ALIGNMENTS, Align, Axis
from nbattn.errors import MaskError, counted
from nbattn.mask import Mask, written

_MEANING: dict[Align, str] = {
    "top-left": "query 0 on key 0, as SDPA's is_causal does",
    "bottom-right": "the last query on the last key, as Flash and KV caches do "
    '(one query against a cache: align="bottom-right")',
}


def is_missing(axis: Axis, queries: int, keys: int) -> bool:
    """Whether what these queries read depends on an alignment that the axis does not say."""
    return queries != keys and axis.align is None and not axis.is_full


def missing(mask: Mask, number: int, queries: Sequence[int], keys: Sequence[int]) -> MaskError:
    """The error of axis `number`: its lengths, what else they may mean, and the mask with either
    alignment.
    """
    few, many = sorted((queries[number], keys[number]))
    sizes = f"{counted(queries[number], 'query', 'queries')}, {counted(keys[number], 'key')}"
    problem = (
        f"axis {number} ({sizes}): the lengths differ, and align=None does not say "
        "which query stands on which key."
    )
    if few > 1 and many % few == 0:
        problem += " Grids of different resolution are not supported."
    # whoever has fewer queries than keys mostly has a cache
    order = ALIGNMENTS if few == keys[number] else reversed(ALIGNMENTS)
    choices = [
        f"{written(_aligned(mask, align, queries, keys))} puts {_MEANING[align]}" for align in order
    ]
    return MaskError(problem, f"{'; or '.join(choices)}.", repr(mask))


def _circular(axis: Axis) -> bool:
    """Whether an axis has no alignment to say: its own rule refuses different lengths."""
    return axis.border == "wrap"


def _aligned(
    mask: Mask, align: Align, queries: Sequence[int], keys: Sequence[int]
) -> tuple[Axis, ...]:
    """The axes with this alignment wherever one is missing."""
    return tuple(
        replace(axis, align=align) if is_missing(axis, *lengths) and not _circular(axis) else axis
        for axis, *lengths in zip(mask.axes, queries, keys, strict=True)
    )

"""One varlen call for packed grids of one axis: each grid is a sequence, and all have one window.

Flash counts a window from a sequence's last query and key, so a mask is one window for all grids if
it is aligned bottom-right, or if each grid has as many queries as keys.
"""

from __future__ import annotations

import numpy as np

from nbattn import geometry
from nbattn.axis import Axis
from nbattn.backends.flash import slopes
from nbattn.backends.flash.meaning import DIALECTS, FlashArguments, WindowArguments
from nbattn.geometry import BoundAxis
from nbattn.grids import PackedGrids
from nbattn.program.band_pieces import band_pieces
from nbattn.program.bands import first_difference
from nbattn.program.limits import GRID, Reason, over_grid
from nbattn.program.packed import buckets
from nbattn.program.program import Call, whole
from nbattn.program.request import Request

_TRIED = 64  # sizes whose window is compared while planning; `verify()` compares all


def call(request: Request, provider: str, *, varlen: bool) -> Call | Reason:
    """The varlen call of packed grids, or why there is none."""
    packed = request.grids
    assert packed is not None
    if not varlen:
        return Reason("pack", "is not run by a varlen entry")
    if reason := _against(request, packed):
        return reason
    axis = request.mask.axes[0]
    most = [int(side.max(initial=0)) for side in (packed.query.array, packed.key.array)]
    unlimited = DIALECTS[provider].unlimited
    left = unlimited if axis.left is None else axis.left - axis.offset
    right = unlimited if axis.right is None else axis.right + axis.offset
    longest = max(*most, *(1 + side for side in (left, right) if side is not None))
    window = WindowArguments(left, right, max_queries=max(most[0], 2), max_keys=longest)
    arguments = FlashArguments(provider, "varlen", window, grids=packed)
    if request.alibi_slopes:
        arguments = slopes.added_to(arguments, longest)
    wrong = _wrong(arguments, axis, packed)
    return wrong or Call(whole(request.query_space), whole(request.key_space), arguments)


def _against(request: Request, packed: PackedGrids) -> Reason | None:
    """Why no varlen call takes the grids."""
    if request.mask.rank > 1:
        return Reason("mask", f"Flash has one-dimensional windows; grids have {packed.rank} axes")
    for name in ("key_range", "extra_keys"):
        if getattr(request, name):
            return Reason(name, f"a varlen call has no {name} for each grid")
    axis = request.mask.axes[0]
    is_band = axis.border == "clip" and axis.dilation == axis.stride == 1 and not axis.prefix
    if not is_band:
        return Reason("mask", "axis 0: its windows are not one band for grids of all lengths")
    sizes = packed.sizes
    if axis.align != "bottom-right" and not axis.is_full and (sizes.query != sizes.key).any():
        return Reason(
            "window", "the corner from which Flash counts windows differs from grid to grid"
        )
    if request.alibi_slopes and (wrong := slopes.misplaced_in_grids(axis, packed)):
        return wrong
    if len(packed) > GRID:
        return Reason("grid", f"{len(packed)} sequences are over the grid of {GRID}")
    return over_grid(1, request.heads)


def _wrong(arguments: FlashArguments, axis: Axis, packed: PackedGrids) -> Reason | None:
    """Why the kernel computes another band on some size; all sizes have the same window, so that
    of many sizes some are tried, the shortest and the longest among them.
    """
    both = np.hstack([packed.sizes.query, packed.sizes.key])
    both = both[(both > 0).all(axis=1)]
    order = np.lexsort(both.T)
    some = order[np.linspace(0, len(order) - 1, min(len(order), _TRIED)).astype(np.int64)]
    for queries, keys in both[some].tolist():
        pieces = band_pieces(BoundAxis(axis, queries, keys))
        if isinstance(pieces, str) or len(pieces) > 1:
            return Reason("mask", "axis 0: its windows are not one band for grids of all lengths")
        computed = arguments.band(queries, keys)
        if first_difference(computed, pieces[0].band, queries, keys) is not None:
            text = f"{arguments.dialect.name} with {arguments.describe()} has another window"
            return Reason("window", f"{text} on {queries} queries and {keys} keys")
    return None


def useful_pairs(request: Request) -> int:
    """The pairs of all grids, by the sizes that stand for many."""
    assert request.grids is not None
    pairs = (
        b.grids * b.scale * geometry.pairs(request.of_size(b.number).axes())
        for b in buckets(request.grids)
    )
    return round(sum(pairs))

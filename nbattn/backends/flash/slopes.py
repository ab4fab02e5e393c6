"""ALiBi's slopes in Flash calls: where the kernel's distances are the mask's, which window keeps
its logsumexp, and whose slopes each sequence gets.

Flash 2 counts distances as it counts windows, with a sequence's last query at its last key, and
subtracts slope x |i + keys - queries - j| from a score (mask.h). Only the kernel that it takes for
`window_size=(-1, 0)` adds slope x j instead, which is the same softmax with another logsumexp. A
left side of all keys but one excludes nothing, and takes the kernel that subtracts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nbattn.axis import Axis
from nbattn.backends.flash.meaning import FlashArguments
from nbattn.geometry import BoundAxis
from nbattn.grids import PackedGrids
from nbattn.program.dense_pieces import Piece
from nbattn.program.limits import Reason

_ELSEWHERE = "Flash counts distances with the last query at the last key"


def added_to(call: FlashArguments, keys: int) -> FlashArguments:
    """The call with slopes, by a kernel that does not shift the logsumexp.

    Args:
        keys: the number of keys of a call without `max_seqlen_k`.

    >>> from nbattn.backends.flash.meaning import flash_arguments
    >>> from nbattn.program.bands import CAUSAL
    >>> added_to(flash_arguments("fa2", CAUSAL, 6, 6), 6).describe()
    'dense window_size=(5, 0), slopes'
    """
    window = call.window
    shifts = (window.left, window.right) == (call.dialect.unlimited, 0)
    longest = keys if window.max_keys is None else window.max_keys
    left = longest - 1 if shifts else window.left
    return replace(call, window=replace(window, left=left, slopes=True))


def misplaced(axis: BoundAxis, pieces: list[Piece]) -> Reason | None:
    """Why a kernel's distances are not those of the mask in one of the pieces of an axis. Groups of
    a piece move its queries and keys alike, so the first one stands for all.
    """
    for piece in pieces:
        query, key = piece.query, piece.key
        if not all(view.step == 1 or view.length == 1 for view in (query, key)):
            return Reason("alibi_slopes", "its calls step over positions: their distances differ")
        first = query.start + axis.offset - key.start
        if first != key.length - query.length:
            text = f"{_ELSEWHERE}; in the call for queries from {query.start} on that is"
            last = query.start + axis.offset + query.length - 1
            end = key.start + key.length - 1
            return Reason("alibi_slopes", f"{text} key {end}, and the mask's position is {last}")
    return None


def misplaced_in_grids(axis: Axis, packed: PackedGrids) -> Reason | None:
    """Why a kernel's distances are not those of the mask in some of the packed grids."""
    sizes = packed.sizes
    corner = (sizes.key - sizes.query)[:, 0]
    first = axis.offset + (corner if axis.align == "bottom-right" else 0)
    if (np.broadcast_to(first, corner.shape) == corner).all():
        return None
    return Reason("alibi_slopes", f"{_ELSEWHERE}, and the mask does not in all grids")


def of_sequences(call: FlashArguments, slopes: Tensor) -> Tensor:
    """The slopes as kernels take them: float32 `[H]`, or `[sequences, H]` for those of samples.

    >>> from nbattn.backends.flash.meaning import Sequences, WindowArguments
    >>> window = WindowArguments(-1, -1, max_queries=4, max_keys=4, slopes=True)
    >>> two = FlashArguments("fa2", "varlen", window, runs=(Sequences(3, 3), Sequences(1, 1)))
    >>> of_sequences(two, torch.tensor([[1.0], [2.0]]))[:, 0].tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    exact = slopes.to(torch.float32).contiguous()
    times = sum(run.times for run in call.runs)
    return exact if exact.dim() == 1 or not times else exact.repeat_interleave(times, dim=0)

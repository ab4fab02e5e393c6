"""Turns transformers' mask functions into windows: the keys that a query attends to.

A model's mask is a Python function of four indices, made of a few public parts. `read` recognises a
part by its code object, and takes its numbers from its closure by name; `check` compares both with
real indices, so that it detects releases with changed parts. Unknown parts raise an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn.errors import InputError
from nbattn.packages import install_line

_OTHERWISE = 'model.set_attn_implementation("sdpa"), which takes any mask.'
_FAR = 2**31


class Chunks(NamedTuple):
    """Runs of `size` positions; a sample's first run begins after its left padding."""

    size: int
    padding: tuple[int, ...]


class Window(NamedTuple):
    """Keys that a query attends to, relative to its own position; None is unlimited.

    With -1 on a side, the window is without the own position and empty. With chunks, a query
    attends only to keys in its own chunk.
    """

    left: int | None = None
    right: int | None = None
    chunks: Chunks | None = None

    def __repr__(self) -> str:
        chunks = "" if self.chunks is None else f", chunks={self.chunks}"
        return f"Window(left={self.left}, right={self.right}{chunks})"

    def contains(self, other: Window) -> bool:
        """Whether this window has every key of the other window."""
        if self.chunks is not None and self.chunks != other.chunks:
            return False
        pairs = zip(self[:2], other[:2], strict=True)
        return all((_FAR if a is None else a) >= (_FAR if b is None else b) for a, b in pairs)


EMPTY = Window(-1, -1)
Values = dict[str, Any]
Reader = Callable[[Values, int], Window]


def read(function: object, end: int) -> Window:
    """Returns the window of a mask function.

    Args:
        function: of (batch, head, query, key) indices, made by transformers.
        end: one more than the last key, on the scale of those indices.

    Raises:
        InputError: the function is not a window, or not made by transformers.
    """
    code = getattr(function, "__code__", None)
    reader = _readers().get(code) if isinstance(code, CodeType) else None
    if reader is None or code is None:
        name = getattr(function, "__qualname__", repr(function))
        raise InputError(
            f"the model has a mask function of its own, {name}, which nbattn does not know.",
            _OTHERWISE,
        )
    cells = getattr(function, "__closure__", None) or ()
    names = dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    return reader(names, end)


@cache
def _readers() -> dict[CodeType, Reader]:
    """The code of every part of transformers' masks, and the function that returns its window."""
    from transformers import masking_utils as parts

    rule, ids = parts.causal_mask_function, torch.zeros(1, 1, dtype=torch.int64)
    readers: dict[Any, Reader] = {
        parts.causal_mask_function: lambda values, end: Window(right=0),
        parts.bidirectional_mask_function: lambda values, end: Window(),
        parts.sliding_window_overlay(1): lambda values, end: Window(
            left=values["sliding_window"] - 1
        ),
        parts.sliding_window_bidirectional_overlay(1): lambda values, end: Window(
            values["sliding_window"], values["sliding_window"]
        ),
        parts.and_masks(rule, rule): _both,
        parts.or_masks(rule, rule): _either,
        parts.chunked_overlay(1, ids[0]): _chunks,
        parts.blockwise_overlay(ids): _blocks,
        parts.packed_sequence_mask_function(ids): _one_sequence,
        parts.remap_positions_for_packed_sequence(rule, ids): _positions,
    }
    return {function.__code__: reader for function, reader in readers.items()}


def _both(values: Values, end: int) -> Window:
    """The intersection of several windows."""
    windows = [read(function, end) for function in values["mask_functions"]]
    sides = ([window.left for window in windows], [window.right for window in windows])
    left, right = (min((s for s in side if s is not None), default=None) for side in sides)
    chunks = {window.chunks for window in windows if window.chunks is not None}
    if len(chunks) > 1 or (chunks and left is not None):
        raise InputError("the model has chunks together with another window.", _OTHERWISE)
    return Window(left, right, *chunks)


def _either(values: Values, end: int) -> Window:
    """The union of several windows, one of which must contain the others."""
    windows = [read(function, end) for function in values["mask_functions"]]
    for window in windows:
        if all(window.contains(smaller) for smaller in windows):
            return window
    shown = ", ".join(map(str, windows))
    raise InputError(
        f"the model joins windows, none of which contains the others: {shown}.", _OTHERWISE
    )


def _chunks(values: Values, end: int) -> Window:
    """The chunks; no limit if one of them has every key."""
    size, padding = values["chunk_size"], values["left_padding"]
    longest = end - int(padding.min()) if padding.numel() else 0
    return Window(chunks=Chunks(size, tuple(padding.tolist())) if longest > size else None)


def _blocks(values: Values, end: int) -> Window:
    """The empty window if no token is in a block."""
    if bool((values["block_sequence_ids"] >= 0).any()):
        raise InputError(
            "some tokens attend to their whole block (blockwise attention): not a window.",
            _OTHERWISE,
        )
    return EMPTY


def _one_sequence(values: Values, end: int) -> Window:
    """No limit if every row is one sequence."""
    numbers = values["packed_sequence_mask"]
    if not bool((numbers == numbers[:, :1]).all()):
        raise _packed()
    return Window()


def _positions(values: Values, end: int) -> Window:
    """The inner window: it is relative, so positions that go up by one do not change it."""
    positions = values["position_ids"]
    if not bool((positions.diff(dim=-1) == 1).all()):
        raise _packed()
    window = read(values["mask_function"], int(positions.max()) + 1 if positions.numel() else end)
    if window.chunks is None:
        return window
    first = positions[:, 0].tolist()
    moved = (pad - start for pad, start in zip(window.chunks.padding, first, strict=False))
    return window._replace(chunks=window.chunks._replace(padding=tuple(moved)))


def _packed() -> InputError:
    return InputError(
        "position_ids do not go up by one: several sequences in a row, which is not a window.",
        f"{_OTHERWISE} Or one sequence per row, with attention_mask= for its padding (all ones, if "
        "there is none and the positions are not packed).",
    )


def check() -> None:
    """Checks the windows of transformers' parts on all pairs of a few positions.

    Raises:
        InputError: a part differs from its window: this release of transformers is not known.
    """
    from transformers import masking_utils as parts

    try:
        _readers()
    except AttributeError as error:
        raise _unknown_release(str(error)) from None
    count = 7
    at = torch.arange(count)
    grid = (at.new_zeros(()), at.new_zeros(()), at[:, None], at[None, :])
    padding = at.new_zeros(1)
    functions: list[Any] = [
        parts.causal_mask_function,
        parts.bidirectional_mask_function,
        parts.sliding_window_causal_mask_function(3),
        parts.sliding_window_bidirectional_mask_function(2),
        parts.chunked_causal_mask_function(count, padding),
        parts.chunked_causal_mask_function(3, padding + 1),
        parts.or_masks(parts.causal_mask_function, parts.bidirectional_mask_function),
        parts.or_masks(
            parts.causal_mask_function, parts.blockwise_overlay(at.new_full((1, count), -1))
        ),
    ]
    for function in functions:
        window = read(function, count)
        if not torch.equal(function(*grid).expand(count, count), _dense(window, at)):
            raise _unknown_release(f"{function.__qualname__} is not {window}")


def _unknown_release(reason: str) -> InputError:
    import transformers

    return InputError(
        f"transformers {transformers.__version__} has masks that nbattn does not know: {reason}.",
        install_line("transformers"),
    )


def _dense(window: Window, at: Tensor) -> Tensor:
    """Returns a window as a matrix, by its definition."""
    distance = at[None, :] - at[:, None]
    left, right = (_FAR if side is None else side for side in window[:2])
    near = (distance >= -left) & (distance <= right)
    if window.chunks is None:
        return near
    chunk = torch.div(at - window.chunks.padding[0], window.chunks.size, rounding_mode="floor")
    return near & (chunk[None, :] == chunk[:, None])

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

_OTHERWISE = 'attn_implementation="sdpa", which takes any mask.'
_FAR = 2**31


class Window(NamedTuple):
    """Keys that a query attends to, relative to its own position; None is unlimited.

    With -1 on a side, the window is without the own position and empty.
    """

    left: int | None = None
    right: int | None = None

    def contains(self, other: Window) -> bool:
        """Whether this window has every key of the other window."""
        pairs = zip(self, other, strict=True)
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
    sides = zip(*windows, strict=True)
    left, right = (min((s for s in side if s is not None), default=None) for side in sides)
    return Window(left, right)


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
    """No limit if one chunk, which begins after a sample's left padding, has every key."""
    size, padding = values["chunk_size"], values["left_padding"]
    longest = end - int(padding.min()) if padding.numel() else 0
    if longest > size:
        raise InputError(
            f"chunked attention: {longest} keys do not fit into one chunk of {size}. "
            "A chunk ends at a fixed border, which is not a window.",
            f"inputs of up to {size} tokens, or {_OTHERWISE}",
        )
    return Window()


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
    return read(values["mask_function"], int(positions.max()) + 1 if positions.numel() else end)


def _packed() -> InputError:
    return InputError(
        "position_ids do not go up by one: several sequences in a row, which is not a window.",
        "one sequence per row, with attention_mask= for its padding (all ones, if there is "
        f"none and the positions are not packed); or {_OTHERWISE}",
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
    left, right = (_FAR if side is None else side for side in window)
    return (distance >= -left) & (distance <= right)

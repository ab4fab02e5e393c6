"""Reads transformers' mask functions: the keys that one lets a query read, as a single window.

A model hands over its mask as a Python function of four indices, built from a handful of public
parts. Parts are known by their code object, and their numbers by the names of what they close over;
`check` tries both on real indices, so that a release that changed a part is noticed. What is not
known is refused: it could mean anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn.errors import InputError

_OTHERWISE = 'attn_implementation="sdpa", which takes any mask.'
_FAR = 2**31


class Window(NamedTuple):
    """Keys that a query may read, relative to its own position; None is unlimited.

    -1 on either side: not even its own; such a window is empty.
    """

    left: int | None = None
    right: int | None = None

    def contains(self, other: Window) -> bool:
        """Whether every key of the other window is in this one."""
        pairs = zip(self, other, strict=True)
        return all((_FAR if a is None else a) >= (_FAR if b is None else b) for a, b in pairs)


EMPTY = Window(-1, -1)
Values = dict[str, Any]
Reader = Callable[[Values, int], Window]


def read(function: object, end: int) -> Window:
    """The window that a mask function stands for.

    Args:
        function: of (batch, head, query, key) indices, made by transformers.
        end: one more than the last key, on the scale of those indices.

    Raises:
        InputError: the function has no window, or is not one that transformers makes.
    """
    code = getattr(function, "__code__", None)
    reader = _readers().get(code) if isinstance(code, CodeType) else None
    if reader is None or code is None:
        name = getattr(function, "__qualname__", repr(function))
        raise InputError(
            f"the model masks with a function of its own, {name}, which nbattn cannot read.",
            _OTHERWISE,
        )
    cells = getattr(function, "__closure__", None) or ()
    names = dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    return reader(names, end)


@cache
def _readers() -> dict[CodeType, Reader]:
    """The code of every part that transformers builds masks from, and what it means."""
    from transformers import masking_utils as parts

    some, ids = parts.causal_mask_function, torch.zeros(1, 1, dtype=torch.int64)
    made: dict[Any, Reader] = {
        parts.causal_mask_function: lambda values, end: Window(right=0),
        parts.bidirectional_mask_function: lambda values, end: Window(),
        parts.sliding_window_overlay(1): lambda values, end: Window(
            left=values["sliding_window"] - 1
        ),
        parts.sliding_window_bidirectional_overlay(1): lambda values, end: Window(
            values["sliding_window"], values["sliding_window"]
        ),
        parts.and_masks(some, some): _both,
        parts.or_masks(some, some): _either,
        parts.chunked_overlay(1, ids[0]): _chunks,
        parts.blockwise_overlay(ids): _blocks,
        parts.packed_sequence_mask_function(ids): _one_sequence,
        parts.remap_positions_for_packed_sequence(some, ids): _positions,
    }
    return {function.__code__: reader for function, reader in made.items()}


def _both(values: Values, end: int) -> Window:
    """The keys in all of several windows."""
    windows = [read(function, end) for function in values["mask_functions"]]
    sides = zip(*windows, strict=True)
    left, right = (min((s for s in side if s is not None), default=None) for side in sides)
    return Window(left, right)


def _either(values: Values, end: int) -> Window:
    """The keys in any of several windows: one of them has to contain the others."""
    windows = [read(function, end) for function in values["mask_functions"]]
    for window in windows:
        if all(window.contains(other) for other in windows):
            return window
    shown = ", ".join(map(str, windows))
    raise InputError(
        f"the model joins windows of which none contains the others: {shown}.", _OTHERWISE
    )


def _chunks(values: Values, end: int) -> Window:
    """No limit while one chunk, which begins where a sample's left padding ends, has every key."""
    size, padding = values["chunk_size"], values["left_padding"]
    longest = end - int(padding.min()) if padding.numel() else 0
    if longest > size:
        raise InputError(
            f"chunked attention: {longest} keys do not fit into one chunk of {size}. "
            "Chunks end at their own borders, which no window does.",
            f"inputs of up to {size} tokens, or {_OTHERWISE}",
        )
    return Window()


def _blocks(values: Values, end: int) -> Window:
    """Nothing while no token is in a block."""
    if bool((values["block_sequence_ids"] >= 0).any()):
        raise InputError(
            "some tokens read their whole block (blockwise attention): it is no window.", _OTHERWISE
        )
    return EMPTY


def _one_sequence(values: Values, end: int) -> Window:
    """No limit while a row is one sequence; compilers ask before they can know."""
    numbers = values["packed_sequence_mask"]
    if not bool((numbers == numbers[:, :1]).all()):
        raise _packed()
    return Window()


def _positions(values: Values, end: int) -> Window:
    """A window counts steps, so positions that go up by one only move it along."""
    positions = values["position_ids"]
    if not bool((positions.diff(dim=-1) == 1).all()):
        raise _packed()
    return read(values["mask_function"], int(positions.max()) + 1 if positions.numel() else end)


def _packed() -> InputError:
    return InputError(
        "position_ids do not go up by one: several sequences in a row, which is no window.",
        "one sequence a row, with attention_mask= for its padding (of ones, where there is "
        f"none and the positions are no packing); or {_OTHERWISE}",
    )


def check() -> None:
    """That transformers' parts mean what is read from them, on all pairs of a few positions.

    Raises:
        InputError: they do not: this release of transformers is not known.
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


def _unknown_release(what: str) -> InputError:
    import transformers

    return InputError(
        f"transformers {transformers.__version__} has masks that nbattn does not know: {what}.",
        'pip install "nbattn[transformers]"',
    )


def _dense(window: Window, at: Tensor) -> Tensor:
    """A window as a matrix, written out."""
    distance = at[None, :] - at[:, None]
    left, right = (_FAR if side is None else side for side in window)
    return (distance >= -left) & (distance <= right)

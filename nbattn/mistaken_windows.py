"""Answers to arguments of windows and causality, which are part of the mask here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from nbattn.axis import MAX_RANK, Axis, meant_truth, written
from nbattn.errors import MaskError
from nbattn.fixes import masks as repairs
from nbattn.mask import Mask

CALL = "nbattn.attention(query, key, value, "


class Call(NamedTuple):
    """An unknown argument, and the call that has it.

    Args:
        word: the name of the argument.
        value: its value.
        named: all unknown arguments.
        mask: the mask of the call, if any.
        rank: the number of axes of the call's space.
        is_packed: whether the query is `[T, H, D]`, the tokens of packed grids.
    """

    word: str
    value: Any
    named: Mapping[str, Any]
    mask: object
    rank: int
    is_packed: bool


Answer = Callable[[Call], tuple[str, str]]  # the reason, and the code
_OF_THE_MASK = "windows are part of the mask"


def _window(call: Call) -> tuple[str, str]:
    """Flash's pair; or a size, whose sides are not known."""
    value: Any = call.value
    rank = call.rank
    if value is None or (type(value) is int and value < 1):
        return f"{_OF_THE_MASK}.", f"mask={repairs.flash((-1, -1), rank)}."
    if type(value) is int:
        around = repairs.windows((value,), rank).removesuffix(", with NATTEN's meaning.")
        last = written(Mask.from_transformers(value).axes * rank)
        return (
            f"{_OF_THE_MASK}.",
            f"{around}, for {value} keys around; or mask={last}, for the last.",
        )
    if not isinstance(value, (tuple, list)):
        return f"{_OF_THE_MASK}.", ""
    if rank > 1 or len(value) != 2:
        return f"{_OF_THE_MASK}.", repairs.windows(value, rank)
    why = f"{_OF_THE_MASK}; here with the meaning of Flash."
    return why, f"mask={repairs.flash((value[0], value[1]), 1)}."


def _local(call: Call) -> tuple[str, str]:
    """A window of jax.nn.dot_product_attention, around the query's own position."""
    pair = call.value if isinstance(call.value, (tuple, list)) else (call.value, call.value)
    is_causal = meant_truth(call.named.get("is_causal", False))
    right = 0 if is_causal else pair[1]
    mask = written(Mask.sliding_window(pair[0], right, align="top-left").axes * call.rank)
    return f"{_OF_THE_MASK}; here with the meaning of JAX.", f"mask={mask}."


def _sliding(call: Call) -> tuple[str, str]:
    """A window of transformers: causal if nothing else is said, but around queries of images."""
    said = [call.named[name] for name in ("is_causal", "causal") if name in call.named]
    is_causal = meant_truth(said[0]) if said else call.rank == 1
    why = f"{_OF_THE_MASK}; here with the meaning of transformers{', causal' * is_causal}."
    if call.rank == 1:
        named = "" if is_causal else ", causal=False"
        return why, f"mask=Mask.from_transformers({call.value!r}{named})."
    axes = Mask.from_transformers(call.value, causal=is_causal).axes
    return why, f"mask={written(axes * call.rank)}."


def _kernel(call: Call) -> tuple[str, str]:
    why = f"{_OF_THE_MASK}; here with the meaning of NATTEN."
    if call.value is None:
        return why, "mask=Mask.full(rank=query.dim() - 3)."
    named = call.named
    more = {n: named[n] for n in ("dilation", "stride") if named.get(n)}
    for given in (named[n] for n in ("causal", "is_causal") if n in named):
        each = isinstance(given, (tuple, list))
        said: Any = tuple(map(meant_truth, given)) if each else meant_truth(given)
        if said is True or (each and any(said)):
            more["is_causal"] = said
    shown = "".join(f", {name}={value!r}" for name, value in more.items())
    return why, f"mask=Mask.neighborhood({repairs.sized(call.value, call.rank)!r}{shown})."


def _causal(call: Call) -> tuple[str, str]:
    why = "whether an axis is causal is part of the mask."
    given: Any = call.value
    said = [*map(meant_truth, given)] if isinstance(given, (tuple, list)) else [meant_truth(given)]
    if not any(said):
        return why, f"{CALL}mask)."
    if not isinstance(call.mask, Mask):  # Flash's word aligns bottom-right, torch's top-left
        align = "bottom-right" if call.word == "causal" else "top-left"
        if all(said) or len(said) != call.rank:
            return why, repairs.causal(call.rank, align)
        axes = [Axis(causal=True, align=align) if one else Axis() for one in said]
        return why, f"mask={written(axes)}."
    each = said if len(said) == call.mask.rank else said[:1] * call.mask.rank
    try:
        return why, f"mask={written(repairs.causal_axes(call.mask.axes, each))}."
    except MaskError:  # of a circle
        return why, ""


def _step(call: Call) -> tuple[str, str]:
    """A dilation or a stride, which is part of every axis of a mask."""
    why = f"the {call.word} of an axis is part of the mask."
    if not isinstance(call.mask, Mask):
        return why, ""
    values = call.value if isinstance(call.value, (tuple, list)) else [call.value] * MAX_RANK
    try:
        changed = [
            replace(axis, **{call.word: value})
            for axis, value in zip(call.mask.axes, values, strict=False)
        ]
    except MaskError:
        return why, ""
    return why, f"mask={written(changed)}."


ANSWERS: dict[str, Answer] = {
    **dict.fromkeys(("kernel_size", "kernel", "neighborhood_size"), _kernel),
    **dict.fromkeys(("window_size", "window", "windows"), _window),
    "local_window_size": _local,
    **dict.fromkeys(("sliding_window", "sliding_window_size"), _sliding),
    **dict.fromkeys(("is_causal", "causal", "causal_mask"), _causal),
    **dict.fromkeys(("dilation", "stride"), _step),
}


def together(call: Call) -> tuple[str, str] | None:
    """The mask of arguments that define one together, as libraries take them; or nothing."""
    named, windows = call.named, ("kernel_size", "local_window_size", "sliding_window")
    if call.word in ("causal", "is_causal", "dilation", "stride"):
        of_window = next((name for name in windows if named.get(name) is not None), None)
        if of_window:
            return ANSWERS[of_window](call._replace(word=of_window, value=named[of_window]))
    pair = named.get("window_size")
    is_causal = any(meant_truth(named.get(name, False)) for name in ("causal", "is_causal"))
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and is_causal:
        mask = repairs.flash((pair[0], pair[1]), call.rank, is_causal=True)
        return f"{_OF_THE_MASK}.", f"mask={mask}."
    return None

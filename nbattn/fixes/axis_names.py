"""Answers to arguments of `Axis` that have another name in other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nbattn.axis import BORDERS, Axis, likely
from nbattn.errors import MaskError, similar
from nbattn.fixes.signatures import legal_calls

_RENAMED = {
    "left": ("window_left", "left_window", "window_size_left", "before", "lookback", "past"),
    "right": ("window_right", "right_window", "window_size_right", "after", "lookahead", "future"),
    "dilation": ("dilated", "rate", "atrous", "dilation_rate"),
    "stride": ("step", "group"),
    "causal": ("is_causal", "autoregressive"),
    "align": ("alignment", "diagonal_alignment", "anchor"),
    "offset": ("q_offset", "position", "cache_position"),
    "border": ("boundary", "padding_mode", "edge", "mode", "border_mode", "pad_mode"),
    "prefix": ("sinks", "num_sink_tokens", "global_tokens", "n_prefix", "prefix_length"),
}
_BORDERS = {  # switches of other libraries
    **dict.fromkeys(("circular", "periodic", "cyclic", "wrap", "wrap_around"), "wrap"),
    **dict.fromkeys(("shift", "shifted"), "shift"),
    "clip": "clip",
}
# Constructors whose windows these words are.
_AROUND, _LAST = ("neighborhood",), ("from_transformers",)
_WINDOWS = {
    **dict.fromkeys(("kernel_size", "kernel", "size"), _AROUND),
    "sliding_window": _LAST,
    **dict.fromkeys(("window", "window_size"), (*_AROUND, *_LAST)),
}
_MEANINGS = ", around; or ", ", for the last"


def refusal(
    positional: Sequence[object], named: Mapping[str, Any], legal: Sequence[str]
) -> MaskError:
    """Makes the error of the first argument that is no field of an axis, or that needs its name;
    its fix is the whole call.

    >>> print(refusal((3, 3), {"circular": True}, ("left", "right", "border")))
    Axis() takes no argument 'circular'.
      fix:   Axis(3, 3, border='wrap').
    """
    if len(positional) > 2:
        calls = legal_calls("Axis", partial(Axis, **named), 2, positional, legal[2:])
        return MaskError(
            f"Axis() takes left and right by place, not {len(positional)} arguments; by name it "
            f"takes {', '.join(legal[2:])}.",
            f"{', or '.join(calls)}." if calls else "",
        )
    known = {word: _renamed(word, named[word], legal) for word in named if word not in legal}
    word = next((name for name, now in known.items() if now is None), next(iter(known)))
    problem, windows = f"Axis() takes no argument {word!r}", [w for w in known if w in _WINDOWS]
    if windows and known[windows[0]] == {}:
        rest = {n: v for n, v in named.items() if n in legal}
        for now in known.values():
            rest |= now or {}
        why = "a window is given by its neighbours on the left and right"
        return MaskError(f"{problem}: {why}.", _of_a_window(windows[0], named, rest))
    if known[word] is None:
        return MaskError(f"{problem}; it takes {', '.join(legal)}.")
    kept = {name: given for name, given in named.items() if name in legal}
    for now in known.values():
        kept |= now or {}
    shown = [*map(repr, positional), *(f"{name}={given!r}" for name, given in kept.items())]
    return MaskError(f"{problem}.", f"Axis({', '.join(shown)}).")


def _renamed(word: str, value: Any, legal: Sequence[str]) -> dict[str, Any] | None:
    """The fields that an argument stands for; empty for a window of several meanings, or a switch
    that is off; None if it is not known.
    """
    if word == "window_size" and isinstance(value, (tuple, list)) and len(value) == 2:
        return {"left": value[0], "right": value[1]}
    if word in _WINDOWS:
        return {}
    if word in _BORDERS:
        return {"border": _BORDERS[word]} if value else {}
    name = meant_field(word) or similar(word, legal)
    if not name:
        return None
    return {name: likely(value, BORDERS) or value if name == "border" else value}


def meant_field(word: str) -> str:
    """The field of an axis that has this name elsewhere, or an empty string."""
    return next((name for name, words in _RENAMED.items() if word in words), "")


def _of_a_window(word: str, named: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    """The code of a window of so many keys, with the other fields of its axis."""
    from nbattn.fixes.masks import with_fields
    from nbattn.mask import Mask

    calls: list[str] = []
    for name in _WINDOWS[word]:
        call = f"Mask.{name}({named[word]!r})"
        try:
            axes = getattr(Mask, name)(named[word]).axes
            code = f"{with_fields(axes[:1], rest)[0]!r}" if rest else call
        except (MaskError, TypeError):
            continue
        calls.append(code)
    one, other = _MEANINGS
    return f"{one.join(calls)}{other * (len(calls) > 1)}." if calls else ""

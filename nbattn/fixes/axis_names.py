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
_WINDOWS = {
    **dict.fromkeys(("kernel_size", "kernel", "size"), "Mask.neighborhood({0!r})"),
    "sliding_window": "Mask.from_transformers({0!r})",
    "window": "Mask.neighborhood({0!r}), around; or Mask.from_transformers({0!r}), for the last",
}


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
    word = next(name for name in named if name not in legal)
    problem, value = f"Axis() takes no argument {word!r}", named[word]
    if word in _WINDOWS:
        why = "a window is given by its neighbours on the left and right"
        return MaskError(f"{problem}: {why}.", f"{_WINDOWS[word].format(value)}.")
    if word == "window_size":
        left, right = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, 0)
        now = {"left": left, "right": right}
    elif word in _BORDERS:
        now = {"border": _BORDERS[word]} if value else {}
    else:
        others = {other: name for name, words in _RENAMED.items() for other in words}
        name = others.get(word) or similar(word, legal)
        if not name:
            return MaskError(f"{problem}; it takes {', '.join(legal)}.")
        now = {name: likely(value, BORDERS) or value if name == "border" else value}
    kept = {name: given for name, given in named.items() if name != word} | now
    shown = [*map(repr, positional), *(f"{name}={given!r}" for name, given in kept.items())]
    return MaskError(f"{problem}.", f"Axis({', '.join(shown)}).")

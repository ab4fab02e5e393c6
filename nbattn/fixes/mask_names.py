"""Answers to arguments of Mask's constructors that have another name in other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, cast

from nbattn.errors import MaskError

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

_RENAMED = {
    "kernel_size": ("kernel", "size", "kernel_sizes", "window", "window_size", "neighborhood"),
    "dilation": ("dilations", "dilation_rate", "rate"),
    "stride": ("strides", "step"),
    "is_causal": ("causal", "causal_mask"),
    "causal": ("is_causal", "causal_mask"),
    "left": ("window_left", "left_window", "before", "lookback"),
    "right": ("window_right", "right_window", "after", "lookahead"),
    "align": ("alignment", "diagonal_alignment"),
    "sliding_window": ("window", "window_size", "attention_window"),
    "window_size": ("window", "local_window_size"),
    "left_bound": ("window_left", "diagonal_band_left_bound", "left"),
    "right_bound": ("window_right", "diagonal_band_right_bound", "right"),
    "offset": ("cache_position", "position"),
    "rank": ("ndim", "dims", "axes"),
}


def answering(constructor: Constructor) -> Constructor:
    """Makes a constructor refuse unknown arguments with the call that was probably meant."""
    legal = [name for name in inspect.signature(constructor).parameters if name != "cls"]
    known = frozenset(legal)

    @wraps(constructor)
    def construct(*args: Any, **named: Any) -> Any:
        if not known.issuperset(named):
            raise _refusal(constructor.__name__, args[1:], named, legal)
        return constructor(*args, **named)

    return cast("Constructor", construct)


def _refusal(
    name: str, positional: Sequence[object], named: Mapping[str, Any], legal: Sequence[str]
) -> MaskError:
    word = next(given for given in named if given not in legal)
    problem, call = f"Mask.{name}() takes no argument {word!r}", f"Mask.{name}"
    if name == "sliding_window" and word in ("window_size", "window", "size", "sliding_window"):
        value = named[word]
        other = "from_flash" if isinstance(value, (tuple, list)) else "from_transformers"
        meaning = "Flash's" if other == "from_flash" else "transformers'"
        return MaskError(
            f"{problem}: left and right are neighbours of the query.",
            f"Mask.{other}({value!r}), with {meaning} meaning.",
        )
    meant = next((n for n in legal if word in _RENAMED.get(n, ())), "")
    meant = meant or next(iter(get_close_matches(word, legal, n=1, cutoff=0.75)), "")
    if not meant or meant in named or meant in legal[: len(positional)]:
        return MaskError(f"{problem}; it takes {', '.join(legal)}.")
    given = {meant if n == word else n: value for n, value in named.items()}
    shown = [*map(repr, positional), *(f"{n}={value!r}" for n, value in given.items())]
    return MaskError(f"{problem}.", f"{call}({', '.join(shown)}).")

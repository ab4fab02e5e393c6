"""Answers to arguments of Mask's constructors that have another name in other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nbattn import lazy
from nbattn.errors import MaskError, similar
from nbattn.fixes import axis_names
from nbattn.fixes.masks import with_fields
from nbattn.fixes.signatures import Misfit, legal_calls

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
    "rank": ("ndim", "dims", "dim", "axes"),
}

# What is looked for in Mask, and the expressions to write.
_ELSEWHERE = {
    **dict.fromkeys(("prefix_lm", "prefix", "prefixlm"), "Mask(Axis(None, 0, prefix=4))"),
    **dict.fromkeys(("sliding", "window", "local", "swa", "band"), "Mask.sliding_window(511)"),
    **dict.fromkeys(("windows", "blocked", "swin"), "Mask.neighborhood((7, 7), stride=7)"),
    **dict.fromkeys(("natten", "from_natten", "nat", "neighbourhood"), "Mask.neighborhood((7, 7))"),
    "dilated": "Mask.neighborhood((7, 7), dilation=2)",
    **dict.fromkeys(("circular", "periodic", "wrap"), 'Mask(Axis(3, 3, border="wrap"))'),
    **dict.fromkeys(("bidirectional", "none", "dense_mask", "all"), "Mask.full(rank=1)"),
    **dict.fromkeys(("tril", "autoregressive", "is_causal"), "Mask.causal()"),
    **dict.fromkeys(("from_sdpa", "from_torch", "sdpa"), 'Mask.causal("top-left")'),
    **dict.fromkeys(("from_jax", "from_local"), 'Mask.sliding_window(511, align="top-left")'),
    **dict.fromkeys(("from_hf", "from_huggingface"), "Mask.from_transformers(512)"),
    **dict.fromkeys(("flash", "from_flash_attn"), "Mask.from_flash((512, 0))"),
}


class Answering(type):
    """The class of `Mask`: a constructor that it does not have gets the one that is meant."""

    if not TYPE_CHECKING:  # for which names that are missing stay errors

        def __getattr__(cls: type, name: str) -> Any:
            own = {known: f"Mask.{known}" for known in vars(cls) if not known.startswith("_")}
            lazy.refuse("type object 'Mask'", name, own | _ELSEWHERE)


def of_the_class(axes: Sequence[Any], named: Mapping[str, Any]) -> MaskError:
    """Makes the error of arguments by name of `Mask` itself."""
    from nbattn.axis import Axis, written
    from nbattn.mask import Mask

    problem = f"Mask() takes axes, and no argument {next(iter(named))!r}"
    shown = ", ".join(f"{name}={value!r}" for name, value in named.items())
    if [*named] == ["rank"] and len(axes) == 1 and type(named["rank"]) is int:
        return MaskError(f"{problem}.", f"{written([*axes] * named['rank'])}.")
    if [*named] == ["axes"] and not axes:
        given = named["axes"] if isinstance(named["axes"], (tuple, list)) else [named["axes"]]
        return MaskError(f"{problem} by name.", f"{written(given)}.")
    try:
        if axes:
            return MaskError(f"{problem}.", f"{written([replace(a, **named) for a in axes])}.")
        if named.keys() <= set(Axis.__dataclass_fields__):
            return MaskError(f"{problem}.", f"{written([Axis(**named)])}.")
    except (MaskError, TypeError):
        return MaskError(f"{problem}.")
    for name in ("full", "neighborhood", "from_flash", "from_transformers"):
        if named.keys() <= set(inspect.signature(getattr(Mask, name)).parameters):
            return MaskError(f"{problem}.", f"Mask.{name}({shown}).")
    return MaskError(f"{problem}.")


def refusal(call: Misfit) -> MaskError:
    """Makes the error of a constructor's call that does not fit, with the call that was meant."""
    from nbattn.mask import Mask

    name, legal = call.function.removeprefix("Mask."), call.names
    if call.unknown:
        return _unknown(name, call.given, call.named, legal)
    problem = f"{call.problem}; it takes {', '.join(legal)}."
    if len(call.given) <= len(call.places):
        return MaskError(problem, f"{_EXAMPLES[name]}.")
    by_name = [n for n in legal if n not in call.places]
    calls = legal_calls(call.function, getattr(Mask, name), len(call.places), call.given, by_name)
    return MaskError(problem, f"{', or '.join(calls)}." if calls else "")


_EXAMPLES = {"neighborhood": "Mask.neighborhood(7)", "sliding_window": "Mask.sliding_window(511)"}


def _unknown(
    name: str, positional: Sequence[object], named: Mapping[str, Any], legal: Sequence[str]
) -> MaskError:
    word = next(given for given in named if given not in legal)
    problem = f"Mask.{name}() takes no argument {word!r}"
    if name == "sliding_window" and word in ("window_size", "window", "size", "sliding_window"):
        value, rest = named[word], {n: v for n, v in named.items() if n != word}
        other = "from_flash" if isinstance(value, (tuple, list)) else "from_transformers"
        meaning = "Flash's" if other == "from_flash" else "transformers'"
        code = _as_axes(other, (value,), {}, rest) if rest else f"Mask.{other}({value!r})"
        fix = f"{code}, with {meaning} meaning." if code else ""
        return MaskError(f"{problem}: left and right are neighbours of the query.", fix)
    given, beyond = _renamed(name, named, legal, legal[: len(positional)])
    if beyond:
        code = _as_axes(name, positional, given, beyond)
        return MaskError(f"{problem}; it takes {', '.join(legal)}.", f"{code}." if code else "")
    shown = [*map(repr, positional), *(f"{n}={value!r}" for n, value in given.items())]
    return MaskError(f"{problem}.", f"Mask.{name}({', '.join(shown)}).")


def _renamed(
    name: str, named: Mapping[str, Any], legal: Sequence[str], taken: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments by the names of a constructor; and those that it does not have."""
    given: dict[str, Any] = {}
    beyond: dict[str, Any] = {}
    for word, value in named.items():
        meant = next((n for n in legal if word in _RENAMED.get(n, ())), "")
        field = axis_names.meant_field(word)
        if word in legal:
            given[word] = value
        elif name == "from_flash" and field in ("left", "right") and "window_size" not in named:
            left, right = given.get("window_size", (-1, -1))
            given["window_size"] = (value, right) if field == "left" else (left, value)
        elif (meant := meant or similar(word, legal, 0.75)) and meant not in {*named, *taken}:
            given[meant] = value
        else:
            beyond[word] = value
    return given, beyond


def _as_axes(
    name: str, positional: Sequence[object], given: Mapping[str, Any], beyond: Mapping[str, Any]
) -> str:
    """The code of a constructor's axes with fields that it does not take, on as many axes as a
    rank says; empty where it cannot be said.
    """
    from nbattn.axis import Axis, written
    from nbattn.mask import Mask

    fields = {axis_names.meant_field(word) or word: value for word, value in beyond.items()}
    rank: Any = next((fields.pop(n) for n in ("rank", *_RENAMED["rank"]) if n in fields), 1)
    if not {*fields} <= {*Axis.__dataclass_fields__}:
        return ""
    try:
        axes = with_fields(getattr(Mask, name)(*positional, **given).axes, fields)
        return written(Mask(*(axes * rank)).axes) if axes else ""
    except (MaskError, TypeError):
        return ""

"""Tells for which generation of NATTEN a call is written, where its arguments show it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from nbattn.errors import InputError

# Arguments by name that only some generations have, the newest generation first.
_NAMES = {
    "0.21": {"embed_dim", "stride", "backend", "attention_kwargs", "return_lse"},
    "0.17": {
        *("dim", "attn_drop", "rel_pos_bias", "is_causal", "use_experimental_ops"),
        *("rpb", "xformers_kwargs"),
    },
    "0.14": {"dim", "attn_drop", "bias", "kernel_size_d", "dilation_d"},
}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function raise an InputError for names of another generation's arguments.

    >>> @checked
    ... def na2d(query, kernel_size): ...
    >>> na2d(None, 7, rpb=None)
    Traceback (most recent call last):
    nbattn.errors.InputError: rpb= is an argument of NATTEN 0.17.
      fix:   nbattn.integrations.natten.install(generation="0.17") before natten is imported.
    """
    own = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        foreign = named.keys() - own
        for generation, names in _NAMES.items():
            if foreign and foreign <= names:
                shown = " and ".join(f"{name}=" for name in sorted(foreign))
                verb = "is an argument" if len(foreign) == 1 else "are arguments"
                raise _other(f"{shown} {verb} of NATTEN {generation}.", generation)
        return function(*arguments, **named)

    return call


def check_places(dilation: object, is_causal: object) -> None:
    """Raises where these two have types of 0.17's arguments at the same places: is_causal, rpb."""
    if isinstance(is_causal, Tensor):
        raise _other("is_causal is a tensor: in NATTEN 0.17 the bias table is here.", "0.17")
    if isinstance(dilation, bool):
        raise _other(f"dilation={dilation}: in NATTEN 0.17 is_causal is here.", "0.17")


def _other(problem: str, generation: str) -> InputError:
    return InputError(
        problem,
        f'nbattn.integrations.natten.install(generation="{generation}") before natten is imported.',
    )

"""Refuses models of transformers that choose a class by the name of the implementation: they have
a fixed table of such classes, and would raise a bare KeyError for a name that is not in it.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from nbattn.errors import InputError

_METHOD = "_check_and_adjust_attn_implementation"  # what every model calls when it is made
_NAMES: set[str] = set()
_ORIGINAL: list[Any] = []


def watch(name: str) -> None:
    """Checks models that are made with this implementation, until `forget(name)`."""
    from transformers import PreTrainedModel

    _NAMES.add(name)
    original = getattr(PreTrainedModel, _METHOD, None)
    if _ORIGINAL or original is None:
        return
    _ORIGINAL.append(original)

    @functools.wraps(original)
    def adjust(self: Any, *arguments: Any, **named: Any) -> Any:
        chosen = original(self, *arguments, **named)
        if chosen in _NAMES:
            check(type(self), chosen)
        return chosen

    setattr(PreTrainedModel, _METHOD, adjust)


def forget(name: str) -> None:
    """Reverses `watch`."""
    _NAMES.discard(name)
    if _ORIGINAL and not _NAMES:
        from transformers import PreTrainedModel

        setattr(PreTrainedModel, _METHOD, _ORIGINAL.pop())


def check(model: type, name: str) -> None:
    """Raises an InputError if the module of a model has a table of classes without the name."""
    module = sys.modules.get(model.__module__)
    for table, classes in vars(module).items():
        own = table.endswith("ATTENTION_CLASSES") and isinstance(classes, dict)
        if own and name not in classes:
            known = ", ".join(sorted(map(repr, classes)))
            raise InputError(
                f"{model.__name__} has attention classes of its own, {table}: {known}.",
                f'attn_implementation="{"sdpa" if "sdpa" in classes else "eager"}".',
            )

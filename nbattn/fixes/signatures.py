"""Finds calls that do not fit a function's signature, for which Python has a bare TypeError."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from nbattn.errors import MaskError, NbattnError

P = ParamSpec("P")
R = TypeVar("R")


class Misfit(NamedTuple):
    """A call that does not fit.

    Args:
        function: its qualified name.
        places: the names of arguments that may be given by place, without `self` and `cls`.
        names: all names of arguments.
        missing: the names of those that are needed, and not given.
        given: the arguments given by place.
        named: those given by name.
    """

    function: str
    places: tuple[str, ...]
    names: tuple[str, ...]
    missing: tuple[str, ...]
    given: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def unknown(self) -> list[str]:
        """The names that the function does not have."""
        return [name for name in self.named if name not in self.names]

    @property
    def problem(self) -> str:
        """What does not fit, in words."""
        called = f"{self.function}()"
        if self.unknown:
            return f"{called} takes no argument {self.unknown[0]!r}"
        if len(self.given) > len(self.places):
            taken = f"{len(self.places)} arguments by place, not {len(self.given)}"
            return f"{called} takes {taken}".replace("1 arguments", "1 argument")
        return f"{called} needs {' and '.join(self.missing)}"


def answering(
    refusal: Callable[[Misfit], NbattnError], own: int = 0
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function refuse calls that do not fit its signature in words.

    Args:
        refusal: makes the error.
        own: 1 for a method, whose first argument is no user's.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = [*inspect.signature(function).parameters.values()][own:]
        places = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        names = tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        needed = tuple(p.name for p in parameters if p.default is p.empty and p.name in names)
        is_open = len(names) < len(parameters)
        most, shown = len(places) + own, function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def call(*args: P.args, **named: P.kwargs) -> R:
            missing = [name for name in needed[max(0, len(args) - own) :] if name not in named]
            # a loop, since torch 2.8 cannot trace the comparison of a set with a dict
            if missing or len(args) > most or not (is_open or all(n in names for n in named)):
                raise refusal(Misfit(shown, places, names, tuple(missing), args[own:], named))
            return function(*args, **named)

        return call

    return decorate


def show(function: Callable[..., Any], **needed: str) -> list[str]:
    """Gives a function the signature that help() and editors show: needed arguments have no
    default, and nothing stands there only to be refused.

    Args:
        function: it changes in place.
        needed: the needed arguments that have a default, with their types.

    Returns:
        The names of its arguments.
    """
    signature = inspect.signature(function)
    parameters = [
        p.replace(default=p.empty, annotation=needed[p.name]) if p.name in needed else p
        for p in signature.parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore
    return [p.name for p in parameters]


def legal_calls(
    shown: str, make: Callable[..., Any], places: int, given: Sequence[Any], names: Sequence[str]
) -> list[str]:
    """Returns the calls, as code, that take arguments by place beyond the last legal one: the first
    ones as a pair, or the surplus one by its name; as many as are legal, at most two.

    >>> legal_calls("dict", dict, 0, [3], ["left"])
    ['dict(left=3)']
    """
    found: list[str] = []
    for count in range(2, len(given) + 1) if places else ():
        _try(found, shown, make, [tuple(given[:count]), *given[count:]], {})
    if len(given) == places + 1:
        for name in names:
            _try(found, shown, make, given[:places], {name: given[-1]})
    return found[:2]


def _try(
    found: list[str],
    shown: str,
    make: Callable[..., Any],
    given: Sequence[Any],
    named: Mapping[str, Any],
) -> None:
    """Appends the code of a call, if it is legal."""
    try:
        make(*given, **named)
    except (MaskError, TypeError):
        return
    arguments = [*map(repr, given), *(f"{name}={value!r}" for name, value in named.items())]
    found.append(f"{shown}({', '.join(arguments)})")

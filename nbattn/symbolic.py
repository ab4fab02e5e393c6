"""Checks conditions on numbers that a tracer does not know yet, without fixing their value.

While torch compiles or exports, lengths and the numbers of a mask may be symbols for many values. A
check that cannot be decided then is repeated by the operator when it runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable


def is_symbolic(value: object) -> bool:
    """Whether a value is a number that a tracer has not fixed; to isinstance it may be an int."""
    return type(value).__name__ == "SymInt"


def _is_open(condition: object) -> bool:
    return type(condition).__name__ in ("SymBool", "Tensor")


def holds(condition: object) -> bool:
    """Whether a condition on numbers holds; a condition that is not decidable yet counts as true.

    >>> holds(3 < 4), holds(4 < 3)
    (True, False)
    """
    if condition is True or condition is False:  # nearly every check
        return condition
    torch = sys.modules.get("torch")  # masks need no torch; without torch nothing is symbolic
    if torch is None or not (_is_open(condition) or torch.compiler.is_compiling()):
        return bool(condition)
    if isinstance(
        condition, torch.Tensor
    ):  # of torch.jit.trace: its value is known, but torch warns
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return guard_or_true(condition)  # pyright: ignore


def is_certain(condition: object) -> bool:
    """Whether a condition holds for all values of the numbers that a tracer does not know."""
    if condition is True or condition is False:
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)  # pyright: ignore


def untraced(lengths: Iterable[int]) -> tuple[int, ...]:
    """Returns lengths as ints where `torch.jit.trace` has tensors; symbols stay.

    >>> untraced([4, 5])
    (4, 5)
    """
    lengths = tuple(lengths)
    if all(type(length) is int or is_symbolic(length) for length in lengths):
        return lengths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that a trace keeps them
        return tuple(length if is_symbolic(length) else int(length) for length in lengths)

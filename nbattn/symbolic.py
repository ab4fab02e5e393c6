"""Numbers that a tracer does not know yet: what can be asked of them without pinning their value.

While torch compiles or exports, lengths and the numbers of a mask may stand for many values. What
their checks cannot decide there, the operator checks when it runs.
"""

from __future__ import annotations

import sys
import warnings


def is_symbolic(value: object) -> bool:
    """Whether a value is a number that a tracer has not fixed. Compilers show theirs as an int."""
    return type(value).__name__ == "SymInt"


def _is_open(condition: object) -> bool:
    return type(condition).__name__ in ("SymBool", "Tensor")


def holds(condition: object) -> bool:
    """Whether a condition on numbers holds; one that cannot be known yet counts as holding.

    >>> holds(3 < 4), holds(4 < 3)
    (True, False)
    """
    if condition is True or condition is False:  # what nearly every check comes with
        return condition
    torch = sys.modules.get("torch")  # masks need none, and without it nothing is symbolic
    if torch is None or not (_is_open(condition) or torch.compiler.is_compiling()):
        return bool(condition)
    if isinstance(condition, torch.Tensor):  # torch.jit.trace's: known, and warned of when read
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return guard_or_true(condition)  # pyright: ignore

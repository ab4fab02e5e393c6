"""What compilers shall not trace: functions whose results are constants, and plain numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant(function: _Function) -> _Function:
    """Marks a function that compilers call while they trace, as
    `torch.compiler.assume_constant_result` does, which would load all of torch._dynamo.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def plain(lengths: Any) -> Any:
    """Lengths, or one length, as plain numbers: compilers make each a constant of the graph."""
    if isinstance(lengths, (tuple, list)):
        return tuple([operator.index(length) for length in lengths])  # `map` is not traced
    return lengths if lengths is None else operator.index(lengths)

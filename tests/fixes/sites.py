"""The places of the package that make an error with a fix, and a record of those that made one."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import nbattn
from nbattn import errors

PACKAGE = Path(nbattn.__file__).parent
# where the fix stands among the positional arguments
ERRORS = {
    **dict.fromkeys(("NbattnError", "MaskError", "InputError", "BackendError", "AbsentError"), 1),
    "Mistake": 3,
}


class Site(NamedTuple):
    """A call in the package that makes an error: file, and where the call begins and ends."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Raised(NamedTuple):
    """An error that was made, its fix, and the place that made it."""

    error: Any
    fix: str
    site: Site


def in_source() -> set[Site]:
    """Every call in the package that makes an error with a fix."""
    return {
        Site(
            path.relative_to(PACKAGE).as_posix(),
            node.lineno,
            node.col_offset,
            node.end_lineno or 0,
            node.end_col_offset or 0,
        )
        for path in PACKAGE.rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _has_fix(node)
    }


def _has_fix(call: ast.Call) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name not in ERRORS:
        return False
    fixes = [keyword.value for keyword in call.keywords if keyword.arg == "fix"]
    fixes += call.args[ERRORS[name] : ERRORS[name] + 1]
    return any(not (isinstance(fix, ast.Constant) and not fix.value) for fix in fixes)


@contextlib.contextmanager
def recorded() -> Iterator[list[Raised]]:
    """Records errors while they are made."""
    made: list[Raised] = []
    init, new = errors.NbattnError.__init__, errors.Mistake.__new__

    def make_error(self: errors.NbattnError, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        made.append(Raised(self, self.fix, _caller()))

    def make_mistake(kind: Any, *args: Any, **named: Any) -> errors.Mistake:
        mistake = new(kind, *args, **named)
        made.append(Raised(mistake, f"{mistake.fix} {mistake.guess}", _caller()))
        return mistake

    with (
        mock.patch.object(errors.NbattnError, "__init__", make_error),
        mock.patch.object(errors.Mistake, "__new__", make_mistake),
    ):
        yield made


def _caller() -> Site:
    """The call, two frames up, that is being executed."""
    frame = sys._getframe(2)
    at = inspect.getframeinfo(frame).positions
    assert at is not None
    path = Path(frame.f_code.co_filename)
    file = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    return Site(
        file, at.lineno or 0, at.col_offset or 0, at.end_lineno or 0, at.end_col_offset or 0
    )

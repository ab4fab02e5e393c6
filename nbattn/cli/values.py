"""Parse and check the values of command line options."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nbattn.cli.parser import Kind
from nbattn.errors import InputError


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("[]() ").split(","))


def _grids(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in part.strip().split("x")) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def whole(low: int, high: int = 10**6, example: str = "") -> Kind:
    """Return the type of a whole number between two ends, both included."""

    def read(text: str) -> int:
        sign = text[:1] == "-"
        if not text.isascii() or not text[sign:].isdigit() or not low <= int(text[:20]) <= high:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {low} to {high}", example or str(low), read)


def text(example: str) -> Kind:
    """Return the type of any text."""
    return Kind("text", example, str)


shape = Kind("a shape", "1,56,56,2,32", _shape)
grids = Kind("a list of sizes", "14x14,20x33", _grids)
names = Kind("a list of names", "tiled,sdpa", _names)
count = whole(1, example="4")
seconds = Kind("a number of seconds above 0", "20", _seconds)
number = Kind("a number", "30.0", float)
file = Kind("a file", "nbattn.json", Path)
folder = Kind("a folder", "demo-output", Path)
picture = Kind("a file", "nbattn.png", Path)
page = Kind("a file", "nbattn.html", Path)


def drawing(ending: str) -> Kind:
    """Return the type of the file of a figure."""
    return Kind("a file", f"mask.{ending}", Path)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the known name that is most like another, else the first."""
    return (difflib.get_close_matches(name, known, 1) or known)[0]


def guess(name: str, known: Sequence[str]) -> str:
    """Return " Did you mean …?" for a name that is like a known one, else an empty text."""
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def names_of(
    known: Callable[[], Sequence[str]], kind: str, names: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Return the names, all of which must be known; None for None.

    Raises:
        InputError: a name is unknown; the fix has the most similar ones.
    """
    for name in names or ():
        if name not in known():
            fixed = dict.fromkeys(nearest(name, known()) for name in names or ())
            raise InputError(
                f"{kind} {name!r} is not known; {kind}s are {', '.join(known())}.",
                f"--{kind}s {','.join(fixed)}",
            )
    return names


def check_folder(path: Path) -> None:
    """Create the output folder before the work starts.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        other = f"{path.name}-pictures"
        raise InputError(f"{path} cannot be created: {reason}.", f"--output {other}") from None


def check_writable(option: str, path: Path | None, ending: str = "") -> None:
    """Check that a file can be written, before the measurement starts.

    Raises:
        InputError: the file cannot be created, or its name lacks the ending of its format.
    """
    if path is None:
        return
    problem = _why_not(path)
    if problem:
        name = path.name if path.suffix else f"nbattn{ending or '.json'}"
        elsewhere = Path(name) if os.access(".", os.W_OK) else Path(tempfile.gettempdir(), name)
        raise InputError(f"{path} {problem}.", f"{option} {elsewhere}")
    if ending and path.suffix.lower() != ending:
        raise InputError(
            f"{path} does not end in {ending}, the format of the file.",
            f"{option} {path.with_suffix(ending)}",
        )


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "is a directory"
    if not path.parent.is_dir():
        return f"cannot be created: {path.parent} is not a directory"
    can_write = os.access(path if path.exists() else path.parent, os.W_OK)
    return "" if can_write else "cannot be written"

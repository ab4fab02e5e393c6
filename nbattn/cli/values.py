"""Values of command line options: read, checked, and refused in words."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nbattn.errors import InputError


def shape(text: str) -> tuple[int, ...]:
    """Lengths separated by commas, a tensor's shape."""
    try:
        return tuple(int(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write 1,56,56,2,32") from None


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def whole(text: str) -> int:
    """A whole number from 1 to a million."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def names_of(
    known: Callable[[], Sequence[str]], kind: str, text: str | None
) -> tuple[str, ...] | None:
    """Names separated by commas, all of them known; None for None.

    Raises:
        InputError: one is not, with those that are.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known():
            raise InputError(
                f"{kind} {name!r} is not known.", f"one of {', '.join(map(repr, known()))}."
            )
    return names


def check_folder(path: Path) -> None:
    """Make the folder of results before the work, not after.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be made: {reason}.", "--output FOLDER.") from None


def check_writable(path: Path | None, ending: str = "") -> None:
    """Fail before measuring, not after.

    Raises:
        InputError: no file can be made there, or its name promises another kind of file.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = (
            "is a directory" if path.is_dir() else f"cannot be made: {path.parent} is no directory"
        )
        raise InputError(f"{path} {what}.", "a file in a directory that exists.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written.", "a file that you may write.")
    if ending and path.suffix.lower() != ending:
        raise InputError(f"{path} would not be what its name says.", f"{path.stem}{ending}.")

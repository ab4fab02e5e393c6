"""Parse and check the values of command line options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nbattn.errors import InputError


def shape(text: str) -> tuple[int, ...]:
    """Parse a tensor's shape: lengths separated by commas."""
    try:
        return tuple(int(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; write 1,56,56,2,32") from None


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def whole(text: str) -> int:
    """Parse a whole number from 1 to a million."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000000")
    return int(text)


def seconds(text: str) -> float:
    """Parse a finite number of seconds above 0."""
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
    """Parse names separated by commas, all of which must be known; None for None.

    Raises:
        InputError: a name is unknown; the fix lists the known ones.
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
    """Create the output folder before the work starts.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be created: {reason}.", "--output FOLDER.") from None


def check_writable(path: Path | None, ending: str = "") -> None:
    """Check that a file can be written, before the measurement starts.

    Raises:
        InputError: the file cannot be created, or its name lacks the ending of its format.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        problem = (
            "is a directory"
            if path.is_dir()
            else f"cannot be created: {path.parent} is not a directory"
        )
        raise InputError(f"{path} {problem}.", "a file in a directory that exists.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written.", "a file that you can write.")
    if ending and path.suffix.lower() != ending:
        raise InputError(
            f"{path} does not end in {ending}, the format of the file.", f"{path.stem}{ending}."
        )

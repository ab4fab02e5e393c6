"""Finds calls, and alternatives without tensors, in the code that fixes say."""

from __future__ import annotations

import re

_OR = re.compile(r"((?:,|;)? or )")  # between alternatives
_BESIDE = re.compile(r", with (?:query|key|value)\.[^;]*")
# What files and command lines have no place for: tensors, and calls of functions.
_TENSORS = re.compile(r"\b(?:query|key|value|x|context|torch|layer)\.|\b(?:attention|plan)\(")


def closing(text: str, start: int) -> int:
    """Where the call ends whose arguments start here; the end of the text if it is not closed."""
    depth = 1
    for at, letter in enumerate(text[start:], start):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at + 1
    return len(text)


def without_tensors(text: str) -> str:
    """The alternatives of a fix that a file or a command line can have."""
    parts = _OR.split(_BESIDE.sub("", text))
    kept = [n for n in range(0, len(parts), 2) if not _TENSORS.search(parts[n])]
    return "".join(part for n in kept for part in (parts[n - 1] * (n > kept[0]), parts[n]))

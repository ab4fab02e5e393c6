"""Finds the kernels' CUDA C++ and merges a kernel and its headers into one text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nbattn.errors import BackendError

_MARK = "params.h"  # the kernels' directory contains it; NVIDIA's Python package `cuda` does not
_INCLUDE = re.compile(r'\s*#\s*include\s*"([\w.]+)"')
_OPENS, _CLOSES = re.compile(r"\s*#\s*if"), re.compile(r"\s*#\s*endif\b")
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def directory() -> Path:
    """The directory `cuda`: inside the package in a wheel, beside it in a checkout.

    Raises:
        BackendError: it is missing in both places.
    """
    package = Path(__file__).resolve().parents[1]
    places = (
        package / "cuda",
        package.parent / "cuda",
    )  # outside a checkout, the second is NVIDIA's
    for place in places:
        if (place / _MARK).is_file():
            return place
    raise BackendError(
        f"the kernels' sources are missing: neither {places[0]} nor {places[1]} has {_MARK}",
        "pip install --force-reinstall nbattn",
    )


def amalgamate(name: str) -> str:
    """The text of a kernel with each of its headers inserted once; `#line` keeps names and lines.

    The compiler reads only this text and CUDA's headers, so a hash of it covers every byte.

    Args:
        name: a file in `directory()`.

    Raises:
        BackendError: there is no such file, or a header is included inside an #if.
    """
    return "\n".join(_lines(name, directory(), set())) + "\n"


def digest(name: str) -> str:
    """SHA-256 of a kernel's text with its headers, in hexadecimal."""
    return hashlib.sha256(amalgamate(name).encode()).hexdigest()


def _lines(name: str, folder: Path, seen: set[str]) -> list[str]:
    """The lines of a file; an empty line replaces a header that was already inserted."""
    seen.add(name)
    depth = 0
    lines = [f'#line 1 "{folder.name}/{name}"']
    for number, line in enumerate(_read(folder / name).splitlines(), 1):
        depth += bool(_OPENS.match(line)) - bool(_CLOSES.match(line))
        header = _INCLUDE.match(line)
        if header is None or not (folder / header[1]).is_file():
            lines.append("" if _ONCE.match(line) else line)
            continue
        if depth:  # then a later include outside the #if would be dropped
            raise BackendError(f"{folder.name}/{name}:{number} includes {header[1]} inside an #if")
        if header[1] in seen:
            lines.append("")
        else:
            lines += [
                *_lines(header[1], folder, seen),
                f'#line {number + 1} "{folder.name}/{name}"',
            ]
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BackendError(
            f"a kernel's source cannot be read: {path}: {error.strerror}",
            "pip install --force-reinstall nbattn",
        ) from None

"""The kernels' CUDA C++: where it lies, and one text of a kernel with its headers in place."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nbattn.errors import BackendError

_MARK = "params.h"  # what a directory of kernels has, and NVIDIA's Python package `cuda` does not
_INCLUDE = re.compile(r'\s*#\s*include\s*"([\w.]+)"')
_OPENS, _CLOSES = re.compile(r"\s*#\s*if"), re.compile(r"\s*#\s*endif\b")
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def directory() -> Path:
    """The directory `cuda`: inside the package in a wheel, beside it in a checkout.

    Raises:
        BackendError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "cuda", package.parent / "cuda")  # outside a checkout the second is foreign
    for place in places:
        if (place / _MARK).is_file():
            return place
    raise BackendError(
        f"the kernels' sources are missing: neither {places[0]} nor {places[1]} has {_MARK}",
        "pip install --force-reinstall nbattn",
    )


def amalgamate(name: str) -> str:
    """A kernel's text with its headers in place, each once, under their own names and lines.

    The compiler reads this text and CUDA's headers, no other file: its hash covers every byte.

    Args:
        name: a file of the directory.

    Raises:
        BackendError: there is no such file, or a header would depend on a condition.
    """
    return "\n".join(_lines(name, directory(), set())) + "\n"


def digest(name: str) -> str:
    """SHA-256 of a kernel's text with its headers, in hexadecimal."""
    return hashlib.sha256(amalgamate(name).encode()).hexdigest()


def _lines(name: str, folder: Path, seen: set[str]) -> list[str]:
    """A file's lines; headers that were there before leave an empty one."""
    seen.add(name)
    depth = 0
    found = [f'#line 1 "{folder.name}/{name}"']
    for number, line in enumerate(_read(folder / name).splitlines(), 1):
        depth += bool(_OPENS.match(line)) - bool(_CLOSES.match(line))
        header = _INCLUDE.match(line)
        if header is None or not (folder / header[1]).is_file():
            found.append("" if _ONCE.match(line) else line)
            continue
        if depth:  # "once" would keep it where the condition fails, and drop it where it holds
            raise BackendError(
                f"{folder.name}/{name}:{number} includes {header[1]} under a condition"
            )
        if header[1] in seen:
            found.append("")
        else:
            found += [
                *_lines(header[1], folder, seen),
                f'#line {number + 1} "{folder.name}/{name}"',
            ]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BackendError(
            f"a kernel's source cannot be read: {path}: {error.strerror}",
            "pip install --force-reinstall nbattn",
        ) from None

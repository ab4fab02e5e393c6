"""Finds the sources of the kernels and merges a file and its headers into one text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from nbattn.errors import BackendError

HOST = "kernels.cpp"  # the kernels of CPUs, in `host_directory()`
# A file of each directory: NVIDIA's Python package `cuda` has none.
_MARKS = {"cuda": "params.h", "cpu": HOST}
_INCLUDE = re.compile(r'\s*#\s*include\s*"((?:\.\./cuda/)?[\w.]+)"')
_OPENS, _CLOSES = re.compile(r"\s*#\s*if"), re.compile(r"\s*#\s*endif\b")
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def directory() -> Path:
    """The directory `cuda`: inside the package in a wheel, beside it in a checkout.

    Raises:
        BackendError: it is missing in both places.
    """
    return _place("cuda")


def host_directory() -> Path:
    """The directory `cpu`, which lies beside `cuda`.

    Raises:
        BackendError: as `directory`.
    """
    return _place("cpu")


def _place(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    places = (package / name, package.parent / name)  # outside a checkout, the second is foreign
    for place in places:
        if (place / _MARKS[name]).is_file():
            return place
    raise BackendError(
        f"the kernels' sources are missing: neither {places[0]} nor {places[1]} has {_MARKS[name]}",
        again(),
    )


def again() -> str:
    """The line that repairs the sources: installs nbattn again from the folder or address that it
    came from; in a checkout, restores them.
    """
    try:
        origin = metadata.distribution("nbattn").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return _restored(str(Path(__file__).resolve().parents[2]))
    facts = json.loads(origin) if origin else {}
    url = facts.get("url", "nbattn")
    if facts.get("dir_info", {}).get("editable"):
        return _restored(unquote(url.removeprefix("file://")))
    vcs = facts.get("vcs_info", {}).get("vcs", "")
    return f"pip install --force-reinstall --no-deps {shlex.quote(f'{vcs}+{url}' if vcs else url)}"


def _restored(checkout: str) -> str:
    return f"git -C {shlex.quote(checkout)} restore cpu cuda"


def amalgamate(name: str, folder: Path | None = None) -> str:
    """The text of a file with each of its headers inserted once; `#line` keeps names and lines.

    The compiler reads only this text and the system's or CUDA's headers, so a hash of it covers
    every byte.

    Args:
        name: a file in the folder.
        folder: `directory()` unless given. Headers lie in the folder, or in `../cuda`.

    Raises:
        BackendError: there is no such file, or a header is included inside an #if.
    """
    return "\n".join(_lines((folder or directory()) / name, set())) + "\n"


def digest(name: str) -> str:
    """SHA-256 of a GPU kernel's text with its headers, in hexadecimal."""
    return hashlib.sha256(amalgamate(name).encode()).hexdigest()


def _lines(path: Path, seen: set[Path]) -> list[str]:
    """The lines of a file; an empty line replaces a header that was already inserted."""
    seen.add(path)
    depth, shown = 0, f"{path.parent.name}/{path.name}"
    lines = [f'#line 1 "{shown}"']
    for number, line in enumerate(_read(path).splitlines(), 1):
        depth += bool(_OPENS.match(line)) - bool(_CLOSES.match(line))
        found = _INCLUDE.match(line)
        header = found and Path(os.path.normpath(path.parent / found[1]))
        if not header or not header.is_file():
            lines.append("" if _ONCE.match(line) else line)
            continue
        if depth:  # then a later include outside the #if would be dropped
            raise BackendError(f"{shown}:{number} includes {header.name} inside an #if")
        if header in seen:
            lines.append("")
        else:
            lines += [*_lines(header, seen), f'#line {number + 1} "{shown}"']
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BackendError(
            f"a kernel's source cannot be read: {path}: {error.strerror}",
            again(),
        ) from None

"""Finds the configurations that come with the package, and what was meant by a missing file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from nbattn.config.files import PARSERS
from nbattn.errors import ConfigError, Mistake

_PACKAGE = Path(__file__).resolve().parents[1]
# inside the package in a wheel, beside it in a checkout; elsewhere, the second may be foreign
PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_MARK = "nat_tiny.toml"


def path(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns the file that a source names: of a bare name the shipped configuration, else itself.

    A bare name is text without a suffix and without a separator of paths, unless there is such a
    file.

    Raises:
        ConfigError: there is no such configuration, or no such file; with what was probably meant.

    >>> path("video_3d").name, path("README.md")
    ('video_3d.toml', 'README.md')
    """
    name = os.fsdecode(source)
    given, suffix = Path(name), Path(name).suffix.lower()
    if name in ("", ".") or "\0" in name or _is(given.is_file):
        return source
    if isinstance(source, str) and not suffix and not {"/", os.sep} & {*name}:
        return _shipped(name)
    if suffix in PARSERS and not _is(given.exists):
        raise _missing(name, "cannot be read: No such file or directory")
    return source


def _is(check: Callable[[], bool]) -> bool:
    """The answer of the system; True where it cannot tell, which the file's reader reports."""
    try:
        return check()
    except OSError:
        return True


def _shipped(name: str) -> Path:
    found = _files()
    if name in found:
        return found[name]
    legal = f"{', '.join(found) or 'none, the package has none'}; or the path of a file"
    raise _missing(name, "is not a shipped configuration", legal)


def _missing(name: str, problem: str, legal: str = "") -> ConfigError:
    guess = _similar(name)
    return ConfigError(name, [Mistake("", problem, legal, guess=guess and json.dumps(guess))])


def _similar(source: str) -> str:
    """The most similar file in the same folder, else the most similar shipped configuration."""
    given = Path(source)
    try:
        files = [p for p in given.parent.iterdir() if p.suffix in PARSERS and p.is_file()]
    except (OSError, ValueError):
        files = []
    if near := get_close_matches(given.name, sorted(p.name for p in files), n=1, cutoff=0.75):
        return str(given.with_name(near[0]))
    same = [str(p) for p in sorted(files) if p.stem == given.stem]
    return (same or get_close_matches(given.stem, _files(), n=1) or [""])[0]


def _files() -> dict[str, Path]:
    """The shipped configurations by name."""
    for place in PLACES:
        if (place / _MARK).is_file():
            return {file.stem: file for file in sorted(place.iterdir()) if file.suffix in PARSERS}
    return {}

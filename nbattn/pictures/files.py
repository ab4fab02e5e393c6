"""Writes figures to files: vector formats with text as text, and the same bytes every time."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

from nbattn.errors import InputError
from nbattn.pictures import style

FORMATS = ("svg", "pdf", "png")
_DPI = 200
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "nbattn", "pdf.fonttype": 42}
# Dates and versions would make two runs differ.
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure in the format of the path's ending, a PNG without one.

    Raises:
        InputError: the path cannot be written, or matplotlib does not know the format.
    """
    where = Path(path)
    kind = where.suffix[1:].lower() or "png"
    try:
        with style.settings(_SETTINGS):
            figure.savefig(where, format=kind, dpi=_DPI, metadata=_METADATA.get(kind))
    except OSError as error:
        raise unwritable(where, error, "mask.png") from None


def svg(figure: Any) -> str:
    """Returns a figure as SVG."""
    into = io.StringIO()
    with style.settings(_SETTINGS):
        figure.savefig(into, format="svg", metadata=_METADATA["svg"])
    return into.getvalue()


def unwritable(path: Path, error: OSError, name: str) -> InputError:
    """The error for a path that cannot be written; `name` is a file's, for folders."""
    problem = f"{str(path)!r} cannot be written: {error.strerror or error}."
    return InputError(problem, _other_place(path, name))


def _other_place(path: Path, name: str) -> str:
    """What to do about a path that cannot be written."""
    if path.is_dir():
        return repr(str(path / name))
    if not path.parent.exists():
        return f"mkdir -p {shlex.quote(str(path.parent))}"
    return f"{path.name!r}, in a folder of yours"

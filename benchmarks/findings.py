"""Findings of a GPU, one JSON line each, written when found: later runs leave out what is known."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import records
import torch

from nbattn import machine


@functools.cache
def about() -> dict[str, Any]:
    """Return what every line says of the machine: its name, GPU, versions, date and commit."""
    there = torch.cuda.is_available()
    return {
        "machine": machine.machine(),
        "gpu": torch.cuda.get_device_name() if there else None,
        "capability": list(torch.cuda.get_device_capability()) if there else None,
        "versions": records.versions() | {"cuda": torch.version.cuda},
        "commit": records.commit() or os.environ.get("COMMIT"),  # a copy may have no history
        "date": machine.now(),
    }


class Findings:
    """A file of findings; without a path they are only printed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows = read(path) if path else []

    def add(self, row: dict[str, Any]) -> None:
        """Print a finding, and append it in one write, so that processes may share a file."""
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        if self.path:
            append(self.path, {**row, **about()})

    def known(self, **named: Any) -> bool:
        """Whether a finding has these values. An error is one, too: what has lost the device once
        would lose it again. Dry runs are none.
        """
        items = named.items()
        return any(
            all(row.get(name) == value for name, value in items)
            for row in self.rows
            if not row.get("dry")
        )


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one line in one write, which other processes cannot cut; after a line that was cut off
    by the end of its process, a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        is_cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (is_cut * "\n" + json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the findings of a file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    return [*_parsed(path.read_text("utf-8").splitlines())]


def _parsed(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue

"""Versions, commit and JSON file of a benchmark."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import peak

from nbattn import machine as here

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


def machine() -> dict[str, Any]:
    """Describe the machine, with its FMA peak."""
    return {**here.machine(), "fma_peak": peak.facts()}


def versions() -> dict[str, str | None]:
    """Return the versions of all packages that affect measurements, and the commit."""
    return {**here.versions(), "commit": commit()}


def commit() -> str | None:
    """Return the commit, with "+" if the package has uncommitted changes; None without git."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "nbattn")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that `destination` uses."""
    parser.add_argument("--output", type=Path, help=f"JSON; default: results/{default}")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def destination(options: argparse.Namespace, default: str) -> Path:
    """Return the path of the JSON file; only --overwrite replaces an existing file.

    Raises:
        SystemExit: the file exists.
    """
    path = options.output or RESULTS / default
    if path.exists() and not options.overwrite:
        raise SystemExit(f"{path} exists. --overwrite replaces it, --output selects another file.")
    return path


def write(path: Path, record: dict[str, Any]) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

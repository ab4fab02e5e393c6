"""Tests that every fix runs: what a message says to paste is pasted, and does what was wanted."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from fixes.row import PIP
from fixes.tables import TABLES, found, places_without_a_row

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    pytest.param(area, number, id=f"{area}-{number}")
    for area, rows in TABLES.items()
    for number in range(len(rows))
]


@pytest.mark.parametrize(("area", "number"), ROWS)
def test_fix_that_is_pasted_runs(area: str, number: int) -> None:
    row, fixes = TABLES[area][number], [fix for fix, _ in found(area, number)]
    assert any(row.pasted in fix for fix in fixes), fixes
    if row.pasted.startswith(PIP):
        assert set(shlex.split(row.pasted)[2:]) <= requirements()
    else:
        assert row.pasted in row.fixed
    row.run_fixed()


def test_every_place_with_a_fix_has_a_row() -> None:
    assert not places_without_a_row()


def requirements() -> set[str]:
    """What `pyproject.toml` installs, as `pip install` takes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    named = {requirement for extra in extras for requirement in extra}
    return named | {re.match(r"[\w-]+", requirement)[0] for requirement in named}  # pyright: ignore

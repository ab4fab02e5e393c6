"""Tests of what to install: the lines name what `pyproject.toml` names, and nothing else does."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from nbattn import packages
from nbattn.backends import families

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NOT_FOR_USERS = {"all", "oracles", "dev", "docs"}


def test_extras_are_those_of_the_project() -> None:
    wanted = {name: tuple(texts) for name, texts in EXTRAS.items() if name not in NOT_FOR_USERS}
    assert wanted == packages.EXTRAS


@pytest.mark.parametrize("extra", packages.EXTRAS)
def test_line_is_read_by_a_shell_as_the_packages(extra: str) -> None:
    line = packages.install_line(extra)
    assert shlex.split(line) == ["pip", "install", *EXTRAS[extra]]
    assert "nbattn" not in line


def test_package_has_the_versions_of_its_extra() -> None:
    assert packages.install_package("cupy-cuda12x") == 'pip install "cupy-cuda12x>=14.2,<15"'
    assert packages.install_package("scikit-learn") == "pip install scikit-learn"
    assert packages.install_package("torch") == "pip install torch"


def test_no_hint_names_an_extra_of_nbattn() -> None:
    """nbattn is on no index: such a line fails, or installs something else."""
    sources = [*(ROOT / "nbattn").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    found = [path.name for path in sources if re.search(r"nbattn\[\w", path.read_text("utf-8"))]
    assert found == []


def test_planner_and_hints_name_the_same() -> None:
    assert families.INSTALL["cupy"] == packages.install_line("cuda13")
    assert families.INSTALL["c++"] == packages.install_line("native")

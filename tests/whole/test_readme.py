"""Tests of the README: all Python blocks run in order as one program, and what it shows exists."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import nbattn
from nbattn.backends import families
from nbattn.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
VIDEO = ROOT / "configs" / "video_3d.toml"
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


def test_every_block_runs(
    capsys: pytest.CaptureFixture[str],
    cases: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # as for a user of the wheel, outside of the checkout
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), scope)
        cases("README blocks", 1)
    printed = capsys.readouterr().out
    assert len(BLOCKS) >= 4
    assert "axis 2  6 left, itself, 6 right; dilation 2, wrap" in printed
    assert re.search(r"chosen    (native/window|sdpa/dense\+fold) ", printed)  # with a compiler
    assert len(TEXT.splitlines()) <= 120


def test_every_name_works_after_one_import() -> None:
    names = {*re.findall(r"\bnbattn(?:\.\w+)+", TEXT)}
    assert {"nbattn.load", "nbattn.attention", "nbattn.plan"} <= names
    for name in names:
        assert eval(name, {"nbattn": nbattn}) is not None, name


def test_the_config_that_is_shown_is_part_of_the_file() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.S)
    shown, whole = tomllib.loads(shown), tomllib.loads(VIDEO.read_text())
    for section, tables in shown.items():
        for name, table in tables.items():
            assert table.items() <= whole[section][name].items()


def test_every_backend_is_in_the_table_of_families() -> None:
    names = {name.partition(":")[0] for name in families.BACKENDS[1:]}
    page = (ROOT / "docs" / "recipes" / "backends.md").read_text(encoding="utf-8")
    rows = page[page.index("## The families") :]
    assert {*re.findall(r"^\| `([\w-]+)` \|", rows, flags=re.M)} == names


def test_every_file_and_command_that_is_named_exists() -> None:
    named = re.findall(
        r"\]\((?!http)([^)#]+)\)|`((?:configs|docs|examples|benchmarks)/[\w./]*)`", TEXT
    )
    for path in map("".join, named):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"^ {4}nbattn (\w+)", TEXT, flags=re.M):
        assert command in COMMANDS, command
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\w+)", TEXT, flags=re.M):
        assert f"\n{target}:" in f"\n{targets}", target

"""Tests of the pages under docs/: Python runs, TOML loads, and shown output is the output."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import nbattn
from nbattn.config import LayerConfig, PlanConfig
from nbattn.mask_tables import CONSTRUCTORS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def name(page: Path) -> str:
    """A page as `mkdocs.yml` names it, "start/install.md"."""
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, kind: str) -> list[str]:
    """The code of fences; a title of one word, "before", only heads it (see test_migrating.py)."""
    fence = rf'```{kind}(?: title="\w+")?\n(.*?)```'
    return re.findall(fence, page.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_runs_and_prints_what_it_shows(
    page: Path,
    capsys: pytest.CaptureFixture[str],
    cases: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    scope: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), scope)
        cases("docs blocks", 1)
    assert capsys.readouterr().out == "".join(blocks(page, "text"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_configurations_of_a_page_load(page: Path, cases: Callable[[str, int], None]) -> None:
    for block in blocks(page, "toml"):
        assert nbattn.load(tomllib.loads(block)).masks
        cases("docs blocks", 1)


def test_the_page_on_configurations_names_every_key() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    tables = [
        tomllib.loads(block)
        for block in blocks(ROOT / "docs" / "reference" / "configuration.md", "toml")
    ]
    masks = {key for table in tables for mask in table["masks"].values() for key in mask}
    assert masks == {"axes", *CONSTRUCTORS}
    (layer,) = (table["layers"]["block"] for table in tables if "layers" in table)
    assert {*layer} == {f.name for f in fields(LayerConfig)}
    (plans,) = (table["plans"] for table in tables if "plans" in table)
    assert {key for plan in plans.values() for key in plan} == {f.name for f in fields(PlanConfig)}
    for axis in fields(nbattn.Axis):
        assert f"`{axis.name}`" in text

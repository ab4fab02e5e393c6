"""Tests of the pages under docs/: Python runs, TOML loads, output and pictures are the code's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import pyplot

import nbattn
from docs_tools import page_pictures
from nbattn.config import LayerConfig, PlanConfig
from nbattn.mask_tables import CONSTRUCTORS
from nbattn.pictures import files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_PICTURES = page_pictures.pages()


def name(page: Path) -> str:
    """A page as `mkdocs.yml` names it, "start/install.md"."""
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, kind: str) -> list[str]:
    """The code of fences; a title of one word, "before", only heads it (see test_migrating.py)."""
    fence = rf'```{kind}(?: title="\w+")?\n(.*?)```'
    return re.findall(fence, page.read_text(encoding="utf-8"), flags=re.S)


def drawn(picture: Path) -> list[tuple[str, list[float]]]:
    """What an SVG draws: texts, and the colours and corners of shapes."""
    found: list[tuple[str, list[float]]] = []
    for element in ElementTree.parse(picture).iter():
        if element.tag.endswith("}text"):
            found.append((element.text or "", []))
        elif element.tag.endswith("}path"):
            corners = re.findall(r"-?\d+\.?\d*", element.get("d", ""))
            found.append((element.get("style", ""), [round(float(x)) for x in corners]))
    return found


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_runs_and_prints_what_it_shows(
    page: Path,
    capsys: pytest.CaptureFixture[str],
    cases: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    scope: dict[str, object] = {}
    if page.stem == "quantising":
        pytest.importorskip("torchao", reason="no torchao, whose releases need a newer torch")
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), scope)
        cases("docs blocks", 1)
    assert capsys.readouterr().out == "".join(blocks(page, "text"))
    if page in WITH_PICTURES:  # `python -m docs_tools.page_pictures` draws them anew
        figures = map(pyplot.figure, pyplot.get_fignums())
        for picture, figure in zip(page_pictures.pictures(page), figures, strict=True):
            files.save(figure, tmp_path / "drawn.svg")
            assert drawn(tmp_path / "drawn.svg") == drawn(picture), picture.name
            cases("pictures of pages", 1)
    pyplot.close("all")


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

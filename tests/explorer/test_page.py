"""Tests of the page as text: one file, everything escaped, nothing loaded, errors with fixes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import nbattn
from nbattn import InputError, Mask
from nbattn.explorer import page

EVIL = "</script><script>alert(1)</script><!--\u2028&amp;\"'"


@pytest.fixture(scope="module")
def plan() -> nbattn.Plan:
    return nbattn.plan(Mask.neighborhood((3, 3)), (1, 8, 8, 2, 32), dtype="float32", device="cpu")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def test_any_text_stays_text(plan: nbattn.Plan):
    text = page.of_plan(plan, EVIL)
    found = Elements(text)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert json.loads(found.scripts[0])["views"][0]["name"] == EVIL
    assert "\u2028" not in text
    assert "<!--" not in text


def test_the_page_loads_nothing(plan: nbattn.Plan):
    text = page.of_plan(plan)
    links = [
        value
        for _, attributes in Elements(text).tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert links == ["#picture"]
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#moved", "#prefix"}
    assert not re.findall(r"@import|\bfetch\b|XMLHttpRequest|\bimport\b", text)
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_a_reader_without_scripts_has_the_plan_in_words(plan: nbattn.Plan):
    words = re.search(r"<noscript>(.*?)</noscript>", page.of_plan(plan), re.DOTALL)
    assert words is not None
    assert "plan    native/window" in words[1]


def test_every_placeholder_is_filled(plan: nbattn.Plan):
    text = page.of_plan(plan)
    assert not re.search(r"\{\{\w+\}\}", text)
    assert text.endswith("</html>")


def test_a_plan_writes_its_page(plan: nbattn.Plan, tmp_path: Path):
    path = tmp_path / "plan.html"
    plan.to_html(path)
    assert path.read_text("utf-8") == page.of_plan(plan)


def test_a_path_that_cannot_be_written_is_an_error_with_a_fix(plan: nbattn.Plan, tmp_path: Path):
    with pytest.raises(InputError) as error:
        plan.to_html(tmp_path)
    assert "Is a directory" in error.value.problem
    assert error.value.fix == repr(str(tmp_path / "plan.html"))
    with pytest.raises(InputError) as error:
        plan.to_html(tmp_path / "none" / "plan.html")
    assert error.value.fix == f"mkdir -p {tmp_path / 'none'}"


@pytest.mark.parametrize("path", [None, 3, b"plan.html", "plan\0.html"])
def test_what_is_no_path_is_an_error_with_a_fix(plan: nbattn.Plan, path: Any):
    with pytest.raises(InputError) as error:
        plan.to_html(path)
    assert error.value.problem.startswith(f"path={path!r} is a")
    assert error.value.fix == "path='plan.html'"


def test_scripts_are_all_on_the_page():
    folder = Path(page.__file__).parent / "assets"
    assert {path.name for path in folder.glob("*.js")} == set(page.SCRIPTS)

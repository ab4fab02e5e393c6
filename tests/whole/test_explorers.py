"""Tests of the explorers of the site: each is linked from its page, and is a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs_tools import explorers

PAGE = Path(__file__).parents[2] / "docs" / "explorer.md"


def test_the_page_links_every_explorer():
    linked = re.findall(r"\]\(explorer/([a-z-]+)\.html\)", PAGE.read_text("utf-8"))
    assert linked == list(explorers.EXAMPLES)


@pytest.mark.parametrize("name", [name for name in explorers.EXAMPLES if name != "million"])
def test_an_explorer_is_a_small_page(name: str):
    text = explorers.html(name)
    assert text.startswith("<!doctype html>")
    assert len(text) < 100_000
    assert '"tiles":{"reason"' not in text

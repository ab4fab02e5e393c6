"""Tests of docs/migrating: code of another library, as a page shows it, gives what the code that
replaces it gives.

A block titled `before, xformers` needs that library and sets `before`; a later one sets `after`.
Each test runs the other blocks of a page and those for one library, in order, and compares every
`after` with its `before`. It is skipped, with the reason, where the library is missing; `make
oracles` has all of them. Other pairs print whether they are equal, which test_docs.py reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import dialect_table
import outside_libraries as outside
import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs" / "migrating"
BLOCK = re.compile(r'^```python(?: title="(before|after)(?:, ([^"]+))?")?\n(.*?)^```', re.S | re.M)
Blocks = list[tuple[str, str, str]]  # "before", "after" or "", the library or "", and the code
LIBRARIES: dict[str, tuple[Callable[[], outside.Modules], ...]] = {
    "flash-attn": (outside.flash_attn, outside.flash_attn_around_its_reference),
    "natten": (outside.natten,),
    "natten 0.17": (outside.natten_0_17,),
    "timm": (outside.installed("timm"),),
    "xformers": (outside.xformers,),
}


def blocks(page: str) -> Blocks:
    return BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))


CASES = [
    pytest.param(page.stem, name, load, id=f"{page.stem}-{name}-{number}")
    for page in sorted(PAGES.glob("*.md"))
    for name in sorted({name for _, name, _ in blocks(page.stem)} - {""})
    for number, load in enumerate(LIBRARIES[name])
]


def compared(page: Blocks, name: str) -> int:
    """Runs the plain blocks and those of a library; returns how many pairs were equal."""
    scope: dict[str, object] = {"__name__": "page"}
    pairs = 0
    for _, owner, code in page:
        if owner not in ("", name):
            continue
        if owner and "after" in scope and "before" not in scope:
            del scope["after"]  # of a pair of another library
        exec(compile(code, "page", "exec"), scope)
        if "before" in scope and "after" in scope:
            before, after = scope.pop("before"), scope.pop("after")
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
            pairs += 1
    assert "before" not in scope
    return pairs


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize(("page", "name", "load"), CASES)
def test_code_before_and_after_are_equal(
    page: str,
    name: str,
    load: Callable[[], outside.Modules],
    cases: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside.stand_in(load(), monkeypatch)
    torch.manual_seed(0)
    found = blocks(page)
    pairs = compared(found, name)
    assert pairs >= sum(block[:2] == ("before", name) for block in found) > 0
    cases(f"migrating, {name}", pairs)


def test_pages_have_titles_that_tests_know() -> None:
    """A fence with another title, or a misspelt one, would be run by no test."""
    for page in PAGES.glob("*.md"):
        fences = re.findall(r"^```python.*$", page.read_text(encoding="utf-8"), flags=re.M)
        assert len(fences) == len(blocks(page.stem)), page.stem


def test_the_table_of_windows_matches_the_converters() -> None:
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    assert dialect_table.table() in text, "tests/instruments/dialect_table.py prints the table"

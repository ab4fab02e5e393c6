"""Tests of the committed table of halos: it is what its script writes now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_table_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    halo_table = __import__("halo_table")
    assert halo_table.RESULT.read_text(encoding="utf-8") == halo_table.page()


def test_meshes_have_as_many_parts_as_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    halo_table = __import__("halo_table")
    assert [*halo_table.meshes(8, (100, 3))] == [(4, 2), (8, 1)]
    case = halo_table.cases()[1]
    shards = halo_table.best(case, 512).own
    assert int(shards.max()) <= 1.25 * 270  # 9 x 6 x 5 tokens of 33 x 45 x 80


def test_the_page_on_ranks_shows_rows_of_the_table() -> None:
    page = (BENCHMARKS.parent / "docs" / "recipes" / "distributed.md").read_text(encoding="utf-8")
    table = (BENCHMARKS / "results" / "halo-table.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) (\| .*(?:times)) \|$", page, flags=re.M)
    assert len(rows) == 6
    for name, cells in rows:
        (case,) = re.findall(rf"\*\*{re.escape(name)}\*\*.*?(?=\n\*\*|\Z)", table, flags=re.S)
        assert f"| 64 {cells} |" in case, name

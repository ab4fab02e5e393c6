"""Entries of cost tables for tests, and the one plan they belong to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nbattn
from nbattn import Mask
from nbattn.planner import cost_table, planner
from nbattn.planner.cost_table import Entry, Rates

MASK, SHAPE = Mask.neighborhood((7, 7), dilation=4), (1, 28, 28, 2, 32)
ASKED: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
NAMES = ("sdpa/dense+fold", "tiled/tile", "sdpa/mask")  # by bound
RATES = Rates((("float32", 170e9), ("bfloat16", 1e12)), 9e9, 3e-6)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder for each test, and no plans from earlier tests."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("NBATTN_CACHE", str(folder))
    planner.forget()
    yield folder
    monkeypatch.undo()
    planner.forget()


def here() -> cost_table.Fingerprint:
    found = cost_table.fingerprint("cpu")
    assert found is not None
    return found


def plan(**named: Any) -> nbattn.Plan:
    return nbattn.plan(MASK, SHAPE, **{**ASKED, **named})


def entry(times: dict[str, float], *, rates: Rates | None = None, **changed: Any) -> Entry:
    """Times of the one request that these tests plan."""
    facts = cost_table.key(plan().request)
    return Entry(replace(here(), **changed), "2026-11-24", rates, {facts: times} if times else {})


def write(folder: Path, *entries: Entry) -> Path:
    path = folder / cost_table.NAME
    path.write_text(cost_table.encode(entries))
    path.chmod(0o600)
    planner.forget()
    return path


REVERSED = dict(zip(NAMES, (3e-3, 2e-3, 1e-3), strict=True))

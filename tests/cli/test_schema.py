"""Tests of `nbattn schema`: every key is described, and the configurations that are shipped fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nbattn.cli import main
from nbattn.config import files, schema
from nbattn.config.schema_texts import tables

ROOT = Path(__file__).parents[2]
KEYS = [(name, key, entry) for name, table in tables(schema())
        for key, entry in table.get("properties", {}).items()]  # fmt: skip


def test_printed_schema_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found == schema()
    assert list(found["properties"]) == ["masks", "layers", "plans"]


@pytest.mark.parametrize(("table", "key", "entry"), KEYS, ids=lambda part: str(part)[:20])
def test_key_has_a_description_and_an_example_or_a_default(
    table: str, key: str, entry: dict[str, Any]
) -> None:
    assert entry["description"].endswith(".")
    assert entry.get("examples") or "default" in entry
    validator = jsonschema.Draft202012Validator({**entry, "$defs": schema()["$defs"]})
    for example in entry.get("examples", ()):
        assert not [error.message for error in validator.iter_errors(example)]


def test_tables_are_described_without_code() -> None:
    for name, table in tables(schema()):
        assert table["description"].endswith("."), name
        assert ">>>" not in table["description"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.*")), ids=lambda p: p.name)
def test_configuration_fits(path: Path) -> None:
    name, data = files.read(path)
    jsonschema.validate(files.plain(name, data), schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"masks": {"m": {"axes": [{"lefft": 3}]}}},
        {"masks": {"m": {"axes": [{"left": -1}]}}},
        {"masks": {"m": {}}},
        {"layers": {"l": {"mask": "m", "dim": 8}}},
        {"plans": {"p": {"mask": "m", "query": "1,2"}}},
        {"plan": {}},
    ],
)
def test_mistake_does_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())

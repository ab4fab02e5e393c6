"""Tests of entries in the notations of files: what is written is read again as the same."""

from __future__ import annotations

import ast
import json
import tomllib
from typing import Any

import pytest
import yaml

from nbattn.config import notation

TABLES: list[dict[str, Any]] = [
    {"left": 3},
    {"axes": [{"left": 8, "causal": True}, {"border": "wrap"}]},
    {"neighborhood": {"kernel_size": [7, 7], "is_causal": False}},
    {"proj_drop": 0.1, "name": 'a "quoted" name'},
    {"full": {}},
]


@pytest.mark.parametrize("table", TABLES)
def test_what_is_written_is_read_as_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(f"t = {{ {notation.TOML.entries(table)} }}")["t"] == table
    assert yaml.safe_load(f"{{{notation.YAML.entries(table)}}}") == table
    assert json.loads(f"{{{notation.JSON.entries(table)}}}") == table
    assert ast.literal_eval(f"{{{notation.PYTHON.entries(table)}}}") == table


def test_nothing_is_a_word_except_in_toml() -> None:
    each = (notation.TOML, notation.YAML, notation.JSON, notation.PYTHON)
    written = [one.entries({"left": None}) for one in each]
    assert written == ["no left", "left: null", '"left": null', '"left": None']


@pytest.mark.parametrize(
    ("python", "toml"),
    [
        ("left=3, or left=None for all", "left = 3, or no left for all"),
        ("align='bottom-right'.", 'align = "bottom-right".'),
        ("Axis(None, 0, causal=True)", "{ right = 0, causal = true }"),
        ("for all: nbattn.Mask(nbattn.Axis(1))", "for all: axes = [{ left = 1 }]"),
        ("Mask(Axis(3, 3), …)", "Mask({ left = 3, right = 3 }, …)"),
        ("Mask(Axis(1), Axis(2))", "axes = [{ left = 1 }, { left = 2 }]"),
        ("Mask.causal()", "causal = {}"),
        (
            "mask=Mask.neighborhood((7, 7), stride=2).",
            "neighborhood = { kernel_size = [7, 7], stride = 2 }.",
        ),
        ("Mask.unheard(3)", "Mask.unheard(3)"),
        ("query=[B, *space]", "query=[B, *space]"),
        ("Axis(side, 2", "Axis(side, 2"),
        ("scale=1e-3 and n=-1", "scale = 0.001 and n = -1"),
        ("query.to(torch.float16)", ""),
        ("query.mT, or dilation=2; or key.mT", "dilation = 2"),
        ("stride=3; or query.mT; or stride=4", "stride = 3; or stride = 4"),
        (
            "Mask(Axis(1)), with query.flatten(1, 2); or prefix=0",
            "axes = [{ left = 1 }]; or prefix = 0",
        ),
    ],
)
def test_fixes_in_python_become_entries(python: str, toml: str) -> None:
    assert notation.TOML.translated(python) == toml


def test_the_notation_is_that_of_the_file() -> None:
    assert notation.of("a/b.TOML") is notation.TOML
    assert notation.of("a.yml") is notation.of("a.yaml") is notation.YAML
    assert notation.of("a.json") is notation.JSON
    assert notation.of("mapping") is notation.PYTHON

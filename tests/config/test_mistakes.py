"""Tests of the exact error message of every mistake in a configuration."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from config_mistakes import CASES

import nbattn
from nbattn import ConfigError


def cases_of(text: str) -> list[tuple[str, str, str, str]]:
    """(title, suffix, content, expected) of every case."""
    found = []
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        body = [line for line in lines if line.startswith("    ")]
        suffix, *content = dedent("\n".join(body)).splitlines()
        found.append((title, suffix, "\n".join(content), "\n".join(lines[len(body) :])))
    return found


MALFORMED = cases_of(CASES)
assert len(MALFORMED) >= 45


def mistakes_of(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        nbattn.load(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [case[1:] for case in MALFORMED],
    ids=[c[0] for c in MALFORMED],
)
def test_message_of_every_malformed_file(
    tmp_path: Path, suffix: str, content: str, expected: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_text(content)
    lines = [f"{path}: {line}" for line in expected.splitlines()]
    assert mistakes_of(path) == "\n".join(lines)


def test_a_mapping_gets_the_message_of_a_file() -> None:
    bad = {"masks": {"a": {"axes": [{"lefft": 1}]}}}
    assert mistakes_of(bad).startswith("mapping: masks.a.axes[0].lefft: unknown key; legal: left,")


def test_config_errors_hold_their_mistakes_as_data() -> None:
    with pytest.raises(ConfigError) as caught:
        nbattn.load({"masks": {"a": {"axes": [{"border": "wrapp"}]}}})
    (mistake,) = caught.value.mistakes
    assert mistake.path == "masks.a.axes[0].border"
    assert mistake.found == 'found "wrapp"'
    assert mistake.legal == '"clip", "shift" or "wrap"'
    assert mistake.guess == '"wrap"'
    assert caught.value.source == "mapping"

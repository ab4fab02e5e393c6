"""Tests of hostile configuration files: unreadable, deeply nested, expanding, or with tags."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import nbattn
from nbattn import ConfigError


def mistakes_of(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        nbattn.load(source)
    return str(caught.value)


# Hostile input.


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message_of(name: str, content: bytes | None = None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        return mistakes_of(path).removeprefix(f"{path}: ")

    assert message_of("absent.toml") == "cannot be read: No such file or directory."
    (tmp_path / "video_3d.toml").write_text("")
    guess = f"{tmp_path / 'video_3d.toml'}"
    expected = f'cannot be read: No such file or directory. Did you mean "{guess}"?'
    assert message_of("video3d.toml") == expected
    (tmp_path / "folder.toml").mkdir()
    assert message_of("folder.toml") == "cannot be read: is not a regular file."
    assert message_of("masks.ini", b"") == "unknown kind of file; legal: .toml, .yaml, .yml, .json."
    assert message_of("masks") == "unknown kind of file; legal: .toml, .yaml, .yml, .json."
    assert message_of("latin.toml", b"# \xe9") == "byte 2 is not UTF-8; legal: UTF-8 text."
    large = "larger than 1048576 bytes; legal: up to 1048576 bytes."
    for name in ("large.toml", "large.yaml", "large.json"):
        assert message_of(name, b" " * 10_000_000) == large
    os.mkfifo(tmp_path / "pipe.toml")
    assert message_of("pipe.toml") == "cannot be read: is not a regular file."
    assert message_of("bom.toml", "\ufeff[masks.a]\nfull = 1".encode()) == (
        "masks.a.full: found 1; legal: a table; fix: full = { rank = 1 }."
    )
    nul = message_of("nul\0.toml")  # the rest is Python's
    assert re.fullmatch(r"cannot be read: (stat: )?embedded null (byte|character in path)\.", nul)


def test_deep_nesting_is_refused_in_every_format(tmp_path: Path) -> None:
    deep = "[" * 100_000
    for name, text, expected in [
        ("a.toml", f"a = {deep}", "not toml: nested deeper than 16."),
        ("a.yaml", deep, "not yaml: nested deeper than 16."),
        ("a.json", deep, "not json: nested deeper than 16."),
        ("b.json", '{"masks":' * 17 + "1" + "}" * 17, "is nested deeper than 16."),
    ]:
        path = tmp_path / name
        path.write_text(text)
        assert mistakes_of(path) == f"{path}: {expected}"
    circle: dict[str, Any] = {}
    circle["masks"] = circle
    assert mistakes_of(circle) == "mapping: is nested deeper than 16."


def test_an_alias_bomb_is_refused_before_it_is_built(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert (
        mistakes_of(path)
        == f"{path}: not yaml: line 2: aliases are not supported; write the value out."
    )
    bomb: Any = "x"
    for _ in range(10):
        bomb = [bomb] * 9
    assert mistakes_of({"masks": bomb}) == "mapping: holds more than 100000 values."


@pytest.mark.parametrize("tag", ["name:os.system", "object/new:os.system [id]", "module:os id"])
def test_python_tags_are_refused(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"masks: !!python/{tag}")
    assert "line 1: tags are not supported; write the value without !!python/" in mistakes_of(path)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("left: !!float '" + "1:" * 299 + "1'", "!!float"),  # 60 ** 299 overflows
        ("left: !!int '1:1:1'", "!!int"),
        ("left: !!binary x", "!!binary"),
        ("left: !!timestamp 2001-01-01", "!!timestamp"),
        ("left: !!set {a, b}", "!!set"),
        ("left: !!omap [a: 1]", "!!omap"),
        ("left: !!str 1", "!!str"),
        ("left: ! 1", "!"),
        ("left: !own 1", "!own"),
        ("? !!float 1:1\n: 1", "!!float"),
        ("!!map {left: 1}", "!!map"),
        ("!<tag:yaml.org,2002:seq> [1]", "!!seq"),
        ("%TAG !e! tag:e,2000:\n---\nleft: !e!own 1", "tag:e,2000:own"),
    ],
)
def test_tags_are_refused(tmp_path: Path, text: str, tag: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = 1 + text.count("\n") * text.startswith("%")
    says = f"not yaml: line {line}: tags are not supported; write the value without {tag}."
    assert mistakes_of(path) == f"{path}: {says}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (".inf: 1", '".inf"'),
        ("<<: {a: 1}", '"<<"'),
        ("=: 1", '"="'),
        ("1:1:1: 2", '"1:1:1"'),
        ("2001-01-01: 1", "2001-01-01"),
    ],
)
def test_keys_that_yaml_1_1_reads_otherwise_are_text(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert mistakes_of(path) == f"{path}: {key}: unknown key; legal: masks, layers, plans."


def test_yaml_without_its_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "a.yaml"
    path.write_text("masks: {}")
    expected = "YAML needs PyYAML, which is not installed; fix: pip install pyyaml."
    assert mistakes_of(path) == f"{path}: {expected}"

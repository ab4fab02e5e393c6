"""Writes entries of a table as the user's file has them: in TOML, YAML, JSON or Python."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nbattn.axis import Axis
from nbattn.fixes.code import closing, without_tensors
from nbattn.mask import Mask

_VALUE = r"""'[^']*'|"[^"]*"|-?\d[\d_.e+-]*\d|-?\d|True|False|None|\([^()]*\)|\[[^\[\]]*\]"""
_ARGUMENT = re.compile(rf"\b([a-z_]+)=({_VALUE})(?![\w(])")
_CALL = re.compile(r"\b(?:mask=)?(?:nbattn\.)?(?:Mask(?:\.[a-z_]+)?|Axis)\(")


class Notation:
    """One notation.

    Args:
        entry: the format of a key and its value.
        table: the format of the entries of a table in a line.
        words: true, false and null; the last is empty where there is none.
    """

    def __init__(self, entry: str, table: str, words: tuple[str, str, str]) -> None:
        self._entry, self._table, self._words = entry, table, words

    def entries(self, table: Mapping[str, Any]) -> str:
        """Entries as they stand in a table, on one line.

        >>> TOML.entries({"left": 3, "causal": True}), PYTHON.entries({"left": None})
        ('left = 3, causal = true', '"left": None')
        """
        return ", ".join(
            f"no {name}"
            if value is None and not self._words[2]
            else self._entry.format(self._key(name), self.value(value))
            for name, value in table.items()
        )

    def value(self, value: Any) -> str:
        """One value.

        >>> TOML.value({"sizes": (7, 7)}), YAML.value({"on": False}), PYTHON.value(["a"])
        ('{ sizes = [7, 7] }', '{on: false}', '["a"]')
        """
        if isinstance(value, Mapping):
            return self._table.format(self.entries(value)) if value else "{}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.value, value))}]"
        if value is None or isinstance(value, bool):
            return self._words[2 if value is None else int(not value)]
        return json.dumps(value, ensure_ascii=not str(value).isprintable())

    def _key(self, name: object) -> str:
        """A key: in quotes where it is more than a word, with its odd letters escaped."""
        text = str(name)
        inner = json.dumps(text, ensure_ascii=not text.isprintable())[1:-1]
        is_bare = self._entry.startswith('"') or re.fullmatch(r"[\w-]+", text, re.ASCII)
        return inner if is_bare else f'"{inner}"'

    def translated(self, text: str) -> str:
        """A fix in Python, with its arguments and masks as entries of a file.

        >>> TOML.translated("align=8, or Axis(1, 0, causal=True) for none ahead")
        'align = 8, or { left = 1, right = 0, causal = true } for none ahead'
        >>> TOML.translated("Mask(Axis(3, 3)); left=None"), YAML.translated("left=None")
        ('axes = [{ left = 3, right = 3 }]; no left', 'left: null')
        >>> TOML.translated("query.unsqueeze(1), or Mask.full(rank=2)")
        'full = { rank = 2 }'
        """
        text = without_tensors(text)
        done, start = "", 0
        for found in _CALL.finditer(text):
            if found.start() < start:
                continue
            end = closing(text, found.end())
            written = self._call(text[found.start() : end])
            if written:
                done += self._arguments(text[start : found.start()]) + written
                start = end
        return done + self._arguments(text[start:])

    def _call(self, code: str) -> str:
        """A mask or an axis as entries or as a table; empty if the code is not complete."""
        try:
            call: Any = ast.parse(code.removeprefix("mask="), mode="eval").body
            name = ast.unparse(call.func).removeprefix("nbattn.")
            if name == "Axis":
                return self.value(_axis(call))
            if name == "Mask":
                return self.entries({"axes": [_axis(axis) for axis in _parts(call)]})
            return self.entries({name.removeprefix("Mask."): _constructor(call)})
        except (SyntaxError, ValueError, TypeError, AttributeError):
            return ""

    def _arguments(self, text: str) -> str:
        def entry(found: re.Match[str]) -> str:
            try:
                return self.entries({found[1].removesuffix("_shape"): ast.literal_eval(found[2])})
            except (SyntaxError, ValueError):  # names: [B, *space]
                return found[0]

        return _ARGUMENT.sub(entry, text)


def _constructor(call: Any) -> dict[str, Any]:
    """The arguments of a mask constructor's call."""
    names = inspect.signature(getattr(Mask, call.func.attr)).parameters
    positional = zip(names, map(ast.literal_eval, call.args), strict=False)
    return dict(positional) | {part.arg: ast.literal_eval(part.value) for part in call.keywords}


def _parts(call: Any) -> list[Any]:
    """The axes of a mask's call."""
    if not call.args or call.keywords:
        raise ValueError
    return call.args


def _axis(call: Any) -> dict[str, Any]:
    """The fields of an axis's call."""
    if ast.unparse(call.func).removeprefix("nbattn.") != "Axis":
        raise ValueError
    names = [field.name for field in fields(Axis)]
    positional = zip(names[:2], (ast.literal_eval(part) for part in call.args), strict=False)
    named = {part.arg: ast.literal_eval(part.value) for part in call.keywords}
    return {
        name: value for name, value in {**dict(positional), **named}.items() if value is not None
    }


TOML = Notation("{} = {}", "{{ {} }}", ("true", "false", ""))
YAML = Notation("{}: {}", "{{{}}}", ("true", "false", "null"))
JSON = Notation('"{}": {}', "{{{}}}", ("true", "false", "null"))
PYTHON = Notation('"{}": {}', "{{{}}}", ("True", "False", "None"))
_OF_FILES = {".toml": TOML, ".yaml": YAML, ".yml": YAML, ".json": JSON}


def of(source: str) -> Notation:
    """The notation of a file by its name; of a mapping, Python's.

    >>> of("a.yml") is YAML, of("mapping") is PYTHON
    (True, True)
    """
    return _OF_FILES.get(Path(source).suffix.lower(), PYTHON)

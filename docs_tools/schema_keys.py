"""Every key of a configuration as tables, from the JSON schema that `nbattn schema` prints."""

from __future__ import annotations

import json
from typing import Any

from docs_tools.markdown import table
from nbattn import config

_TABLES = {
    "a mask": "MaskTable",
    "an axis": "Axis",
    "a layer": "LayerConfig",
    "a plan": "PlanConfig",
}
_LISTED = 4  # values that a cell lists
Row = tuple[str, str, str, str]


def markdown() -> str:
    """Returns a table for each kind of entry, and for the arguments of a mask's constructors."""
    kinds: dict[str, Any] = config.schema()["$defs"]
    parts = [f"### Keys of {title}\n\n{_keys(kinds[name])}" for title, name in _TABLES.items()]
    constructors = [name for name in kinds["MaskTable"]["properties"] if name in kinds]
    rows = [
        (f"`{name}`" if first else "", *row)
        for name in constructors
        for first, row in _first(_rows(kinds[name]))
    ]
    arguments = table(["Constructor", *_HEAD], rows)
    return "\n\n".join([*parts, f"### Keys of the constructors\n\n{arguments}"])


_HEAD = ("Key", "Value", "Default", "Meaning")


def _keys(kind: dict[str, Any]) -> str:
    return table(_HEAD, _rows(kind))


def _first(rows: list[Row]) -> list[tuple[bool, Row]]:
    """Rows, and whether each is the first."""
    return [(number == 0, row) for number, row in enumerate(rows)]


def _rows(kind: dict[str, Any]) -> list[Row]:
    return [
        (f"`{key}`", _values(about), _default(about, key in kind.get("required", ())), _says(about))
        for key, about in kind["properties"].items()
    ]


def _says(about: dict[str, Any]) -> str:
    return about.get("description", "")


def _default(about: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = about.get("default")
    return "none" if default is None else f"`{json.dumps(default)}`"


def _values(about: dict[str, Any]) -> str:
    """The legal values in a few words."""
    if "anyOf" in about:
        texts = [_values(one) for one in about["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(texts))
    if "enum" in about:
        values = [f"`{json.dumps(value)}`" for value in about["enum"] if value is not None]
        more = [f"… ({len(values)})"] * (len(values) > _LISTED)
        return ", ".join([*values[:_LISTED], *more])
    if "$ref" in about:
        return "table"
    kind = about.get("type", "")
    if kind == "array":
        inner = about.get("items", {})
        return f"list of {_many(_values(inner))}" if inner else "list"
    least = f" ≥ {about['minimum']}" if "minimum" in about else ""
    return _WORDS.get(kind, kind) + least


_WORDS = {"integer": "integer", "number": "number", "boolean": "true, false", "object": "table"}
_WORDS |= {"string": "text"}


def _many(text: str) -> str:
    """The plural of what a list has."""
    return {"text": "texts", "table": "tables"}.get(text) or (
        text.replace("integer", "integers") if text.startswith("integer") else f"lists{text[4:]}"
    )

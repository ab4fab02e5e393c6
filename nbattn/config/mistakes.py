"""Turns errors of pydantic and of the mask's own rules into mistakes with the key paths and values
of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from nbattn.axis import Axis, likely
from nbattn.config.files import KeyPath, quoted, show
from nbattn.config.grammar import (
    LayerConfig,
    MaskTable,
    PlanConfig,
    UnknownNameError,
    axis_mistakes,
    constructor_mistakes,
)
from nbattn.errors import Mistake, NbattnError

_LEGAL = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dataclass_type": "a table",
    "dict_type": "a table",
}
_SHOWN = 40  # most characters of a value in a message
_LISTED = 30  # most legal names in a message


def of_errors(errors: Sequence[Mapping[str, Any]], data: object) -> list[Mistake]:
    """Returns the mistakes behind pydantic's errors, one per key path.

    Where several types are legal, pydantic reports an error for each: of those for the same value,
    the deepest is used, and equally deep ones are joined.
    """
    placed = [(_path(error["loc"], data), error) for error in errors]
    paths = [path for path, _ in placed]
    joined: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for path, error in placed:
        if not any(len(deep) > len(path) and deep[: len(path)] == path for deep in paths):
            joined.setdefault(path, []).append(error)
    mistakes = {path: _mistake(path, group) for path, group in joined.items()}
    for path in dict.fromkeys(filter(None, map(_owner, joined))):
        reported = {p[len(path)] for p in mistakes if len(p) > len(path) == len(_owner(p))}
        broken = _field_mistakes(path, _at(data, path), reported)
        if broken:
            mistakes.pop(path, None)
        mistakes |= broken
    return list(mistakes.values())


def _owner(path: KeyPath) -> KeyPath:
    """Returns the path of the axis or constructor table that contains this path, or ()."""
    match path:
        case ("masks", _, "axes", int(), *_):
            return path[:4]
        case ("masks", _, str(name), *_) if name in MaskTable.arguments:
            return path[:3]
        case _:
            return ()


def _field_mistakes(
    path: KeyPath, table: object, reported: set[str | int]
) -> dict[KeyPath, Mistake]:
    """Returns the mistakes of single fields that are not reported yet: pydantic does not check
    them, and a mask raises only its first error.
    """
    if not isinstance(table, dict):
        return {}
    rest = {name: value for name, value in table.items() if name not in reported}
    errors = axis_mistakes(rest) if len(path) == 4 else constructor_mistakes(str(path[2]), rest)
    return {(*path, name): of_exception((*path, name), error) for name, error in errors}


def _at(data: Any, path: KeyPath) -> object:
    for part in path:
        data = data[part]
    return data


def of_exception(path: KeyPath, error: Exception) -> Mistake:
    """Returns the mistake behind an error of nbattn's own rules."""
    if isinstance(error, UnknownNameError):
        name, known = error.args
        problem, legal = f"{_shown(name)} is not known", ", ".join(map(quoted, known[:_LISTED]))
        legal += f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
        return Mistake(
            show(path), problem, legal or "nothing: none is defined", guess=_guess(name, known, '"')
        )
    if isinstance(error, NbattnError):
        return Mistake(show(path), error.problem, fix=error.fix)
    return Mistake(show(path), str(error))


def _path(location: Sequence[str | int], data: Any) -> KeyPath:
    """Returns the keys and indices of a location, the last of which may be missing in the data;
    without the names of type alternatives that pydantic adds.
    """
    path: list[str | int] = []
    for number, part in enumerate(location):
        inside: Any = range(len(data)) if isinstance(data, list) else data
        if isinstance(data, (dict, list)) and part in inside:
            data = cast("Any", data)[part]
        elif not (isinstance(data, dict) and number == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def _mistake(path: KeyPath, errors: Sequence[Mapping[str, Any]]) -> Mistake:
    """Makes one mistake from the errors at one path."""
    first = errors[0]
    if first["type"] == "unexpected_keyword_argument":
        known = tuple(keys(path[:-1]))
        return Mistake(show(path), "unknown key", ", ".join(known), guess=_guess(path[-1], known))
    if first["type"] == "missing":
        return Mistake(show(path), "is missing")
    if isinstance(inner := first.get("ctx", {}).get("error"), Exception):
        return of_exception(path, inner)
    legal: list[str] = []
    guess = ""
    for error in errors:
        expected = error.get("ctx", {}).get("expected", "").replace("'", '"')
        legal.append(expected or _LEGAL.get(error["type"]) or error["msg"])
        guess = guess or _guess(error["input"], expected.replace(" or ", ", ").split(", "), '"')
    return Mistake(show(path), f"found {_shown(first['input'])}", " or ".join(legal), guess=guess)


def keys(path: KeyPath) -> Iterator[str]:
    """Returns the legal keys of the table at a path.

    >>> list(keys(("masks", "encoder", "causal")))
    ['align']
    """
    tables: dict[str, type[Any]] = {"layers": LayerConfig, "plans": PlanConfig}
    match path:
        case ("masks", _):
            table: type[Any] = MaskTable.table
        case ("masks", _, "axes", *_):
            table = Axis
        case ("masks", _, str(name), *_):
            table = MaskTable.arguments[name].table
        case (str(section), _) if section in tables:
            table = tables[section]
        case _:
            return iter(("masks", "layers", "plans"))
    return (f.name for f in fields(table))


def _guess(value: object, known: Sequence[str], quote: str = "") -> str:
    """Returns the known name that was probably meant, or an empty string."""
    guess = likely(value, [name.strip('"') for name in known])
    return guess and f"{quote}{guess}{quote}"


def _shown(value: object) -> str:
    """Returns a value for a message as it is in the file; tables and lists by their type."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    text = quoted(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

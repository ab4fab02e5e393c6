"""Mistakes: what pydantic and the mask's own rules say of a table, in the words and key paths of
its author.
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
_SHOWN = 40  # characters of a value
_LISTED = 30  # names that are legal


def of_errors(errors: Sequence[Mapping[str, Any]], data: object) -> list[Mistake]:
    """The mistakes behind pydantic's errors, one a key path.

    Where several types are legal, pydantic reports each: of those that look at the same value, the
    one that got deepest stays, and equally deep ones are joined.
    """
    placed = [(_path(error["loc"], data), error) for error in errors]
    paths = [path for path, _ in placed]
    joined: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for path, error in placed:
        if not any(len(other) > len(path) and other[: len(path)] == path for other in paths):
            joined.setdefault(path, []).append(error)
    found = {path: _mistake(path, group) for path, group in joined.items()}
    for path in dict.fromkeys(filter(None, map(_owner, joined))):
        told = {other[len(path)] for other in found if len(other) > len(path) == len(_owner(other))}
        broken = _field_mistakes(path, _at(data, path), told)
        if broken:
            found.pop(path, None)
        found |= broken
    return list(found.values())


def _owner(path: KeyPath) -> KeyPath:
    """The table of an axis or of a constructor's arguments that a path is in, or nothing."""
    match path:
        case ("masks", _, "axes", int(), *_):
            return path[:4]
        case ("masks", _, str(name), *_) if name in MaskTable.arguments:
            return path[:3]
        case _:
            return ()


def _field_mistakes(path: KeyPath, table: object, told: set[str | int]) -> dict[KeyPath, Mistake]:
    """What fields break by themselves, besides those whose mistake is told: pydantic stops before
    them, and a mask's own rules at the first.
    """
    if not isinstance(table, dict):
        return {}
    rest = {name: value for name, value in table.items() if name not in told}
    own = axis_mistakes(rest) if len(path) == 4 else constructor_mistakes(str(path[2]), rest)
    return {(*path, name): of_exception((*path, name), error) for name, error in own}


def _at(data: Any, path: KeyPath) -> object:
    for part in path:
        data = data[part]
    return data


def of_exception(path: KeyPath, error: Exception) -> Mistake:
    """The mistake behind an error of nbattn's own rules."""
    if isinstance(error, UnknownNameError):
        name, known = error.args
        found, legal = f"{_found(name)} is not known", ", ".join(map(quoted, known[:_LISTED]))
        legal += f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
        return Mistake(
            show(path), found, legal or "nothing: none is defined", guess=_guess(name, known, '"')
        )
    if isinstance(error, NbattnError):
        return Mistake(show(path), error.problem, fix=error.fix)
    return Mistake(show(path), str(error))


def _path(location: Sequence[str | int], data: Any) -> KeyPath:
    """The part of a location that is keys and indices of the data, and a key that is missing there;
    names of alternatives, which pydantic puts in between, left out.
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
    """One mistake from the errors at one path."""
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
    return Mistake(show(path), f"found {_found(first['input'])}", " or ".join(legal), guess=guess)


def keys(path: KeyPath) -> Iterator[str]:
    """The legal keys of the table at a path.

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


def _guess(given: object, known: Sequence[str], quote: str = "") -> str:
    """The known name that was probably meant, or nothing."""
    found = likely(given, [name.strip('"') for name in known])
    return found and f"{quote}{found}{quote}"


def _found(value: object) -> str:
    """A value as its author wrote it, or what it is where it is long."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    text = quoted(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

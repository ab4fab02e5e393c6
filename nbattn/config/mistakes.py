"""Turns errors of pydantic and of the mask's own rules into mistakes with the key paths and values
of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from nbattn import synonyms
from nbattn.axis import Axis
from nbattn.config import answers
from nbattn.config.files import KeyPath, quoted, show
from nbattn.config.grammar import (
    EntriesError,
    LayerConfig,
    MaskTable,
    PlanConfig,
    UnknownNameError,
    axis_mistakes,
    constructor_mistakes,
)
from nbattn.config.notation import Notation
from nbattn.errors import MaskError, Mistake, NbattnError

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
# What is legal for a key without a default.
_NEEDED = {
    "mask": "the name of a mask",
    "dim": "the channels, a whole number",
    "num_heads": "a whole number",
    "query": "a shape [batch, *space, heads, head_dim]",
    "kernel_size": "a whole number, or one per axis",
    "left": "a whole number",
}
_MISSING = "is missing"
_SHOWN = 40  # most characters of a value in a message
_LISTED = 30  # most legal names in a message


def of_errors(
    errors: Sequence[Mapping[str, Any]], data: object, notation: Notation
) -> list[Mistake]:
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
    mistakes = {path: _mistake(path, group, data, notation) for path, group in joined.items()}
    for path in dict.fromkeys(filter(None, map(_owner, joined))):
        reported = {p[len(path)] for p in mistakes if len(p) > len(path) == len(_owner(p))}
        broken = _field_mistakes(path, _at(data, path), reported, notation)
        if broken:
            mistakes.pop(path, None)
        mistakes |= broken
    meant = {(*path[:-1], mistake.guess) for path, mistake in mistakes.items() if path}
    return [
        mistake
        for path, mistake in mistakes.items()
        if not (path in meant and mistake.found == _MISSING)
    ]


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
    path: KeyPath, table: object, reported: set[str | int], notation: Notation
) -> dict[KeyPath, Mistake]:
    """Returns the mistakes of single fields that are not reported yet: pydantic does not check
    them, and a mask raises only its first error.
    """
    if not isinstance(table, dict):
        return {}
    rest = {name: value for name, value in table.items() if name not in reported}
    errors = axis_mistakes(rest) if len(path) == 4 else constructor_mistakes(str(path[2]), rest)
    return {(*path, name): of_exception((*path, name), error, notation) for name, error in errors}


def _at(data: Any, path: KeyPath) -> object:
    for part in path:
        data = data[part]
    return data


def of_exception(path: KeyPath, error: Exception, notation: Notation) -> Mistake:
    """Returns the mistake behind an error of nbattn's own rules."""
    if isinstance(error, UnknownNameError):
        name, known = error.args
        guess = _value_guess(path, name, known)
        legal = "" if guess and len(known) > _LISTED else _listed(path, known)
        return Mistake(show(path), f"{_shown(name)} is not known", legal, guess=guess)
    if isinstance(error, NbattnError):
        shapes = error.fix.replace("query_shape=", "query=").replace("key_shape=", "key=")
        fix = notation.translated(shapes)
        legal = "" if fix or path[-1] not in ("query", "key") else _NEEDED["query"]
        return Mistake(show(path), error.problem, legal, fix)
    return Mistake(show(path), str(error))


def placed(error: Exception, fix: str, mask: str) -> str:
    """The fix of a layer's or a plan's error; what is to be written in its mask says so."""
    place = f"in masks.{mask}: "
    if isinstance(error, MaskError):
        return fix and place + fix
    parts = fix.split("; or ")
    return "; or ".join(place * part.lstrip('"').startswith("axes") + part for part in parts)


def _listed(path: KeyPath, known: Sequence[str]) -> str:
    """The legal names; of backends, those without a provider, and then the providers."""
    short = [name for name in known if ":" not in name or path[-1] == "mask"]
    listed = ", ".join(map(quoted, short[:_LISTED]))
    listed += f" and {len(short) - _LISTED} more" if len(short) > _LISTED else ""
    providers = [name.partition(":")[2] for name in known if name.startswith("flash:")]
    if len(short) < len(known) and providers:
        listed += f'; "flash" and "flash-model" also with {", ".join(f":{p}" for p in providers)}'
    return listed or "nothing: none is defined"


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


def _mistake(
    path: KeyPath, errors: Sequence[Mapping[str, Any]], data: object, notation: Notation
) -> Mistake:
    """Makes one mistake from the errors at one path."""
    first = errors[0]
    if first["type"] == "unexpected_keyword_argument":
        return _unknown_key(path, _at(data, path[:-1]), notation)
    if first["type"] == "missing":
        return Mistake(show(path), _MISSING, _NEEDED.get(str(path[-1]), ""))
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, EntriesError):
        legal_entries = f"exactly one of {', '.join(MaskTable.keys)}"
        fix = answers.of_entries(cast("Any", _at(data, path)), notation)
        found = f"defines {' and '.join(inner.args) or 'nothing'}"
        return Mistake(show(path), found, legal_entries, fix)
    if isinstance(inner, Exception):
        return of_exception(path, inner, notation)
    legal: list[str] = []
    guess = ""
    for error in errors:
        expected = error.get("ctx", {}).get("expected", "").replace("'", '"')
        legal.append(expected or _LEGAL.get(error["type"]) or error["msg"])
        known = expected.replace(" or ", ", ").replace('"', "").split(", ")
        guess = guess or _value_guess(path, error["input"], known)
    table = _at(data, path[:-1])
    forms = (answers.of_value(path, table, one, notation) for one in legal if path and not guess)
    fix = next(filter(None, forms), "")
    found = f"found {_shown(first['input'])}"
    return Mistake(show(path), found, " or ".join(legal), fix=fix, guess=guess)


def _unknown_key(path: KeyPath, table: Any, notation: Notation) -> Mistake:
    """The mistake of a key that a table does not have: its name here, or what says the same."""
    known = tuple(keys(path[:-1]))
    answer = answers.of_key(path, table, notation)
    problem = f"unknown key: {answer.why}" if answer.why else "unknown key"
    guess = "" if answer.why or answer.fix else _key_guess(path, known)
    return Mistake(show(path), problem, ", ".join(known), fix=answer.fix, guess=guess)


def keys(path: KeyPath) -> Iterator[str]:
    """Returns the legal keys of the table at a path.

    >>> list(keys(("masks", "encoder", "causal")))
    ['align', 'rank']
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


def _key_guess(path: KeyPath, known: Sequence[str]) -> str:
    """Returns the known key that was probably meant, or an empty string."""
    match path:
        case ("layers", *_):
            words = synonyms.LAYER_KEYS
        case ("plans", *_):
            words = synonyms.PLAN_KEYS
        case ("masks", _, "axes", *_):
            words = synonyms.AXIS_KEYS
        case ("masks", _, _):
            words = synonyms.MASK_KEYS
        case ("masks", *_):
            words = synonyms.ARGUMENTS
        case _:
            words = synonyms.SECTIONS
    return synonyms.meant(path[-1], known, words)


_OF_VALUES: Mapping[str, synonyms.Synonyms] = {
    "dtype": synonyms.DTYPES,
    "backend": synonyms.BACKENDS,
    "layout": synonyms.LAYOUTS,
    "require": {**synonyms.STRATEGIES, **synonyms.BACKENDS},
    "forbid": {**synonyms.STRATEGIES, **synonyms.BACKENDS},
}


def _value_guess(path: KeyPath, value: object, known: Sequence[str]) -> str:
    """Returns the known value that was probably meant, in quotes, or an empty string."""
    if path[-1:] == ("device",):
        guess = synonyms.device(value, known)
    else:
        guess = synonyms.meant(value, known, _OF_VALUES.get(str(path[-1]), {}))
    return guess and f'"{guess}"'


def _shown(value: object) -> str:
    """Returns a value for a message as it is in the file; tables and lists by their type."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    text = quoted(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

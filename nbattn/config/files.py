"""Reads a TOML, YAML or JSON file, or a mapping, as plain data within limits.

Files are not trusted: nothing in them is executed or imported, and their size, depth and number of
values are checked before their data is used.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
import stat
import tomllib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, cast

from nbattn.errors import ConfigError, Mistake, kind
from nbattn.packages import install_line

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_VALUES = 100_000
_MAX_INTEGER = 2**63 - 1
_SHOWN = 40  # most characters of a file's text in a message
KeyPath = tuple[str | int, ...]


def read(path: str | os.PathLike[str]) -> tuple[str, object]:
    """Returns the name of a file for messages, and its data.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not TOML, YAML or JSON.
    """
    name = os.fsdecode(path)
    parse = PARSERS.get(Path(name).suffix.lower())
    if parse is None:
        problem, guess = "unknown kind of file", _neighbour(name)
        raise ConfigError(name, [Mistake("", problem, ", ".join(PARSERS), guess=guess)])
    try:
        if not stat.S_ISREG(Path(name).stat().st_mode):  # opening a pipe would wait
            raise OSError(0, "is not a regular file")
        with open(name, "rb") as file:  # noqa: PTH123 - a Path would normalise the name
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(name, [Mistake("", f"cannot be read: {reason}")]) from None
    if len(content) > MAX_BYTES:
        problem = f"larger than {MAX_BYTES} bytes"
        raise ConfigError(name, [Mistake("", problem, f"up to {MAX_BYTES} bytes")])
    try:
        return name, parse(content.decode("utf-8-sig"))
    except ImportError:
        problem, fix = "YAML needs PyYAML, which is not installed", install_line("yaml")
        raise ConfigError(name, [Mistake("", problem, fix=fix)]) from None
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
        raise ConfigError(name, [Mistake("", problem, "UTF-8 text")]) from None
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        problem = (
            f"nested deeper than {MAX_DEPTH}" if isinstance(error, RecursionError) else f"{error}"
        )
        problem = " ".join(problem.split())
        raise ConfigError(name, [Mistake("", f"not {Path(name).suffix[1:]}: {problem}")]) from None


def _neighbour(name: str) -> str:
    """The file of the same folder whose name is most similar, in quotes; else an empty string."""
    path = Path(name)
    with contextlib.suppress(OSError, ValueError):
        others = [other.name for other in path.parent.iterdir() if other.suffix in PARSERS]
        close = get_close_matches(path.name, others, 1) if path.name not in others else []
        return f'"{path.with_name(close[0])}"' if close else ""
    return ""


def _toml(text: str) -> object:
    return tomllib.loads(text)


def _json(text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table: dict[str, object] = {}
        for name, value in pairs:
            if name in table:
                raise ValueError(f"key {name[:_SHOWN]!r} occurs twice")
            table[name] = value
        return table

    return json.loads(text, object_pairs_hook=unique)


def _yaml(text: str) -> object:
    """Parses YAML without aliases, tags or duplicate keys, whose plain values are null, bools or
    decimal numbers, else text.

    YAML 1.1 parses `no` as False, `012` as 10 and `12:30` as 750.
    Tags would allow these values, and sets, dates and bytes, which no key here takes.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1
                raise ValueError(f"line {line}: aliases are not supported; write the value out")
            if tag := getattr(self.peek_event(), "tag", None):
                line = self.peek_event().start_mark.line + 1
                shown = tag.replace("tag:yaml.org,2002:", "!!")[:_SHOWN]
                raise ValueError(
                    f"line {line}: tags are not supported; write the value without {shown}"
                )
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: key {key.value!r} occurs twice")
                seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set[str]()
            return super().construct_mapping(node, deep)

    for tag, pattern in _YAML_PLAIN.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), None)
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


_YAML_PLAIN = {
    "null": r"^(?:~|null|Null|NULL|)$",
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^[-+]?(?:0|[1-9][0-9]*)$",
    "float": r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$",
}
PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": _toml,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
}


class _TooLargeError(Exception):
    """The data exceeds a limit, which the argument names."""


def plain(source: str, value: object) -> dict[str, Any]:
    """Returns data as dicts with text keys, lists, text, numbers, bools and None; resolves the
    containers of other libraries (OmegaConf).

    Raises:
        ConfigError: the data is not a mapping, has other types, or exceeds a limit.
    """
    mistakes: list[Mistake] = []
    reader = _Reader(mistakes)
    try:
        data = reader.plain(value, ())
    except _TooLargeError as error:
        raise ConfigError(source, [Mistake("", str(error))]) from None
    if not isinstance(data, dict) and not mistakes:
        mistakes.append(Mistake("", f"is {kind(value)}", "a table"))
    if mistakes:
        raise ConfigError(source, mistakes)
    return cast("dict[str, Any]", data)


class _Reader:
    """Walks once over untrusted data, counts values and collects mistakes."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes, self.count = mistakes, 0

    def plain(self, value: object, path: KeyPath) -> object:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _TooLargeError(f"holds more than {MAX_VALUES} values")
        if len(path) > MAX_DEPTH:
            raise _TooLargeError(f"is nested deeper than {MAX_DEPTH}")
        if isinstance(value, Mapping):
            names = self._read(path, lambda: list(cast("Mapping[object, object]", value)), [])
            return {name: self._item(value, name, path) for name in self._names(names, path)}
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
            items = cast("Sequence[object]", value)
            count = self._read(path, lambda: len(items), 0)
            return [self._item(items, n, path) for n in range(count)]
        return self._leaf(value, path)

    def _names(self, names: list[object], path: KeyPath) -> Iterator[str]:
        for name in names:
            if isinstance(name, str) and _is_text(name):
                yield name
            else:
                problem = "not Unicode" if isinstance(name, str) else kind(name)
                self._wrong(path, f"key {_short(name)} is {problem}", "text keys")

    def _item(self, container: Any, key: Any, path: KeyPath) -> object:
        return self.plain(self._read((*path, key), lambda: container[key], None), (*path, key))

    def _read(self, path: KeyPath, get: Callable[[], Any], default: Any) -> Any:
        """Reads from a foreign container, which may raise anything, as for a missing value."""
        try:
            return get()
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            self._wrong(path, f"cannot be read: {reason.splitlines()[0]}", "")
        return default

    def _leaf(self, value: object, path: KeyPath) -> object:
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, str):
            if _is_text(value):
                return str(value)
            return self._wrong(path, "text that is not Unicode", "UTF-8 text")
        try:
            number = operator.index(cast("Any", value))
        except Exception:  # a TypeError; foreign types may raise anything
            return self._wrong(
                path, f"is {kind(value)}", "tables, lists, text, numbers, true, false"
            )
        if abs(number) > _MAX_INTEGER:
            return self._wrong(path, "an integer beyond 64 bits", f"up to {_MAX_INTEGER}")
        return number

    def _wrong(self, path: KeyPath, problem: str, legal: str) -> None:
        self.mistakes.append(Mistake(show(path), problem, legal))


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:37]}…"


def show(path: KeyPath) -> str:
    """Returns a key path in the notation of messages.

    >>> show(("masks", "my mask", "axes", 0, "left"))
    'masks."my mask".axes[0].left'
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if re.fullmatch(r"[\w-]{1,80}", part) else quoted(part[:80])
            text += f".{word}" if text else word
    return text


def quoted(value: object) -> str:
    """Returns a value as JSON on one line, without escapes of printable letters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)

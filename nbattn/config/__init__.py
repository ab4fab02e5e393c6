"""Loads configurations: files and mappings that declare masks, layers and plan requests.

[masks.encoder]
axes = [{ left = 8, causal = true }, { left = 6, right = 6, border = "wrap" }]
[layers.block1]
mask = "encoder"
dim = 512
num_heads = 8
[plans.train]
mask = "encoder"
query = [2, 16, 32, 8, 64]
training = true
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from nbattn.config import files, mistakes, notation, schema_texts, shipped
from nbattn.config.grammar import STRICT, LayerConfig, MaskTable, PlanConfig
from nbattn.errors import ConfigError, InputError, Mistake, kind
from nbattn.mask import Mask
from nbattn.mask_tables import changed_fields

__all__ = ["Config", "LayerConfig", "PlanConfig", "load", "schema"]

SECTIONS = ("masks", "layers", "plans")
_LISTED = 3  # names of a section that repr() lists


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Config:
    """The masks, layers and plan requests of a configuration, by name; all of them are legal.

    Args:
        masks: `nbattn.Mask` objects.
        layers: `LayerConfig`, whose `build()` makes the layer.
        plans: `PlanConfig`, whose `plan()` makes the plan.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    masks: dict[str, Annotated[Mask, MaskTable()]] = field(default_factory=dict[str, Mask])
    layers: dict[str, LayerConfig] = field(default_factory=dict[str, LayerConfig])
    plans: dict[str, PlanConfig] = field(default_factory=dict[str, PlanConfig])

    def __repr__(self) -> str:
        sections = {name: list(getattr(self, name)) for name in SECTIONS}
        named = (f"{name}: {_listed(names)}" for name, names in sections.items() if names)
        return f"Config({'; '.join(named)})"

    def _repr_html_(self) -> str:
        """The sections as tables, for notebooks."""
        from nbattn.config import notebook

        return notebook.of_config(self)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns plain data for `load`: every mask by its axes, without defaults.

        >>> config = load({"masks": {"nat": {"neighborhood": {"kernel_size": 3}}}})
        >>> config.to_dict()
        {'masks': {'nat': {'axes': [{'left': 1, 'right': 1, 'border': 'shift'}]}}}
        >>> load(config.to_dict()) == config
        True
        """
        names = {mask: name for name, mask in reversed(self.masks.items())}
        sections = {
            "masks": {name: mask.to_dict() for name, mask in self.masks.items()},
            "layers": {
                n: changed_fields(c) | {"mask": names[c.mask]} for n, c in self.layers.items()
            },
            "plans": {
                n: changed_fields(c) | {"mask": names[c.mask]} for n, c in self.plans.items()
            },
        }
        return {name: section for name, section in sections.items() if section}


_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)


def load(source: str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    """Reads a configuration.

    A file with masks only needs no torch. Nothing in a file is executed. Files may have up to
    1 MiB; YAML may have no aliases; plain values are null, bools, decimal numbers, else text.

    Args:
        source: the path of a TOML, YAML or JSON file, the bare name of a configuration that comes
            with nbattn, or a mapping (OmegaConf's too). Text without a suffix and without a
            separator of paths is such a name, unless the working directory has a file of it.

    Raises:
        ConfigError: lists every mistake, one per line: file, key path, the value, what is legal,
            and a guess at what was meant. Of an unknown name, lists those that exist.

    >>> config = load({"masks": {"local": {"sliding_window": {"left": 511}}}})
    >>> config.masks["local"]
    Mask(Axis(511, 0))
    >>> load("video_3d")
    Config(masks: encoder; layers: block; plans: train, train_hopper)
    """
    if isinstance(source, Mapping):
        name, data = "mapping", source
    elif isinstance(source, os.PathLike) or (isinstance(source, str) and "\n" not in source):
        name, data = files.read(shipped.path(source))
    else:
        given = "the text of a file" if isinstance(source, str) else kind(source)
        raise InputError(f"load takes a path or a mapping, not {given}.", _loaded(source))
    return _Loading(name, files.plain(name, data)).config()


_OWN = "mask"  # the name of a mask that is read alone


def mask_of(table: object) -> Mask:
    """Reads the table of one mask, for `Mask.from_dict`.

    Raises:
        ConfigError: as `load`; key paths begin in the table.
    """
    if isinstance(table, Mask):
        mistake = Mistake("", "is a Mask", "a table", "Mask.from_dict(mask.to_dict())")
    elif isinstance(table, str) and table.lstrip().startswith("{"):
        mistake = Mistake("", "is text", "a table", "Mask.from_dict(json.loads(text))")
    elif isinstance(table, Mapping) and isinstance(named := table.get("masks"), Mapping) and named:
        fix = f"nbattn.load(data).masks[{next(iter(named))!r}]"
        mistake = Mistake("", "is a whole configuration", "the table of one mask", fix)
    else:
        try:
            return load({"masks": {_OWN: table}}).masks[_OWN]
        except ConfigError as error:
            raise ConfigError(error.source, [*map(_in_table, error.mistakes)]) from None
    raise ConfigError("mapping", [mistake])


def _in_table(mistake: Mistake) -> Mistake:
    """A mistake of a file with one mask, as one of the mask's own table."""
    path = mistake.path.removeprefix(f"masks.{_OWN}").removeprefix(".")
    return mistake._replace(path=path, fix=mistake.fix.removeprefix(f'"{_OWN}": '))


def _loaded(source: object) -> str:
    """How to load what is neither a path nor a mapping."""
    if isinstance(source, str):
        is_toml = re.search(r"^\s*\[[^\]{]+\]\s*$", source, re.MULTILINE)
        is_json = source.lstrip().startswith("{")
        parse = "tomllib.loads" if is_toml else "json.loads" if is_json else "yaml.safe_load"
        return f"nbattn.load({parse}(text))"
    if isinstance(source, (bytes, bytearray)):
        return "nbattn.load(tomllib.loads(source.decode()))"
    if isinstance(getattr(source, "name", None), str):
        return "nbattn.load(file.name)"
    if isinstance(source, Config):
        return "nbattn.load(config.to_dict())"
    return 'nbattn.load({"masks": {"mine": {"neighborhood": {"kernel_size": 7}}}})'


def schema() -> dict[str, Any]:
    """Returns the grammar as a JSON schema, for editors: `nbattn schema > nbattn.schema.json`."""
    grammar = schema_texts.described(_ADAPTER.json_schema())
    first = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    order = ("title", "description", "type", "properties", "additionalProperties", "$defs")
    return {**first, "title": "nbattn", **{key: grammar[key] for key in order if key in grammar}}


class _Loading:
    """Loads one configuration, entry by entry, so that all mistakes are found at once."""

    def __init__(self, source: str, data: dict[str, Any]) -> None:
        self.source, self.data, self.notation = source, data, notation.of(source)
        self.mistakes: list[Mistake] = []
        self.masks: dict[str, Mask | None] = {}

    def config(self) -> Config:
        self._check_sections()
        for name in self._names("masks"):
            self.masks[name] = self._entry("masks", name)
        layers = {name: self._checked("layers", name) for name in self._names("layers")}
        plans = {name: self._checked("plans", name) for name in self._names("plans")}
        if self.mistakes:
            raise ConfigError(self.source, self.mistakes)
        return Config(masks=self.masks, layers=layers, plans=plans)  # pyright: ignore[reportArgumentType]

    def _check_sections(self) -> None:
        rest = {name: value for name, value in self.data.items() if name not in SECTIONS}
        tables = {
            n: {} if isinstance(v, dict) else v for n, v in self.data.items() if n in SECTIONS
        }
        self._validate({**rest, **tables})

    def _names(self, section: str) -> list[str]:
        table = self.data.get(section)
        return list(table) if isinstance(table, dict) else []

    def _entry(self, section: str, name: str) -> Any:
        """Returns one validated entry, or None if it has mistakes, which are collected."""
        config = self._validate({section: {name: self.data[section][name]}})
        return None if config is None else getattr(config, section)[name]

    def _checked(self, section: str, name: str) -> Any:
        """Returns the entry after the checks that need all its fields."""
        entry = self._entry(section, name)
        if entry is not None:
            for key, error in entry.mistakes():
                path = (section, name, key) if key else (section, name)
                mistake = mistakes.of_exception(path, error, self.notation)
                mask = self.data[section][name]["mask"]
                fix = mistakes.placed(error, mistake.fix, mask)
                self.mistakes.append(mistake._replace(fix=fix))
        return entry

    def _validate(self, data: dict[str, Any]) -> Config | None:
        try:
            # JSON, because strict validation of Python objects refuses the dicts and lists of files
            return _ADAPTER.validate_json(json.dumps(data), context=self.masks)
        except ValidationError as error:
            self.mistakes += mistakes.of_errors(error.errors(), data, self.notation)
        return None


def _listed(names: Sequence[str]) -> str:
    """Returns the first names, and how many there are if some are left out."""
    more = f" … ({len(names)})" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

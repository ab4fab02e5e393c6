"""Shows a configuration as HTML in notebooks: a small table per section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nbattn.axis import describe
from nbattn.pictures.notebook import table, text

if TYPE_CHECKING:
    from nbattn.config import Config


def of_config(config: Config) -> str:
    """Returns a table per section: names, and what is not a default."""
    sections = config.to_dict()
    masks = [
        [text(name), "<br>".join(text(describe(axis)) for axis in mask.axes)]
        for name, mask in config.masks.items()
    ]
    tables = [table(["mask", "keys of a query, per axis"], masks)] * bool(masks)
    for title in ("layers", "plans"):
        rows = [[text(name), *_arguments(entry)] for name, entry in sections.get(title, {}).items()]
        tables += [table([title[:-1], "mask", "arguments"], rows)] * bool(rows)
    return "".join(tables) or "<i>an empty configuration</i>"


def _arguments(entry: Mapping[str, object]) -> list[str]:
    rest = (f"{name}={value!r}" for name, value in entry.items() if name != "mask")
    return [text(entry["mask"]), text(", ".join(rest))]

"""Writes the parts of `docs/` that are made from the code: `python -m docs_tools`."""

from __future__ import annotations

from pathlib import Path

from docs_tools import command_line, gallery, schema_keys, support

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
_BEFORE, _AFTER = "<!-- keys: python -m docs_tools writes what follows -->", "<!-- end of keys -->"


def generated() -> dict[Path, str]:
    """Returns every page that is made from the code, or has a part that is, as it should be."""
    configuration = REFERENCE / "configuration.md"
    head, _, rest = configuration.read_text("utf-8").partition(_BEFORE)
    _, _, tail = rest.partition(_AFTER)
    return {
        REFERENCE / "command-line.md": command_line.markdown(),
        REFERENCE / "support.md": support.markdown(),
        gallery.PAGE: gallery.page(gallery.content()),
        configuration: f"{head}{_BEFORE}\n\n{schema_keys.markdown()}\n\n{_AFTER}{tail}",
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")

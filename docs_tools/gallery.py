"""Writes `docs/gallery/index.md`, and its pictures, from `gallery.toml`.

`python -m docs_tools` writes the page with the other generated ones, `python -m docs_tools.gallery`
the pictures, all or those of named entries. The same entries and versions of matplotlib and fonts
give the same bytes.
"""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nbattn
from nbattn import Axis, Mask, recipes
from nbattn.pictures.signs import SIGNS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "gallery" / "index.md"
PICTURES = DOCS / "images" / "gallery"
Entry = dict[str, Any]

_TICK_LOOK = ' style="fill: #1a1a1a; stroke: #1a1a1a; stroke-width: 0.5"'  # its definition has it

_HEAD = """\
# Masks as people know them

{count} masks as models and libraries use them. Each is one line of Python, and its picture is what
that line draws. Tests compare both with the rule of the source, written down a second time without
nbattn.

Pictures are drawn at small sizes; a model's own mask stands beside them. This draws one of them:

```python
from nbattn import Axis, Mask, recipes

mask = Mask.neighborhood((4, 4), stride=4)
axes = mask.plot((12, 12), query=(5, 6), kind="neighborhood")
```

`kind="neighborhood"` shows the keys of one query, `kind="matrix"` all queries and keys: see
[Pictures](../reference/pictures.md). The [explorer](../explorer.md) moves the query. Names like
`nat_tiny` are configurations that come with nbattn: `nbattn.load("nat_tiny")`.
"""


def content() -> dict[str, Any]:
    """The file of entries: groups, entries, and what is not sayable."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def mask_of(code: str) -> Mask:
    """The mask that an entry's line of Python makes."""
    return eval(code, {"Mask": Mask, "Axis": Axis, "recipes": recipes, "nbattn": nbattn})


def spaces(entry: Entry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of the query axes and of the key axes."""
    return tuple(entry["space"]), tuple(entry.get("key_space", entry["space"]))


def drawn(entry: Entry) -> str:
    """The picture of an entry as SVG."""
    from matplotlib import pyplot, rc_context

    query_space, key_space = spaces(entry)
    query = tuple(entry["query"]) if "query" in entry else None
    with rc_context({"svg.hashsalt": "nbattn", "svg.fonttype": "path"}):
        axes = mask_of(entry["code"]).plot(
            query_space, key_space, query=query, kind=entry.get("kind", "matrix")
        )
        for patch in axes.patches:
            if (sign := str(patch.get_label()).removeprefix("_")) in SIGNS:
                patch.set_gid(sign)
        into = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Title": entry["name"]}
        axes.figure.savefig(into, format="svg", facecolor="white", metadata=metadata)
        pyplot.close(axes.figure)
    return _short(into.getvalue())


def _short(svg: str) -> str:
    """The same picture in fewer bytes: what draws nothing is left out, numbers have two digits, and
    paths use H and V for straight lines. Cells have their sign as class, since slices share signs.
    """
    svg = re.sub(rf' id="([{"".join(SIGNS)}])"', r' class="\1"', svg)
    svg = re.sub(r"<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' id="(?:[a-z]+\d?d?_\d+|matplotlib\.axis_\d)"', "", svg)
    svg = re.sub(r' d="([MLz\s\d.-]*)"', lambda path: f' d="{_short_path(path[1])}"', svg)
    svg = re.sub(r' d="([^"]*)"', lambda path: f' d="{_tight(path[1])}"', svg)
    svg = re.sub(r' ([xy])="(-?[\d.]+)"', lambda at: f' {at[1]}="{_digits(at[2])}"', svg)
    svg = "".join(f"{line.strip()}\n" for line in svg.splitlines() if line.strip())
    svg = svg.replace(_TICK_LOOK, "")
    while (less := re.sub(r"<g>\n(<(?:use|path)[^>]*/>\n)</g>\n", r"\1", svg)) != svg:
        svg = less
    return svg


def _tight(path: str) -> str:
    """A path without the spaces that separate nothing."""
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", path).strip()


def _short_path(path: str) -> str:
    """A path of straight lines, absolute as matplotlib writes it."""
    parts: list[str] = []
    x = y = ""
    for command, numbers in re.findall(r"([MLz])([^MLz]*)", path):
        if command == "z":
            parts.append("z")
            continue
        to_x, to_y = map(_digits, numbers.split())
        if command == "M" or (to_x != x and to_y != y):
            parts.append(f"{command}{to_x} {to_y}")
        elif to_y != y:
            parts.append(f"V{to_y}")
        elif to_x != x:
            parts.append(f"H{to_x}")
        x, y = to_x, to_y
    return "".join(parts)


def _digits(number: str) -> str:
    return f"{float(number):.2f}".rstrip("0").rstrip(".")


def page(found: dict[str, Any]) -> str:
    """The gallery's page."""
    lines = [_HEAD.format(count=len(found["entries"]))]
    for group in found["groups"]:
        lines.append(f"## {group['name']}\n\n{group['text']}\n")
        lines += [_section(entry) for entry in found["entries"] if entry["group"] == group["name"]]
    lines.append("## Not sayable, and what to do instead\n")
    lines.append("A mask is the AND of its axes, and each axis has one rule for all heads.\n")
    lines += [
        f"**{item['name']}.** {item['what']} *Instead:* {item['instead']}\n"
        for item in found["unsayable"]
    ]
    return "\n".join(lines)


def _section(entry: Entry) -> str:
    """One mask: line of Python, picture, what it does, who uses it."""
    parts = [f"### {entry['name']}", f"```python\nmask = {entry['code']}\n```"]
    parts += [f"![{_alt(entry)}](../images/gallery/{entry['id']}.svg)", entry["text"]]
    parts.append(f"Used in: {entry['used']}")
    if "model" in entry:
        parts.append(f"The mask of {entry['model']['name']}: `{entry['model']['code']}`")
    return "\n\n".join([*parts, f"*{_drawing(entry)}.*\n"])


def _alt(entry: Entry) -> str:
    """What the picture shows, for those who do not see it: the keys of its query by axis, or those
    of the first, the middle and the last row of a matrix.
    """
    query_space, key_space = spaces(entry)
    dense = mask_of(entry["code"]).dense(query_space, key_space)
    if "query" in entry:
        row = dense.reshape(*query_space, -1)[tuple(entry["query"])]
        axes = np.nonzero(row.reshape(key_space))
        keys = [f"{_keys(one)} of axis {axis}" for axis, one in enumerate(axes)]
        return f"Query {tuple(entry['query'])} attends to {'; '.join(keys)}"
    rows = [0, len(dense) // 2, len(dense) - 1]
    first, *others = (f"query {at} attends to {_keys(np.nonzero(dense[at])[0])}" for at in rows)
    return "; ".join([first[:1].upper() + first[1:], *others])


def _keys(found: NDArray[np.intp]) -> str:
    """Numbers of keys, each once, those that follow one another as a range."""
    keys = np.unique(found)
    runs = np.split(keys, np.flatnonzero(np.diff(keys) != 1) + 1)
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"{'keys' if len(keys) > 1 else 'key'} {', '.join(parts)}"


def _drawing(entry: Entry) -> str:
    """What is drawn, and the share of pairs."""
    query_space, key_space = spaces(entry)
    attended = mask_of(entry["code"]).dense(query_space, key_space).mean()
    size = _size(query_space)
    if query_space != key_space:
        size = f"{size} queries on {_size(key_space)} keys"
    else:
        size += " tokens"
    at = f", query {tuple(entry['query'])}" if "query" in entry else ""
    return f"Drawn: {size}{at}; {100 * attended:.3g} % of all pairs"


def _size(space: tuple[int, ...]) -> str:
    return " × ".join(map(str, space))


def main(names: Sequence[str] = ()) -> None:
    """Writes the pictures of all entries, or of those with these names."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for entry in content()["entries"]:
        if not names or entry["id"] in names:
            (PICTURES / f"{entry['id']}.svg").write_text(drawn(entry), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

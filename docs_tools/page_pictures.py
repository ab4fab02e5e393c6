"""Draws the pictures of pages: a page's Python blocks make the figures that the page shows.

The n-th figure that the blocks of a page make is the n-th SVG that the page links to. So a reader can
make every picture by the code beside it: `python -m docs_tools.page_pictures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
ROOMS = ("start", "concepts", "design", "reference")
_BLOCK = re.compile(r"```python\n(.*?)```", flags=re.S)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.svg)\)")


def pages() -> list[Path]:
    """The pages whose blocks make figures."""
    found = sorted(page for room in ROOMS for page in (DOCS / room).glob("*.md"))
    return [page for page in found if ".plot(" in page.read_text(encoding="utf-8")]


def pictures(page: Path) -> list[Path]:
    """The files of a page's pictures, in their order."""
    links = _PICTURE.findall(page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in links]


def figures(page: Path) -> Iterator[tuple[Path, object]]:
    """Runs the blocks of a page; yields the file of each picture, and its figure."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    scope: dict[str, object] = {}
    pyplot.close("all")
    with redirect_stdout(StringIO()):
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            exec(compile(block, page.name, "exec"), scope)
    for file, number in zip(pictures(page), pyplot.get_fignums(), strict=True):
        yield file, pyplot.figure(number)
    pyplot.close("all")


def four_masks() -> tuple[Path, object]:
    """The picture of the README: its file, and the figure."""
    from matplotlib import pyplot

    from nbattn import Axis, Mask

    masks = {
        "causal window": (Mask(Axis(4, causal=True)), (14,), None),
        "7 × 7 at a border": (Mask.neighborhood(7, rank=2), (14, 14), (1, 8)),
        "5 × 5, dilation 2": (Mask.neighborhood(5, dilation=2, rank=2), (14, 14), (7, 7)),
        "around a circle": (Mask(Axis(2, 2, border="wrap")), (14,), None),
    }
    figure, panels = pyplot.subplots(1, 4, figsize=(7.6, 2.7), layout="constrained")
    signs: dict[str, object] = {}
    for (title, (mask, space, query)), panel in zip(masks.items(), panels, strict=True):
        mask.plot(space, query=query, kind="neighborhood" if query else "matrix", ax=panel)
        panel.set_title(title, fontsize=8)
        legend = panel.get_legend()
        words = [text.get_text() for text in legend.get_texts()]
        signs |= dict(zip(words, legend.legend_handles, strict=True))
        legend.remove()
    look = {"loc": "outside lower center", "ncols": 6, "fontsize": 7, "frameon": False}
    figure.legend(signs.values(), signs.keys(), **look)
    return DOCS / "images" / "readme.svg", figure


if __name__ == "__main__":
    from nbattn.pictures import files

    made = chain([four_masks()], chain.from_iterable(figures(page) for page in pages()))
    for path, figure in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(figure, path)

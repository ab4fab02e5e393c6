"""Makes the explorers of the site while it is built: pages of plans that `docs/explorer.md` links.

They are made then, and not kept, since reasons against candidates tell what is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import nbattn
from nbattn import Axis, Mask
from nbattn.explorer import page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


class Example(NamedTuple):
    """One explorer: its mask, the space of its tokens, and the options of its plan."""

    mask: Mask
    space: tuple[int, ...]
    options: dict[str, Any]


_CPU = {"device": "cpu", "dtype": "float32"}
_GPU = {"device": "sm_90", "dtype": "bfloat16"}
EXAMPLES = {
    "sliding-window": Example(Mask.sliding_window(12), (48,), _CPU),
    "sinks": Example(Mask(Axis(7, causal=True, prefix=4)), (48,), _CPU),
    "neighborhood": Example(Mask.neighborhood((7, 7)), (24, 32), _CPU),
    "dilated": Example(Mask.neighborhood((5, 5), dilation=(2, 3)), (20, 24), _CPU),
    "weather": Example(Mask(Axis(2, 2), Axis(4, 4, border="wrap")), (16, 32), _CPU),
    "video": Example(
        Mask(Axis(3, causal=True), *[Axis(3, 3, border="shift")] * 2),
        (8, 16, 16),
        {**_GPU, "backend": "cuda"},
    ),
    "million": Example(Mask.sliding_window(4095), (1 << 20,), _GPU),
}


def html(name: str) -> str:
    """The page of an example."""
    mask, space, options = EXAMPLES[name]
    return page.of_plan(nbattn.plan(mask, (1, *space, 8, 64), **options), name)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages to the site; mkdocs calls this by name."""
    from mkdocs.structure.files import File

    for name in EXAMPLES:
        files.append(File.generated(config, f"explorer/{name}.html", content=html(name)))
    return files

"""An extension of griffe that shows the `>>>` examples of docstrings as code.

Examples stand in a docstring as paragraphs of their own. Markdown would take `>>>` for quotations,
so that each run of such paragraphs is put into a fence.
"""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of a module, class, function or attribute after it was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""Returns a docstring, whose examples are fenced.

    >>> fenced("Adds.\n\n>>> add(1)\n2").splitlines()
    ['Adds.', '', '```pycon', '>>> add(1)', '2', '```']
    """
    paragraphs: list[str] = []
    for paragraph in text.split("\n\n"):
        is_example = paragraph.lstrip().startswith(">>>")
        if is_example and paragraphs and paragraphs[-1].endswith("\n```"):
            paragraphs[-1] = f"{paragraphs[-1].removesuffix('```')}\n{paragraph}\n```"
        else:
            paragraphs.append(f"```pycon\n{paragraph}\n```" if is_example else paragraph)
    return "\n\n".join(paragraphs)

"""An extension of griffe, by which docstrings and signatures become what a reader needs.

Examples stand in a docstring as paragraphs of their own. Markdown would take `>>>` for quotations,
so that each run of such paragraphs is put into a fence. Of a function with overloads one signature
is shown. Parameters that catch misspelt arguments, to answer them, are none.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_CATCHING = ("more", "others", "unknown")


class Readable(griffe.Extension):
    """Changes every docstring and every signature of a package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Changes a package after it was read."""
        _change(pkg)


def _change(one: griffe.Object) -> None:
    if one.docstring is not None:
        one.docstring.value = linked(fenced(one.docstring.value))
    if isinstance(one, griffe.Function):
        _unite(one)
    for member in one.members.values():
        if not member.is_alias:
            _change(member)  # pyright: ignore


def _unite(function: griffe.Function) -> None:
    """Takes the parameters and the result of the last overload, with the function's defaults where
    they are keywords.
    """
    own = function.parameters
    if function.overloads:
        last = function.overloads[-1]
        for parameter in last.parameters:
            is_keyword = parameter.kind is griffe.ParameterKind.keyword_only
            if is_keyword and parameter.required and parameter.name in own:
                parameter.default = own[parameter.name].default
        function.parameters, function.returns, function.overloads = (
            last.parameters,
            last.returns,
            None,
        )
        own = function.parameters
    for one in own:
        if one.kind is griffe.ParameterKind.var_positional:
            one.default = None  # griffe has "()", which a reader would take for a value
    function.parameters = griffe.Parameters(*(one for one in own if one.name not in _CATCHING))


def fenced(text: str) -> str:
    r"""Returns a docstring, whose examples are fenced, with empty lines as Python prints them.

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
    return "\n\n".join(paragraphs).replace("<BLANKLINE>\n", "\n")


def linked(text: str) -> str:
    """Returns a docstring, whose paths of pages are links, as the pages of the reference need them.

    >>> linked("see docs/recipes/layers.md.")
    'see [recipes/layers](../recipes/layers.md).'
    """
    return re.sub(r"`?docs/([\w/-]+)\.md`?", r"[\1](../\1.md)", text)

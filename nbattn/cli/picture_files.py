"""The options --svg, --pdf and --png: a figure in one file of each format."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.cli import arguments, values
from nbattn.cli.parser import Parser
from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

FORMATS = ("svg", "pdf", "png")  # those of pictures.files, which needs numpy


def add_options(parser: Parser, what: str) -> Callable[..., Any]:
    """Adds the options to a group of their own; returns what adds more to the group."""
    add = parser.add_argument_group("figures, by matplotlib").add_argument
    for name in FORMATS:
        text = f"write {what}" if name == FORMATS[0] else f"the same as a {name.upper()}"
        add(f"--{name}", type=values.drawing(name), metavar="FILE", help=text)
    return add


def files(options: argparse.Namespace) -> list[Path]:
    """Returns the files that are asked for.

    Raises:
        InputError: one cannot be written, or has another ending.
    """
    for name in FORMATS:
        values.check_writable(f"--{name}", getattr(options, name), f".{name}")
    found = [getattr(options, name) for name in FORMATS]
    return [path for path in found if path is not None]


def save(figure: Any, paths: list[Path]) -> None:
    """Writes a figure to files."""
    from nbattn.pictures.files import save

    for path in paths:
        save(figure, path)


def draw_plan(options: argparse.Namespace, plans: dict[str, Plan], paths: list[Path]) -> None:
    """Draws the blocks of a plan to files, if there are any.

    Raises:
        InputError: several plans are selected; the fix names the first.
    """
    if not paths:
        return
    names = [name for name in plans if not name.endswith(arguments.EXTRAS)]
    if len(names) > 1:
        problem = f"a figure is of one plan, and {len(names)} plans are selected."
        others = [word for word in options.words if word != options.config]
        raise InputError(problem, arguments.line(options, options.config, names[0], *others))
    from nbattn.pictures import style, tiles

    save(tiles.draw(plans[names[0]], figure=style.plain_figure).figure, paths)

"""The page on the command line, from the parsers of the commands."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator

from docs_tools.markdown import table
from nbattn import cli
from nbattn.cli.parser import Parser

_HEAD = """# Command line

`nbattn COMMAND`, or `python -m nbattn COMMAND`. `nbattn COMMAND --help` shows what is on this page, which `python -m docs_tools`
writes from the parsers.
"""


def markdown() -> str:
    """Returns the page."""
    parsers = [importlib.import_module(f"nbattn.cli.{name}").parser() for name in cli.COMMANDS]
    rows = [(f"[`nbattn {one.command}`](#nbattn-{one.command})", one.summary) for one in parsers]
    ending = cli.top().epilog or ""
    status = ending[ending.index("exit status:") :]
    parts = [_HEAD, table(["Command", "What it does"], rows), "## Exit status", *_prose(status)]
    return "\n\n".join(part.strip("\n") for part in (*parts, *map(_command, parsers))) + "\n"


def _command(parser: Parser) -> str:
    usage = parser.format_usage().removeprefix("usage: ").strip()
    parts = [f"## nbattn {parser.command}", *_prose(parser.description or "")]
    parts.append(f"```console\n{usage}\n```")
    help_of = parser._get_formatter()._expand_help  # with values in the place of %(default)s
    for group in parser._action_groups:
        shown = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if shown:
            title = _TITLES.get(group.title or "", group.title or "")
            rows = [(_written(one), _cell(help_of(one) if one.help else "")) for one in shown]
            parts.append(table([title[:1].upper() + title[1:], "Meaning"], rows))
    return "\n\n".join([*parts, *_prose(parser.epilog or "")])


_TITLES = {"positional arguments": "argument", "options": "option"}


def _written(action: argparse.Action) -> str:
    """An option or an argument as a user writes it."""
    value = action.metavar or (action.choices and "{" + ",".join(action.choices) + "}") or ""
    names = action.option_strings or [""]
    takes = value and action.nargs != 0
    words = [f"{name} {value}".strip() if takes else name for name in names]
    dots = " ..." if action.nargs in ("*", "+") else ""
    return ", ".join(f"`{word}{dots}`" for word in words)


def _cell(text: str) -> str:
    """The help of an option; names of options and what is in quotes become code."""
    text = " ".join(text.split())
    return re.sub(
        r"(?<!\w)'[^']+'(?!\w)|(?<![\w`-])--[a-z][a-z-]+", lambda found: _code(found[0]), text
    )


def _code(text: str) -> str:
    return f"`{text[1:-1] if text.startswith(chr(39)) else text}`"


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of a help text as Markdown: what is indented is code, or a table of statuses."""
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        flowing = [line for line in lines if not line.startswith(" ")]
        indented = [line.strip() for line in lines if line.startswith(" ")]
        words = _cell(" ".join(flowing))
        if not indented:
            yield words
        elif words == "exit status:":
            rows = [_cell(line).split(maxsplit=1) for line in indented]
            yield table(["Exit status", "Meaning"], rows)
        else:
            yield words[:1].upper() + words[1:]
            yield "\n".join(["```console", *indented, "```"])

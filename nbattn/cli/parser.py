"""The parser of command lines: help that fits the terminal, and errors with the line to write.

A misspelt option gets a suggestion, and every error shows the whole corrected command.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from nbattn.cli import screen
from nbattn.errors import InputError

_INDENTED = re.compile(r"\s+(\S+( \S+)*\s{2,})?")


@dataclass(frozen=True)
class Kind:
    """The type of an option's value.

    Args:
        what: the type in words, "a shape".
        example: a value of the type, which a fix shows.
        read: returns the value of a text, or raises ValueError.
    """

    what: str
    example: str
    read: Callable[[str], Any]

    def __call__(self, text: str) -> Any:
        """Returns the value of a text, as argparse asks for it."""
        try:
            return self.read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.what}") from None


class Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal; paragraphs are wrapped, indented lines are kept."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=screen.width())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(map(self._paragraph, text.strip("\n").split("\n\n")))

    def _paragraph(self, text: str) -> str:
        blocks: list[str] = []
        flowing: list[str] = []
        for line in [*text.split("\n"), ""]:
            if line and not line[0].isspace():
                flowing.append(line)
                continue
            if flowing:
                blocks.append(screen.wrapped(" ".join(flowing)))
                flowing = []
            if line:
                blocks.append(_indented(line))
        return "\n".join(blocks)


def _indented(line: str) -> str:
    """Wraps an indented line below its second column; an example command, as one to paste."""
    start = _INDENTED.match(line)
    head = start[0] if start else ""
    if line.lstrip().startswith(("nbattn ", "pip ")) and not head.strip():
        return screen.wrapped_command(line.lstrip(), head)
    if len(head) > screen.width() // 2:  # no room beside the first column
        return screen.wrapped(line.strip(), line[: len(line) - len(line.lstrip())], " " * 4)
    return screen.wrapped(line[len(head) :], head)


class Parser(argparse.ArgumentParser):
    """The parser of one command."""

    def __init__(self, command: str, summary: str, description: str, epilog: str = "") -> None:
        """Makes a parser without options.

        Args:
            command: its name, "plan".
            summary: what it does, one line in the list of commands.
            description, epilog: the help in front of the options and behind them.
        """
        super().__init__(
            prog=f"nbattn {command}".strip(),
            usage=None,
            description=description,
            epilog=epilog,
            formatter_class=Help,
            allow_abbrev=False,
        )
        self.command, self.summary = command, summary
        self.words: list[str] = []

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses the words behind the command.

        Raises:
            InputError: they are invalid; the fix is the corrected command line.
        """
        self.words = list(words)
        if {"-h", "--help"} & {*words}:  # in front of intermixed parsing, which hides positionals
            self.print_help()
            self.exit()
        options, unknown = self.parse_known_intermixed_args(self.words)
        if unknown:
            self._refuse(unknown[0])
        return options

    def format_usage(self) -> str:
        """Returns the usage without a list of all options, which the help has anyway."""
        places = [action for action in self._actions if not action.option_strings]
        formats = {"?": "[{}]", "*": "[{} ...]"}
        names = [formats.get(str(p.nargs), "{}").format(p.metavar or p.dest) for p in places]
        command = [] if self.command else ["COMMAND"]
        return f"usage: {' '.join([self.prog, *command, '[OPTIONS]', *names])}\n"

    def format_help(self) -> str:
        """Returns the help, with the short usage."""
        return super().format_help().replace(super().format_usage(), self.format_usage(), 1)

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = file or sys.stderr
        stream.write(screen.printable(message, stream))

    def error(self, message: str) -> NoReturn:
        """Raises an InputError with the corrected command line for an error of argparse."""
        found = sys.exc_info()[1]
        assert isinstance(found, argparse.ArgumentError), message  # no option is required
        assert found.argument_name is not None
        name = found.argument_name.split("/")[-1]
        action = next(one for one in self._actions if name in (*one.option_strings, one.metavar))
        problem = f"{name}: {found.message}"
        if "expected one argument" in found.message:
            problem = f"{name} needs a value"
        elif action.choices:
            problem = f"{name}: {self._given(name)!r} is not one of {', '.join(action.choices)}"
        example = [self._example(action, self._given(name))] if action.nargs != 0 else []
        raise InputError(f"{problem}.", self._line(_with_value(self.words, name, example)))

    def _refuse(self, word: str) -> NoReturn:
        """Raises an InputError for an option or a word that the command does not have."""
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            rest = [other for other in self.words if other != word]
            raise InputError(f"{word!r} is one word too many.", self._line(rest))
        known = {name: action for action in self._actions for name in action.option_strings}
        near = difflib.get_close_matches(option, known, 1, cutoff=0.7)
        if not near:
            raise InputError(f"there is no option {option}.", self._line(["--help"]))
        words = [near[0] + equals + value if other == word else other for other in self.words]
        action, is_last = known[near[0]], words[-1] == near[0]
        words += [self._example(action, "")] * (is_last and action.nargs != 0)
        problem = f"there is no option {option}. Did you mean {near[0]}?"
        raise InputError(problem, self._line(words))

    def _line(self, words: Sequence[str]) -> str:
        return f"{self.prog} {shlex.join(words)}".strip()

    def _given(self, name: str) -> str:
        """Returns the value of an option as it was written."""
        for word, following in zip(self.words, [*self.words[1:], ""], strict=True):
            if word == name:
                return following
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return ""

    def _example(self, action: argparse.Action, given: str) -> str:
        """Returns a legal value: the choice or the example that is most like what was given."""
        if action.choices:
            choices = [*map(str, action.choices)]
            return (difflib.get_close_matches(given, choices, 1) or choices)[0]
        example = getattr(action.type, "example", None) or str(action.metavar or action.dest)
        listed = ",".join(re.findall(r"\d+", given))  # of 2x14x14x4x32, where a list is meant
        is_list = "," in example and "," in listed and re.fullmatch(r"[\d\s,;x*()\[\]]+", given)
        return listed if is_list and example.replace(",", "").isdigit() else example


def _with_value(words: Sequence[str], name: str, value: list[str]) -> list[str]:
    """Returns the words with another value of an option, which may have none, before or after."""
    fixed: list[str] = []
    is_value = False
    for word in words:
        if is_value and not word.startswith("--"):
            is_value = False
            continue
        is_value = word == name
        fixed += [name, *value] if is_value or word.startswith(f"{name}=") else [word]
    return fixed

"""What the command line prints: wrapped to the terminal, with colours and signs that it has.

Width: the variable COLUMNS, else the terminal's, else 100 (a pipe, a file). Colours: on a terminal
without NO_COLOR, or with FORCE_COLOR. Signs that the output's encoding lacks are replaced by ASCII.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

PIPED, NARROWEST, WIDEST = 100, 24, 120
_COLUMN = 24  # the widest column; a longer cell stands on a line of its own
TIED = "\N{NO-BREAK SPACE}"  # between a number and its unit
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ASCII = {
    **str.maketrans("■◆◇▣▤◧⬚·‹›–−×◎", "#@o$=+.:<>--xO"),
    **str.maketrans({"…": "...", "—": "-", "²": "^2", "µ": "u", "∞": "inf"}),
}


def width() -> int:
    """Returns the columns of a line."""
    columns = shutil.get_terminal_size((PIPED, 24)).columns
    return max(NARROWEST, min(WIDEST, columns))


def wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """Wraps a text between words to the width.

    Args:
        text: one paragraph; its line breaks are spaces.
        first: what the first line starts with.
        rest: what the other lines start with; default: as many spaces as `first` has columns.
    """
    hanging = " " * len(first) if rest is None else rest
    lines = textwrap.wrap(
        text.replace(" %", f"{TIED}%"),
        width(),
        initial_indent=first,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace(TIED, " ") or first.rstrip()


def wrapped_command(text: str, first: str = "") -> str:
    """Wraps a command of the shell, as one that can be pasted: its lines end in a backslash."""
    if len(first) + len(text) <= width():
        return first + text
    lines, line = list[str](), first
    for word in _words(text):
        if line.strip() and len(line) + len(word) + 2 > width():
            lines.append(f"{line.rstrip()} \\")
            line = " " * (len(first) + 2)
        line += f"{word} "
    return "\n".join([*lines, line.rstrip()])


def _words(text: str) -> Iterator[str]:
    """Yields the words of a command as they are written, with their quotes."""
    word = ""
    for part in text.split(" "):
        word = f"{word} {part}" if word else part
        if _is_whole(word):
            yield word
            word = ""
    if word:
        yield word


def _is_whole(word: str) -> bool:
    try:
        shlex.split(word, comments=False)
    except ValueError:  # a quote is open
        return False
    return True


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> Iterator[str]:
    """Lays out rows in columns; the last column is wrapped below itself."""
    sizes = [
        max((len(cell) for cell in cells if len(cell) <= _COLUMN), default=0)
        for cells in list(zip(*rows, strict=True))[:-1]
    ]
    room = width() - len(indent) - sum(sizes) - 2 * len(sizes)
    for *cells, last in rows:
        start = indent + "".join(
            f"{cell:<{size}}  " for cell, size in zip(cells, sizes, strict=True)
        )
        hanging = " " * (len(indent) + sum(sizes) + 2 * len(sizes))
        if room >= NARROWEST and (len(start) == len(hanging) or not last):
            yield wrapped(last, start)
        else:  # a long cell, or a narrow terminal
            yield wrapped(start.strip(), indent)
            yield wrapped(last, hanging if room >= NARROWEST else f"{indent}  ")


def rounded(number: float) -> str:
    """Returns a number in three digits, or as a whole number.

    >>> rounded(0.5), rounded(31.66), rounded(1206.4)
    ('0.5', '31.7', '1,206')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def styled(text: str, *styles: str) -> str:
    """Returns the text in a style, such as "bold", where the output has colours."""
    if not styles or not has_colours(sys.stdout):
        return text
    return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


def has_colours(stream: TextIO) -> bool:
    """Whether a stream shows colours."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream, which may be closed or absent, is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def printable(text: str, stream: TextIO | None = None) -> str:
    """Returns the text in signs that a stream's encoding has; default: stdout."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def show(text: str = "") -> None:
    """Prints a text on stdout at once."""
    print(printable(text), flush=True)


def complain(command: str, error: str) -> None:
    """Prints the text of an error on stderr: on a terminal wrapped, elsewhere a line per part."""
    text = f"{command}: {error}"
    if is_terminal(sys.stderr):
        text = "\n".join(_part(line) for line in text.splitlines())
    print(printable(text, sys.stderr), file=sys.stderr, flush=True)


def _part(line: str) -> str:
    """Wraps one line of an error: "  fix:   " and what follows, or a sentence."""
    head, content = line[:9], line[9:]
    if head not in ("  fix:   ", "  given: "):
        return wrapped(line.strip(), line[: len(line) - len(line.lstrip())])
    if content.startswith(("nbattn ", "pip ", "python ")):
        return wrapped_command(content, head)
    return wrapped(content, head)

"""Markdown that generated pages are made of: tables, and cells that refer to a list of reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, centred: int = 0) -> str:
    r"""Returns a table.

    Args:
        head: the names of the columns.
        rows: the cells of each row, as Markdown; a bar in them is escaped.
        centred: how many columns at the end are centred.

    >>> print(table(["a", "b"], [["1", "x|y"]], centred=1))
    | a | b |
    |---|:-:|
    | 1 | x\|y |
    """
    lines = ["---"] * (len(head) - centred) + [":-:"] * centred
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, f"|{'|'.join(lines)}|", *rest])


class Notes:
    """Reasons in the order in which cells refer to them, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Returns the number of a reason as a superscript.

        >>> notes = Notes()
        >>> notes.mark("no softcap"), notes.mark("no table"), notes.mark("no softcap")
        ('¹', '²', '¹')
        """
        return str(self.numbers.setdefault(text, len(self.numbers) + 1)).translate(_DIGITS)

    def listed(self) -> str:
        """Returns the reasons as a numbered list."""
        return "\n".join(f"{number}. {text}" for text, number in self.numbers.items())

"""Print the demo's headings, lines, tables and progress; plain where stdout is not a terminal."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

_LABEL = re.compile(r" *(\S+  +|(?<= ))")  # "plan    ", "  near  ", or an indented line's spaces


class Report:
    """Prints the demo's output; collects missed targets and picture paths."""

    def __init__(self) -> None:
        from rich.console import Console

        terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, width=None if terminal else 100)
        self.missed: list[str] = []
        self.pictures: list[Path] = []

    def heading(self, text: str) -> None:
        """Print the heading of a part."""
        self.console.print(f"\n[bold cyan]{text}[/]\n")

    def line(self, text: str = "") -> None:
        """Print text without markup, wrapped between words: behind a label below its content."""
        for line in text.split("\n"):
            label = _LABEL.match(line)
            hanging = " " * (label.end() if label else 0)
            width = self.console.width
            whole = textwrap.fill(line, width, subsequent_indent=hanging, break_on_hyphens=False)
            self.console.print(whole, markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows under column names; the first column is text, the others are numbers."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextmanager
    def progress(self, label: str, total: int) -> Generator[Callable[[str], None]]:
        """Yield a function to call with a text after each of `total` steps: it moves a progress bar
        on a terminal and prints the text elsewhere.
        """
        if not self.console.is_terminal:
            yield lambda text: self.line(f"{label}: {text}")
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(label, total=total, text="")
            yield lambda text: bar.update(task, advance=1, text=text)

    def check_target(self, met: bool, text: str) -> None:
        """Print whether a target is met, and collect the missed ones."""
        style, word = ("green", "met") if met else ("bold red", "MISSED")
        self.console.print(f"[{style}]target {word}:[/] {text}")
        if not met:
            self.missed.append(text)

    def picture(self, path: Path) -> Path:
        """Return the path of a picture, which `conclude` prints."""
        self.pictures.append(path)
        return path

    def conclude(self, output: Path, seconds: float) -> bool:
        """Print the last lines; return whether all targets are met."""
        names = ", ".join(path.name for path in self.pictures)
        self.line(f"\npictures in {output}: {names}")
        if self.missed:
            self.line(f"FAILED after {seconds:.0f} s: " + "; ".join(self.missed))
        else:
            self.line(f"all targets met in {seconds:.0f} s")
        return not self.missed

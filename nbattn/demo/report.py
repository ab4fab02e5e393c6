"""What the demo prints: headings, lines, tables and progress, plain where stdout is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Report:
    """The demo's voice, and the promises it has heard kept or broken."""

    def __init__(self) -> None:
        from rich.console import Console

        terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, width=None if terminal else 100)
        self.broken: list[str] = []
        self.pictures: list[Path] = []

    def heading(self, text: str) -> None:
        """A line that starts a part."""
        self.console.print(f"\n[bold cyan]{text}[/]\n")

    def line(self, text: str = "") -> None:
        """Text as it stands, however long its lines."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under headings; the first column is text, the others are numbers."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextmanager
    def progress(self, label: str, total: int) -> Generator[Callable[[str], None]]:
        """A function to call with a line after each of `total` steps: it moves a bar on a terminal,
        and prints the line elsewhere.
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

    def promise(self, kept: bool, text: str) -> None:
        """Say whether what was promised came true, and remember it."""
        style, word = ("green", "kept") if kept else ("bold red", "BROKEN")
        self.console.print(f"[{style}]promise {word}:[/] {text}")
        if not kept:
            self.broken.append(text)

    def picture(self, path: Path) -> Path:
        """The path of a picture, to be named at the end."""
        self.pictures.append(path)
        return path

    def conclude(self, output: Path, seconds: float) -> bool:
        """The last lines; whether every promise was kept."""
        names = ", ".join(path.name for path in self.pictures)
        self.line(f"\npictures in {output}: {names}")
        if self.broken:
            self.line(f"FAILED after {seconds:.0f} s: " + "; ".join(self.broken))
        else:
            self.line(f"every promise kept, in {seconds:.0f} s")
        return not self.broken

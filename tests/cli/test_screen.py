"""Tests of what is printed: width, words that stay whole, colours, and signs of poor encodings."""

from __future__ import annotations

import io
import shlex
import sys

import pytest

from nbattn.cli import screen


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_width_is_that_of_the_terminal_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    for columns in ("80", "9", "500"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(screen.width())
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())  # a pipe
    assert [*widths, screen.width()] == [80, 24, 120, 100]


def test_words_and_numbers_with_their_sign_stay_whole() -> None:
    text = "word " * 14 + "59 % of a-compound-word and a/path/" + "x" * 90
    lines = screen.wrapped(text, "  head  ").splitlines()
    assert " ".join(lines).split() == ["head", *text.split()]
    assert "59 %" in "\n".join(lines)
    assert lines[1].startswith(" " * 8)
    assert max(map(len, lines[:-1])) <= 80


@pytest.mark.parametrize("extra", [0, 1, 30])
def test_a_wrapped_command_is_the_same_command_for_a_shell(extra: int) -> None:
    command = "nbattn plan --mask 'neighborhood((7, 7), dilation=8)' --query 8,56,56,2,32 "
    command += "--forbid " + "x" * extra + " --require 'a b' \"c d\" last"
    shown = screen.wrapped_command(command, "  fix:   ")
    assert max(map(len, shown.splitlines())) <= 80
    assert shlex.split(shown.replace("\\\n", " "))[1:] == shlex.split(command)


def test_columns_put_a_long_cell_on_its_own_line() -> None:
    rows = [("a", "one"), ("x" * 30, "two"), ("bcd", "three " * 20)]
    lines = list(screen.columns(rows))
    assert lines[0] == "  a    one"
    assert lines[1:3] == [f"  {'x' * 30}", "       two"]
    assert lines[3].startswith("  bcd  three three")
    assert max(len(part) for line in lines for part in line.splitlines()) <= 80


def test_colours_need_a_terminal_or_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert screen.styled("x", "bold", "red") == "x"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert screen.styled("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert screen.styled("x", "bold") == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert screen.styled("x", "bold") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert screen.styled("x", "bold") == "x"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "■ … é 中"), ("latin-1", "# ... é \\u4e2d"), ("ascii", "# ... \\xe9 \\u4e2d")],
)
def test_signs_that_an_encoding_lacks(encoding: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert screen.printable("■ … é 中", stream) == shown


def test_errors_are_wrapped_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, fix = "word " * 30 + "end.", "nbattn plan " + "--option value " * 8 + "--last"
    screen.complain("nbattn plan", f"{problem}\n  fix:   {fix}")
    assert capsys.readouterr().err == f"nbattn plan: {problem}\n  fix:   {fix}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    screen.complain("nbattn plan", f"{problem}\n  fix:   {fix}")
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("--last")
    assert lines[-2].endswith(" \\")

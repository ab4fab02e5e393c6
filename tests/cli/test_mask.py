"""Tests of the command `mask`: exact output and misuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace

import pytest
from oracle import axis_matrix, tile_counts

from nbattn import Axis, Mask, cli
from nbattn.cli import mask as command
from nbattn.cli.mask_text import parse_mask

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A command of the shell in which `nbattn` is this checkout's."""
    script = f'set -o pipefail; nbattn() {{ "{sys.executable}" -m nbattn "$@"; }}; {command}'
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, timeout=600)


def test_picture_written_to_a_pipe() -> None:
    done = shell(
        "nbattn mask --mask 'Axis(1, 1, border=\"shift\"), Axis(0, 0, align=0)' --query 4,2 "
        "--key 4,3 | cat"
    )
    assert done.stderr == b""
    assert done.stdout.decode("utf-8") == dedent("""\
        Mask(Axis(1, 1, border='shift'), Axis(0, 0, align='top-left'))

        query 2, 1 attends to 3 keys:

          0
        0 ...
        1 .■.
        2 .◆.
        3 .■.

        ■ attended   ◆ attended, own position   . not attended

        24 of 96 pairs; 3 keys per query

        axis 0: 4 queries, 4 keys, 12 of 16 pairs
        1 left, itself, 1 right; shift
        3 keys per query
          0 1 2 3
        0 ◆ ■ ▣ ⬚
        1 ■ ◆ ■ ⬚
        2 ⬚ ■ ◆ ■
        3 ⬚ ▣ ■ ◆

        axis 1: 2 queries, 3 keys, 2 of 6 pairs
        itself; top-left
        1 keys per query
          0 1 2
        0 ◆ ⬚ ⬚
        1 ⬚ ◆ ⬚

        ■ attended  ◆ attended, own position  ▣ attended, moved or wrapped  ⬚ not attended
        """)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_outputs_without_these_signs(encoding: str) -> None:
    done = shell("nbattn mask --mask 'Axis(1, 0, dilation=2)' --query 3", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    if encoding == "ascii":
        assert text == dedent("""\
            Mask(Axis(1, 0, dilation=2))

            axis 0: 3 queries, 3 keys, 4 of 9 pairs
            1 left, itself; dilation 2
            1-2 keys per query
              0 1 2
            0<@ : .
            1<: @ :
            2 # : @

            # attended  @ attended, own position  . not attended\
  : not on this query's dilation grid
            < > window cut
            """)
    assert "own position" in text


def test_a_closed_pipe_is_no_error() -> None:
    done = shell("nbattn mask --mask 'causal()' --query 48 | head -1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"Mask(Axis(None, 0, causal=True))\n"


@pytest.mark.parametrize("name", ["mask", "doctor"])
def test_help_on_outputs_without_these_signs(name: str) -> None:
    done = shell(f"nbattn {name} --help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_missing_package_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken')")
    places = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = shell("nbattn mask --mask 'causal()' --query 3", PYTHONPATH=places)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "nbattn mask: numpy is broken.\n  fix:   nbattn doctor  # shows what to install\n"
    )


@pytest.mark.parametrize(("columns", "cells"), [(80, 1), (79, 3), (40, 6), (120, 1)])
def test_seventy_six_keys_fit_eighty_columns(
    columns: int, cells: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One column per cell where that fits, else tiles with a gap between the cells."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main(["mask", "--mask", "Axis(3, 3)", "--query", "76"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ("a cell is" in " ".join(lines[2:4])) == (cells > 1)
    assert max(map(len, lines)) <= columns
    if cells == 1:
        assert lines[6].startswith(" 0‹◆■■■⬚⬚")
        assert lines[81] == f"75 {'⬚' * 72}■■■◆›"


def test_a_very_narrow_terminal_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    assert cli.main(["mask", "--mask", "causal()", "--query", "100"]) == 0
    assert cli.main(["mask", "--mask", "neighborhood((3, 3))", "--query", "90,90"]) == 0


def test_colours(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    command = ["mask", "--mask", "causal()", "--query", "3"]
    assert cli.main(command) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[32m■ ■\x1b[0m \x1b[1;33m◆\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(command) == 0
    plain = capsys.readouterr().out
    assert plain == re.sub(r"\x1b\[[\d;]*m", "", coloured)


def test_json(capsys: Capture) -> None:
    text = 'Axis(1, 0, align="bottom-right"), Axis(3, 3, align="top-left")'
    assert cli.main(["mask", "--mask", text, "--query", "5,60", "--key", "2,100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    mask = Mask(Axis(1, 0, align="bottom-right"), Axis(3, 3, align="top-left"))
    parts = [axis_matrix(axis, *n) for axis, n in zip(mask.axes, ((5, 2), (60, 100)), strict=True)]
    counts = [part.sum(axis=1) for part in parts]
    assert found["mask"] == repr(mask)
    assert (found["query"], found["key"]) == ([5, 60], [2, 100])
    assert found["pairs"] == parts[0].sum() * parts[1].sum()
    assert found["keys_a_query"] == {"fewest": 0, "most": 2 * 7, "queries_without_keys": 3 * 60}
    for axis, part, count in zip(found["axes"], parts, counts, strict=True):
        assert axis["pairs"] == part.sum()
        assert axis["keys_a_query"] == {
            "fewest": count.min(),
            "most": count.max(),
            "queries_without_keys": (count == 0).sum(),
        }
        assert axis["pairs_of_cells"] == tile_counts(part, *axis["cell"]).tolist()
    assert [axis["position_of_query_0"] for axis in found["axes"]] == [-3, 0]
    assert [axis["cell"] for axis in found["axes"]] == [[1, 1], [2, 3]]


def test_json_has_no_position_where_the_mask_has_none(capsys: Capture) -> None:
    asked = ["mask", "--mask", "full(2)", "--query", "5,6", "--key", "5,7", "--json"]
    assert cli.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert [axis["position_of_query_0"] for axis in found["axes"]] == [0, None]


def test_lengths_that_differ_ask_for_an_alignment(capsys: Capture) -> None:
    text = ["--query", "1", "--key", "40"]
    assert cli.main(["mask", "--mask", "sliding_window(15)", *text]) == 2
    error = capsys.readouterr().err
    assert "axis 0 (1 query, 40 keys): the lengths differ" in error
    fix = 'Mask(Axis(15, 0, align="bottom-right"))'
    assert f"fix:   --mask '{fix}' puts the last query on the last key" in error
    assert cli.main(["mask", "--mask", fix, *text]) == 0


def test_figures_are_written(tmp_path: Path, capsys: Capture) -> None:
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG\r\n\x1a\n"}
    paths = {ending: tmp_path / f"a.{ending}" for ending in starts}
    files = [word for ending, path in paths.items() for word in (f"--{ending}", str(path))]
    words = ["mask", "--mask", "neighborhood((3, 3))", "--query", "6,7", *files]
    assert cli.main([*words, "--kind", "neighborhood", "--at", "0,6"]) == 0
    for ending, start in starts.items():
        assert paths[ending].read_bytes().startswith(start)
    out = capsys.readouterr().out
    assert out.startswith("Mask(")
    assert out.endswith(f"written: {', '.join(map(str, paths.values()))}\n")
    assert "window beyond the axis" in paths["svg"].read_text()
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["query"] == [6, 7]
    assert "window beyond the axis" not in paths["svg"].read_text()


def test_a_figure_of_a_query_on_one_axis(tmp_path: Path) -> None:
    path = str(tmp_path / "a.svg")
    words = ["mask", "--mask", "causal()", "--query", "9", "--at", "4"]
    assert cli.main([*words, "--kind", "axes", "--svg", path]) == 0
    assert "axis 0, query 4: all left, itself; causal" in Path(path).read_text()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mask]:
    """A stand-in for configuration files."""
    masks = {"encoder": Mask.causal(), "nat": Mask.neighborhood(3)}
    module = ModuleType("nbattn.config")
    module.load = lambda path: SimpleNamespace(masks=masks)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "nbattn.config", module)
    return masks


def test_a_mask_of_a_file(configured: dict[str, Mask], capsys: Capture) -> None:
    assert cli.main(["mask", "x.toml", "nat", "--query", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == repr(configured["nat"])
    del configured["nat"]
    assert cli.main(["mask", "x.toml", "--query", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == repr(configured["encoder"])


NAMES = ", ".join(command.parse_mask.__globals__["MAKERS"])
FIELDS = "left, right, dilation, stride, causal, align, offset, border, prefix"
FORMS = "--mask 'Axis(3, 3)'  # an Axis per axis, or neighborhood((7, 7)), sliding_window(511)"
MISUSE = [
    (["--query", "3"],
     "no mask is given: give CONFIG and NAME, or --mask.\n"
     "  fix:   nbattn mask --mask 'causal()' --query 3"),
    (["x.toml", "--mask", "causal()", "--query", "3"],
     "'x.toml' is one word too many: the mask is that of --mask.\n"
     "  fix:   nbattn mask --mask 'causal()' --query 3"),
    (["x.toml", "encodr", "--query", "3"],
     "x.toml has no mask 'encodr'; its masks are encoder, nat. Did you mean encoder?\n"
     "  fix:   nbattn mask x.toml encoder --query 3"),
    (["x.toml", "--query", "3"],
     "x.toml has 2 masks: encoder, nat.\n  fix:   nbattn mask x.toml encoder --query 3"),
    (["x.toml", "nat"],
     "--query is missing: the queries per axis.\n  fix:   nbattn mask x.toml nat --query 16"),
    (["--mask", "neighborhood((3, 3))", "--query", "9,9", "--at", "9,1"],
     "--at 9,1 is not on the grid of queries, which has the lengths 9,9.\n  fix:   --at 4,4"),
    (["--mask", "causal()", "--query", "9", "--at", "4"],
     "--at chooses the query of a picture on two axes or more; this mask has one.\n"
     "  fix:   --query 9"),
    (["--mask", "causal()", "--query", "3,x"],
     "--query '3,x': 'x' is not a whole number >= 0, one per axis.\n"
     "  fix:   --query 8,8"),
    (["--mask", "causal()", "--query", "3", "--key", "-1"],
     "--key '-1': '-1' is not a whole number >= 0, one per axis.\n"
     "  fix:   --key 8"),
    (["--mask", "causal()", "--query", ""],
     "--query '': '' is not a whole number >= 0, one per axis.\n"
     "  fix:   --query 8"),
    (["--mask", "causal()", "--query", "99999999999"],
     "--query '99999999999': '99999999999' is not a whole number >= 0, one per axis.\n"
     "  fix:   --query 8"),
    (["--mask", "causal()", "--query", "3,4"],
     "--query has 2 lengths, the mask 1 axis.\n"
     "  given: Mask(Axis(None, 0, causal=True))\n"),
    (["--mask", "causal()", "--query", "9999999999"],
     "9999999999 is longer than 2097152, up to which pictures go; a shorter axis shows the same.\n"
     "  fix:   --query 1024"),
    (["--mask", "Axis(1, 1", "--query", "3"],
     "the mask is not valid Python syntax: '(' was never closed.\n"
     f"  given: Axis(1, 1\n  fix:   {FORMS}"),
    (["--mask", "", "--query", "3"], f"the mask is empty.\n  fix:   {FORMS}"),
    (["--mask", "[Axis(1)]", "--query", "3"],
     f"'[Axis(1)]' is neither an axis nor a mask.\n  given: [Axis(1)]\n  fix:   {FORMS}"),
    (["--mask", "neighbourhood(7)", "--query", "3"],
     "'neighbourhood' is not a mask constructor.\n  given: neighbourhood(7)\n"
     f"  fix:   did you mean 'neighborhood'? One of {NAMES}."),
    (["--mask", "open('x')", "--query", "3"],
     f"'open' is not a mask constructor.\n  given: open('x')\n  fix:   One of {NAMES}."),
    (["--mask", "Axis(1, right=open('x'))", "--query", "3"],
     "Axis, right: \"open('x')\" is not a literal.\n  given: Axis(1, right=open('x'))\n"
     "  fix:   numbers, strings, True, False, None and tuples of them."),
    (["--mask", "Axis(1, 0, align=bottom-right)", "--query", "3"],
     "Axis, align: 'bottom-right' is not a literal.\n  given: Axis(1, 0, align=bottom-right)\n"
     "  fix:   --mask 'Axis(1, 0, align=\"bottom-right\")'"),
    (["--mask", "Axis(1, 2, dilaton=2)", "--query", "3"],
     "Axis() takes no argument 'dilaton'.\n  fix:   Axis(1, 2, dilation=2)."),
    (["--mask", "Axis(**{'left': 1})", "--query", "3"],
     f"Axis() takes no argument '**'; it takes {FIELDS}.\n"),
    (["--mask", "Axis(1, 2, 3)", "--query", "3"],
     "Axis() takes left and right by place, not 3 arguments; by name it takes dilation, stride, "
     "causal, align, offset, border, prefix.\n"
     "  fix:   Axis(1, 2, dilation=3), or Axis(1, 2, stride=3)."),
    (["--mask", "Axis(1, left=2)", "--query", "3"],
     "Axis has 'left' twice.\n  given: Axis(1, left=2)\n  fix:   left once."),
    (["--mask", "neighborhood()", "--query", "3"],
     "Mask.neighborhood() needs kernel_size; it takes kernel_size, dilation, stride, is_causal, "
     "rank.\n"
     "  fix:   --mask 'neighborhood(7)'"),
    (["--mask", "causal(), Axis(1)", "--query", "3"],
     f"a Mask is one of 2 parts; only axes can be combined.\n  given: causal(), Axis(1)\n"
     f"  fix:   {FORMS}"),
    (["--mask", "Mask(3)", "--query", "3"],
     f"'3' is neither an axis nor a mask.\n  given: Mask(3)\n  fix:   {FORMS}"),
    (["--mask", "Mask(causal())", "--query", "3"],
     "the arguments of Mask must be axes.\n  given: Mask(causal())\n"
     "  fix:   --mask 'Mask(Axis(3, 3), Axis(3, 3))'"),
    (["--mask", "full(1000000000)", "--query", "3"],
     "a mask has 1 to 3 axes, not 1000000000.\n"),
    (["--mask", "causal" * 500, "--query", "3"],
     f"the mask has 3000 characters, the limit is 2000.\n  given: {('causal' * 500)[:200]}\n"
     f"  fix:   {FORMS}"),
    (["--mask", "causal()", "--query", "3", "--png", "no/such.png"],
     "no/such.png cannot be created: no is not a directory.\n  fix:   --png such.png"),
    (["--mask", "causal()", "--query", "3", "--svg", "x.png"],
     "x.png does not end in .svg, the format of the file.\n  fix:   --svg x.svg"),
    (["--mask", "causal()", "--query", "3", "--kind", "matrix"],
     "--kind is the kind of a figure, and no file is given for one.\n"
     "  fix:   --kind matrix --svg mask.svg"),
    (["--mask", "causal()", "--query", "3", "--svg", "x.svg", "--kind", "axis"],
     "--kind axis is not one of matrix, neighborhood, axes.\n  fix:   --kind axes"),
    (["--mask", "causal()", "--query", "3", "--at", "3", "--svg", "x.svg"],
     "--at 3 is not on the grid of queries, which has the lengths 3.\n  fix:   --at 1"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), MISUSE, ids=[" ".join(m[0])[:40] for m in MISUSE])
def test_mask_misuse_is_one_message_and_exit_status_2(
    arguments: list[str], text: str, configured: object, capsys: Capture
) -> None:
    assert cli.main(["mask", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nbattn mask: {text}")
    assert err == f"nbattn mask: {text}\n" or text.endswith("\n")


def test_mask_help_has_examples_that_parse(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["mask", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("usage: nbattn mask", "examples:", "exit status:", "--pdf", "drawn by tiles"):
        assert part in text
    for line in text.split("examples:")[1].splitlines():
        if "--mask" in line:
            assert isinstance(parse_mask(line.split("'")[1]), Mask)

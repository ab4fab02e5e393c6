"""Tests of the command line as a whole: streams, exit status and options without effect."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from nbattn.cli import COMMANDS, main
from nbattn.planner import cost_table

ROOT = Path(__file__).parents[2]
NAT = "configs/nat_tiny.toml"


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell line in which `nbattn` is this program."""
    line = command.replace("nbattn ", f"{quote(sys.executable)} -m nbattn ")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        line, shell=True, capture_output=True, text=True, env=env, cwd=ROOT, timeout=600
    )


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"plan {NAT} --device cpu", marks=pytest.mark.deep),
        "mask --mask 'full()' --query 4",
        "schema",
    ],
)
def test_a_closed_output_is_no_failure(command: str) -> None:
    done = run(f"nbattn {command} >&-", PYTHONWARNINGS="error::ResourceWarning")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    done = run("nbattn schema > /dev/full")
    assert (done.returncode, done.stderr) == (2, "nbattn schema: No space left on device.\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_on_ascii_terminals(command: str) -> None:
    done = run(f"nbattn {command} --help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: nbattn {command}")


def test_names_beyond_ascii_are_printed_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[masks]\nm = { full = {} }\n[plans]\n"blöck" = { mask = "m", query = [1, 8, 2, 8] }\n'
    )
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["plan", str(path), "--device", "cpu"]) == 0
    assert printed.getvalue().startswith(b"bl\\xf6ck\n")


IGNORED = """
tune --dtype float32 --dry-run
nbattn tune: the request is incomplete: --mask and --query are missing, and no plans of a CONFIG

tune --key 1,4,2,8 --dry-run
nbattn tune: the request is incomplete: --mask and --query are missing, and no plans of a CONFIG

mask --mask full() --query 4 --kind axes
nbattn mask: --kind is the kind of a figure, and no file is given for one.

mask --mask full() --query 4 --png a.svg
nbattn mask: a.svg does not end in .png, the format of the file.

bench --mask full() --query 1,8,2,8 --png a.svg
nbattn bench: a.svg does not end in .png, the format of the file.

demo --size 700
nbattn demo: --size: '700' is not a whole number from 24 to 512.

bench --mask full() --query 1,8,2,8 --threads 99999999999
nbattn bench: --threads: '99999999999' is not a whole number from 1 to 1000000

plan --mask full() --query 1,3000000000,2,8
nbattn plan: query_shape: 3000000000 is beyond 2147483647.

plan --mask full() --query 1,99999999999999999999999,2,8
nbattn plan: query_shape: 99999999999999999999999 is beyond 2147483647.
"""


@pytest.mark.parametrize("case", IGNORED.strip().split("\n\n"), ids=lambda c: c.split("\n")[0])
def test_options_without_effect_are_refused(capsys: pytest.CaptureFixture[str], case: str) -> None:
    command, message = case.split("\n")
    try:
        status = main(command.split())
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err


@pytest.fixture
def forget_cost_tables() -> Iterator[None]:
    """Tables are read again, before a test and after it."""
    cost_table.forget()
    yield
    cost_table.forget()


@pytest.mark.usefixtures("forget_cost_tables")
def test_a_relative_cache_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBATTN_CACHE", "somewhere")
    assert main(["tune", "--dry-run", "--device", "cpu"]) == 2
    assert "NBATTN_CACHE='somewhere' is neither an absolute path" in capsys.readouterr().err

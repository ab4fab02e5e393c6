"""Tests of the command `demo`: misuse and help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nbattn.cli import main

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def test_a_file_in_the_way_and_missing_packages_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 2
    assert "taken cannot be created: File exists" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "nbattn demo: the demo needs matplotlib, skimage, sklearn, which are not installed.\n"
        "  fix:   pip install matplotlib scikit-image scikit-learn\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8"], "--size: '8' is not a whole number from 24 to 512"),
        (["--threads", "0"], "--threads: '0' is not a whole number from 1 to 1000000"),
        (["--seed=-1"], "--seed: '-1' is not a whole number from 0 to 9223372036854775807"),
        (["--part", "all"], "--part: 'all' is not one of denoise, digits"),
        (["--epochs", "x"], "--epochs: 'x' is not a whole number from 1 to 1000000"),
    ],
)
def test_demo_misuse_exits_with_status_2(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert main(["demo", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"nbattn demo: {message}.\n  fix:   nbattn demo --")


def test_demo_help_shows_output_and_exit_status_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from nbattn.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "demo", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )
    for text in ("examples:", "exit status:", "prints:", "--output", "--part {denoise,digits}"):
        assert text in run.stdout

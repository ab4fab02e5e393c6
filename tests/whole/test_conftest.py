"""Tests that counts of cases reach the summary, with workers and without."""

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = """
import pytest


@pytest.mark.parametrize("i", range(3))
def test_enumerator(cases, i):
    cases("enumerator", 4115)


def test_law(cases):
    cases("law", 678)
"""


@pytest.mark.parametrize("arguments", [["-n0"], ["-n2"]], ids=["one_process", "two_workers"])
def test_cases_of_all_tests_are_summed_and_printed(tmp_path, arguments):
    (tmp_path / "conftest.py").write_text(
        (Path(__file__).parents[1] / "conftest.py").read_text("utf-8"), "utf-8"
    )
    (tmp_path / "test_sample.py").write_text(SAMPLE, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", "utf-8")
    command = [sys.executable, "-X", "utf8", "-m", "pytest", *arguments, "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert "cases: enumerator 12,345 · law 678" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0

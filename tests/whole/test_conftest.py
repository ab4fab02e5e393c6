"""Tests of what every test run has: counts of cases in the summary, and a cache that is off."""

import os
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


@pytest.mark.parametrize(("given", "seen"), [(None, "off"), ("/a/cache", "/a/cache")])
def test_the_cache_is_off_unless_the_environment_names_one(given, seen):
    """Child processes inherit it."""
    conftest = Path(__file__).parents[1] / "conftest.py"
    code = f"import os, runpy; runpy.run_path({str(conftest)!r}); print(os.environ['NBATTN_CACHE'])"
    env = {name: value for name, value in os.environ.items() if name != "NBATTN_CACHE"}
    env |= {} if given is None else {"NBATTN_CACHE": given}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == (f"{seen}\n", 0), run.stderr

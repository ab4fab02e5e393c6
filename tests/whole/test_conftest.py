"""Tests of what every test run has: counts of cases in the summary, and a cache of its own."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
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
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text("utf-8"), "utf-8")
    (tmp_path / "test_sample.py").write_text(SAMPLE, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", "utf-8")
    command = [sys.executable, "-X", "utf8", "-m", "pytest", *arguments, "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert "cases: enumerator 12,345 · law 678" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0


def caches_of_a_run() -> list[str]:
    """The cache folder of a run, and that of a process of its own."""
    load = f"import os, runpy; runpy.run_path({str(CONFTEST)!r}); "
    show = "folder = os.environ['NBATTN_CACHE']; print(folder, os.path.isdir(folder), flush=True)"
    child = f"; import subprocess, sys; subprocess.run([sys.executable, '-c', {load + show!r}])"
    env = {name: value for name, value in os.environ.items() if name != "NBATTN_CACHE"}
    command = [sys.executable, "-c", load + show + child]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_processes_of_a_run_share_a_cache_that_ends_with_it():
    own, inherited = caches_of_a_run()
    assert own == inherited
    folder, exists = own.split()
    assert exists == "True"
    assert not Path(folder).exists()
    assert caches_of_a_run()[0] != own


@pytest.mark.parametrize("given", ["/a/cache", "off"])
def test_a_cache_that_the_environment_names_is_taken(given, monkeypatch):
    monkeypatch.setenv("NBATTN_CACHE", given)
    runpy.run_path(str(CONFTEST))
    assert os.environ["NBATTN_CACHE"] == given
    assert not Path(given).exists()


def test_libraries_are_kept_for_the_next_run(tmp_path, monkeypatch):
    """Whole ones of this user, the newest four; what is there stays."""
    known = runpy.run_path(str(CONFTEST))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = known["kept_libraries"]()
    assert kept == tmp_path / "nbattn-tests"
    run = tmp_path / "run" / "libraries"
    run.mkdir(parents=True)
    for age, name in enumerate((".part", "new", "b", "c", "d", "old")):
        (run / name).write_text(name)
        os.utime(run / name, (1e9 - age, 1e9 - age))
    known["end"](run.parent)
    assert not run.exists()
    assert {path.name for path in kept.iterdir()} == {"new", "b", "c", "d"}
    assert {kept.stat().st_mode & 0o777, (kept / "b").stat().st_mode & 0o777} == {0o700, 0o600}
    (kept / "b").write_text("kept")
    known["copied"](kept, run)
    known["copied"](kept, run)
    assert (run / "b").read_text() == "kept"
    known["copied"](tmp_path / "nothing", run)

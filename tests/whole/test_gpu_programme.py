"""Tests of `make gpu`: steps in order and in time, lines that stay, a second call that goes on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = """
import os, time
import pytest


@pytest.mark.parametrize("n", range(4))
def test_sample(n):
    assert n != 2, "two is wrong"


def test_hangs():
    if {hang}:
        time.sleep(600)
"""


TORCH = """
from types import SimpleNamespace as Names

__version__, version = "0", Names(cuda=None)
cuda = Names(is_available=lambda: False)
backends = Names(cpu=Names(get_cpu_capability=lambda: "none"))
"""


@pytest.fixture
def programme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_programme

    monkeypatch.setattr(gpu_programme, "LEAST", 0)
    return gpu_programme


@pytest.fixture
def steps(programme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the steps: name → the code of a Python process, and its seconds."""

    def replace(**codes: Any) -> None:
        made = []
        for name, code in codes.items():
            code, seconds = code if isinstance(code, tuple) else (code, 60)
            words = ("{python}", "-c", code, "{out}")
            made.append(programme.Step(name, f"what of {name}?", words, seconds))
        monkeypatch.setattr(programme, "STEPS", tuple(made))

    return replace


def known(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "programme.jsonl").read_text().splitlines()]


APPEND = "import sys; open(sys.argv[1] + '/order', 'a').write('{}')"


def test_a_second_call_runs_only_what_has_not_ended(
    programme: ModuleType, steps: Callable[..., None], tmp_path: Path
) -> None:
    left = APPEND.format("b") + "; sys.exit(3)"
    steps(a=APPEND.format("a"), b=left, c=APPEND.format("c") + "; sys.exit(1)")
    words = [f"--output={tmp_path}"]
    assert programme.main(words) == programme.LEFT
    assert programme.main(words) == programme.LEFT
    assert (tmp_path / "order").read_text() == "abcb"
    rows = known(tmp_path)
    assert [(row["step"], row["ended"]) for row in rows] == [
        ("a", True), ("b", False), ("c", True), ("b", False)
    ]  # fmt: skip
    assert {"machine", "gpu", "versions", "date", "commit"} <= rows[0].keys()


def test_an_empty_folder_goes_on_from_the_results(
    programme: ModuleType, steps: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(programme, "RESULTS", tmp_path / "results")
    steps(a=APPEND.format("a"))
    assert programme.main([f"--output={tmp_path / 'results'}"]) == 0
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    steps(a=APPEND.format("a"), b=APPEND.format("b"))
    assert programme.main([]) == 0
    assert (tmp_path / "out" / "order").read_text() == "b"
    assert [row["step"] for row in known(tmp_path / "out")] == ["a", "b"]


def test_only_runs_the_named_step(
    programme: ModuleType, steps: Callable[..., None], tmp_path: Path
) -> None:
    steps(first=APPEND.format("1"), second=APPEND.format("2"))
    assert programme.main([f"--output={tmp_path}", "--only", "sec"]) == 0
    assert (tmp_path / "order").read_text() == "2"


def test_a_step_that_is_stopped_keeps_what_it_wrote(
    programme: ModuleType, steps: Callable[..., None], tmp_path: Path
) -> None:
    slow = APPEND.format("begun") + "; print('so far', flush=True); import time; time.sleep(600)"
    steps(slow=(slow, 3), after=APPEND.format(" after"))
    assert programme.main([f"--output={tmp_path}"]) == programme.LEFT
    assert (tmp_path / "order").read_text() == "begun after"
    first, second = known(tmp_path)
    assert (first["timed_out"], first["ended"], first["output"]) == (True, False, "so far\n")
    assert second["ended"]


def test_no_step_begins_when_the_time_is_up(
    programme: ModuleType, steps: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(programme, "LEAST", 20)
    steps(a=APPEND.format("a"))
    assert programme.main([f"--output={tmp_path}", "--seconds=10"]) == programme.LEFT
    assert not (tmp_path / "order").exists()


def test_a_program_that_is_missing_is_an_answer(
    programme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programme, "STEPS", (programme.Step("x", "?", ("no-such-tool",), 9),))
    assert programme.main([f"--output={tmp_path}"]) == 0
    assert known(tmp_path)[0]["output"] == "no-such-tool is not installed"


def run_tests(programme: ModuleType, out: Path, hang: bool) -> dict[str, list[str]]:
    """A step of tests in two processes; test → its outcomes."""
    file = out / "test_sample.py"
    file.write_text(SAMPLE.format(hang=hang))
    words = programme.tests(str(file), f"--rootdir={out}", "--each=1", "-p", "no:xdist")
    step = programme.Step("tests", "?", words, 60, 2)
    row = programme.run(step, out, 60, False)
    assert row["ended"], row
    found: dict[str, list[str]] = {}
    for line in programme.read(out / "tests.jsonl"):
        found.setdefault(line["test"].partition("::")[2], [])
        if "outcome" in line:
            found[line["test"].partition("::")[2]].append(line["outcome"])
            assert line.get("gpu", None) is None
    return found


def test_each_test_has_one_line_and_runs_once(
    programme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that hangs ends its process, and a new one runs the others: seven processes without
    plugins, in which torch is the little that lines ask of it.
    """
    (tmp_path / "instead").mkdir()
    (tmp_path / "instead" / "torch.py").write_text(TORCH)
    known = programme.environment()
    known["PYTHONPATH"] = f"{tmp_path / 'instead'}{os.pathsep}{known['PYTHONPATH']}"
    known["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    monkeypatch.setattr(programme, "environment", lambda: known)
    expected = {f"test_sample[{n}]": ["failed" if n == 2 else "passed"] for n in range(4)}
    assert run_tests(programme, tmp_path, True) == {**expected, "test_hangs": ["no end"]}
    before = (tmp_path / "tests.jsonl").read_text()
    run_tests(programme, tmp_path, False)
    assert (tmp_path / "tests.jsonl").read_text() == before
    text = "\n".join(programme.summary(tmp_path))
    assert "1 failed, 1 no end, 3 passed" in text
    assert "  failed: " in text


def test_a_dry_run_has_its_own_words_and_ends_no_step(
    programme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wet, dry = (("{python}", "-c", APPEND.format(word), "{out}") for word in ("wet ", "dry "))
    monkeypatch.setattr(programme, "STEPS", (programme.Step("a", "?", wet, 60, dry=dry),))
    for words in (["--dry"], ["--dry"], [], []):
        assert programme.main([*words, f"--output={tmp_path}"]) == 0
    assert (tmp_path / "order").read_text() == "dry wet "
    assert [(row.get("dry"), row["statuses"]) for row in known(tmp_path)] == [
        (True, [0]), (None, [0])
    ]  # fmt: skip


@pytest.mark.deep  # the sweep's own dry run: test_gpu_benchmark.py
def test_the_sweeps_step_runs_dry(programme: ModuleType, tmp_path: Path) -> None:
    assert programme.main(["--dry", "--only=sweep", f"--output={tmp_path}"]) == 0
    rows = known(tmp_path)
    assert [row["step"] for row in rows] == ["sweep", "triton sweep"]
    assert all((row["dry"], row["statuses"]) == (True, [0]) for row in rows)
    found = programme.read(tmp_path / "gpu_tiles.jsonl")
    assert {row["instructions"] for row in found} == {"wgmma", "mma"}


def test_the_steps_fit_and_name_files_that_exist(programme: ModuleType) -> None:
    """No step needs more than a command of ten minutes; steps stand in the programme's order."""
    names = [step.name for step in programme.STEPS]
    assert names[:6] == ["doctor", "launches", "warpgroups", "kernels", "offsets", "sweep"]
    assert names.index("triton") < names.index("triton sweep")
    assert len(set(names)) == len(names)
    for step in programme.STEPS:
        assert 0 < step.seconds <= 580
        for word in (*step.words, *(step.dry or ())):
            if word.endswith(".py"):
                assert (ROOT / word).exists(), word
    assert sys.executable in programme.commands(programme.STEPS[0], Path("out"), 9, False)[0]


@pytest.mark.deep
def test_the_whole_programme_runs_dry(programme: ModuleType, tmp_path: Path) -> None:
    assert programme.main(["--dry", "--seconds=3000", f"--output={tmp_path}"]) == 0
    outcomes = {row["outcome"] for row in programme.read(tmp_path / "dry-tests.jsonl")
                if "outcome" in row}  # fmt: skip
    assert outcomes == {"passed", "skipped"}

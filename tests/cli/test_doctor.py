"""Tests of the command `doctor`: the verdict, what to do, groups of facts, and its exit status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doctor_here import second_process

from nbattn import cli, doctor
from nbattn.cli import doctor as command

WIDE = pytest.mark.parametrize("columns", [40, 80, 120])


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """The facts of this machine, found once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(doctor, "_second_process", second_process)
        return doctor.report()


@pytest.fixture(autouse=True)
def known(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "report", lambda **_: facts)


def test_verdict_comes_first_and_the_way_to_more_last(
    facts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CPU: ready")
    assert ("Nothing to do." in lines[0]) == (not facts["advice"])
    assert "`nbattn doctor --deep` also compiles" in " ".join(lines[-2:])


def test_text_has_the_facts_of_the_json(
    facts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert cli.main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for fact in (facts["nbattn"]["path"], facts["torch"]["version"], facts["machine"]["platform"]):
        assert fact in text
    assert facts["cache"]["path"] in text
    half = {e for p in facts["packages"] if not p["installed"] for e in p["extras"]} | {"oracles"}
    for package in facts["packages"]:
        if package["extras"] and half.isdisjoint(package["extras"]):
            assert f"{package['name']} {package['installed']}" in text


@WIDE
def test_lines_fit_the_terminal(
    columns: int,
    facts: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for paths, which are not broken."""
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(["doctor"])
    for line in capsys.readouterr().out.splitlines():
        longest = max(map(len, line.split()), default=0)
        assert len(line) <= columns or longest > columns // 3, line


def test_advice_is_given_once_and_first(
    facts: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = {**facts, "advice": ["pip install numpy", "chmod go-w folder"]}
    monkeypatch.setattr(doctor, "report", lambda **_: worse)
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["To do:", "  1. pip install numpy", "  2. chmod go-w folder"]
    assert "Nothing to do" not in lines[0]


def test_descriptions_of_broken_packages_and_backends() -> None:
    package = {"name": "natten", "extras": ["natten"], "wanted": "==0.21.7", "installed": "0.20"}
    package |= {"fits": False, "importable": False, "error": "OSError: x"}
    assert command._package(package) == "0.20; outside ==0.21.7; does not load: OSError: x"
    backend = {"name": "sdpa", "device": "cpu", "usable": False, "reason": "wrong by 1"}
    assert command._state(backend) == "not usable: wrong by 1"
    backend |= {"reason": "no backward", "forward_only": True}
    assert command._state(backend) == "forward only: no backward"
    assert command._state({"usable": True, "tried": False}).startswith("ready, not run")


def test_exit_status_without_any_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_second_process", lambda words, at: {})
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["usable"] is False
    assert cli.main(["doctor"]) == 1
    assert "not usable: was not tried" in capsys.readouterr().out

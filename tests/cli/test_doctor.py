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


def test_gpus_have_the_names_of_their_architectures() -> None:
    torch = {"version": "2.13", "threads": 1, "deterministic": False, "backends": {}}
    torch |= {"cuda_build": None, "hip_build": "7.0", "xpu_build": None}
    size = {"memory_bytes": 192 << 30}
    torch["devices"] = [
        {"name": "cpu"},
        {"name": "cuda:0", "model": "NVIDIA H100", "capability": [9, 0], **size},
        {"name": "cuda:1", "model": "AMD Instinct MI300X", "architecture": "gfx942", **size},
        {"name": "xpu:0", "model": "Intel Max", **size},
    ]
    rows = command._torch(torch)
    assert rows[0] == ("version", "2.13, built for ROCm 7.0")
    assert [text for name, text in rows if name == "device"] == [
        "cpu",
        "cuda:0, NVIDIA H100, sm_90, 192 GiB",
        "cuda:1, AMD Instinct MI300X, gfx942, 192 GiB",
        "xpu:0, Intel Max, 192 GiB",
    ]


def test_backends_of_gpus_are_not_listed_for_the_cpu() -> None:
    for reason, is_hidden in (
        ("runs on cuda, not on cpu", True),
        ("runs on cuda, xpu, not on cpu", True),
        ("runs on cuda, not on xe", False),
        ("has no softcap", False),
    ):
        assert command._is_of_gpus({"reason": reason}) == is_hidden


def test_triton_has_a_row_with_its_vendor_or_what_is_wrong() -> None:
    untried = {part: {"error": "was not tried"} for part in command._PARTS}
    for facts, text in (
        ({"version": "3.8.0", "vendor": "AMD"}, "3.8.0, for GPUs of AMD"),
        ({"version": "3.8.0", "vendor": None, "problem": "3.8.0, without a GPU"},
         "3.8.0, without a GPU"),
        ({"missing": "Triton is not installed"}, "Triton is not installed"),
        ({"error": "ImportError: no"}, "ImportError: no"),
    ):  # fmt: skip
        assert [*command._cuda({**untried, "Triton": facts})] == [("Triton", text)]


def test_triton_is_among_the_optional_packages(facts: dict[str, Any]) -> None:
    """On machines without a GPU, too, where it is not tried; torch's has other names for pip."""
    others = [one for one in facts["packages"] if one["name"] != "triton"]
    (own,) = (one for one in facts["packages"] if one["name"] == "triton")
    missing = 'not installed; pip install "triton>=3.6"'
    for by_pip, version, text in (
        ("3.8.0", "3.8.0", "triton 3.8.0"),
        (None, "3.8.0+xpu", "no package needed: Triton 3.8.0+xpu is here"),
        (None, None, missing),
        (None, {"error": "ValueError: no spec"}, missing),
    ):
        packages = [*others, {**own, "installed": by_pip}]
        kernels = {**facts["kernels"], "Triton": {"installed": version}}
        rows = dict(command._packages({**facts, "kernels": kernels, "packages": packages}))
        assert rows["Triton kernels"] == text

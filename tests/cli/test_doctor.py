"""Tests of the command `doctor`: its text about problems and its exit status."""

from __future__ import annotations

import json

import pytest

from nbattn import cli, doctor
from nbattn.cli import doctor as command


def test_descriptions_of_broken_packages_and_backends() -> None:
    package = {"name": "natten", "extras": ["natten"], "wanted": "==0.21.7", "installed": "0.20"}
    package |= {"fits": False, "importable": False, "error": "OSError: x"}
    assert command._package(package) == (
        "natten",
        "0.20; outside ==0.21.7; does not load: OSError: x",
    )
    backend = {"name": "sdpa", "device": "cpu", "usable": False, "reason": "wrong by 1", "fix": "y"}
    assert command._backend(backend) == ("sdpa on cpu", "not usable: wrong by 1; y")


def test_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_second_process", lambda names: {})
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["usable"] is False
    assert cli.main(["doctor"]) == 1
    assert "not usable: was not tried" in capsys.readouterr().out

"""Tests of the parser: errors in the project's form, with a corrected line that is legal."""

from __future__ import annotations

import shlex

import pytest

from nbattn import cli
from nbattn.cli import COMMANDS
from nbattn.errors import InputError

Capture = pytest.CaptureFixture[str]
NAT = "configs/nat_tiny.toml"

# What is written, the message, and the line of the fix.
MISTAKES = f"""
pln {NAT} --all
nbattn: 'pln' is not a command. Did you mean plan?
nbattn plan {NAT} --all

frobnicate
nbattn: 'frobnicate' is not a command; the commands are plan, mask, doctor, bench, tune, demo, schema.
nbattn --help

--verison
nbattn: there is no option --verison. Did you mean --version?
nbattn --version

plan {NAT} --al
nbattn plan: there is no option --al. Did you mean --all?
nbattn plan {NAT} --all

plan {NAT} --devise=cpu
nbattn plan: there is no option --devise. Did you mean --device?
nbattn plan {NAT} --device=cpu

plan {NAT} --devise
nbattn plan: there is no option --devise. Did you mean --device?
nbattn plan {NAT} --device cpu

plan --frobnicate
nbattn plan: there is no option --frobnicate.
nbattn plan --help

doctor now
nbattn doctor: 'now' is one word too many.
nbattn doctor

bench {NAT} --rounds
nbattn bench: --rounds needs a value.
nbattn bench {NAT} --rounds 4

bench --rounds 0 {NAT}
nbattn bench: --rounds: '0' is not a whole number from 1 to 1000000.
nbattn bench --rounds 4 {NAT}

bench {NAT} --rounds=x
nbattn bench: --rounds: 'x' is not a whole number from 1 to 1000000.
nbattn bench {NAT} --rounds 4

demo --part digit
nbattn demo: --part: 'digit' is not one of denoise, digits.
nbattn demo --part digits

plan {NAT} --all=yes
nbattn plan: --all: ignored explicit argument 'yes'.
nbattn plan {NAT} --all
"""  # noqa: E501


@pytest.mark.parametrize("case", MISTAKES.strip().split("\n\n"), ids=lambda c: c.split("\n")[0])
def test_mistake_shows_the_corrected_line(case: str, capsys: Capture) -> None:
    words, message, fix = case.splitlines()
    assert cli.main(shlex.split(words)) == 2
    assert capsys.readouterr() == ("", f"{message}\n  fix:   {fix}\n")
    command, *rest = shlex.split(fix)[1:]
    if command in COMMANDS and "--help" not in rest:
        parser = cli.importlib.import_module(f"nbattn.cli.{command}").parser()
        assert parser.read(rest)


def test_words_may_follow_options() -> None:
    parser = cli.importlib.import_module("nbattn.cli.plan").parser()
    options = parser.read(["--verify", NAT, "--device", "cpu", "stage1"])
    assert (options.config, options.names, options.verify) == (NAT, ["stage1"], True)
    with pytest.raises(InputError):
        parser.read(["--verify", "--nothing"])


def test_the_program_alone_prints_its_help(capsys: Capture) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: nbattn COMMAND [OPTIONS]\n")
    for command in COMMANDS:
        assert f"\n  {command} " in out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help"])
    assert capsys.readouterr().out == out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help", "plan"])
    assert capsys.readouterr().out.startswith("usage: nbattn plan [OPTIONS] [CONFIG] [PLAN ...]\n")


@pytest.mark.parametrize("columns", [50, 80, 120])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal(
    command: str, columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*filter(None, [command]), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if len(line) > columns]

"""Tests of `nbattn plan` and `nbattn schema`: output, exit status and misuse."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from textwrap import dedent
from typing import Any

import pytest

import nbattn
from nbattn.cli import main
from nbattn.cli import plan as plan_command
from nbattn.explorer.page import of_plans
from nbattn.planner import proof
from nbattn.planner.explain import candidate_lines, cost_of, faster

ROOT = Path(__file__).parents[2]
NAT = "configs/nat_tiny.toml"
VIDEO = "configs/video_3d.toml"
Capture = pytest.CaptureFixture[str]


def nbattn_(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command line."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_choice_and_how_to_get_a_faster_one_come_first(capsys: Capture) -> None:
    status, out, err = nbattn_(capsys, "plan", NAT, "stage4", "--device", "cpu")
    plan = nbattn.load(NAT).plans["stage4"].plan(device="cpu")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == "stage4"
    assert lines[1] == f"  choice   {plan.chosen.name}, {cost_of(plan.chosen)}"
    assert lines[2].strip() == plan.chosen.work()
    assert " ".join(lines[3].split()) == "faster no faster choice is known."
    assert faster(plan).startswith("no faster choice is known; `nbattn tune` ")
    text = " ".join(out.split())
    for line in candidate_lines(plan, every=False):
        assert f"{line.state} {line.name}" in text
        assert line.state == "chosen" or all(" ".join(r.split()) in text for r in line.reasons)
    assert text.endswith(
        f"{plan.decided_by()} --all lists every candidate with every reason to measure the "
        f"candidates: nbattn tune {NAT} stage4 --device cpu"
    )


def test_the_note_of_a_choice_follows_its_work() -> None:
    made = nbattn.plan(nbattn.Mask.causal(), (1, 64, 2, 16), device="cpu")
    chosen = replace(made.chosen, note="the first run compiles a kernel")
    noted = replace(made, chosen=chosen, candidates=(chosen, *made.candidates[1:]))
    lines = [plan_command.text("mine", one, "", every=False).split("\n") for one in (made, noted)]
    added = [line.strip() for line in lines[1] if line not in lines[0]]
    assert added == ["the first run compiles a kernel"]
    assert lines[1].index(next(x for x in lines[1] if "first run" in x)) == 3


def test_all_plans_of_a_file_in_its_order(capsys: Capture) -> None:
    _, out, _ = nbattn_(capsys, "plan", NAT, "--device", "sm_90")
    plans, end = out.split("\nranked by ")
    titles = [line for line in plans.splitlines() if line and line[0] != " "]
    assert titles == ["stage1", "stage2", "stage3", "stage4"]
    assert plans.count("float32 sm_90 training") == 4
    assert end.endswith("--all lists every candidate with every reason\n")


def test_what_holds_for_all_plans_is_said_once(capsys: Capture, tmp_path: Path) -> None:
    """Plans that are ranked in different ways are named; the command to measure them is whole."""
    file = tmp_path / "two.toml"
    file.write_text(
        'masks.m.causal = {}\nplans.here = { mask = "m", query = [1, 8, 2, 8], device = "cpu" }\n'
        'plans.there = { mask = "m", query = [1, 8, 2, 8], device = "sm_90" }\n'
    )
    out = nbattn_(capsys, "plan", str(file), "--verify", "--training")[1]
    plans = nbattn.load(file).plans
    here, there = (replace(plans[name], training=True).plan() for name in ("here", "there"))
    command = f"nbattn tune {file} --training"
    assert " ".join(out.rpartition("\n\n")[2].replace("\\\n", "").split()) == (
        f"here: {here.decided_by()} there: {there.decided_by()} --all lists every candidate with "
        f"every reason to measure the candidates: {command}"
    )
    out = nbattn_(capsys, "plan", str(file), "here", "--all")[1]
    assert "--all" not in out
    assert "\nranked by estimates " in out


def test_a_mask_and_a_shape_are_a_plan(capsys: Capture) -> None:
    mask, shape = "neighborhood((7, 7), dilation=8)", "8,56,56,2,32"
    options = ["--query", shape, "--dtype", "float32", "--device", "cpu", "--training"]
    status, out, _ = nbattn_(capsys, "plan", "--mask", mask, *options)
    assert status == 0
    assert out.startswith(f"{mask}\n  choice   native/window, estimated ")
    assert "  chosen   native/window " in out


def test_a_mask_of_a_file_with_another_shape(capsys: Capture) -> None:
    shape = ["--query", "1,8,8,8,2,16", "--device", "cpu"]
    status, out, _ = nbattn_(capsys, "plan", VIDEO, "--mask", "encoder", *shape)
    assert status == 0
    assert "Axis(8, 0, causal=True)" in out


def test_every_option_changes_the_request(capsys: Capture) -> None:
    options = [
        *(
            "--mask",
            'causal("top-left")',
            "--query",
            "1,8,4,16",
            "--key",
            "1,9,2,16",
            "--value-dim",
            "8",
        ),
        *("--dtype", "float64", "--device", "sm_80", "--backend", "tiled", "--require", "tile"),
        *("--forbid", "fold,split", "--extra-keys", "3", "--softcap", "5", "--training", "--json"),
        *("--return-lse", "--sink", "--key-range", "--deterministic", "--packed"),
    ]
    status, out, _ = nbattn_(capsys, "plan", *options)
    (found,) = json.loads(out)
    expected = nbattn.plan(
        nbattn.Mask.causal("top-left"),
        (1, 8, 4, 16),
        (1, 9, 2, 16),
        value_dim=8,
        dtype="float64",
        device="sm_80",
        backend="tiled",
        require=("tile",),
        forbid=("fold", "split"),
        extra_keys=3,
        softcap=5.0,
        training=True,
        return_lse=True,
        sink=True,
        key_range=True,
        deterministic=True,
        packed=True,
    )
    assert (status, found) == (0, {"name": 'causal("top-left")'} | expected.to_dict())


def test_json_and_verify(capsys: Capture) -> None:
    status, out, _ = nbattn_(capsys, "plan", NAT, "--device", "cpu", "--json", "--verify")
    found = json.loads(out)
    assert status == 0
    assert [entry["name"] for entry in found] == ["stage1", "stage2", "stage3", "stage4"]
    assert all(entry["verified"] is True for entry in found)
    _, out, _ = nbattn_(capsys, "plan", NAT, "stage1", "--device", "cpu", "--verify")
    assert "\n  proof    exact: every pair of the mask once, no other\n" in out


def test_a_plan_that_is_not_its_mask_fails(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> bool:
        raise AssertionError("axis 0: query 3 attends to other keys than the mask allows")

    monkeypatch.setattr(proof, "verify", wrong)
    status, out, _ = nbattn_(capsys, "plan", NAT, "stage1", "--device", "cpu", "--verify")
    assert status == 1
    words = "proof    NOT EXACT: axis 0: query 3 attends to other keys than the mask allows\n"
    assert words in out
    status, out, _ = nbattn_(capsys, "plan", NAT, "stage1", "--verify", "--json")
    assert (status, json.loads(out)[0]["verified"]) == (1, False)


MISUSE = """
plan
    nbattn plan: the request is incomplete: --mask and --query are missing, and no plans of a CONFIG are selected.
      fix:   nbattn plan --mask 'sliding_window(511)' --query 1,4096,8,64

plan --query 1,32,32,4,16
    nbattn plan: the request is incomplete: --mask is missing, and no plans of a CONFIG are selected.
      fix:   nbattn plan --mask 'neighborhood((7, 7))' --query 1,32,32,4,16

plan NAT stage5
    nbattn plan: NAT has no plan 'stage5'; its plans are stage1, stage2, stage3, stage4.
      fix:   nbattn plan NAT stage4

plan NAT stage1 --device sm90
    nbattn plan: device='sm90' is not known: one of cpu, sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, sm_120, rtx_3090, rtx_4090, gfx90a, gfx942, gfx950, gfx1100, gfx1201, xe, a torch.device or a DeviceInfo.
      fix:   --device sm_90

plan NAT --mask blok --query 1,8,8,2,32
    nbattn plan: NAT has no mask 'blok'; its masks are block.
      fix:   --mask block

plan NAT stage1 --mask block --query 1,8,8,2,32
    nbattn plan: --mask defines the request, so plan names are unused: stage1.
      fix:   nbattn plan NAT stage1

plan NAT --mask block
    nbattn plan: the request is incomplete: --query is missing, and no plans of a CONFIG are selected.
      fix:   nbattn plan NAT --mask block --query 1,32,32,8,64

plan NAT stage1 --query 1,56,56,2
    nbattn plan: --query has 4 numbers, not 5: batch, a length for each axis (2 axes in the mask), heads, head size.
      fix:   --query 1,56,56,2,64

plan --mask full(2) --query 1,5,6,8,64 --grids 5x6
    nbattn plan: --query has 5 numbers, not 3: the tokens of all grids, heads, head size.
      fix:   --query 30,8,64

plan --mask full(2) --query 30,8,64 --key 1,2,3,8,64 --grids 5x6 --key-grids 2x3
    nbattn plan: --key has 5 numbers, not 3: the tokens of all grids, heads, head size.
      fix:   --key 6,8,64

plan --mask full(2) --query 30,8,64 --key-grids 2x3,4x6
    nbattn plan: --key-grids is given, but not --grids.
      fix:   --grids 2x3,4x6

plan --mask causal() --query 1,64,8,64 --key 1,64,64,8,64
    nbattn plan: --key has 5 numbers, not 4: batch, a length for each axis (1 axis in the mask), heads, head size.
      fix:   --key 1,64,64,8

plan absent.toml
    nbattn plan: absent.toml: cannot be read: No such file or directory.

plan --mask causal() --query 1,8,2,8 --backend tile
    nbattn plan: backend='tile' is not known: one of auto, reference, sdpa, tiled, flash, flash-model, cuda, triton, native, flex, natten (flash and flash-model also with :aten, :fa2, :fa3, :fa4).
      fix:   --backend tiled
"""  # noqa: E501  the texts are as users see them


@pytest.mark.parametrize("case", MISUSE.strip().split("\n\n"), ids=lambda case: case.split("\n")[0])
def test_plan_misuse_is_one_message_and_exit_status_2(capsys: Capture, case: str) -> None:
    command, _, expected = case.partition("\n")
    arguments = [NAT if part == "NAT" else part for part in command.split()]
    status, out, err = nbattn_(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == dedent(expected).replace("NAT", NAT) + "\n"


@pytest.mark.parametrize("command", [[], ["plan"], ["schema"]], ids=" ".join)
def test_plan_help_is_narrow_and_has_examples(capsys: Capture, command: list[str]) -> None:
    status, out, _ = nbattn_(capsys, *command, "--help")
    assert status == 0
    assert all(len(line) <= 100 for line in out.splitlines())
    assert "examples:" in out or "exit status:" in out


def test_figures_of_a_plan_are_written(capsys: Capture, tmp_path: Path) -> None:
    paths = [tmp_path / f"a.{ending}" for ending in ("svg", "pdf")]
    options = ["--device", "cpu", "--svg", str(paths[0]), "--pdf", str(paths[1])]
    status, out, _ = nbattn_(capsys, "plan", NAT, "stage4", *options)
    assert status == 0
    assert out.endswith("".join(f"written: {path}\n" for path in paths))
    assert "of computed pairs attended" in paths[0].read_text()
    assert "--svg" not in out
    status, _, err = nbattn_(capsys, "plan", NAT, *options)
    assert (status, err.splitlines()[0]) == (
        2, "nbattn plan: a figure is of one plan, and 4 plans are selected."
    )  # fmt: skip


@pytest.mark.deep  # a pipe that is closed is the same for every command: test_mask.py
def test_piped_output_is_plain_and_head_may_close_it() -> None:
    command = f"{quote(sys.executable)} -m nbattn plan {NAT} --device cpu | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("stage1\n", "")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_lines_fit_the_terminal(
    columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer than the terminal, nothing is cut, no word is broken."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = nbattn_(capsys, "plan", NAT, "stage1", "--device", "sm_90", "--all", "--verify")[1]
    assert max(map(len, out.splitlines())) <= columns
    monkeypatch.setenv("COLUMNS", "1000")
    wide = nbattn_(capsys, "plan", NAT, "stage1", "--device", "sm_90", "--all", "--verify")[1]
    assert out.split() == wide.split()
    assert "…" not in out


def test_colours_on_request(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = nbattn_(capsys, "plan", NAT, "stage1", "--device", "cpu")[1]
    assert out.startswith("\x1b[1mstage1\x1b[0m\n")
    assert "\x1b[2m  refused  flash" in out


def test_a_page_of_the_plans_is_written(capsys: Capture, tmp_path: Path) -> None:
    page = tmp_path / "nat.html"
    words = ("plan", NAT, "stage3", "stage4", "--device", "cpu")
    status, out, _ = nbattn_(capsys, *words, "--html", str(page))
    assert status == 0
    assert out.endswith(f"written: {page}\n")
    text = " ".join(out.split())
    assert f"nbattn tune {NAT} stage3 stage4 --device cpu written:" in text
    plans = {name: nbattn.load(NAT).plans[name].plan(device="cpu") for name in words[2:4]}
    assert page.read_text("utf-8") == of_plans(plans)
    status, out, _ = nbattn_(capsys, *words, f"--html={page}", "--json")
    assert [plan["name"] for plan in json.loads(out)] == ["stage3", "stage4"]


def test_a_page_has_the_ending_of_its_format(capsys: Capture, tmp_path: Path) -> None:
    page = tmp_path / "nat.png"
    status, _, err = nbattn_(capsys, "plan", NAT, "--html", str(page))
    assert status == 2
    assert f"fix:   --html {tmp_path / 'nat.html'}" in err
    assert not page.exists()

"""Tests of `nbattn plan --model`: the table, the text below it, JSON, the picture, and misuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import nbattn
from nbattn import Mask, published
from nbattn.cli import main, model_chart

Capture = pytest.CaptureFixture[str]
FLUX = ("--model", "flux", "--device", "sm_90")


def planned(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `nbattn plan`."""
    status = main(["plan", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def table(out: str) -> list[list[str]]:
    """The cells of the table, whose columns are two or more spaces apart."""
    lines = out.split("\n\n")[1].splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


# Times and memory follow from costs, which are tuned: here they are signs.
TABLE = """
  layers             tokens  useful  computed  time  dense  faster  memory
  19 double 256 x 256 + 512 5.98T 5.98T TIME TIME TIMES BYTES
  38 single 256 x 256 + 512 5.98T 5.98T TIME TIME TIMES BYTES
  57 in all 341T 341T TIME TIME TIMES BYTES
"""


def test_the_table_of_flux(capsys: Capture) -> None:
    status, out, err = planned(capsys, *FLUX, "--size", "4096x4096")
    assert (status, err) == (0, "")
    shown = out.split("\n\n")[1]
    for pattern, sign in ((r"[\d.,]+ m?s\b", "TIME"), (r"[\d.,]+x\b", "TIMES"),
                          (r"[\d.]+ [GM]B\b", "BYTES")):  # fmt: skip
        shown = re.sub(pattern, sign, shown)
    assert shown.split() == TABLE.split()
    widths = {len(line) for line in out.split("\n\n")[1].splitlines()}
    assert len(widths) == 1


def test_numbers_are_those_of_the_plan(capsys: Capture) -> None:
    out = planned(capsys, "--model", "ltx2_decoder", "--device", "sm_90")[1]
    plan = published.plan("ltx2_decoder", device="sm_90")
    rows = table(out)[1:]
    seconds = {"ms": 1e-3, "s": 1.0, "h": 3600.0}
    counts = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

    def number(cell: str, units: dict[str, float]) -> float:
        value, unit = re.fullmatch(r"([\d.,]+) ?([A-Za-z]+)", cell).groups()
        return float(value.replace(",", "")) * units[unit]

    for row, part in zip(rows, plan.layers, strict=False):
        name, tokens, useful, computed, time, dense, faster, memory = row
        assert name == part.name
        assert tokens == " x ".join(map(str, part.grid))
        assert number(useful, counts) == pytest.approx(part.useful_flops, rel=6e-3)
        assert number(computed, counts) == pytest.approx(part.computed_flops, rel=6e-3)
        assert number(time, seconds) == pytest.approx(part.seconds, rel=6e-3)
        assert number(dense, seconds) == pytest.approx(part.dense_seconds, rel=6e-3)
        assert float(faster[:-1].replace(",", "")) == pytest.approx(
            part.dense_seconds / part.seconds, rel=6e-3
        )
        held = part.tensor_bytes + part.beside_bytes
        assert number(memory, {"MB": 1e6, "GB": 1e9}) == pytest.approx(held, rel=6e-3)
    assert rows[-1][0] == "24 in all"
    assert number(rows[-1][3], seconds) == pytest.approx(plan.seconds, rel=6e-3)
    assert number(rows[-1][4], seconds) == pytest.approx(plan.dense_seconds, rel=6e-3)


def test_what_runs_is_told_once_for_layers_that_run_alike(capsys: Capture) -> None:
    out = planned(capsys, *FLUX, "--verify")[1]
    text = " ".join(out.split())
    grid, extras = published.plan("flux", device="sm_90").layers[0].plan.parts()
    assert out.startswith("flux  FLUX.1-dev, 4096 x 4096 pixels (height x width), bfloat16, sm_90")
    assert "proof exact: every pair of every mask once, no other" in text
    assert text.count("256 x 256 tokens") == 1
    assert (
        "19 double, 38 single: 256 x 256 tokens, and 512 of text, 24 heads of 128 windows "
        "flux_4k/strided: Mask(Axis(40, 39, stride=16, border='shift'), "
    ) in text
    for label, part in (("runs", grid), ("text", extras)):
        assert f"{label} {part.chosen.name}, {part.chosen.cost}; {part.chosen.work()}" in text
    assert f"ranked by estimates {grid.decided_by()[20:]}" in text
    assert "Projections, MLPs and cross attention over text are not counted." in text


def test_windows_that_cost_more_than_dense_are_told(capsys: Capture) -> None:
    """And layers of one kind with several windows are named by these."""
    out = planned(capsys, "--model", "cosmos", "--device", "sm_90")[1]
    names = [row[0] for row in table(out)[1:]]
    plan = published.plan("cosmos", device="sm_90")
    assert names == [*plan.names(), "28 in all"]
    slower = [part for part in plan.layers if part.dense_seconds < part.seconds]
    assert out.count(", faster than with windows") == len(slower)


def test_a_measured_time_is_not_compared_with_an_estimate(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = published.plan("flux", device="sm_90")
    first, second = plan.layers
    cost = replace(first.dense.chosen.cost, measured=0.5)
    dense = replace(first.dense, chosen=replace(first.dense.chosen, cost=cost))
    mixed = replace(plan, layers=(replace(first, dense=dense), second))
    assert [part.speedup is None for part in mixed.layers] == [True, False]
    assert (plan.speedup, mixed.speedup) == (plan.dense_seconds / plan.seconds, None)
    assert mixed.to_dict()["speedup"] is mixed.to_dict()["layers"][0]["speedup"] is None
    monkeypatch.setattr(published, "plan", lambda *_, **__: mixed)
    out = planned(capsys, *FLUX)[1]
    assert [len(row) for row in table(out)] == [8, 7, 8, 6]
    text = " ".join(out.split())
    assert "dense sdpa/dense, measured 500 ms memory" in text
    assert "which are no times of a run, and measured times, which are not compared" in text
    title = model_chart.figure(mixed).axes[0].get_title(loc="left")
    assert title.endswith("57 layers, times are estimated and measured")


def test_layers_without_published_windows(capsys: Capture) -> None:
    out = planned(capsys, "--model", "sd3.5", "--device", "cpu", "--dtype", "float32")[1]
    assert out.count("windows  none are published; --mask sets them") == 2
    assert "dense    " not in out
    assert [row[-2] for row in table(out)[1:]] == ["1x"] * 3


def test_tiles_that_do_not_divide_the_grid(capsys: Capture) -> None:
    size = ("--size", "720x1280", "--frames", "81")
    out = planned(capsys, "--model", "wan", *size, "--device", "sm_90")[1]
    assert "tiles of 6 x 8 x 8 do not divide 21 x 45 x 80 tokens" in " ".join(out.split())
    assert out.startswith("wan  Wan 2.1 14B, 81 frames of 720 x 1280 pixels (height x width)")


def test_every_option_changes_the_plan(capsys: Capture) -> None:
    options = [
        *("hunyuan_sta", "--mask", "wide", "--model", "hunyuan_video", "--size", "384x640"),
        *("--frames", "61", "--text", "32", "--dtype", "float16", "--device", "sm_80"),
        *("--training", "--json", "--verify"),
    ]
    status, out, _ = planned(capsys, *options)
    expected = published.plan(
        "hunyuan_video",
        (384, 640),
        frames=61,
        text=32,
        mask=nbattn.load("hunyuan_sta").masks["wide"],
        dtype="float16",
        device="sm_80",
        training=True,
    )
    assert (status, json.loads(out)) == (0, expected.to_dict() | {"verified": True})
    assert ", training" in planned(capsys, *options[:-2])[1].splitlines()[0]
    found = json.loads(planned(capsys, *FLUX, "--mask", "neighborhood((9, 9))", "--json")[1])
    assert {layer["mask"] for layer in found["layers"]} == {repr(Mask.neighborhood((9, 9)))}
    assert "verified" not in found


def test_a_plan_that_is_not_its_mask_fails(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbattn.planner import proof

    def wrong(*_: Any) -> bool:
        raise AssertionError("axis 0: query 3 attends to other keys than the mask allows")

    monkeypatch.setattr(proof, "verify", wrong)
    status, out, _ = planned(capsys, *FLUX, "--verify")
    assert status == 1
    assert "proof    NOT EXACT: axis 0: query 3 attends to other keys than the mask allows" in out
    status, out, _ = planned(capsys, *FLUX, "--verify", "--json")
    assert (status, json.loads(out)["verified"]) == (1, False)


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["flux", "cosmos", "ltx2_decoder"])
def test_lines_fit_the_terminal(
    name: str, columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut; narrow terminals leave out columns, the tokens first."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = planned(capsys, "--model", name, "--device", "sm_90")[1]
    assert max(map(len, out.splitlines())) <= columns
    heads = out.split("\n\n")[1].split("\n")[0].split()
    everything = ["layers", "tokens", "useful", "computed", "time", "dense", "faster", "memory"]
    assert [head for head in everything if head in heads] == heads
    assert {"layers", "time", "faster"} <= {*heads}
    assert columns == 80 or ("tokens" in heads) == (columns == 120)
    assert ("memory" in heads) == (columns >= 60)


def test_colours_on_request(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = planned(capsys, *FLUX)[1]
    assert out.startswith("\x1b[1mflux\x1b[0m  FLUX.1-dev")
    assert "\x1b[1m  layers" in out


def test_bars_are_the_times(tmp_path: Path) -> None:
    plan = published.plan("flux", device="sm_90")
    (axes,) = model_chart.figure(plan).axes
    widths = [round(bar.get_width(), 6) for bar in axes.patches]
    dense = [1e3 * part.layers.count * part.dense_seconds for part in plan.layers]
    windows = [1e3 * part.layers.count * part.seconds for part in plan.layers]
    assert widths == [round(time, 6) for time in (*dense, *windows)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["19 double", "38 single"]
    assert axes.get_xscale() == "linear"
    title = axes.get_title(loc="left")
    assert title.startswith(
        "FLUX.1-dev, 4096 x 4096 pixels, bfloat16, sm_90\n57 layers, times are "
    )
    (axes,) = model_chart.figure(published.plan("ltx2_decoder", device="sm_90")).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel().endswith(", logarithmic")


def test_pictures_are_written(capsys: Capture, tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG\r\n\x1a\n"), ("b.svg", b"<?xml"), ("C.SVG", b"<?xml")):
        file = tmp_path / name
        status, out, _ = planned(capsys, *FLUX, "--plot", str(file))
        assert (status, out.splitlines()[-1]) == (0, f"written: {file}")
        assert file.read_bytes().startswith(start)
    out = planned(capsys, *FLUX, "--plot", str(tmp_path / "a.png"), "--json")[1]
    assert json.loads(out)["model"] == "flux"


def test_a_picture_without_matplotlib(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert planned(capsys, *FLUX, "--plot", "a.png") == (
        2,
        "",
        "nbattn plan: --plot needs matplotlib, which is not installed.\n"
        "  fix:   pip install matplotlib\n",
    )


MISUSE = """
--model flx
    model='flx' is not known: one of KNOWN.
      fix:   --model flux

--model Wan_1.3B
    model='Wan_1.3B' is not known: one of KNOWN.
      fix:   --model wan_1.3b

--model flux --size 1000x1000
    size=(1000, 1000): 1000 is no multiple of 16, the pixels of a token of flux.
      fix:   --size 992x992

--model flux --size 1024
    --size: '1024' is not a height and a width.
      fix:   nbattn plan --model flux --size 1024x1024

--model flux --frames 5
    frames=5 is given, and flux makes images.
      fix:   without --frames

--model wan --frames 80
    frames=80 is not 1 + a multiple of 4, which wan takes.
      fix:   --frames 81

--model wan --text 5
    text=5 is given, and no text attends together with the grid of wan: its cross attention is not planned.
      fix:   without --text

--model wan --mask neighborhood((3,3))
    the mask has 2 axes, and tokens of wan have 3: frames, rows and columns.
      fix:   --mask 'Mask(Axis(), Axis(1, 1, border="shift"), Axis(1, 1, border="shift"))'

--model flux --query 1,8,8,2,16 --extra-keys 0 --training
    --model defines the request, so these are unused: --query, --extra-keys.
      fix:   nbattn plan --model flux --training

flux_4k exact --mask exact --model flux --size 512x512 --all
    --model defines the request, so these are unused: exact, --all.
      fix:   nbattn plan flux_4k --model flux --size 512x512 --mask exact

flux_4k --model flux
    flux_4k is given, but not which of its masks is for the layers.
      fix:   --mask exact

flux_4k --model flux --mask exakt
    flux_4k has no mask 'exakt'; its masks are exact, strided.
      fix:   --mask exact

--size 512x512 --device cpu
    --size is of a published model, and --model is missing.
      fix:   nbattn plan --model flux --size 512x512 --device cpu

--model flux --plot flux.jpg
    flux.jpg does not end in .png, the format of the file.
      fix:   --plot flux.png

--model flux --device sm90
    device='sm90' is not known: one of cpu, sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, sm_120, rtx_3090, rtx_4090, gfx90a, gfx942, gfx950, gfx1100, gfx1201, xe, a torch.device or a DeviceInfo.
      fix:   --device sm_90
"""  # noqa: E501  the texts are as users see them


@pytest.mark.parametrize("case", MISUSE.strip().split("\n\n"), ids=lambda case: case.split("\n")[0])
def test_misuse_is_one_message_and_exit_status_2(capsys: Capture, case: str) -> None:
    command, _, expected = case.partition("\n")
    known = ", ".join(published.MODELS)
    status, out, err = planned(capsys, *command.split())
    assert (status, out) == (2, "")
    assert err == f"nbattn plan: {dedent(expected).replace('KNOWN', known)}\n"


def test_the_help_names_the_options(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--size HxW" in out
    assert "nbattn plan --model flux --size 4096x4096 --device sm_90" in out

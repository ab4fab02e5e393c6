"""Tests of `nbattn mask --html`: the page, its plan's device, and misuse."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbattn
from nbattn.cli import main
from nbattn.explorer.page import of_plans

WORDS = ("mask", "--mask", "neighborhood((3, 3))", "--query", "8,8")


def plan_on(device: str, dtype: str) -> nbattn.Plan:
    mask = nbattn.Mask.neighborhood((3, 3))
    return nbattn.plan(mask, (1, 8, 8, 8, 64), dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("words", "device", "dtype"),
    [((), "cpu", "float32"), (("--device", "sm_90"), "sm_90", "bfloat16")],
)
def test_the_page_of_a_mask_has_a_plan(words, device, dtype, capsys, tmp_path: Path):
    page = tmp_path / "mask.html"
    assert main([*WORDS, "--html", str(page), *words]) == 0
    assert capsys.readouterr().out.endswith(f"written: {page}\n")
    assert page.read_text("utf-8") == of_plans({"mask": plan_on(device, dtype)})


def test_a_device_needs_a_page(capsys):
    assert main([*WORDS, "--device", "sm_90"]) == 2
    assert "fix:   --html mask.html --device sm_90" in capsys.readouterr().err


def test_the_ending_is_that_of_a_page(capsys, tmp_path: Path):
    assert main([*WORDS, "--html", str(tmp_path / "mask.svg")]) == 2
    assert f"--html {tmp_path / 'mask.html'}" in capsys.readouterr().err

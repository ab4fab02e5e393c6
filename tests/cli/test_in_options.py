"""Fixes of the library as options of the command line."""

from __future__ import annotations

import pytest

from nbattn.cli.in_options import in_options


@pytest.mark.parametrize(
    ("fix", "expected"),
    [
        ('backend="sdpa"', "--backend sdpa"),
        ('backend="auto", which takes native/window', "--backend auto, which takes native/window"),
        ("dtype='float32'.", "--dtype float32"),
        (
            'device="sm_90", which plans for one; device=None is this machine\'s',
            "--device sm_90, which plans for one; without --device it is this machine's",
        ),
        ("device=None", "leave out --device"),
        ("require=('mma',)", "--require mma"),
        ("require=(), which takes native/window", "without --require, which takes native/window"),
        ("forbid=('mma', 'fold')", "--forbid mma,fold"),
        ("query_space=(8, 8, 8).", "--query 8,8,8"),
        ("mask=Mask.neighborhood((7, 7)).", "--mask 'neighborhood((7, 7))'"),
        (
            "Mask(Axis(3, 0, align='top-left')) does; or Mask.causal() does.",
            "--mask 'Mask(Axis(3, 0, align=\"top-left\"))' does; or --mask 'causal()' does.",
        ),
        ("query.unsqueeze(-2), for one head; or mask=Mask.full(rank=2).", "--mask 'full(rank=2)'"),
        ("nbattn.attention(query, key, value, Mask.full()).", ""),
        ("require=(), forbid=()", "without --require, without --forbid"),
        ("border='wrap'.", "border='wrap'."),
        ("nbattn plan nat_tiny --backend sdpa", "nbattn plan nat_tiny --backend sdpa"),
        ("", ""),
    ],
)
def test_arguments_are_options(fix: str, expected: str) -> None:
    assert in_options(fix) == expected


def test_a_mask_of_a_file_has_no_option() -> None:
    fix = "Mask(Axis(3, 3, border='shift'))."
    assert in_options(fix, has_mask=False) == fix

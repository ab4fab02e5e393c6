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
        ("forbid=('mma', 'fold')", "--forbid mma,fold"),
        ("query_space=(8, 8, 8).", "--query 8,8,8"),
        ("mask=Mask.neighborhood((7, 7)).", "--mask 'neighborhood((7, 7))'"),
        ("border='wrap'.", "border='wrap'."),
        ("nbattn plan nat_tiny --backend sdpa", "nbattn plan nat_tiny --backend sdpa"),
        ("", ""),
    ],
)
def test_arguments_are_options(fix: str, expected: str) -> None:
    assert in_options(fix) == expected

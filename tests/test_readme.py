"""The README: every Python block runs, in order, as one program."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


def test_every_block_runs(
    capsys: pytest.CaptureFixture[str], cases: Callable[[str, int], None]
) -> None:
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), scope)
        cases("README blocks", 1)
    printed = capsys.readouterr().out
    assert len(BLOCKS) >= 4
    assert "largest difference from the dense reference" in printed
    assert "chosen    sdpa/dense+fold" in printed
    assert "no backend can run this" in printed

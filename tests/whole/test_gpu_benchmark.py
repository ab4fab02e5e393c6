"""Tests that GPU benchmarks report when there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["gpu_flash", "gpu_neighborhood"])
def test_gpu_benchmarks_without_a_gpu_exit_with_a_message(name: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}: this machine has no CUDA device.\n"

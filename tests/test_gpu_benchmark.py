"""Owns the check of benchmarks/gpu_flash.py where there is no GPU: it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_flash.py"
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu_flash: this machine has no CUDA device.\n"

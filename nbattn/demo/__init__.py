"""The demo: denoise a photograph and classify digits by neighborhood attention, and check the
results against targets.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

import nbattn.config
from nbattn.demo import denoise, digits
from nbattn.demo.report import Report
from nbattn.errors import counted

CONFIG = Path(__file__).with_name("demo.toml")
PARTS = ("denoise", "digits")


def run(
    output: Path,
    *,
    parts: tuple[str, ...] = PARTS,
    seed: int = 0,
    threads: int | None = None,
    size: int | None = None,
    epochs: int | None = None,
) -> bool:
    """Run parts of the demo and print their results.

    Args:
        output: the folder for pictures, created if it is missing; no other folder is written.
        parts: a selection of `PARTS`.
        seed: seed of the noise, the weights and the order of training.
        threads: threads of torch during the run; default: as many as torch uses, all cores.
        size: denoise only the size × size pixels in the middle of the photograph; default: all.
        epochs: training epochs; default: those of `digits.Recipe`.

    Returns:
        Whether all targets are met: 5 dB less noise, 97 % of the test digits correct.

    Raises:
        ConfigError: the demo's configuration file is damaged.
        OSError: the folder cannot be written.
    """
    started, before = time.perf_counter(), torch.get_num_threads()
    config = nbattn.config.load(CONFIG)
    report = Report()
    output.mkdir(parents=True, exist_ok=True)
    threads = before if threads is None else threads
    torch.set_num_threads(threads)
    try:
        report.line(
            f"nbattn {nbattn.__version__}, torch {torch.__version__}, CPU, "
            f"{counted(threads, 'thread')}; masks and layers: {CONFIG.name}"
        )
        if "denoise" in parts:
            denoise.run(report, config.masks["search"], output, seed=seed, size=size)
        if "digits" in parts:
            digits.run(report, config.layers, output, seed=seed, epochs=epochs)
    finally:
        torch.set_num_threads(before)
    return report.conclude(output, time.perf_counter() - started)

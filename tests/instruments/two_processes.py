"""Runs a function in two processes of one gloo group, forks of one that has loaded what is slow."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

PRELOADED = ["torch.distributed.fsdp", "nbattn.nn.parallel"]


def run(work: Callable[[int], None], folder: Path) -> None:
    """Calls `work(rank)` on ranks 0 and 1; an error of either one is raised."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(
        _started, (work, str(folder)), nprocs=2, start_method="forkserver"
    )


def _started(rank: int, work: Callable[[int], None], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    work(rank)
    dist.destroy_process_group()

"""Runs a function on ranks of a gloo group: forks of one process that has loaded what is slow.

The store is in the process that starts them, as it is in torchrun's agent: it outlives every rank.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

PRELOADED = [
    *("torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.fsdp"),
    *("nbattn.nn.parallel", "nbattn.distributed"),
]
Work = Callable[..., Any]


class Outcome(NamedTuple):
    """How a rank ended: its result, or its error in words, or the signal that killed it."""

    result: Any = None
    error: str = ""
    signal: int = 0


def run(work: Work, ranks: int = 2, *given: Any, seconds: float = 60) -> list[Any]:
    """The results of `work(rank, *given)` on all ranks.

    Raises:
        AssertionError: an error on one, with its traceback.
    """
    found = outcomes(work, ranks, *given, seconds=seconds)
    failed = [f"rank {rank}: {end}" for rank, end in enumerate(found) if end.error or end.signal]
    assert not failed, "\n".join(failed)
    return [end.result for end in found]


def outcomes(work: Work, ranks: int, *given: Any, seconds: float = 60) -> list[Outcome]:
    """How every rank ended; `seconds` is the group's timeout. A rank that hangs is an error."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    started = []
    for rank in range(ranks):
        here, there = context.Pipe(duplex=False)
        arguments = (there, work, rank, ranks, store.port, seconds, given)
        process = context.Process(target=_started, args=arguments, daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    return [_ended(process, end, seconds) for process, end in started]


def _ended(process: Any, end: Any, seconds: float) -> Outcome:
    try:
        found = end.recv() if end.poll(3 * seconds + 30) else Outcome(error="hangs")
    except EOFError:
        found = Outcome()
    process.join(60)
    if process.is_alive():
        process.kill()
        process.join()
        return found if found.error else Outcome(error="hangs at its end")
    return found if process.exitcode == 0 else Outcome(error=found.error, signal=-process.exitcode)


def _started(
    end: Any, work: Work, rank: int, ranks: int, port: int, seconds: float, given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what is preloaded stays: no collection needs to look at it
    gc.set_threshold(20_000)  # as in conftest.py
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore("127.0.0.1", port, None, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        end.send(Outcome(work(rank, *given)))
    except BaseException as error:
        end.send(Outcome(error="".join(traceback.format_exception(error))))
        end.close()
        os._exit(0)  # as a process that ended with an error: connections close, nothing waits
    if dist.is_initialized():  # a program of its own has ended it
        dist.destroy_process_group()

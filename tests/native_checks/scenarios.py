"""What threads, forks and signals do to calls of the kernels: one function for each scenario.

A scenario runs in a fork of its own, with one thread at first. It raises AssertionError where a
result differs in a bit from that of one thread, or where helpers are not as they should be.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import nbattn
from native_checks.children import Say, ended_well, started
from nbattn import Axis, Mask
from nbattn.backends.native import run

Results = tuple[Tensor, ...]
TASKS = Path("/proc/self/task")
# fmt: off
# Items for several threads, in tensors so small that torch's own operations never start threads.
PROBLEMS = (
    (Mask(Axis(70, 33)), (400,), 2, 32),
    (Mask(Axis(5, 5), Axis(4, 6, border="wrap")), (19, 21), 2, 24),
    (Mask(Axis(21, 22, border="shift", dilation=2)), (310,), 4, 17),
    (Mask(Axis(2, 2), Axis(2, 2), Axis(3, 3)), (6, 9, 13), 1, 40),
)
# fmt: on


def inputs(number: int) -> list[Tensor]:
    _, space, heads, channels = PROBLEMS[number % len(PROBLEMS)]
    generator = torch.Generator().manual_seed(number % len(PROBLEMS))
    shape = (1, *space, heads, channels)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]


def call(number: int, given: list[Tensor] | None = None) -> Results:
    """Output and gradients of a problem."""
    tensors = given or inputs(number)
    out = nbattn.attention(*tensors, PROBLEMS[number % len(PROBLEMS)][0], backend="native")
    return (out.detach(), *torch.autograd.grad(out, tensors, tensors[2].detach()))


def same(found: Results, wanted: Results, where: str) -> None:
    equal = all(map(torch.equal, found, wanted))
    assert equal, f"{where}: a result differs from that of one thread"


def of_one_thread() -> list[Results]:
    run._SHARE = 1.0  # however small a problem is, helpers are woken
    torch.set_num_threads(1)
    results = [call(number) for number in range(len(PROBLEMS))]
    assert {known[1] for known in run._numbers} == {0, 1, 2, 3}, "a pass has no problem"
    return results


def tasks() -> set[str]:
    return {path.name for path in TASKS.iterdir()}


@contextlib.contextmanager
def helpers_after() -> Iterable[set[str]]:
    """Fills a set with the threads that were added while the block ran, and live."""
    before, added = tasks(), set[str]()
    yield added
    added |= tasks() - before


def numbers_of_threads(say: Say) -> None:
    """Results never depend on threads, and there are no more helpers than the greatest number."""
    wanted, most = of_one_thread(), 1
    for threads in (2, 1, 5, 3, 4):
        with helpers_after() as added:
            torch.set_num_threads(threads)
            for number in range(8):
                same(call(number), wanted[number % 4], f"{threads} threads")
        assert len(added) == max(threads - most, 0), f"{threads} threads: {len(added)} new helpers"
        most = max(most, threads)


def callers_at_once(say: Say) -> None:
    """Eight threads with different problems, each with helpers."""
    wanted, wrong = of_one_thread(), list[BaseException]()
    torch.set_num_threads(3)
    ready = threading.Barrier(8)

    def loop(number: int) -> None:
        try:
            given = inputs(number % 4)
            ready.wait()
            for _ in range(6):
                same(call(number, given), wanted[number % 4], f"caller {number}")
        except BaseException as error:
            wrong.append(error)

    with helpers_after() as added:
        threads = [threading.Thread(target=loop, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong, str(wrong[0])
    added -= {str(thread.native_id) for thread in threads}  # those that have not quite ended
    assert len(added) == 2, f"{len(added)} helpers of 3 threads"


def fork_with_helpers(say: Say) -> None:
    """A child starts helpers of its own, and so does its child."""
    wanted = of_one_thread()
    torch.set_num_threads(3)
    call(0)

    def child() -> None:
        assert len(tasks()) == 1
        same(call(0), wanted[0], "a child")
        assert len(tasks()) == 3, f"a child has {len(tasks())} threads"

    def parent() -> None:
        child()
        ended_well([started(child)], "a grandchild")

    ended_well([started(parent)], "a child")
    same(call(1), wanted[1], "after a fork")


def fork_during_calls(say: Say) -> None:
    """Forks of the main thread while others are inside calls, and helpers at work."""
    wanted, stop = of_one_thread(), threading.Event()
    torch.set_num_threads(3)
    given = [inputs(number) for number in range(4)]

    def loop(number: int) -> None:
        while not stop.is_set():
            call(number, given[number])

    def child() -> None:
        for number in (1, 2):
            same(call(number), wanted[number], "a child")

    threads = [threading.Thread(target=loop, args=(number,)) for number in (0, 3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            ended_well([started(child)], "forked during calls")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    same(call(0), wanted[0], "after forks")


class Outputs(Dataset[Tensor]):
    """A data set whose items are computed by the kernels."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Tensor:
        torch.set_num_threads(2)
        return call(number)[0].flatten()[:1000]


def worker_processes(say: Say) -> None:
    """Workers of a DataLoader and of a multiprocessing pool, started with the helpers there."""
    wanted = of_one_thread()
    torch.set_num_threads(3)
    call(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        same(tuple(pool.map(call_with_two, range(4))), tuple(r[0] for r in wanted), "a pool")
    loader = DataLoader(Outputs(), num_workers=2, batch_size=None, multiprocessing_context="fork")
    same(tuple(loader), tuple(r[0].flatten()[:1000] for r in wanted), "a loader")


def call_with_two(number: int) -> Tensor:
    torch.set_num_threads(2)
    return call(number)[0]


def interrupts(say: Say) -> None:
    """KeyboardInterrupt comes between calls, helpers get no signals, and later calls work."""
    wanted = of_one_thread()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(3)
    with helpers_after() as added:
        call(0)
    assert len(added) == 2
    for helper in added:
        status = (TASKS / helper / "status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked >> (signal.SIGINT - 1) & 1, "a helper takes SIGINT"
    given, caught = [inputs(number) for number in range(4)], 0
    for turn in range(8):
        timer = threading.Timer(0.002 * turn, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                call(turn, given[turn % 4])
        except KeyboardInterrupt:
            caught += 1
        timer.join()
        same(call(turn), wanted[turn % 4], "after an interrupt")
    assert caught == 8


def idle_helpers(say: Say) -> None:
    """Helpers without work sleep: their CPU time stands still."""
    of_one_thread()
    torch.set_num_threads(4)
    with helpers_after() as added:
        for number in range(4):
            call(number)
    assert len(added) == 3
    time.sleep(0.05)
    before = used(added)
    time.sleep(0.4)
    assert used(added) == before, f"CPU time of idle helpers: {before}, then {used(added)}"


def used(helpers: Iterable[str]) -> list[list[str]]:
    """User and system time of threads, in clock ticks."""
    texts = [(TASKS / helper / "stat").read_text() for helper in sorted(helpers)]
    return [text.rpartition(")")[2].split()[11:13] for text in texts]


def threads_that_end(say: Say) -> None:
    """A thread's scratch memory goes with it."""
    torch.set_num_threads(1)
    given = inputs(0)

    def after(count: int) -> int:
        """KiB of the process after this number of threads, one after the other."""
        for _ in range(count):
            thread = threading.Thread(target=call, args=(0, given))
            thread.start()
            thread.join()
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmData:")[1].split()[0])

    first = after(5)
    grown = after(120) - first  # else 400 KiB each
    assert grown < 120 * 150, f"{grown} KiB more after 120 threads"


SCENARIOS: tuple[Callable[[Say], None], ...] = (
    numbers_of_threads,
    callers_at_once,
    fork_with_helpers,
    fork_during_calls,
    worker_processes,
    interrupts,
    idle_helpers,
    threads_that_end,
)

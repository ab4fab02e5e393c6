"""Measuring this device for the planner: its rates, times of candidates, the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nbattn import bench, cache, machine
from nbattn.bench import Effort, Job
from nbattn.cache import CacheError
from nbattn.errors import InputError
from nbattn.planner import cost_table, planner
from nbattn.planner.cost_table import Entry, Fingerprint, Rates
from nbattn.planner.plan import Plan
from nbattn.program.device import DeviceInfo
from nbattn.program.request import DTYPES
from nbattn.timing import Action, Clock, clock, interleave

QUICK, FULL = Effort(rounds=3, seconds=5.0), Effort(rounds=7, seconds=20.0)
ENTRIES = 64  # of a table: the latest are kept
_PRODUCTS = {"cpu": (256, 1024), "cuda": (1024, 8192)}  # extents, the second where it is fast
_SLOW = 0.25  # seconds of a product that is not worth measuring
_COPIED = {"cpu": 64 << 20, "cuda": 512 << 20}  # bytes, more than caches hold


def this_device(info: DeviceInfo) -> Fingerprint:
    """What a measurement of this machine's device holds for.

    Raises:
        InputError: the machine has no such device, or several models of it.
    """
    found = cost_table.fingerprint(info.name)
    if found is None:
        raise InputError(
            f"{info.name} cannot be measured: this machine has none, or several models of it.",
            '--device cpu, or CUDA_VISIBLE_DEVICES="0".',
        )
    return found


def check_quiet(kind: str) -> None:
    """Refuse to write what other programs have distorted: plans would follow it.

    Raises:
        InputError: several threads are timed and the machine is busy.
    """
    disturbed = bench.disturbance(kind)
    if disturbed:
        fix = "--threads 1, which is timed by CPU time, or wait until the machine is idle."
        raise InputError(f"{disturbed}.", fix)


def rates(kind: str, *, effort: Effort) -> Rates:
    """The speeds of a device: products of square matrices, the best over sizes; copies of memory;
    and one small attention of torch, as the cost of a call.

    Args:
        kind: "cpu" or "cuda".
        effort: rounds and clock; with fewer rounds than `FULL` only small products.
    """
    reads = effort.clock or clock(torch.get_num_threads(), kind)
    flops: dict[str, float] = {}
    for dtype in DTYPES:
        best = _product_rate(kind, dtype, reads, effort)
        if best:
            flops[dtype] = best
    source = torch.empty(_COPIED[kind], dtype=torch.uint8, device=kind)
    target = torch.zeros_like(source)
    small = torch.zeros(1, 1, 8, 8, device=kind)
    attend = torch.nn.functional.scaled_dot_product_attention
    runs: dict[str, Action] = {
        "copy": lambda: target.copy_(source),
        "call": lambda: attend(small, small, small),
    }
    times = interleave(runs, clock=reads, rounds=effort.rounds, budget=effort.seconds)
    return Rates(
        tuple(flops.items()), 2 * source.numel() / times["copy"].typical, times["call"].typical
    )


def _product_rate(kind: str, dtype: str, reads: Clock, effort: Effort) -> float:
    """FLOP/s of matrix products; 0 where the device has none in this dtype."""
    best = 0.0
    for extent in _PRODUCTS[kind][: 1 if effort.rounds < FULL.rounds else 2]:
        flops = 2.0 * extent**3
        if best and flops / best > _SLOW:
            break
        try:
            matrix = torch.ones(extent, extent, dtype=getattr(torch, dtype), device=kind)
            taken = interleave(
                {dtype: lambda matrix=matrix: matrix @ matrix}, clock=reads, rounds=effort.rounds
            )
        except RuntimeError:  # not every device has every dtype
            break
        best = max(best, flops / taken[dtype].typical)
    return best


def wanted(plans: dict[str, Plan], info: DeviceInfo) -> tuple[dict[str, list[Plan]], list[str]]:
    """What to measure of each plan, whatever backend it names: a forward pass, and with training
    both passes; and why the others are left out.
    """
    kept: dict[str, list[Plan]] = {}
    left_out: list[str] = []
    for name, plan in plans.items():
        if plan.request.device.name != info.name:
            device = plan.request.device.name
            left_out.append(f"{name}: planned for {device}; this measures {info.name}")
            continue
        free = planner.make(replace(plan.request, backend="auto", require=(), forbid=()))
        kept[name] = list(bench.passes(free))
    return kept, left_out


def times(
    plans: Iterable[tuple[str, Plan]],
    *,
    effort: Effort,
    done: Callable[[str], None] = lambda name: None,
) -> list[Job]:
    """Every accepted candidate of every plan, checked and timed as `nbattn bench` does."""
    return [bench.measure(name, plan, replace(effort, by_name=False), done) for name, plan in plans]


def entry(here: Fingerprint, found: Rates, jobs: Sequence[Job]) -> Entry:
    """What was measured, for the table. A candidate that was wrong has no time in it."""
    by_request = {cost_table.key(job.plan.request): dict(job.timed) for job in jobs if job.timed}
    return Entry(here, machine.today(), found, by_request)


def destination() -> Path:
    """Where the table of this user goes; the directory exists then, private and writable.

    Raises:
        InputError: the cache is off, or nothing can be written there.
    """
    path = intended()
    try:
        if path is not None:
            cache.prepare(path.parent)
            cache.read(path)
    except CacheError as error:
        raise _unwritable(error) from None
    if path is None:
        raise InputError(
            f"{cache.VARIABLE}=off: there is no place for the cost table.",
            f"--output FILE, or unset {cache.VARIABLE}.",
        )
    return path


def intended() -> Path | None:
    """Where the table would go; None where the cache is off. Makes nothing.

    Raises:
        InputError: the variables name no absolute path.
    """
    try:
        return cost_table.path()
    except CacheError as error:
        raise _unwritable(error) from None


def _unwritable(error: CacheError) -> InputError:
    return InputError(
        f"the cost table cannot be written: {error}.",
        f"--output FILE, or {cache.VARIABLE}=DIRECTORY, an absolute path that is yours.",
    )


def save(path: Path, new: Entry) -> str:
    """Add an entry to a table: its rates replace those of the same device, its times those of the
    same requests. Processes may do so at the same time; plans made from here on use it.

    Returns:
        What was wrong with the file before, which is then replaced; empty if nothing was.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with cache.locked(path.parent):
            content, problem = cache.read(path), ""
            try:
                old = () if content is None else cost_table.decode(content)
            except CacheError as error:
                old, problem = (), str(error)
            cache.publish(path, cost_table.encode(joined(old, new)).encode())
    except CacheError as error:
        raise InputError(f"the cost table cannot be written: {error}.", "--output FILE.") from None
    planner.forget()
    return problem


def joined(old: Sequence[Entry], new: Entry) -> tuple[Entry, ...]:
    """A table with an entry added, the latest first."""
    same = [one for one in old if one.fingerprint == new.fingerprint]
    others = [one for one in old if one.fingerprint != new.fingerprint]
    known = {facts: taken for one in reversed(same) for facts, taken in one.times.items()}
    return (replace(new, times={**known, **new.times}), *others)[:ENTRIES]

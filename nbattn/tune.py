"""Measure this device for the planner: rates, times of tiles and candidates, and the cost table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nbattn import bench, cache, machine
from nbattn.backends import families
from nbattn.backends.inputs import TENSORS, Inputs
from nbattn.bench import Effort, Job
from nbattn.cache import CacheError
from nbattn.errors import InputError, NbattnError
from nbattn.planner import cost_table, planner
from nbattn.planner.cost_table import Entry, Fingerprint, Rates
from nbattn.planner.plan import Plan
from nbattn.program.candidate import Candidate
from nbattn.program.device import DeviceInfo
from nbattn.program.request import DTYPES
from nbattn.timing import Action, Clock, clock, interleave

QUICK, FULL = Effort(rounds=3, seconds=5.0), Effort(rounds=7, seconds=20.0)
TILES = 6  # of a kernel that are measured besides its own: those with the lowest estimates
ENTRIES = 64  # the most entries of a table; older ones are dropped
_PRODUCTS = {
    "cpu": (256, 1024),
    "cuda": (1024, 8192),
    "xpu": (1024, 8192),
}  # sizes of square matrices; the second only where it is fast
_SLOW = 0.25  # seconds; products that take longer are not measured
Tiles = Mapping[str, float]  # kernel and tile → seconds
_COPIED = {"cpu": 64 << 20, "cuda": 512 << 20, "xpu": 1 << 30}  # bytes, larger than the caches
# The variables that select GPUs.
_SHOWS_ONE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}


def this_device(info: DeviceInfo) -> Fingerprint:
    """Return the fingerprint of this machine's device, for which a measurement is valid.

    Raises:
        InputError: the machine has no such device, or several models of it.
    """
    device = cost_table.fingerprint(info.name)
    if device is None:
        shows = _SHOWS_ONE.get(info.kind, "")
        has_several = bool(shows) and torch.get_device_module(info.kind).device_count() > 1
        why = "none, or several models of it" if has_several else "none"
        problem = f"{info.name} cannot be measured: this machine has {why}."
        raise InputError(problem + f" {shows}=0 shows one." * has_several, "--device cpu")
    return device


def check_quiet(kind: str) -> None:
    """Refuse to measure on a busy machine, since plans would follow distorted times.

    Raises:
        InputError: several threads are timed and the machine is busy.
    """
    disturbed = bench.why_unreliable(kind)
    if disturbed:
        raise InputError(
            f"{disturbed}: wait until the machine is idle, or measure one thread by its CPU time.",
            "--threads 1",
        )


def rates(kind: str, *, effort: Effort) -> Rates:
    """Measure a device: products of square matrices (best of all sizes), copies of memory, and one
    small attention of torch as the cost of a call.

    Args:
        kind: "cpu", "cuda" or "xpu".
        effort: rounds and clock; fewer rounds than `FULL` measure only small products.
    """
    timer = effort.clock or clock(torch.get_num_threads(), kind)
    flops: dict[str, float] = {}
    for dtype in DTYPES:
        best = _product_rate(kind, dtype, timer, effort)
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
    times = interleave(runs, clock=timer, rounds=effort.rounds, budget=effort.seconds)
    return Rates(
        tuple(flops.items()), 2 * source.numel() / times["copy"].typical, times["call"].typical
    )


def _product_rate(kind: str, dtype: str, timer: Clock, effort: Effort) -> float:
    """Measure FLOP/s of matrix products; 0 where the device does not support the dtype."""
    best = 0.0
    for extent in _PRODUCTS[kind][: 1 if effort.rounds < FULL.rounds else 2]:
        flops = 2.0 * extent**3
        if best and flops / best > _SLOW:
            break
        try:
            matrix = torch.ones(extent, extent, dtype=getattr(torch, dtype), device=kind)
            samples = interleave(
                {dtype: lambda matrix=matrix: matrix @ matrix}, clock=timer, rounds=effort.rounds
            )
        except RuntimeError:  # the device does not support this dtype
            break
        best = max(best, flops / samples[dtype].typical)
    return best


def plans_to_measure(
    plans: dict[str, Plan], info: DeviceInfo
) -> tuple[dict[str, list[Plan]], list[str]]:
    """Return the passes to measure for each plan, with any backend (forward, and with training
    forward and backward), and the reasons for plans that are left out.
    """
    selected: dict[str, list[Plan]] = {}
    left_out: list[str] = []
    for name, plan in plans.items():
        if plan.request.device.name != info.name:
            device = plan.request.device.name
            left_out.append(f"{name}: planned for {device}; tune measures {info.name}")
            continue
        free = planner.make(replace(plan.request, backend="auto", require=(), forbid=()))
        selected[name] = list(bench.passes(free))
    return selected, left_out


def times(
    plans: Iterable[tuple[str, Plan]],
    *,
    effort: Effort,
    seen: Callable[[bench.Row], None] = lambda row: None,
) -> list[Job]:
    """Check and time every accepted candidate of every plan, as `nbattn bench` does."""
    return [bench.measure(name, plan, replace(effort, by_name=False), seen) for name, plan in plans]


def tiles(plan: Plan, *, effort: Effort, known: Mapping[str, float] | None = None) -> Tiles:
    """Check and time tiles of every kernel of a plan that has them, each kernel alone.

    Args:
        plan: for this machine's device; with a backward for the kernels of the backward.
        effort: rounds and clock.
        known: tiles measured before, which are not measured again.

    Returns:
        Seconds by kernel and tile; none of a tile whose results differ or that fails. Empty for
        plans without such kernels, and for packed grids.
    """
    if bench.why_not_here(plan.request) or plan.request.grids is not None:
        return {}
    found = dict(known or {})
    for candidate in plan.candidates:
        has_tiles = families.family_of(candidate.backend).has_tiles
        if has_tiles and candidate.program and not candidate.reasons:
            found |= _tiles_of(plan, candidate, effort, found)
    return found


def _tiles_of(plan: Plan, candidate: Candidate, effort: Effort, known: Tiles) -> Tiles:
    request = plan.request
    made = bench.Tensors.of(request)
    named = {name: made.extras.get(name) for name in TENSORS[3:]}
    inputs = Inputs(
        made.query,
        made.key,
        made.value,
        **named,
        scale=request.head_dim**-0.5,
        softcap=made.extras.get("softcap"),
    )
    found: dict[str, float] = {}
    family = families.family_of(candidate.backend)
    of_kernels = family.attempts(candidate, request, request.axes(), inputs, made.grad, TILES)
    for of_kernel in of_kernels:
        ready = dict[str, Action]()
        expected: list[torch.Tensor] = []
        for name, attempt in of_kernel:
            if name in known:
                continue
            try:
                ran = attempt()
            except (NbattnError, RuntimeError):
                continue  # bench reports what fails
            expected = expected or ran.results
            if bench.disagreement(ran.results, expected) <= bench.TOLERANCE[request.dtype]:
                ready[name] = ran.run
        timer = effort.clock or clock(torch.get_num_threads(), request.device.kind)
        samples = interleave(ready, clock=timer, rounds=effort.rounds, budget=effort.seconds)
        found |= {name: one.typical for name, one in samples.items()}
    return found


def retiled(plan: Plan, measured: Tiles) -> Plan:
    """Return the plan with the tiles that were measured fastest; its candidates are then timed."""
    if not measured:
        return plan
    axes = plan.request.axes()

    def better(candidate: Candidate) -> Candidate:
        family = families.family_of(candidate.backend)
        return family.retiled(candidate, plan.request, axes, measured)

    chosen, *others = (better(c) for c in (plan.chosen, *plan.candidates))
    return replace(plan, chosen=chosen, candidates=tuple(others))


def entry(
    fingerprint: Fingerprint,
    measured: Rates | None,
    jobs: Sequence[Job],
    by_tile: Mapping[str, Tiles] | None = None,
) -> Entry:
    """Return the table entry of the measurements; it has no times of wrong candidates.

    Args:
        by_tile: the times of tiles by `cost_table.tile_key`.
    """
    by_request = {cost_table.key(job.plan.request): dict(job.timed) for job in jobs if job.timed}
    by_tile = {key: times for key, times in (by_tile or {}).items() if times}
    return Entry(fingerprint, machine.today(), measured, by_request, by_tile)


def prepared_table_path() -> Path:
    """Return the path of this user's table, and create its private directory.

    Raises:
        InputError: the cache is off, or the directory cannot be written.
    """
    path = table_path()
    try:
        if path is not None:
            cache.prepare(path.parent)
            cache.read(path)
    except CacheError as error:
        raise _unwritable(error) from None
    if path is None:
        raise InputError(
            f"{cache.VARIABLE}=off: the cost table has no folder.",
            "--output costs.json",
        )
    return path


def table_path() -> Path | None:
    """Return the path of the table without creating it; None where the cache is off.

    Raises:
        InputError: the environment variables do not name an absolute path.
    """
    try:
        return cost_table.path()
    except CacheError as error:
        raise _unwritable(error) from None


def _unwritable(error: CacheError) -> InputError:
    return InputError(
        f"the cost table cannot be written: {error}; {cache.VARIABLE} names another folder.",
        "--output costs.json",
    )


def save(path: Path, new: Entry) -> str:
    """Add an entry to a table: its rates replace those of the same device, its times those of the
    same requests. Safe with concurrent processes; plans made afterwards use the new table.

    Returns:
        The problem of the old file, which is then replaced; empty if it was valid.

    Raises:
        InputError: the table cannot be written.
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
        raise InputError(
            f"the cost table cannot be written: {error}.", "--output costs.json"
        ) from None
    planner.forget()
    return problem


def joined(old: Sequence[Entry], new: Entry) -> tuple[Entry, ...]:
    """Return the table with an entry added, the latest first."""
    same = [entry for entry in old if entry.fingerprint == new.fingerprint]
    others = [entry for entry in old if entry.fingerprint != new.fingerprint]
    known = {key: times for entry in reversed(same) for key, times in entry.times.items()}
    tiles = {key: times for entry in reversed(same) for key, times in entry.tiles.items()}
    for key, times in new.tiles.items():
        tiles[key] = {**tiles.get(key, {}), **times}
    return (replace(new, times={**known, **new.times}, tiles=tiles), *others)[:ENTRIES]

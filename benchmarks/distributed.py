"""Time attention across ranks against gathering all keys and against torch's ring over all keys.

    python benchmarks/distributed.py [--ranks 4] [--device cuda]

On a CPU the ranks are processes of one gloo group with a thread each, on GPUs one process a GPU and
NCCL. All ways of a case run in turns; barriers stand before and after each run.
"""

from __future__ import annotations

import argparse
import math
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import records
import report
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.distributed.tensor.experimental._context_parallel._attention as ring
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nbattn
from nbattn import Axis, Mask, machine
from nbattn.distributed import agreement, known_plans, local_calls, one_rank, shards
from nbattn.distributed import attention as across_ranks
from nbattn.distributed.chunks import chunk_of

Row = dict[str, Any]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One workload: its mask, whole space, and which axes two or more mesh dimensions cut.

    Args:
        mesh: for 4 ranks; the first dimension grows with their number.
    """

    name: str
    mask: Mask
    space: tuple[int, ...]
    shard: tuple[str | None, ...]
    mesh: tuple[int, ...]
    heads: int = 2
    dim: int = 64
    causal: bool = False


SIDE = Axis(4, 4, border="shift")
CASES = (
    Case(
        "document, window of 512", Mask(Axis(511, causal=True)), (16384,), ("x",), (4,),
        heads=4, causal=True,
    ),
    Case(
        "weather, 17 x 17", Mask(Axis(8, 8, border="shift"), Axis(8, 8, border="wrap")),
        (96, 128), ("x", None), (4,),
    ),
    Case("video, 5 x 9 x 9", Mask(Axis(2, 2, border="shift"), SIDE, SIDE), (8, 40, 40),
         (None, "x", "y"), (2, 2)),
)  # fmt: skip
QUICK = (4096,), (32, 32), (4, 16, 16)


KINDS = ("all_to_all", "all_gather", "reduce_scatter")


class Received(TorchDispatchMode):
    """Count the bytes that collectives bring from other ranks, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.messages = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(func)
        if "_c10d_functional." in name and any(kind in name for kind in KINDS):
            self.messages += 1
            given = args[0]
            if "all_to_all" in name:
                own = args[1][dist.get_rank()]  # what a rank sends to itself
                row = math.prod(given.shape[1:])
                self.bytes += (found.numel() - own * row) * given.element_size()
            else:  # the larger side has all ranks' parts
                self.bytes += abs(found.numel() - given.numel()) * given.element_size()
        return found


def ways(case: Case, mesh: Any, device: torch.device) -> dict[str, tuple[Run, Run]]:
    """Return for every way the forward pass alone, and forward and backward."""
    draw = torch.Generator(device).manual_seed(dist.get_rank())
    at = [(1, 0) if n is None else (mesh[n].size(), mesh.get_local_rank(n)) for n in case.shard]
    spans = [chunk_of(length, *part) for length, part in zip(case.space, at, strict=True)]
    own = [span.stop - span.start for span in spans]
    shape = (1, *own, case.heads, case.dim)
    query, key, value, grad = (
        torch.randn(shape, generator=draw, device=device).requires_grad_(number < 3)
        for number in range(4)
    )
    options: Any = {"mesh": mesh, "shard": case.shard, "space": case.space}
    axes = (
        axis if name is None else replace(axis, align="top-left", offset=span.start)
        for axis, name, span in zip(case.mask.axes, case.shard, spans, strict=True)
    )
    mine = Mask(*axes)  # this rank's queries against all keys

    def exchanged() -> Tensor:
        return across_ranks(query, key, value, case.mask, **options)

    def gathered() -> Tensor:
        keys, values = (_whole(side, case, mesh) for side in (key, value))
        return nbattn.attention(query, keys, values, mine)

    torch.testing.assert_close(exchanged(), gathered(), rtol=1e-4, atol=1e-4)

    def training(run: Callable[[], Tensor]) -> Run:
        return lambda: torch.autograd.grad(run(), (query, key, value), grad)

    def no_grad(run: Callable[[], Tensor]) -> Run:
        return lambda: torch.no_grad()(run)()

    found = {
        "nbattn": (no_grad(exchanged), training(exchanged)),
        "nbattn, no row split": (
            lambda: _unsplit(no_grad(exchanged)), lambda: _unsplit(training(exchanged)),
        ),
        "all-gather": (no_grad(gathered), training(gathered)),
        "dense ring": dense_ring(case, (query, key, value, grad)),
    }  # fmt: skip
    return found


def _whole(side: Tensor, case: Case, mesh: Any) -> Tensor:
    """Gather one side of all ranks, and put its blocks in their places."""
    names: list[str] = [n for n in case.shard if n is not None]
    gather: Any = getattr(collectives, "all_gather_single_autograd", None)  # its new name
    gather = gather or collectives.all_gather_tensor_autograd
    every: Tensor = gather(side.contiguous(), 0, dist.group.WORLD)
    every = every.unflatten(0, tuple(mesh[name].size() for name in names))
    for number, axis in enumerate(a for a, name in enumerate(case.shard) if name is not None):
        place = axis + len(names) - number  # of the axis, behind the mesh dimensions that are left
        every = every.movedim(0, place - 1).flatten(place - 1, place)
    return every[None] if every.dim() < side.dim() else every


def _unsplit(run: Run) -> Any:
    """Run with plans that compute all queries after the exchange, made in the first run."""
    kept, known = shards.WORTH_A_CALL, dict(known_plans._NUMBERS)
    shards.WORTH_A_CALL = 2.0
    known_plans._NUMBERS.clear()
    known_plans._NUMBERS.update(_UNSPLIT)
    try:
        return run()
    finally:
        _UNSPLIT.update(known_plans._NUMBERS)
        shards.WORTH_A_CALL = kept
        known_plans._NUMBERS.clear()
        known_plans._NUMBERS.update(known)


_UNSPLIT: dict[Any, int] = {}


def dense_ring(case: Case, tensors: tuple[Tensor, ...]) -> tuple[Run, Run]:
    """Run torch's ring over all keys. `context_parallel` itself has no rule for the CPU's operator,
    whose attention then is over the rank's own keys: there the ring is called with it.
    """
    query, key, value, grad = (t.detach().flatten(1, -3).transpose(1, 2) for t in tensors)
    query, key, value, grad = (t.contiguous() for t in (query, key, value, grad))
    ring._cp_options.enable_load_balance = case.causal
    cpu = query.device.type == "cpu"
    aten, group = torch.ops.aten, dist.group.WORLD
    options: Any = {} if cpu else {"dropout_p": 0.0}

    def one(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **named: Any
    ) -> Any:
        if cpu:
            run = aten._scaled_dot_product_flash_attention_for_cpu
            return run(query, key, value, 0.0, is_causal)
        run = aten._scaled_dot_product_efficient_attention
        return run(query, key, value, None, True, 0.0, is_causal)

    def back(
        grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
        logsumexp: Tensor, is_causal: bool = False, **named: Any,
    ) -> Any:  # fmt: skip
        if cpu:
            run = aten._scaled_dot_product_flash_attention_for_cpu_backward
            return run(grad_out, query, key, value, out, logsumexp, 0.0, is_causal)
        run, seed = aten._scaled_dot_product_efficient_attention_backward, named["philox_seed"]
        saved = None, out, logsumexp, seed, named["philox_offset"], 0.0, [True] * 3 + [False]
        return run(grad_out, query, key, value, *saved, is_causal)[:3]

    def forward() -> Any:
        return ring._templated_ring_attention(
            group, 2, one, query, key, value, is_causal=case.causal, **options
        )

    def training() -> Any:
        out, lse, *rest = forward()
        seeds = {} if cpu else {"philox_seed": rest[0], "philox_offset": rest[1]}
        return ring._templated_ring_attention_backward(
            group, 2, back, grad, "grad_out", query, key, value, out, lse, case.causal, **seeds
        )

    return forward, training


def timed(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, Row]:
    """Return medians over rounds: wall time from barrier to barrier, and CPU time of all ranks."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(-1, rounds):  # the first round is not counted
        for name, run in runs.items():
            _barrier(device)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            _barrier(device)
            if number >= 0:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    found: dict[str, Row] = {}
    for name, run in runs.items():
        with Received() as counted:
            run()
        own = torch.tensor(taken[name], dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        bytes_of: list[Any] = [None] * len(every)
        dist.all_gather_object(bytes_of, (counted.bytes, counted.messages))
        dist.all_gather_object(every, own)
        walls = torch.stack(every)[..., 0].amax(0)
        cpus = torch.stack(every)[..., 1].sum(0)
        found[name] = {
            "seconds": statistics.median(walls.tolist()),
            "cpu_seconds": statistics.median(cpus.tolist()),
            "received_bytes": max(one for one, _ in bytes_of),
            "messages": max(messages for _, messages in bytes_of),
        }
    return found


def _barrier(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def agreeing(rounds: int) -> Row:
    """Return what a call of a new kind pays for the agreement of all ranks, and a known one."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("x",))
    ranks = agreement.ranks_of(mesh, (0,))
    first: list[float] = []
    for number in range(rounds * 10):
        dist.barrier()
        start = time.perf_counter()
        ranks.agree(("benchmark", number), lambda number=number: {"number": f"{number}"})
        first.append(time.perf_counter() - start)
    own = torch.ones(1, 16, 1, 8)
    across_ranks(own, own, own, Mask.neighborhood(7), mesh=mesh, shard="x", space=16 * mesh.size())
    number, call = [*known_plans.PLANS][-1], local_calls.Call(None, {}, False)
    start = time.process_time()
    for _ in range(10_000):
        one_rank._agree(own, own, own, number, call)
    again = (time.process_time() - start) / 10_000
    return {"case": "agreement", "first_seconds": statistics.median(first), "known_seconds": again}


def work(rank: int, options: argparse.Namespace, port: int, rows: Any) -> None:
    """Measure on one rank; the first one hands the rows over."""
    torch.set_num_threads(1)
    device = torch.device(options.device, *([rank] if options.device == "cuda" else []))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=options.ranks,
    )  # fmt: skip
    found: list[Row] = [agreeing(options.rounds)]
    for number, case in enumerate(CASES):
        shape = (options.ranks // (4 // case.mesh[0]), *case.mesh[1:])
        mesh = dist.init_device_mesh(device.type, shape, mesh_dim_names=("x", "y")[: len(shape)])
        if options.quick:
            case = replace(case, space=QUICK[number])
        both = ways(case, mesh, device)
        for which, name in enumerate(("forward", "training")):
            runs = {way: pair[which] for way, pair in both.items()}
            measured = timed(runs, options.rounds, device)
            about = {"case": case.name, "space": case.space, "heads": case.heads, "dim": case.dim}
            found.append({**about, "mesh": shape, "pass": name, "ways": measured})
    if rank == 0:
        rows.put(found)
    dist.destroy_process_group()


def table(rows: list[Row]) -> Table:
    """Return the table of all rows."""
    shown = Table(title="across ranks, float32", title_justify="left", box=SIMPLE_HEAD)
    for name in ("case", "pass", "way", "wall, ms", "CPU, ms", "received, MB", "messages"):
        shown.add_column(name, justify="left" if name in ("case", "pass", "way") else "right")
    for row in rows:
        if "ways" not in row:
            first, known = 1e3 * row["first_seconds"], 1e6 * row["known_seconds"]
            shown.add_row("agreement", "", f"first {first:.2f} ms, known {known:.2f} us")
        for way, found in row.get("ways", {}).items():
            shown.add_row(
                f"{row['case']} {'x'.join(map(str, row['space']))}", row["pass"], way,
                f"{1e3 * found['seconds']:.4g}", f"{1e3 * found['cpu_seconds']:.4g}",
                f"{found['received_bytes'] / 1e6:.4g}", f"{found['messages']}",
            )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print and write JSON."""
    default = f"distributed-{machine.today()}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4, help="a multiple of 4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--quick", action="store_true", help="small, writes no file")
    records.add_output(parser, default)
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        raise SystemExit(f"{torch.cuda.device_count()} GPUs, not {options.ranks}: one a rank")
    path = None if options.quick else records.destination(options, default)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    arguments = (options, port, queue)
    torch.multiprocessing.start_processes(work, arguments, options.ranks, start_method="spawn")
    rows = queue.get()
    report.console().print(table(rows))
    if path is not None:
        record = {"machine": records.machine(), "versions": records.versions(), "rows": rows}
        method = f"medians of {options.rounds} rounds in turns, from barrier to barrier"
        busy = {"note": options.note, "busy_cores": machine.busy()}
        records.write(path, record | {"ranks": options.ranks, "method": method, **busy})


if __name__ == "__main__":
    main()

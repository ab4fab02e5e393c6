"""Compare nbattn with SDPA, FlexAttention, NATTEN and gathered keys on a CPU, in one process."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import flex
import natten_017
import peak
import peers
import records
import report
import targets
import torch
from peers import Peer, Prepared, RefusedError
from report import Row
from rich.progress import Progress, TaskID
from torch import Tensor
from workloads import Workload, known, select

import nbattn
from nbattn import machine
from nbattn.timing import Samples, clock, extra_memory, interleave

OURS = {
    "nbattn": Peer(
        "nbattn.attention, backend chosen by the planner, heads last", peers.own("auto")
    ),
    "native": Peer("nbattn.attention, backend 'native'", peers.own("native")),
    "tiled": Peer("nbattn.attention, backend 'tiled'", peers.own("tiled")),
    "nbattn-float32": Peer("nbattn in float32 (bfloat16)", peers.own("auto", widened=True)),
    "native-float32": Peer("native in float32 (bfloat16)", peers.own("native", widened=True)),
}
PEERS = OURS | {
    "sdpa-mask": Peer("SDPA with the dense boolean mask", peers.sdpa_mask),
    "sdpa-causal": Peer("SDPA with is_causal", peers.sdpa_causal),
    "sdpa-unmasked": Peer("SDPA without a mask, tokens sorted beforehand", peers.sdpa_unmasked),
    "flex": Peer("FlexAttention, mask as formulas, row-major", flex.written),
    "flex-lookup": Peer("FlexAttention, mask looked up in a table, row-major", flex.lookup),
    "flex-tiled": Peer("FlexAttention, table, tokens sorted by tile beforehand", flex.tiled),
    "natten-0.17": Peer("NATTEN 0.17: scores, softmax, sums", natten_017.prepare),
    "gather": Peer("every query's keys copied out (unfold)", peers.gather),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PASSES = ("forward", "training")
TRAINING_FLOPS = 3.5  # FLOPs of forward + backward, relative to a forward pass
# Limits of the RMS error divided by the RMS of the expected values: far above rounding errors, and
# far below the error of one extra key in every row, about 1 / sqrt(keys of a row).
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
QUICK = {"workloads": "W3-14,W3-28,W7b", "rounds": 3, "budget": 1.0}


class Job(NamedTuple):
    """One workload in one dtype, forward or training."""

    workload: Workload
    dtype: torch.dtype
    training: bool

    @property
    def fields(self) -> Row:
        """The fields that all rows of the job share."""
        return {
            "workload": self.workload.name,
            "shape": str(self.workload),
            "mask": repr(self.workload.mask),
            "dtype": str(self.dtype).removeprefix("torch."),
            "pass": "training" if self.training else "forward",
        }


def expected(job: Job) -> list[Tensor]:
    """Return the reference's float32 output and gradients of the first sample and head `[n, D]`."""
    cut = (slice(0, 1), ..., slice(0, 1), slice(None))
    *qkv, grad = (t[cut].float() for t in job.workload.tensors(job.dtype))
    for tensor in qkv:
        tensor.requires_grad_(job.training)
    out = nbattn.attention(*qkv, job.workload.mask, backend="reference")
    results = (out, *torch.autograd.grad(out, qkv, grad)) if job.training else (out,)
    return [t.detach().reshape(-1, t.shape[-1]) for t in results]


def error(prepared: Prepared, wanted: list[Tensor]) -> float:
    """Return the largest relative error of the output and the gradients of a run."""
    errors: list[float] = []
    for result, want in zip(prepared.results(), wanted, strict=False):
        part = want[: len(result)]
        errors.append(float((result.float() - part).norm() / part.norm()))
    return max(errors)


def prepare(job: Job, name: str, wanted: list[Tensor]) -> tuple[Prepared | None, Row]:
    """Prepare and check a peer; return it (None if it cannot run), and its row."""
    row = {**job.fields, "peer": name}
    try:
        prepared = PEERS[name].prepare(*job)
        row["error"] = error(prepared, wanted)
    except RefusedError as refused:
        return None, {**row, "reason": str(refused)}
    except Exception as failure:  # a peer's failure is a result; nbattn's own is raised
        if name in OURS:
            raise
        return None, {**row, "reason": f"fails: {type(failure).__name__}: {failure}"[:300]}
    if not row["error"] <= TOLERANCE[job.dtype]:
        return None, {**row, "reason": f"WRONG: relative error {row['error']:.1e}"}
    return prepared, {**row, "note": prepared.note, "share": prepared.share}


def measure(
    job: Job, names: list[str], options: argparse.Namespace, progress: Progress
) -> list[Row]:
    """Check every peer of a job, measure its memory, time all in turn; return the rows."""
    torch._dynamo.reset()  # earlier jobs count towards the recompilation limit
    gc.collect()
    task = progress.add_task(" ".join(_words(job)), total=len(names) * (options.rounds + 2))
    wanted, ready, rows = expected(job), {}, {}
    for name in names:
        prepared, rows[name] = prepare(job, name, wanted)
        if prepared is not None:
            ready[name] = prepared
        progress.advance(task)
    for name, prepared in ready.items():
        # the less of two, since the first run may load code
        measured = [extra_memory(prepared.run) for _ in range(2)]
        extra = None if None in measured else min(filter(None, measured), default=0)
        rows[name]["extra_bytes"] = None if extra is None else int(extra / prepared.share)
        progress.advance(task)
    before = peak.gflops(options.threads)
    samples = interleave(
        {name: prepared.run for name, prepared in ready.items()}, clock=clock(options.threads),
        rounds=options.rounds, budget=options.budget,
        done=lambda name, so_far: progress.advance(task),
    )  # fmt: skip
    fastest = max(before or 0, peak.gflops(options.threads) or 0)
    for name, taken in samples.items():
        rows[name] |= _times(job, taken, ready[name].share, fastest)
    progress.remove_task(task)
    _compare(job, rows, options)
    return list(rows.values())


def _words(job: Job) -> tuple[str, ...]:
    return tuple(job.fields[name] for name in ("workload", "dtype", "pass"))


def _times(job: Job, samples: Samples, share: float, fastest: float) -> Row:
    seconds = samples.typical / share
    flops = job.workload.useful_flops * (TRAINING_FLOPS if job.training else 1)
    return {
        "seconds": seconds,
        "median": samples.median / share,
        "best": samples.best / share,
        "rounds": len(samples.seconds),
        "gflops": flops / seconds / 1e9,
        "peak": flops / seconds / 1e9 / fastest if fastest else None,
    }


def _compare(job: Job, rows: dict[str, Row], options: argparse.Namespace) -> None:
    """Add ratios and targets to the rows, if nbattn was timed."""
    ours, shared = rows.get(options.own, {}), job.fields
    if "seconds" not in ours:
        return
    for name, row in rows.items():
        if name == options.own or "seconds" not in row:
            continue
        row["ratio"] = row["seconds"] / ours["seconds"]
        row["target"] = targets.ratio(
            job.workload, name, shared["pass"], shared["dtype"], options.threads
        )
        row["met"] = None if row["target"] is None else row["ratio"] >= row["target"]
    ours["peak_target"] = targets.peak(job.workload, shared["pass"], shared["dtype"])
    if ours["peak"] is not None and ours["peak_target"] is not None:
        ours["peak_met"] = ours["peak"] >= ours["peak_target"]
    if ours["extra_bytes"] is None:
        return
    ours["memory_limit"] = targets.memory(
        job.workload, job.dtype.itemsize, job.training,
        native=ours["note"].startswith("native"), threads=options.threads,
    )  # fmt: skip
    ours["memory_met"] = ours["extra_bytes"] <= ours["memory_limit"]
    gathered = rows.get("gather", {})
    if not job.training and gathered.get("target") and gathered["extra_bytes"]:
        gathered["memory_ratio"] = gathered["extra_bytes"] / max(1, ours["extra_bytes"])
        gathered["memory_met"] = gathered["memory_ratio"] >= targets.GATHER_MEMORY


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--own", default="nbattn", choices=("nbattn", "native"), help="what peers are compared with"
    )
    add("--peers", help=f"some of {', '.join(PEERS)}; default: 'tiled', the own ones, all others")
    add("--threads", type=int, default=1)
    add_selection(parser)
    records.add_output(parser, "cpu-DATE-THREADSt.json")
    return quick(parser, parser.parse_args())


def default_peers(own: str) -> list[str]:
    """Return the tile loop, and every peer that is not another way to call nbattn."""
    return [own, f"{own}-float32", "tiled", *(name for name in PEERS if name not in OURS)]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that select jobs, and how long to measure them."""
    add = parser.add_argument
    add("--workloads", default="all", help="workload names, separated by commas")
    add("--dtypes", default="float32,bfloat16", help=f"some of {', '.join(DTYPES)}")
    add("--passes", default=",".join(PASSES), help=f"some of {', '.join(PASSES)}")
    add("--rounds", type=int, default=7)
    add("--budget", type=float, default=60.0, help="no round of a job begins after these seconds")
    add("--quick", action="store_true", help="small workloads, few rounds, no file")


def quick(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """Return the options; with --quick those that have their defaults are small."""
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    return options


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield every selected job."""
    dtypes = known(options.dtypes.split(","), DTYPES, "dtype")
    names = known(options.passes.split(","), PASSES, "pass")
    for workload, dtype, name in product(select(options.workloads), dtypes, names):
        yield Job(workload, DTYPES[dtype], name == "training")


def method(options: argparse.Namespace) -> str:
    return (
        f"{options.threads} thread(s), {clock(options.threads).title} of up to {options.rounds} "
        f"interleaved rounds in one process; extra memory: peak resident minus before, "
        "outputs included"
    )


def main() -> int:
    """Measure, print and write; return 1 if a peer was wrong."""
    options = arguments()
    path, selected = None, list(jobs(options))
    if options.output or not options.quick:
        path = records.destination(options, f"cpu-{machine.today()}-{options.threads}t.json")
    names = default_peers(options.own)
    if options.peers is not None:
        names = [options.own, *known(options.peers.split(","), PEERS, "peer")]
    names = list(dict.fromkeys(names))
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "threads": options.threads,
        "method": method(options),
        "own": options.own,
        "peers": {name: PEERS[name].title for name in names},
        "rows": [],
    }
    screen = report.console()
    if options.threads > 1 and (machine.load() or 0) > 0.5:
        screen.print("This machine is busy: wall times of several threads will be too long.")
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
        _run(selected, names, options, record, path, progress)
    screen.print(report.ratio_table(record["rows"], options.own))
    for line in (
        *report.legend(record["peers"], record["method"]),
        *report.peak_line(record["machine"]["fma_peak"]),
        *report.summary(record["rows"]),
    ):
        screen.print(line, highlight=False)
    return int(any("WRONG" in row.get("reason", "") for row in record["rows"]))


def _run(
    selected: list[Job], names: list[str], options: argparse.Namespace, record: dict[str, Any],
    path: Path | None, progress: Progress,
) -> None:  # fmt: skip
    """Measure selected job; write the complete file after each."""
    total: TaskID = progress.add_task("all", total=len(selected))
    for job in selected:
        rows = measure(job, names, options, progress)
        record["rows"] += rows
        progress.console.print(report.job_table(rows, options.own), *report.absent(rows), sep="\n")
        progress.advance(total)
        if path is not None:
            records.write(path, record)


if __name__ == "__main__":
    sys.exit(main())

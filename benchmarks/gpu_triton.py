"""Time the Triton kernels on a GPU beside the CUDA kernels and FlexAttention at its best tiling.

    PYTHONPATH=. python benchmarks/gpu_triton.py --output FILE.jsonl [--only FLUX] [--seconds 480]
    PYTHONPATH=. python benchmarks/gpu_triton.py --output FILE.jsonl --summary

One JSON line per workload, pass and peer, written when measured; it stops in time, and a second run
goes on. FlexAttention is tried with its tokens in several orders, and in the best of them with
several tiles, warps and stages; sorting tokens is not timed. `--summary` prints each workload's
times beside the goals. `--dry` lists the peers without a GPU, and no line has a time.
It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_neighborhood as common
import gpu_timing
import torch
from findings import Findings
from gpu_neighborhood import Peer, Workload
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import nbattn
from nbattn import Mask, geometry
from nbattn.backends.flex.run import mask_function
from nbattn.program.device import DEVICES

TRITON, CUDA, FLEX = "triton", "cuda", "flex"
LIMIT = 1 << 17  # tokens up to which row-major block masks are tried
GOALS = {1: 0.8, 2: 3.0}  # FlexAttention's time divided by ours: without and with dilation
# FlexAttention's tiles of queries and keys, warps and stages; sets of the backward by its names.
FORWARDS = ((128, 64, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3), (64, 64, 4, 3), (128, 128, 8, 2))
BACKWARDS = (
    (32, 128, 128, 32, 4, 2), (64, 64, 64, 64, 4, 2), (64, 128, 128, 64, 8, 2),
    (32, 64, 64, 32, 4, 3),
)  # fmt: skip
Options = dict[str, int]


@dataclass(frozen=True)
class Arrangement:
    """An order of tokens, and the tokens of a block.

    Args:
        name: "row-major", "by class", or the extents of the tile that a block is.
        tile: the extents, if a block is a tile.
    """

    name: str
    tile: tuple[int, ...] | None = None

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return 128 if self.tile is None else torch.Size(self.tile).numel()


def workloads() -> Iterator[tuple[Workload, tuple[tuple[int, ...], ...]]]:
    """Yield each workload with the tiles that FlexAttention's tokens are sorted by."""
    known = {load.name: load for load in common.workloads()}
    hood = Mask.neighborhood
    yield known["FLUX"], ((8, 16), (8, 8))
    yield known["FLUX s16"], ((8, 16),)
    yield known["Hunyuan"], ((2, 8, 8), (1, 8, 8))
    yield known["LTX stage 4"], ((1, 8, 16), (1, 8, 8))
    frames = Workload("LTX stage 5, 16 frames", (16, 192, 192), hood((11, 11, 11)), 4, 64)
    yield frames, ((2, 8, 8), (4, 4, 4))
    yield known["1-D 32k"], ()
    yield Workload("1-D 32k d16", (32768,), hood(128, dilation=16), 8, 64), ()
    yield Workload("2-D d8", (128, 128), hood((15, 15), dilation=8), 8, 64), ()
    for name, load in known.items():
        if name.startswith(("NAT ", "DiNAT ")):
            yield load, ()


def is_dilated(load: Workload) -> bool:
    """Whether some axis of the mask has a dilation."""
    return any(axis.dilation > 1 for axis in load.mask.axes)


def arrangements(load: Workload, tiles: tuple[tuple[int, ...], ...]) -> list[Arrangement]:
    """Return the orders of tokens to try."""
    found = [Arrangement("x".join(map(str, tile)), tile) for tile in tiles]
    if is_dilated(load):
        found.append(Arrangement("by class"))
    if load.tokens <= LIMIT:
        found.append(Arrangement("row-major"))
    return found


def class_order(load: Workload) -> Tensor:
    """Return row-major token numbers, sorted so that each residue class is contiguous."""
    residues = torch.zeros(load.space, dtype=torch.int64)
    for number, (axis, length) in enumerate(zip(load.mask.axes, load.space, strict=True)):
        shape = [1] * len(load.space)
        shape[number] = length
        residues = residues * axis.dilation + (torch.arange(length) % axis.dilation).view(shape)
    return residues.flatten().argsort(stable=True)


def blocks_of(load: Workload, how: Arrangement, device: str = "cuda") -> BlockMask:
    """Return the block mask of a workload whose tokens have that order."""
    if how.tile is not None:
        return common.tiled_blocks(replace(load, tile=how.tile), device)
    if how.name == "row-major":
        return load.mask.to_flex(load.space, device=device)
    order = class_order(load).to(device)
    plain = mask_function(geometry.bind(load.mask, load.space), torch.device(device))
    return create_block_mask(
        lambda b, h, q, k: plain(b, h, order[q], order[k]),
        None, None, load.tokens, load.tokens, device=device, BLOCK_SIZE=how.block,
    )  # fmt: skip


def forward_options(block: int) -> Iterator[tuple[str, Options]]:
    """Yield the sets of FlexAttention's forward that fit blocks of so many tokens, by name."""
    for rows, columns, warps, stages in FORWARDS:
        if block % rows == 0 and block % columns == 0:
            names = ("fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_warps", "fwd_num_stages")
            values = (rows, columns, warps, stages)
            yield f"{rows}x{columns} {warps}w{stages}s", dict(zip(names, values, strict=True))


def backward_options(block: int) -> Iterator[tuple[str, Options]]:
    """Yield the sets of FlexAttention's backward that fit blocks of so many tokens, by name."""
    names = ("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2")
    for *extents, warps, stages in BACKWARDS:
        if all(block % extent == 0 for extent in extents):
            values = dict(zip(names, extents, strict=True))
            word = "x".join(map(str, extents))
            yield (
                f"{word} {warps}w{stages}s",
                {**values, "bwd_num_warps": warps, "bwd_num_stages": stages},
            )


def flex_peer(load: Workload, training: bool, how: Arrangement, options: Options) -> Peer:
    """Return a function that prepares FlexAttention; tensors of random numbers are in any order."""
    made = partial(common.tensors, load, torch.bfloat16)
    return lambda: common.flex(made(), blocks_of(load, how), training, **options)


def our_peer(load: Workload, training: bool, backend: str) -> Peer:
    """Return a function that prepares one of our families."""
    attend = partial(nbattn.attention, mask=load.mask, backend=backend)
    made = partial(common.tensors, load, torch.bfloat16)
    return lambda: common.run_of(attend, made(), training)


@dataclass(frozen=True)
class Bench:
    """Where it runs, and what it has found."""

    found: Findings
    dry: bool
    left: Callable[[], bool]

    def add(self, about: dict[str, Any], peer: Callable[[], Peer], flops: float) -> None:
        """Measure one peer, if it is not known and there is time."""
        if self.found.known(**about) or not self.left():
            return
        ours = about["peer"] in (TRITON, CUDA)
        more = self.plan(about) if ours else {}
        if self.dry:
            self.found.add({**about, **more, "dry": True})
            return
        start = time.perf_counter()
        measured = common.measured(peer(), flops, gpu_timing.seconds, ours)
        self.found.add({**about, **more, **measured, "wall_seconds": time.perf_counter() - start})

    def plan(self, about: dict[str, Any]) -> dict[str, Any]:
        """Return what a plan says of its work, or why there is none."""
        load = next(load for load, _ in workloads() if load.name == about["name"])
        device = DEVICES["sm_90"] if self.dry else "cuda"
        shape = (load.batch, *load.space, load.heads, load.dim)
        try:
            plan = nbattn.plan(
                load.mask, shape, device=device, backend=about["peer"], training=about["training"]
            )
        except nbattn.NbattnError as error:
            return {"plan": str(error)[:500]}
        cost = plan.chosen.cost
        assert cost is not None
        return {
            "plan": plan.chosen.work(),
            "useful_over_visited": cost.useful_pairs / cost.computed_pairs,
        }

    def best(self, load: Workload, training: bool, arrangement: str = "") -> dict[str, Any]:
        """Return the fastest finding of FlexAttention, of one order of tokens if one is named."""
        rows = [
            row
            for row in self.found.rows
            if row["kind"] == "triton" and row["name"] == load.name and row.get("seconds")
            and row["training"] == training and row["peer"].startswith(FLEX)
            and (not arrangement or row["arrangement"] == arrangement)
        ]  # fmt: skip
        return min(rows, key=lambda row: row["seconds"], default={})


def measure(load: Workload, tiles: tuple[tuple[int, ...], ...], training: bool, to: Bench) -> None:
    """Measure our families, then FlexAttention: first its orders of tokens, then its options."""
    flops = load.useful * (3.5 if training else 1.0)
    about = {"kind": "triton", "name": load.name, "training": training}
    for backend in (TRITON, CUDA):
        to.add({**about, "peer": backend}, partial(our_peer, load, training, backend), flops)

    def flex(how: Arrangement, word: str, options: Options) -> None:
        row = {**about, "peer": f"{FLEX} {how.name} {word}", "arrangement": how.name}
        peer = partial(flex_peer, load, training, how, options)
        to.add({**row, "options": options}, peer, flops)

    orders = arrangements(load, tiles)
    forward: Options = to.best(load, False).get("options", {}) if training else {}
    if training:
        best = to.best(load, False).get("arrangement", orders[0].name)
        orders = [one for one in orders if one.name == best]
    for how in orders:
        flex(how, "default", forward)
    chosen = to.best(load, training).get("arrangement", orders[0].name)
    how = next(one for one in orders if one.name == chosen)
    options_of = backward_options if training else forward_options
    for word, options in options_of(how.block):
        flex(how, word, {**forward, **options})


def summary(found: Findings) -> list[str]:
    """Return a line per workload and pass: times, FlexAttention's divided by ours, and the goal."""
    known = Bench(found, False, lambda: False)
    lines = [f"{'workload':24} {'pass':9} {'triton':>9} {'cuda':>9} {'flex':>9}  flex/triton  goal"]
    for (load, _), training in itertools.product(workloads(), (False, True)):
        rows = [r for r in found.rows if r["name"] == load.name and r["training"] == training]
        times = {row["peer"]: row.get("seconds") for row in rows}
        flex = known.best(load, training)
        times[FLEX] = flex.get("seconds")
        three = [times.get(name) for name in (TRITON, CUDA, FLEX)]
        texts = " ".join(f"{1e3 * t:7.3f}ms" if t else f"{'-':>9}" for t in three)
        ours, theirs = three[0], three[2]
        ratio = f"{theirs / ours:11.2f}" if ours and theirs else f"{'-':>11}"
        goal = GOALS[1 + is_dilated(load)]
        name = "training" if training else "forward"
        lines.append(f"{load.name:24} {name:9} {texts}  {ratio}  {goal}  {flex.get('peer', '')}")
    return lines


def main(words: list[str] | None = None) -> int:
    """Measure until all is known or the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of JSON lines, which is continued")
    parser.add_argument("--seconds", type=float, default=480, help="stop after this time")
    parser.add_argument("--only", help="only workloads whose name contains this")
    parser.add_argument("--dry", action="store_true", help="without a GPU, and without times")
    parser.add_argument("--summary", action="store_true", help="only print what the file has")
    options = parser.parse_args(words)
    found = Findings(options.output)
    if options.summary:
        print("\n".join(summary(found)))
        return 0
    if not options.dry and not torch.cuda.is_available():
        print("gpu_triton: this machine has no CUDA device.", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    bench = Bench(found, options.dry, lambda: time.monotonic() < end)
    for (load, tiles), training in itertools.product(workloads(), (False, True)):
        if options.only and options.only not in load.name:
            continue
        measure(load, tiles, training, bench)
        if not bench.left():
            print("gpu_triton: the time is up; the next run goes on.", file=sys.stderr)
            return 3
    print("\n".join(summary(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

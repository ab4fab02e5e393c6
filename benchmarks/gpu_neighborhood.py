"""Time the CUDA kernels on a GPU: published workloads against the Triton kernels, FlexAttention and
dense SDPA, with the useful fraction of visited pairs and the kernels' dense rate.

    PYTHONPATH=. python benchmarks/gpu_neighborhood.py --output FILE.jsonl [--only FLUX]

One JSON line per workload, pass and peer, written when measured; a second run goes on. Needs a CUDA
device, torch and CuPy. `gpu_triton.py` tries FlexAttention's options. It has not been run on a GPU
yet.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_timing
import numpy as np
import torch
from findings import Findings
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import nbattn
from nbattn import Axis, Mask, geometry
from nbattn.backends.cuda import group_limits
from nbattn.backends.flex.run import mask_function
from nbattn.timing import Action

OURS, WARPGROUPS, WARPS = "nbattn", "nbattn, wgmma", "nbattn, no wgmma"
# Our peers: as the planner chooses, and with the kernels for sm_90 and for sm_80.
ROUTES: dict[str, dict[str, Any]] = {
    OURS: {}, WARPGROUPS: {"require": ("wgmma",)}, WARPS: {"forbid": ("wgmma",)}
}  # fmt: skip
_CALLS = 200


@dataclass(frozen=True)
class Workload:
    """One problem. `tile` is FlexAttention's best tiling of the grid, 128 tokens; `published` is
    NATTEN's Hopper forward in useful TFLOP/s, from its documentation of 0.20, without permutation;
    `goal` is what our forward is to reach on an H100.
    """

    name: str
    space: tuple[int, ...]
    mask: Mask
    heads: int
    dim: int
    batch: int = 1
    tile: tuple[int, ...] | None = None
    published: float | None = None
    goal: float | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens of one sample."""
        return math.prod(self.space)

    @property
    def useful(self) -> float:
        """FLOPs of the forward pass over the pairs that the mask allows."""
        pairs = geometry.pairs(geometry.bind(self.mask, self.space))
        return 4.0 * self.batch * self.heads * pairs * self.dim


def workloads() -> Iterator[Workload]:
    """Yield workloads: NATTEN's documentation, Cosmos-Predict2, LTX-2.5's decoder, NAT, DiNAT."""
    hood = Mask.neighborhood
    flux, video = (256, 256), (30, 48, 80)
    yield Workload("FLUX", flux, hood((80, 80)), 24, 128, 1, (8, 16), 318, 430)
    yield Workload("FLUX s16", flux, hood((80, 80), stride=16), 24, 128, 1, (8, 16), 651, 590)
    yield Workload("Hunyuan", video, hood((18, 24, 24)), 24, 128, 1, (2, 8, 8), 186, 290)
    strided = hood((18, 24, 24), stride=(16, 8, 8))
    yield Workload("Hunyuan s16,8,8", video, strided, 24, 128, 1, (2, 8, 8), 628, 580)
    # The goal: FlashAttention-3 without a mask (arXiv 2407.08608).
    yield Workload("1-D 32k", (32768,), hood(2048), 8, 128, 1, (128,), goal=648)
    for stride, published in ((1, 362), (256, 548), (2048, 580)):
        yield Workload(
            f"1-D s{stride}", (32768,), hood(2048, stride=stride), 1, 128, 1, (128,), published
        )
    config = Path(__file__).parents[1] / "configs" / "cosmos_predict2.toml"
    for name, fields in tomllib.loads(config.read_text("utf-8"))["masks"].items():
        mask = Mask(*(Axis(**axis) for axis in fields["axes"]))  # not nbattn.load: no pydantic
        yield Workload(f"Cosmos {name}", (24, 44, 80), mask, 16, 128)
    # stage 5 without a tiling: FlexAttention has 22,752^2 blocks
    yield Workload("LTX stage 4", (69, 64, 96), hood((3, 5, 5)), 8, 64, 1, (1, 8, 16))
    yield Workload("LTX stage 5", (79, 192, 192), hood((11, 11, 11)), 4, 64)
    for side, heads, dilation in ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1)):
        yield Workload(f"NAT {side}", (side, side), hood((7, 7)), heads, 32, 128)
        if dilation > 1:
            dilated = hood((7, 7), dilation=dilation)
            yield Workload(f"DiNAT {side} d{dilation}", (side, side), dilated, heads, 32, 128)


def tensors(load: Workload, dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, ...]:
    """Create q, k, v and the gradient of the output, heads last."""
    torch.manual_seed(0)
    shape = (load.batch, *load.space, load.heads, load.dim)
    return tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(4))


def run_of(attend: Callable[..., Tensor], made: tuple[Tensor, ...], training: bool) -> Action:
    """Return a function that runs the forward, or forward and backward."""
    *inputs, grad = made
    if not training:
        return partial(attend, *inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]
    return lambda: torch.autograd.grad(attend(*leaves), leaves, grad)


def tile_order(space: tuple[int, ...], tile: tuple[int, ...]) -> Tensor:
    """Return row-major token numbers, sorted so that each tile is contiguous."""
    grid = torch.arange(math.prod(space)).reshape(
        [n for pair in zip((s // t for s, t in zip(space, tile, strict=True)), tile, strict=True)
         for n in pair]
    )  # fmt: skip
    rank = len(space)
    return grid.permute([2 * a for a in range(rank)] + [2 * a + 1 for a in range(rank)]).flatten()


def tiled_blocks(load: Workload, device: str = "cuda") -> BlockMask:
    """Return the block mask of tokens in tile order, from the counts of pairs per tile."""
    assert load.tile is not None
    lines = geometry.bind(load.mask, load.space)
    allowed, full = np.ones((1, 1), np.int64), np.ones((1, 1), np.int64)
    for line, extent in zip(lines, load.tile, strict=True):
        allowed = np.kron(allowed, line.coverage(extent, extent))
        full = full * extent * extent
    kinds = [(allowed > 0) & (allowed < full[0, 0]), allowed == full[0, 0]]
    listed: list[Tensor] = []
    for kind in kinds:
        order = np.argsort(~kind, axis=1, kind="stable").astype(np.int32)
        listed += [
            torch.from_numpy(a)[None, None].to(device) for a in (kind.sum(1, dtype=np.int32), order)
        ]
    order = tile_order(load.space, load.tile).to(device)
    plain = mask_function(lines, torch.device(device))
    return BlockMask.from_kv_blocks(
        *listed,
        BLOCK_SIZE=math.prod(load.tile),
        mask_mod=lambda b, h, q, k: plain(b, h, order[q], order[k]),
        seq_lengths=(load.tokens, load.tokens),
    )


def flex(made: tuple[Tensor, ...], blocks: BlockMask, training: bool, **options: Any) -> Action:
    """Return compiled FlexAttention on heads-first copies; copies and compilation are not timed."""
    first = tuple(t.flatten(1, -3).transpose(1, 2).contiguous() for t in made)
    attend = partial(torch.compile(flex_attention), block_mask=blocks, kernel_options=options)
    return run_of(attend, first, training)


def dense(made: tuple[Tensor, ...], training: bool) -> Action:
    """Return SDPA without a mask, the dense baseline."""
    first = tuple(t.flatten(1, -3).transpose(1, 2).contiguous() for t in made)
    return run_of(torch.nn.functional.scaled_dot_product_attention, first, training)


Peer = Callable[[], Action]


def peers(load: Workload, dtype: torch.dtype, training: bool) -> dict[str, Peer]:
    """Return functions that prepare each peer, ours first. Each has tensors of its own, which are
    freed before the next one's.
    """

    def family(backend: str, **route: Any) -> Peer:
        attend = partial(nbattn.attention, mask=load.mask, backend=backend, **route)
        return of(lambda made: run_of(attend, made, training))

    def of(prepare: Callable[[tuple[Tensor, ...]], Action]) -> Peer:
        return lambda: prepare(tensors(load, dtype))

    found: dict[str, Peer] = {
        name: family("cuda", **route)
        for name, route in ROUTES.items()
        if name == OURS or load.dim in group_limits.SIZES
    }
    found["triton"] = family("triton")
    if load.tile is not None:
        found["flex, tiled"] = of(lambda made: flex(made, tiled_blocks(load), training))
        # Flash 4's kernels, where they are installed.
        found["flex, tiled, FLASH"] = of(
            lambda made: flex(made, tiled_blocks(load), training, BACKEND="FLASH")
        )
    found["flex, row-major"] = of(
        lambda made: flex(made, load.mask.to_flex(load.space, device="cuda"), training)
    )
    if load.tokens <= 1 << 15:
        found["sdpa, dense"] = of(lambda made: dense(made, training))
    return found


def fresh() -> None:
    """Forget compiled graphs, of which dynamo keeps few, and memory of the peer before."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def failure(error: Exception) -> dict[str, Any]:
    """Return the finding of a peer that cannot run."""
    return {"error": f"{type(error).__name__}: {error}"[:500]}


def measured(peer: Peer, flops: float, timer: gpu_timing.Timer, detail: bool) -> dict[str, Any]:
    """Return a peer's time, or why it has none: its failure costs only its own finding."""
    fresh()
    try:
        run = peer()
        seconds = timer(run)
        if seconds is None:
            return {"dry": True}
        found: dict[str, Any] = {"seconds": seconds, "useful_tflops": flops / seconds * 1e-12}
        if detail:
            found["kernels"] = gpu_timing.by_kernel(run)
    except Exception as error:  # whatever a compiler or a driver raises
        return failure(error)
    return found


def planned(load: Workload, dtype: torch.dtype, training: bool, name: str) -> dict[str, Any]:
    """Return what a plan says of one of our peers, or why there is none."""
    shape = (load.batch, *load.space, load.heads, load.dim)
    try:
        plan = nbattn.plan(
            load.mask, shape, dtype=dtype, device="cuda", backend="cuda", training=training,
            **ROUTES[name],
        )  # fmt: skip
    except nbattn.BackendError as error:
        return {"plan": str(error)[:500]}
    cost = plan.chosen.cost
    assert cost is not None
    return {
        "traits": list(plan.chosen.traits), "plan": plan.chosen.work(), "estimate": cost.estimate,
        "useful_over_visited": cost.useful_pairs / cost.computed_pairs,
        "published_forward_tflops": None if training else load.published,
        "goal_tflops": None if training else load.goal,
    }  # fmt: skip


def measure(
    load: Workload, dtype: torch.dtype, training: bool, known: Callable[..., bool]
) -> Iterator[dict[str, Any]]:
    """Yield the finding of every peer of one workload that is not known."""
    about = {
        "kind": "workload", "name": load.name, "dtype": str(dtype)[6:], "training": training
    }  # fmt: skip
    flops = load.useful * (3.5 if training else 1.0)
    for name, peer in peers(load, dtype, training).items():
        if not known(**about, peer=name):
            more = planned(load, dtype, training, name) if name in ROUTES else {}
            found = measured(peer, flops, gpu_timing.seconds, name in ROUTES)
            yield {**about, "peer": name, **more, **found}


def dense_rate(dim: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield the rates of kernels where every visited pair is useful."""
    load = Workload("dense", (16384,), Mask.full(), 16, dim)
    for name, peer in peers(load, dtype, False).items():
        if not name.startswith("flex"):
            about = {"kind": "dense", "dim": dim, "dtype": str(dtype)[6:], "peer": name}
            yield about | measured(peer, load.useful, gpu_timing.seconds, False)


def host() -> dict[str, Any]:
    """Measure the host time of the first call of a variant and of later calls."""
    load = Workload("small", (16, 16), Mask.neighborhood((7, 7)), 2, 64)
    made = tensors(load, torch.bfloat16)
    run = run_of(partial(nbattn.attention, mask=load.mask, backend="cuda"), made, False)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(_CALLS):
        run()
    call = (time.perf_counter() - start) / _CALLS
    torch.cuda.synchronize()
    return {"kind": "host", "first_call_seconds": first, "call_seconds": call}


def rows(options: argparse.Namespace, known: Callable[..., bool]) -> Iterator[dict[str, Any]]:
    """Yield every finding that is not known; a failed one does not stop the others."""
    dtypes = (torch.bfloat16,) if options.quick else (torch.float16, torch.bfloat16)
    if not options.only and not known(kind="host"):
        try:
            yield host()
        except Exception as error:
            yield {"kind": "host", **failure(error)}
    for dtype in dtypes:
        for dim in (32, 64, 128):
            name = str(dtype)[6:]
            if not options.only and not known(kind="dense", dim=dim, dtype=name):
                yield from dense_rate(dim, dtype)
        for load in workloads():
            if not options.only or options.only in load.name:
                for training in (False, True):
                    yield from measure(load, dtype, training, known)


def main(words: list[str] | None = None) -> int:
    """Measure until all is known or the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of JSON lines, which is continued")
    parser.add_argument("--quick", action="store_true", help="bfloat16 only")
    parser.add_argument("--only", help="only workloads whose name contains this")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("gpu_neighborhood: this machine has no CUDA device.", file=sys.stderr)
        return 2
    end, found = time.monotonic() + options.seconds, Findings(options.output)
    for row in rows(options, found.known):
        found.add(row)
        if time.monotonic() > end:
            print("gpu_neighborhood: the time is up; the next run goes on.", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The project's CUDA kernels as candidates: one call on whole tensors by each instructions."""

from __future__ import annotations

from nbattn import geometry
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Pass
from nbattn.geometry import Axes
from nbattn.program import costs
from nbattn.program.candidate import Candidate
from nbattn.program.costs import Cost
from nbattn.program.limits import Reason
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request

_DELTA = 1  # launch of the backward's sums over channels
_SINK = 8  # launches of a sink's gradient


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """One candidate per instructions; one for both where no kernel can run."""
    if request.backend not in ("auto", "cuda"):
        return [Candidate("cuda", "window", (), None, None)]
    if found := cuda.absent(request.needs):
        return [Candidate("cuda", "window", (), None, None, tuple(found))]
    return [_candidate(request, axes, instructions) for instructions in cuda.INSTRUCTIONS]


def _candidate(request: Request, axes: Axes, instructions: str) -> Candidate:
    """One call of a instructions's kernels, with the tiles that cost least."""
    found = cuda.reasons(instructions, request.needs, axes)
    build = Build(
        request.dtype,
        request.head_dim,
        request.value_dim,
        cuda.two_runs(axes),
        request.softcap,
        request.key_range,
    )
    passes = {} if found else _passes(request, axes, instructions, build)
    found += passes if isinstance(passes, list) else []
    if isinstance(passes, list) or found:
        return Candidate("cuda", "window", (instructions,), None, None, tuple(found))
    forward, *backward = (one.tiles for one in passes.values())
    arguments = CudaArguments(axes, build, forward, *backward)
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    cost = _cost(request, axes, instructions, build, passes)
    return Candidate("cuda", "window", (instructions,), program, cost)


def _passes(
    request: Request, axes: Axes, instructions: str, build: Build
) -> dict[str, Pass] | list[Reason]:
    """The tiles of every kernel that runs, or what does not fit."""
    kernels = cuda_tiles.KERNELS if request.training else cuda_tiles.KERNELS[:1]
    room, passes = cuda.memory(request.needs), dict[str, Pass]()
    for kernel in kernels:
        heads = request.batch * (request.kv_heads if kernel == "dkdv" else request.heads)
        one = cuda_tiles.choose(kernel, instructions, axes, build, room, heads)
        if one is None:
            text = f"no tile of head_dim {request.head_dim} and value_dim {request.value_dim} fits"
            return [Reason("memory", f"{text} {room} bytes of shared memory")]
        extra = -(-request.extra_keys // one.tiles.row_count) if kernel == "dkdv" else 0
        if (blocks := (one.row_tiles + extra) * heads) > cuda.GRID:
            return [Reason("grid", f"{blocks} blocks are over the grid of {cuda.GRID}")]
        passes[kernel] = one
    rows = request.batch * request.heads * request.query_count
    if request.training and (blocks := -(-rows // cuda_tiles.DELTA_ROWS)) > cuda.GRID:
        return [Reason("grid", f"{blocks} blocks are over the grid of {cuda.GRID}")]
    return passes


def _cost(
    request: Request, axes: Axes, instructions: str, build: Build, passes: dict[str, Pass]
) -> Cost:
    """Pairs of all visits at the rate of the products, lowered by what else a visit takes."""
    sizes = {kernel: cuda_tiles.products(kernel, build) for kernel in passes}
    pairs, work = (
        {kernel: sizes[kernel] * getattr(one, name) for kernel, one in passes.items()}
        for name in ("pairs", "work")
    )
    done = max(sum(pairs.values()), 1)
    launches = _DELTA + 1 + len(cuda_tiles.grads_of("dkdv", build))
    return costs.roofline(
        request,
        useful=geometry.pairs(axes),
        computed=passes["fwd"].pairs,
        calls=1,
        rate=cuda.rate(instructions, request.device, request.dtype)
        * done
        / max(sum(work.values()), done),
        backward=round((done - pairs["fwd"]) / sizes["fwd"] / costs.BACKWARD_FLOPS),
        backward_calls=launches + _SINK * request.sink,
    )

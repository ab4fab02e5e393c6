"""The project's CUDA kernels as candidates: one call on whole tensors per instruction set."""

from __future__ import annotations

from typing import Any

from nbattn.backends.cuda import choice, costs, group_limits
from nbattn.backends.cuda import meaning as cuda
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.choice import Pass
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build
from nbattn.geometry import Axes
from nbattn.program.candidate import Candidate
from nbattn.program.limits import Reason
from nbattn.program.parts import PackedCall, farthest, longest
from nbattn.program.program import Call, Program, whole
from nbattn.program.request import Request


def candidates(request: Request, axes: Axes) -> list[Candidate]:
    """One candidate per instruction set; only one if no kernel can run."""
    if request.backend not in ("auto", "cuda"):
        return [Candidate("cuda", "window", (), None, None)]
    if reasons := cuda.absent(request.needs):
        return [Candidate("cuda", "window", (), None, None, tuple(reasons))]
    return [_candidate(request, axes, instructions) for instructions in cuda.INSTRUCTIONS]


def _candidate(request: Request, axes: Axes, instructions: str) -> Candidate:
    """One call by the kernels of an instruction set, with the tiles that cost least."""
    reasons = cuda.reasons(instructions, request.needs, farthest(request, axes))
    if instructions == "wgmma":
        reasons += group_limits.of_request(request)
    build = Build(
        request.dtype,
        request.head_dim,
        request.value_dim,
        cuda.two_runs(longest(request, axes)),
        request.softcap,
        request.key_range,
        request.extra_keys > 0,
        request.grids is not None,
        request.extra_keys > 0 and request.extra_range,
        request.relative_bias,
        request.alibi_slopes,
    )
    passes = {} if reasons else _passes(request, axes, instructions, build)
    reasons += passes if isinstance(passes, list) else []
    if isinstance(passes, list) or reasons:
        return Candidate("cuda", "window", (instructions,), None, None, tuple(reasons))
    forward, *backward = (chosen.tiles for chosen in passes.values())
    packed = passes["fwd"].packed
    arguments: Any = CudaArguments(longest(request, axes), build, forward, *backward, packed=packed)
    if request.grids is not None:
        arguments = PackedCall(request.mask, request.grids, arguments)
    program = Program((Call(whole(request.query_space), whole(request.key_space), arguments),))
    cost = costs.of(request, axes, build, passes)
    return Candidate("cuda", "window", (instructions,), program, cost)


def _passes(
    request: Request, axes: Axes, instructions: str, build: Build
) -> dict[str, Pass] | list[Reason]:
    """The tiles of every kernel that runs, or the limits that are exceeded."""
    if request.relative_bias and (reason := cuda.table_reason(request.mask)):
        return [reason]
    passes: dict[str, Pass] = {}
    for kernel in cuda_tiles.kernels(build, training=request.training):
        ranked = choice.of_request(kernel, instructions, request, axes, build)
        if not ranked:
            return [_no_tile(kernel, instructions, request, axes, build)]
        chosen = ranked[0]
        if (blocks := choice.blocks(kernel, chosen, request)) > cuda.GRID:
            return [Reason("grid", f"{blocks} blocks are over the grid of {cuda.GRID}")]
        passes[kernel] = chosen
    rows = request.batch * request.heads * request.query_count
    per_block = cuda_tiles.delta_rows(request.dtype, request.value_dim)
    if request.training and (blocks := -(-rows // per_block)) > cuda.GRID:
        return [Reason("grid", f"{blocks} blocks are over the grid of {cuda.GRID}")]
    return passes


def _no_tile(kernel: str, instructions: str, request: Request, axes: Axes, build: Build) -> Reason:
    """Why no tile of a kernel can run a request."""
    if fitting := choice.fitting(kernel, instructions, request, axes, build):
        why = group_limits.unmapped(kernel, fitting[0].tiles, request, axes)
        return Reason("layout", f"takes what tensor maps can say: {why}")
    memory = cuda.memory(request.needs)
    text = f"no tile of head_dim {request.head_dim} and value_dim {request.value_dim} fits"
    return Reason("memory", f"{text} {memory} bytes of shared memory")
